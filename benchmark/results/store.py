"""The record store: one folder for each run, written so that a reader sees a whole record or none.

`<root>/<dataset>/<run id>/` holds `run.json` (the specification), `epochs.jsonl` (a line for each epoch, written while
the run trains), `student.safetensors`, for heads and joint teachers `method.safetensors`, and `record.json`, written
last; `error.txt` if an error ended the last attempt.

A record carries a checksum of itself and those of its weights. A file that does not match its checksum is never used:
commands that only read report it; commands that train rename it to `damaged-<name>-<n>` and train the run again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
from pydantic import TypeAdapter
from torch import Tensor

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.io.files import (
    compute_sha256,
    quarantine_file,
    remove_leftovers,
    replacing,
    restore,
    save_tensors,
    write_text,
)
from benchmark.io.untrusted import UntrustedInputError, escape_control_chars, read_text_limited
from benchmark.results import index
from benchmark.results.record import (
    RECORD_FORMAT,
    CorruptRecord,
    CorruptRun,
    Record,
    Status,
    compute_checksum,
    is_damaged,
    read_record,
)

if TYPE_CHECKING:
    import pandas as pd

MAX_METRICS_BYTES = 2**12
"""Of the file that holds what a teacher from a file reaches."""
_METRICS = TypeAdapter(dict[str, float], config={"allow_inf_nan": False})


class Store:
    """The runs under one folder. Any number of processes may read and write it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, run: Run) -> Path:
        """Where a run's files are.

        Raises:
            UserError: the run is of a record from elsewhere, and its dataset's name would lead out of the store.
        """
        if run.dataset in ("", "..") or Path(run.dataset).name != run.dataset:
            raise UserError(
                f"dataset {escape_control_chars(run.dataset)} cannot be the name of a folder; delete the run's record"
            )
        return self.root / run.dataset / run.id

    def traceback(self, run: Run) -> Path:
        """Where the traceback of the error is that ended the last attempt at a run, if one did."""
        return self.folder(run) / "error.txt"

    def cohorts(self, dataset: str) -> Path:
        """Where the checkpoints of a dataset's unfinished cohorts are."""
        return self.root / dataset / "cohorts"

    def record(self, run: Run) -> Record | None:
        """The record of a finished or failed run, or None.

        Raises:
            CorruptRun: the record is damaged.
            UserError: it is of another version, belongs to another run, or cannot be read.
        """
        path = self.folder(run) / "record.json"
        try:
            record = read_record(path)
        except FileNotFoundError:
            return None
        except CorruptRecord as error:
            raise CorruptRun(run, str(error)) from error
        if record["digest"] != run.digest:
            raise UserError(f"record {path} belongs to another run; delete its folder to train this one again")
        return record

    def has_record(self, run: Run) -> bool:
        """Whether the run has a record, of success or of failure; it is not read."""
        return (self.folder(run) / "record.json").exists()

    def statuses(self, runs: Iterable[Run]) -> dict[Run, Status | None]:
        """How some runs ended, None for those that have no record.

        Fast for many runs: records that were read before are taken from the index, as in `load`.

        Raises:
            UserError: see `record`.
        """
        statuses = index.read_statuses(self.root, runs, self.record)
        return {run: status and status.status for run, status in statuses.items()}

    def code_hashes(self, runs: Iterable[Run]) -> dict[Run, str | None]:
        """The hash of the method's code that trained each run with a record; None where the record has no hash.

        Raises:
            UserError: see `record`.
        """
        statuses = index.read_statuses(self.root, runs, self.record)
        return {run: status.code for run, status in statuses.items() if status}

    def missing(self, runs: Iterable[Run], retry_failed: bool = False) -> list[Run]:
        """The runs that are still to be trained: without a record or, with `retry_failed`, without one of success.

        Raises:
            UserError: see `record`.
        """
        done = ("finished",) if retry_failed else ("finished", "failed")
        return [run for run, status in self.statuses(runs).items() if status not in done]

    def begin(self, run: Run) -> None:
        """Write the specification of a run that is about to be trained; only the holder of its lease may."""
        remove_leftovers(self.folder(run))
        write_text(self.folder(run) / "run.json", run.require_data().model_dump_json(indent=1) + "\n")

    def write_epochs(self, run: Run, epochs: list[dict[str, Any]]) -> None:
        """Write the figures of all epochs so far, a line for each."""
        write_text(self.folder(run) / "epochs.jsonl", "".join(json.dumps(figures) + "\n" for figures in epochs))

    def finish(self, run: Run, record: Record, weights: dict[str, dict[str, Tensor]]) -> None:
        """Write the weights (`student`, `method`) and then the record, after which the run counts as finished."""
        identity = {
            "format": RECORD_FORMAT,
            "id": run.id,
            "digest": run.digest,
            "run": run.require_data().model_dump(mode="json"),
        }
        digests = {}
        for part, tensors in weights.items():
            path = self.folder(run) / f"{part}.safetensors"
            with replacing(path) as file:
                save_tensors(file.temporary, tensors)
                digests[part] = compute_sha256(file.temporary)
        # The checksum is of what a reader will have: JSON has no tuples, and no keys but texts.
        written = json.loads(json.dumps({**identity, **record, "weights": digests}))
        text = json.dumps(written | {"sha256": compute_checksum(written)}, indent=1)
        write_text(self.folder(run) / "record.json", text + "\n")

    def weights(self, run: Run, part: str = "student") -> dict[str, Tensor]:
        """The weights of a finished run, verified by checksum.

        Raises:
            CorruptRun: they or the record are damaged or have gone.
            UserError: the run leaves no such weights.
        """
        record = self.record(run)
        path = self.folder(run) / f"{part}.safetensors"
        if record is None:
            raise CorruptRun(run, f"{path} has no record beside it; call the command that trains {run.id} again")
        if part not in record["weights"]:
            raise UserError(f"{run.id} left no {path.name}; choose another run")
        try:
            # A pipe would be waited for.
            if not path.is_file():
                raise FileNotFoundError
            # Read once: what was verified is what is used.
            content = path.read_bytes()
        except FileNotFoundError:
            raise CorruptRun(run, f"{path} is not there; delete its folder to train the run again") from None
        if hashlib.sha256(content).hexdigest() != record["weights"][part]:
            reason = f"{path} is damaged (its checksum differs); delete its folder to train the run again"
            raise CorruptRun(run, reason)
        return safetensors.torch.load(content)

    def quarantine(self, run: Run) -> list[str]:
        """Rename what is damaged of a run to `damaged-<name>-<n>`, so that the run counts as not trained.

        A record whose weights are damaged or have gone is renamed with them. Nothing is deleted, and whole files stay,
        so several processes may do this at once. Returns a line on each renamed file.
        """
        folder, path = self.folder(run), self.folder(run) / "record.json"
        try:
            record = self.record(run)
        except CorruptRun:
            return _quarantine_if(path, is_damaged)
        if record is None:
            return []
        lines: list[str] = []
        for part in _damaged_parts(folder, record):
            # If another process has renamed the record meanwhile, the weights may be those of its next training.
            differs = functools.partial(self._differs, run, part)
            lines += _quarantine_if(folder / f"{part}.safetensors", differs)
        return lines + _quarantine_if(
            path, lambda moved: is_damaged(moved) or bool(_damaged_parts(folder, read_record(moved)))
        )

    def _differs(self, run: Run, part: str, weights: Path) -> bool:
        """Whether a file is not the weights that the run's record names."""
        try:
            record = self.record(run)
        except CorruptRun:
            return True
        return record is not None and not _has_checksum(weights, record["weights"].get(part))

    def quarantine_damaged(self, runs: Iterable[Run]) -> tuple[list[str], dict[Run, str | None]]:
        """Quarantine every damaged record of some runs; returns a line on each, and `code_hashes` of the other runs.

        Weights are verified when they are used. Records that were read before, and whose files have not changed, are
        not read again.

        Raises:
            UserError: a record is of another version, belongs to another run, or cannot be read.
        """
        lines: list[str] = []

        def read(run: Run) -> Record | None:
            try:
                return self.record(run)
            except CorruptRun:
                lines.extend(self.quarantine(run))
                return None

        statuses = index.read_statuses(self.root, runs, read)
        return lines, {run: status.code for run, status in statuses.items() if status}

    def save_teacher_metrics(self, dataset: str, sha256: str, figures: Mapping[str, float]) -> None:
        """Write what a teacher from a file reaches on a dataset's test images."""
        summed = {**figures, "sha256": compute_checksum(figures)}
        write_text(self.root / dataset / "teachers" / f"{sha256}.json", json.dumps(summed) + "\n")

    def teacher_metrics(self) -> dict[str, dict[str, float]]:
        """What teachers from files reach, by the sha256 of their file, as far as it was measured.

        Damaged figures are left out: they are measured and written again whenever the file is used.
        """
        metrics = {}
        for path in sorted(self.root.glob("*/teachers/*.json")):
            with contextlib.suppress(OSError, ValueError, RecursionError, UntrustedInputError):
                figures = json.loads(read_text_limited(path, MAX_METRICS_BYTES))
                if isinstance(figures, dict) and figures.pop("sha256", None) == compute_checksum(figures):
                    metrics[path.stem] = _METRICS.validate_python(figures, strict=True)
        return metrics

    def forget_failure(self, run: Run) -> None:
        """Remove the record of a failed run, so that it is trained again; any other stays."""
        record = self.record(run)
        if record is not None and record["status"] == "failed":
            (self.folder(run) / "record.json").unlink(missing_ok=True)

    def read_all(self) -> tuple[list[Record], list[str]]:
        """Every record that can be read and lies in its run's folder, and a line on each other one."""
        records, damaged = [], []
        for path in sorted(self.root.glob("*/*/record.json")):
            try:
                record = read_record(path)
            except FileNotFoundError:
                # Renamed since the folder was listed.
                continue
            except UserError as error:
                damaged.append(str(error))
                continue
            run = Run.model_validate(record["run"])
            # Reports name their files after datasets; a crafted name could lead them out of their folder.
            if path.parent.parent.name != run.dataset:
                damaged.append(f"record {path} is of another dataset than its folder; move it to where it belongs")
            elif path.parent.name != run.id:
                damaged.append(
                    f"record {path} lies in a folder of another name; rename it to {escape_control_chars(run.id)}"
                )
            else:
                records.append(record)
        return records, damaged


def load(root: Path = Path("runs")) -> pd.DataFrame:
    """Every record as one row (see `to_dataframe`); records that were read before are taken from the index.

    Raises:
        UserError: a record that is read is damaged, of another version, or cannot be read.
    """
    return index.load(root, read_record)


def _damaged_parts(folder: Path, record: Record) -> list[str]:
    """The parts of a run whose weights the record names and that are damaged or have gone."""
    return [
        part for part, sha256 in record["weights"].items() if not _has_checksum(folder / f"{part}.safetensors", sha256)
    ]


def _has_checksum(path: Path, sha256: str | None) -> bool:
    try:
        # A pipe would be waited for.
        return path.is_file() and compute_sha256(path) == sha256
    except FileNotFoundError:
        return False


def _quarantine_if(path: Path, is_damaged: Callable[[Path], bool]) -> list[str]:
    """Rename a file if it is damaged; returns a line on it, or none if it was not renamed."""
    moved = quarantine_file(path)
    if moved is None:
        return []
    if is_damaged(moved):
        return [f"warning: {path} is damaged; it was put aside as {moved.name}, and the run is trained again"]
    # Another process has trained the run since, and this is its new file.
    restore(moved, path)
    return []
