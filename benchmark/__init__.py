"""A reproducibility benchmark suite for knowledge distillation."""

__version__ = "0.2.0"
