"""Distillation methods, a file each: its losses as pure functions, and the class that wires them."""
