"""Random streams derived from names.

Nothing in the suite draws from a shared, advancing generator: each stream is named by what it is for, so adding a
method, a run or a parameter never moves another stream's numbers, and a resumed run needs no generator state.
"""

from __future__ import annotations

import hashlib
import json

import torch

Name = str | int | float


def seed_of(*names: Name) -> int:
    """A seed in [0, 2**63) that depends on every name and on their order, and on nothing else."""
    digest = hashlib.sha256(json.dumps(names, separators=(",", ":")).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*names: Name, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on `device`, seeded by the names."""
    return torch.Generator(device).manual_seed(seed_of(*names))
