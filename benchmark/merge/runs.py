"""Runs that somebody else trained: everything in their records and weights that can be checked is checked.

This is more than a checksum shows, because reports print numbers and names from records, and name files after them.
Weights count only if all of them are what their record and their network say.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import safetensors
import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from benchmark.backbones import is_network
from benchmark.backbones.shapes import MAX_CLASSES, count_classes, list_tensors
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.io.json_diff import canonical
from benchmark.io.untrusted import (
    DirEntry,
    ForeignFolder,
    UntrustedInputError,
    escape_control_chars,
    parse_json_limited,
)
from benchmark.results.record import MAX_RECORD_BYTES, RECORD_FORMAT, Record, compute_checksum, parse_record
from benchmark.results.store import MAX_METRICS_BYTES

LARGEST_SPECIFICATION = 2**18
"""Characters: 10 times the specification of a student with its teacher, its head and all their options."""
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What names of datasets, protocols and scales are made of: reports name files after them."""
FIGURES_FILE = re.compile(r"([0-9a-f]{64})\.json")
MAX_HEADER_BYTES = 2**20
"""The header of the suite's largest network has 90,000."""
METHOD_FACTOR = 20
"""A method's modules may take so many times the bytes of a student. The largest are HSSAKD's, a branch for each stage,
each about the network again with four outputs for a class: 6 times on ResNet18."""

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
Percent = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=0)]
Fact = str | int | float | bool | None | list[str]
_Pieces = Annotated[list[dict[Word, str | int | None]], Field(max_length=10_000)]
"""More than a run has that was interrupted in every epoch."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Measured(_Closed):
    """What `benchmark.training.evaluation` measures."""

    top1: Percent | None = None
    top5: Percent | None = None
    nll: float | None = None
    ece: Percent | None = None
    stages: list[Percent] | None = Field(None, max_length=16)
    stages_joint: list[Percent] | None = Field(None, max_length=16)


class _Epoch(_Measured):
    """A line of `epochs.jsonl`."""

    epoch: int = Field(ge=1)
    loss: float
    terms: dict[str, float] = Field({}, max_length=64)


class _Cost(_Closed):
    images: Count
    image_size: Count
    parameters: Count
    parameters_in_training: Count
    multiply_adds: Count
    training_multiply_adds: Count


class _Moment(_Closed):
    epoch: Count
    step: Count


class _Written(_Closed):
    """A record as training writes it, of either status."""

    format: int
    sha256: Hash
    id: str
    digest: Hash
    run: dict[str, Any]
    status: Literal["finished", "failed"]
    epochs: list[_Epoch]
    weights: dict[Literal["student", "method"], Hash]
    provenance: dict[Word, Fact | _Pieces] = Field(max_length=64)
    final: _Epoch | None = None
    best_on_test: _Epoch | None = None
    cost: _Cost | None = None
    reason: str | None = None
    failed_at: _Moment | None = None

    @field_validator("provenance")
    @classmethod
    def _check_pieces(cls, value: dict[str, Any]) -> dict[str, Any]:
        pieces = value.get("pieces", [])
        if not isinstance(pieces, list) or not all(isinstance(part, dict) for part in pieces):
            raise ValueError("pieces are no list of pieces")
        return value


@dataclass(frozen=True)
class Offer:
    """A run of somebody else's whose record has passed all checks that need no weights; size: its characters."""

    run: Run
    record: Record
    size: int


def find_link(entries: list[DirEntry]) -> str | None:
    """Why a folder with these entries is refused: one is a link, or neither a file nor a folder; None if none is."""
    for entry in entries:
        if entry.kind == "link":
            return f"{escape_control_chars(entry.name)} is a link"
        if entry.kind == "special":
            return f"{escape_control_chars(entry.name)} is neither a file nor a folder"
    return None


def read_offer(folder: ForeignFolder, dataset: str, name: str) -> Offer:
    """The run in the folder `name` of a dataset's folder `dataset`.

    Raises:
        UntrustedInputError: it has a link or a special file, or its record is not one that this version would write.
    """
    if link := find_link(folder.entries()):
        raise UntrustedInputError(link)
    text = folder.text("record.json", MAX_RECORD_BYTES)
    try:
        record = _checked_record(text)
    except UntrustedInputError as reason:
        raise UntrustedInputError(f"record.json {reason}") from reason
    return Offer(_checked_run(record, dataset, name), record, len(text))


def _checked_record(text: str) -> Record:
    record = parse_json_limited(text)
    if not isinstance(record, dict):
        raise UntrustedInputError("is no record")
    if record.get("format") != RECORD_FORMAT:
        raise UntrustedInputError(
            f"is of format {escape_control_chars(record.get('format'), 20)}, this version reads format {RECORD_FORMAT}"
        )
    if record.get("sha256") != compute_checksum(record):
        raise UntrustedInputError("does not match its checksum")
    try:
        written = _Written.model_validate(record)
        parsed: Record = parse_record(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UntrustedInputError(
            f"is no record: {escape_control_chars(place, 80)}: {escape_control_chars(first['msg'], 120)}"
        ) from error
    except UserError as error:
        raise UntrustedInputError(f"is refused: {escape_control_chars(error)}") from error
    _check_consistent(written)
    return parsed


def _check_consistent(written: _Written) -> None:
    """Refuse a record that contradicts itself, so that no report shows what training never wrote."""
    if [figures.epoch for figures in written.epochs] != list(range(1, len(written.epochs) + 1)):
        raise UntrustedInputError("does not count its epochs from 1 on")
    if written.status == "failed":
        if written.reason is None or written.final or written.weights:
            raise UntrustedInputError("is of a failed run, and has no reason, or has results")
        return
    if written.reason is not None or not written.epochs or written.final != written.epochs[-1] or not written.weights:
        raise UntrustedInputError(
            "is of a finished run, and its results are not those of its last epoch, or it names no weights"
        )
    if written.best_on_test is not None and written.best_on_test not in written.epochs:
        raise UntrustedInputError("names a best epoch that is none of its epochs")


def _checked_run(record: Record, dataset: str, name: str) -> Run:
    """The run of a record, if both it and where it lies are what the record says."""
    specification = canonical(record["run"])
    if len(specification) > LARGEST_SPECIFICATION:
        raise UntrustedInputError(f"its specification has {len(specification):,} characters")
    run = Run.model_validate(record["run"])
    if run.content != specification:
        raise UntrustedInputError("its specification is not written as this version writes it")
    if record["digest"] != run.digest:
        raise UntrustedInputError("its digest is not that of its specification")
    if record["id"] != run.id or name != run.id:
        raise UntrustedInputError(f"its folder is not named after its run, {escape_control_chars(run.id)}")
    for word in (run.dataset, run.protocol.name, run.scale.name):
        if not FILE_NAME.fullmatch(word):
            raise UntrustedInputError(
                f"it names a dataset, protocol or scale {escape_control_chars(word, 60)}, which could not name a file"
            )
    if run.dataset != dataset:
        raise UntrustedInputError(f"it is of dataset {run.dataset}, and lies in another's folder")
    if record["status"] == "finished" and len(record["epochs"]) != run.schedule.epochs:
        raise UntrustedInputError(f"it has {len(record['epochs'])} epochs, its schedule {run.schedule.epochs}")
    if len(record["epochs"]) > run.schedule.epochs:
        raise UntrustedInputError(f"it has more epochs than its schedule, {run.schedule.epochs}")
    return run


def read_weights(folder: ForeignFolder, offer: Offer, part: str) -> bytes:
    """The content of the file of weights of a part (`student` or `method`) of a run, checked.

    Raises:
        UntrustedInputError: it is missing, too large, damaged, of another network, or not finite.
    """
    name, most = f"{part}.safetensors", compute_max_bytes(offer.run, part)
    try:
        with folder.file(name, most) as opened:
            content = opened.read(most)
    except OSError as error:
        raise UntrustedInputError(f"{name} cannot be read: {error.strerror}") from error
    try:
        _check_weights(content, offer.run, part, offer.record["weights"][part])
    except UntrustedInputError as reason:
        raise UntrustedInputError(f"{name} {reason}") from reason
    return content


def compute_max_bytes(run: Run, part: str) -> int:
    """The most bytes that the weights of a part (`student` or `method`) of a run can have.

    Raises:
        UntrustedInputError: this version of the suite does not have its network.
    """
    if not is_network(run.student):
        raise UntrustedInputError(f"its network {escape_control_chars(run.student)} is none of this version")
    total = sum(shape.numel() * dtype.itemsize for dtype, shape in list_tensors(run.student, MAX_CLASSES).values())
    return total * (1 if part == "student" else METHOD_FACTOR) + MAX_HEADER_BYTES


def _check_weights(content: bytes, run: Run, part: str, sha256: str) -> None:
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


def read_figures(folder: ForeignFolder, name: str) -> tuple[str, dict[str, float]]:
    """The sha256 of a teacher's file and what that teacher reaches, from a file of a dataset's folder `teachers`.

    Raises:
        UntrustedInputError: it is not what the suite writes there.
    """
    match = FIGURES_FILE.fullmatch(name)
    if match is None:
        raise UntrustedInputError("its name is not a sha256")
    try:
        figures = parse_json_limited(folder.text(name, MAX_METRICS_BYTES), deepest=2)
        if not isinstance(figures, dict) or figures.pop("sha256", None) != compute_checksum(figures):
            raise UntrustedInputError("does not match its checksum")
        _Measured.model_validate(figures)
    except ValidationError as error:
        raise UntrustedInputError(
            f"holds no figures of a teacher: {escape_control_chars(error.errors()[0]['loc'], 80)}"
        ) from error
    return match[1], figures
