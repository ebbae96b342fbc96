"""Weights that somebody else trained: a safetensors file is checked from its first byte to its last before it counts.

The file is a header's length (8 bytes), a header of JSON that says where each tensor is, and the tensors. It is read
once, a piece at a time, and may be copied on the way, so that what was checked is what was copied.
"""

from __future__ import annotations

import functools
import hashlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch

from benchmark.backbones import build_network, is_network
from benchmark.core.spec import Run
from benchmark.io.untrusted import UntrustedInputError, escape_control_chars, parse_json_limited, sized

MOST_CLASSES = 25_000
"""Of a dataset: more than ImageNet has in whole (21,841)."""
MOST_HEADER = 2**20
"""Bytes of a header; that of the suite's largest network has 90,000."""
OF_A_METHOD = 20
"""So many times a student's weights, at most, may a method's modules take: the largest, HSSAKD's, are a branch for each
stage, each about the network again with four outputs for a class: 6 times on ResNet18."""
PIECE = 2**22
"""Bytes read at a time; a multiple of every number's size."""
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of a number, by its kind's name in a header."""
NAMES = {torch.float32: "F32", torch.int64: "I64"}
"""The names of the kinds that networks are made of."""

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""Kind and shape of each tensor, by name."""


@dataclass(frozen=True)
class _Tensor:
    name: str
    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


def largest(run: Run, part: str) -> int:
    """The most bytes that the weights of a part (`student` or `method`) of a run can have.

    Raises:
        Refused: this version of the suite does not have its network.
    """
    if not is_network(run.student):
        raise UntrustedInputError(f"its network {escape_control_chars(run.student)} is none of this version")
    shapes = _shapes(run.student, MOST_CLASSES)
    whole = sum(math.prod(shape) * SIZES[kind] for kind, shape in shapes.values())
    return whole * (1 if part == "student" else OF_A_METHOD) + MOST_HEADER


@functools.lru_cache(maxsize=256)
def _shapes(network: str, classes: int) -> Shapes:
    # On no device: only shapes are wanted.
    with torch.device("meta"):
        tensors = build_network(network, classes).state_dict()
    return {name: (NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}


def read_weights(source: BinaryIO, run: Run, part: str, sha256: str, target: BinaryIO | None = None) -> int:
    """Read the weights of a part of a run to their end, check all of it, and copy them if there is a target.

    Returns their size in bytes.

    Raises:
        Refused: the file is no safetensors file, does not hold the weights of the run's network, holds numbers that are
            not finite, or does not have this sha256. What was copied by then is worth nothing.
    """
    digest, read = hashlib.sha256(), 0
    pieces = _Pieces(source)
    begin = pieces.take(8)
    (length,) = struct.unpack("<Q", begin)
    if length > MOST_HEADER:
        raise UntrustedInputError(f"is no safetensors file: its header would have {sized(length)}")
    header = pieces.take(length)
    tensors = _tensors(header)
    if part == "student":
        _check_network(tensors, run.student)
    for piece in (begin, header):
        digest.update(piece)
        read += len(piece)
        if target:
            target.write(piece)
    for tensor in tensors:
        for piece in pieces.of(tensor.end - tensor.begin):
            if not _is_finite(piece, tensor.kind):
                raise UntrustedInputError(f"holds numbers that are not finite, in {escape_control_chars(tensor.name)}")
            digest.update(piece)
            read += len(piece)
            if target:
                target.write(piece)
    if source.read(1):
        raise UntrustedInputError("has more bytes than its header tells of")
    if digest.hexdigest() != sha256:
        raise UntrustedInputError("does not have the checksum that the record names")
    return read


class _Pieces:
    """Takes bytes from a file that may be shorter than it should."""

    def __init__(self, source: BinaryIO) -> None:
        self.source = source

    def take(self, count: int) -> bytes:
        try:
            content = self.source.read(count)
        except OSError as error:
            raise UntrustedInputError(f"cannot be read: {error.strerror}") from error
        if len(content) < count:
            raise UntrustedInputError("is cut short, or is no safetensors file")
        return content

    def of(self, count: int) -> Iterator[bytes]:
        for start in range(0, count, PIECE):
            yield self.take(min(PIECE, count - start))


def _tensors(header: bytes) -> list[_Tensor]:
    """What a header tells of, in the order of its place: the tensors fill the file without gap or overlap."""
    try:
        entries = parse_json_limited(header.decode("utf-8"), deepest=3)
    except UnicodeDecodeError as error:
        raise UntrustedInputError("is no safetensors file: its header is no text") from error
    except UntrustedInputError as reason:
        raise UntrustedInputError(f"is no safetensors file: its header {reason}") from reason
    if not isinstance(entries, dict):
        raise UntrustedInputError("is no safetensors file: its header names no tensors")
    entries.pop("__metadata__", None)
    found = sorted(
        (_tensor(name, entry) for name, entry in entries.items()), key=lambda tensor: (tensor.begin, tensor.end)
    )
    place = 0
    for tensor in found:
        size = math.prod(tensor.shape) * SIZES[tensor.kind]
        if tensor.begin != place or tensor.end != place + size:
            raise UntrustedInputError(
                f"is no safetensors file: {escape_control_chars(tensor.name)} is not where its shape says"
            )
        place = tensor.end
    if not found:
        raise UntrustedInputError("holds no tensors")
    return found


def _tensor(name: str, entry: Any) -> _Tensor:
    def whole(values: Any) -> tuple[int, ...] | None:
        right = isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
        return tuple(values) if right else None

    if isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}:
        kind, shape, place = str(entry["dtype"]), whole(entry["shape"]), whole(entry["data_offsets"])
        if kind in SIZES and shape is not None and len(shape) <= 8 and place is not None and len(place) == 2:
            return _Tensor(name, kind, shape, *place)
    raise UntrustedInputError(
        f"is no safetensors file: its header says nothing sensible of {escape_control_chars(name)}"
    )


def _check_network(tensors: list[_Tensor], network: str) -> None:
    """Refuse weights that are not those of a network, for whatever number of classes."""
    found: Shapes = {tensor.name: (tensor.kind, tensor.shape) for tensor in tensors}
    two, three = _shapes(network, 2), _shapes(network, 3)
    # The axes whose length is the number of classes: those in which a network for two differs from one for three.
    lengths = {
        length
        for name, (_, shape) in found.items()
        if name in two and len(shape) == len(two[name][1])
        for length, small, large in zip(shape, two[name][1], three[name][1], strict=True)
        if small != large
    }
    classes = lengths.pop() if len(lengths) == 1 else 0
    if not 2 <= classes <= MOST_CLASSES or found != _shapes(network, classes):
        raise UntrustedInputError(f"does not hold the weights of {network}")


def _is_finite(piece: bytes, kind: str) -> bool:
    if kind == "BF16":
        # A number of bfloat16 is the upper half of one of float32; all bits of its exponent set: not finite.
        halves = np.frombuffer(piece, "<u2")
        return not bool(((halves & 0x7F80) == 0x7F80).any())
    return not kind.startswith("F") or bool(np.isfinite(np.frombuffer(piece, f"<f{SIZES[kind]}")).all())
