"""Weights that somebody else trained: a file counts only if all of it is what its record and its network say."""

from __future__ import annotations

import hashlib

import safetensors
import safetensors.torch
from torch import Tensor

from benchmark.backbones import is_network
from benchmark.backbones.shapes import MAX_CLASSES, count_classes, list_tensors
from benchmark.core.spec import Run
from benchmark.io.untrusted import UntrustedInputError, escape_control_chars

MAX_HEADER_BYTES = 2**20
"""The header of the suite's largest network has 90,000."""
METHOD_FACTOR = 20
"""A method's modules may take so many times the bytes of a student. The largest are HSSAKD's, a branch for each stage,
each about the network again with four outputs for a class: 6 times on ResNet18."""


def compute_max_bytes(run: Run, part: str) -> int:
    """The most bytes that the weights of a part (`student` or `method`) of a run can have.

    Raises:
        UntrustedInputError: this version of the suite does not have its network.
    """
    if not is_network(run.student):
        raise UntrustedInputError(f"its network {escape_control_chars(run.student)} is none of this version")
    total = sum(shape.numel() * dtype.itemsize for dtype, shape in list_tensors(run.student, MAX_CLASSES).values())
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
    if part == "student" and not _fits(run.student, tensors):
        raise UntrustedInputError(f"does not hold the weights of {run.student}")
    if infinite:
        raise UntrustedInputError(f"holds numbers that are not finite, in {escape_control_chars(infinite[0])}")


def _fits(network: str, tensors: dict[str, Tensor]) -> bool:
    """Whether tensors are those of a network, for whatever number of classes."""
    kinds = {name: kind for name, (kind, _) in list_tensors(network, 2).items()}
    return count_classes(network, tensors) is not None and kinds == {key: tensors[key].dtype for key in tensors}


def _is_finite(tensor: Tensor) -> bool:
    # Kinds of one byte cannot be asked.
    return bool((tensor.float() if tensor.itemsize == 1 else tensor).isfinite().all())
