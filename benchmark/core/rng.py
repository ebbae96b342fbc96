"""Random streams derived from names.

The suite never draws from a shared generator. Each stream is named by its purpose, so that adding a method, a run or a
parameter changes the numbers of no other stream, and a resumed run needs no generator state.
"""

from __future__ import annotations

import hashlib
import json

import torch

Name = str | int | float


def seed_of(*names: Name) -> int:
    """Compute a seed in [0, 2**63) from the names and their order."""
    digest = hashlib.sha256(json.dumps(names, separators=(",", ":")).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*names: Name, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator on `device`, seeded by the names."""
    return torch.Generator(device).manual_seed(seed_of(*names))
