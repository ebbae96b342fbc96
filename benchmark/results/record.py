"""What a record holds, how it is read and checked, and how a run ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.io.untrusted import UntrustedInputError, read_text_limited
from benchmark.results.provenance import anonymise

Status = Literal["finished", "failed"]


class RecordStatus(NamedTuple):
    """How a run ended, and the hash of its method's code then (`benchmark.plugins.source`), if its record has it."""

    status: Status
    code: str | None


RECORD_FORMAT = 2
"""The format that is written. Format 1 is the same without a checksum."""
READABLE_FORMATS = (1, RECORD_FORMAT)
"""A format that was ever written is read for good."""
MAX_RECORD_BYTES = 16 * 2**20
"""100 times the record of 240 epochs of a method with four branches."""
WEIGHT_FILES = ("student", "method")
"""The parts of a run that may leave weights."""
RETRAIN_HINT = "the command that trained it puts it aside and trains the run again"

Record = dict[str, Any]
Real = Annotated[float, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=0, le=2**63)]
Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


class _Figures(BaseModel):
    """The figures of an epoch that tables and plots are made of."""

    epoch: Count | None = None
    top1: Real | None = None
    top5: Real | None = None
    nll: Real | None = None
    ece: Real | None = None
    loss: Real | None = None
    stages: list[Real] | None = None
    stages_joint: list[Real] | None = None


class _Provenance(BaseModel):
    """The facts of a training that the suite computes with."""

    seconds: Amount | None = None
    seconds_of_its_own: Amount | None = None
    seconds_of_its_teacher: Amount = 0.0
    processes: Count = 1
    cohort: list[str] = []


class _ReadFields(BaseModel):
    """The types of the fields that the suite computes with; other fields of a record are not checked."""

    epochs: list[_Figures] = []
    final: _Figures = _Figures()
    best_on_test: _Figures = _Figures()
    cost: dict[str, Amount] = {}
    provenance: _Provenance


class CorruptRecord(UserError):
    """A record that is not what was written."""


class OtherVersion(UserError):
    """A whole record of a format that this version does not read."""


class CorruptRun(CorruptRecord):
    """The record or the weights of a run are not what was written, or have gone; it must be trained again."""

    def __init__(self, run: Run, reason: str) -> None:
        super().__init__(run, reason)
        self.run, self.reason = run, reason

    def __str__(self) -> str:
        return self.reason


def compute_checksum(record: Mapping[str, Any]) -> str:
    """The sha256, in hex, of a record without the field `sha256`, as canonical JSON."""
    rest = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_record(text: str) -> Record:
    """The record that a `record.json` holds, verified by its checksum.

    Raises:
        CorruptRecord: it is not what was written.
        OtherVersion: it is whole, and of another format.
    """
    try:
        record = json.loads(text)
        if not isinstance(record, dict):
            raise CorruptRecord("it is no record")
        checksum = compute_checksum(record)
    except (ValueError, RecursionError) as error:
        raise CorruptRecord("it is no JSON") from error
    written, version = record.get("sha256"), record.get("format")
    # Format 1 has no checksum; the digest covers its specification.
    has_no_checksum = written is None and version == 1
    if written != checksum and not has_no_checksum:
        raise CorruptRecord("its checksum differs")
    if version not in READABLE_FORMATS:
        raise OtherVersion(f"it is of format {version!r}, and this version reads formats 1 to {RECORD_FORMAT}")
    try:
        if record["status"] not in ("finished", "failed"):
            raise ValueError("unknown status")
        for part in ("id", "digest", "provenance", "final" if record["status"] == "finished" else "reason"):
            record[part]
        if not set(record["weights"]) <= set(WEIGHT_FILES):
            raise ValueError("unknown weights")
        _ReadFields.model_validate(record)
        run = Run.model_validate(record["run"])
        if has_no_checksum and run.digest != record["digest"]:
            raise ValueError("the specification is not that of the digest")
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        raise CorruptRecord(f"it is no record: {type(error).__name__}") from error
    return record


def comparable_part(record: Record) -> dict[str, Any]:
    """What must be equal, bit by bit, when a run is repeated: everything but the provenance and the checksum."""
    return {key: value for key, value in record.items() if key not in ("provenance", "sha256")}


def anonymise_record(record: Record) -> Record:
    """A record as it may be published (see `provenance.anonymise`), with the checksum of what is left."""
    published = record | {"provenance": anonymise(record["provenance"])}
    return published | ({"sha256": compute_checksum(published)} if "sha256" in record else {})


def get_status(record: Record) -> RecordStatus:
    """How the run of a record ended."""
    code = record["provenance"].get("method_code")
    # A record from elsewhere may hold anything there.
    return RecordStatus(record["status"], code if isinstance(code, str) else None)


def read_record(path: Path) -> Record:
    """The record in a file.

    Raises:
        FileNotFoundError: there is none.
        UserError: it cannot be read, is damaged (CorruptRecord) or of another version (OtherVersion).
    """
    try:
        return parse_record(read_text_limited(path, MAX_RECORD_BYTES))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"record {path} cannot be read: {error.strerror or error}; make it readable") from error
    except UnicodeDecodeError as error:
        raise CorruptRecord(f"record {path} is damaged (it is no text); {RETRAIN_HINT}") from error
    except UntrustedInputError as error:
        raise CorruptRecord(f"record {path} is damaged (it {error}); {RETRAIN_HINT}") from error
    except CorruptRecord as error:
        raise CorruptRecord(f"record {path} is damaged ({error}); {RETRAIN_HINT}") from error
    except OtherVersion as error:
        raise OtherVersion(
            f"record {path} was made by another version of the suite ({error}); use that version, or another --runs"
        ) from error


def is_damaged(record: Path) -> bool:
    """Whether a file holds no record as it was written."""
    try:
        read_record(record)
    except CorruptRecord:
        return True
    return False
