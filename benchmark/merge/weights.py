"""Weights that somebody else trained: a file counts only if all of it is what its record and its network say."""

from __future__ import annotations

import functools
import hashlib

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from benchmark.backbones import build_network, is_network
from benchmark.core.spec import Run
from benchmark.io.untrusted import UntrustedInputError, escape_control_chars

MAX_CLASSES = 25_000
"""Of a dataset: more than ImageNet has in whole (21,841)."""
MAX_HEADER_BYTES = 2**20
"""The header of the suite's largest network has 90,000."""
METHOD_FACTOR = 20
"""A method's modules may take so many times the bytes of a student. The largest are HSSAKD's, a branch for each stage,
each about the network again with four outputs for a class: 6 times on ResNet18."""

Shapes = dict[str, tuple[torch.dtype, torch.Size]]
"""Kind and shape of each tensor, by name."""


def compute_max_bytes(run: Run, part: str) -> int:
    """The most bytes that the weights of a part (`student` or `method`) of a run can have.

    Raises:
        UntrustedInputError: this version of the suite does not have its network.
    """
    if not is_network(run.student):
        raise UntrustedInputError(f"its network {escape_control_chars(run.student)} is none of this version")
    total = sum(shape.numel() * dtype.itemsize for dtype, shape in _compute_shapes(run.student, MAX_CLASSES).values())
    return total * (1 if part == "student" else METHOD_FACTOR) + MAX_HEADER_BYTES


def check_weights(content: bytes, run: Run, part: str, sha256: str) -> None:
    """Check the weights of a part of a run.

    Raises:
        UntrustedInputError: they do not have this sha256, are no safetensors file, are not those of the run's network,
            or hold numbers that are not finite.
    """
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UntrustedInputError("does not have the checksum that the record names")
    try:
        tensors = safetensors.torch.load(content)
        infinite = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UntrustedInputError("is no safetensors file of the suite") from error
    if not tensors:
        raise UntrustedInputError("holds no tensors")
    if part == "student":
        _check_network(tensors, run.student)
    if infinite:
        raise UntrustedInputError(f"holds numbers that are not finite, in {escape_control_chars(infinite[0])}")


def _check_network(tensors: dict[str, Tensor], network: str) -> None:
    """Refuse weights that are not those of a network, for whatever number of classes."""
    shapes: Shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    two, three = _compute_shapes(network, 2), _compute_shapes(network, 3)
    # The axes whose length is the number of classes: those in which a network for two differs from one for three.
    lengths = {
        length
        for name, (_, shape) in shapes.items()
        if name in two and len(shape) == len(two[name][1])
        for length, small, large in zip(shape, two[name][1], three[name][1], strict=True)
        if small != large
    }
    classes = lengths.pop() if len(lengths) == 1 else 0
    if not 2 <= classes <= MAX_CLASSES or shapes != _compute_shapes(network, classes):
        raise UntrustedInputError(f"does not hold the weights of {network}")


def _is_finite(tensor: Tensor) -> bool:
    # Kinds of one byte cannot be asked.
    return bool((tensor.float() if tensor.itemsize == 1 else tensor).isfinite().all())


@functools.lru_cache(maxsize=256)
def _compute_shapes(network: str, classes: int) -> Shapes:
    # On no device: only shapes are wanted.
    with torch.device("meta"):
        tensors = build_network(network, classes).state_dict()
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
