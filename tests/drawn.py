"""Golden cases whose inputs and weights are not stored but drawn anew from their seeds, to keep the files small."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from tests.support import GOLDEN, Case


@cache
def _drawn(file: str, case: str) -> dict[str, Tensor]:
    """The drawn tensors of a case as float64, by `<role>.<name>`.

    What is drawn stands as JSON in `<case>.draw`: the scale of the inputs, seed and shape of each tensor, and a digest.
    The numbers are those of NumPy's RandomState, whose stream is frozen, in float32; the digest tells whether they are
    the very ones that the file's expected values were computed from.
    """
    with np.load(GOLDEN / f"losses_{file}.npz") as stored:
        if f"{case}.draw" not in stored:
            return {}
        draw = json.loads(str(stored[f"{case}.draw"]))
    digest, tensors = hashlib.sha256(), {}
    for key, (seed, *shape) in draw["tensors"].items():
        normal = np.random.RandomState(seed).standard_normal(shape)
        if key.startswith("in."):
            normal *= draw["input_scale"]
        elif len(shape) > 1:
            normal /= np.sqrt(np.prod(shape[1:]))
        else:
            normal = 0.1 * normal + (1.0 if key.endswith("weight") else 0.0)
        array = normal.astype(np.float32)
        digest.update(array.tobytes())
        tensors[key] = torch.from_numpy(array).double()
    assert digest.hexdigest() == draw["sha256"], f"{file}, {case}: these are not the tensors of the golden case"
    return tensors


@dataclass(frozen=True)
class DrawnCase(Case):
    """A golden case some of whose tensors are drawn."""

    def input(self, name: str) -> Tensor:
        drawn = _drawn(self.file, self.name)
        return drawn[f"in.{name}"] if f"in.{name}" in drawn else super().input(name)

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        start = f"w.{prefix}"
        drawn = _drawn(self.file, self.name)
        return {key[len(start) :]: tensor for key, tensor in drawn.items() if key.startswith(start)} | super().weights(
            prefix
        )
