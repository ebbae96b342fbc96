"""The record store: one folder a run, written so that a reader sees a whole record or none.

`<root>/<dataset>/<run id>/` holds `run.json` (the spec), `epochs.jsonl` (a line an epoch, as training goes),
`student.safetensors`, for heads and joint teachers `method.safetensors`, and `record.json`, written last.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
from filelock import FileLock
from pydantic import ValidationError
from torch import Tensor

from benchmark.errors import UserError
from benchmark.files import remove_leftovers, replacing, save_tensors, sha256_of, write_text
from benchmark.spec import Run

FORMAT = 1
Record = dict[str, Any]


class Store:
    """The runs under one folder. Any number of processes may read and write it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, run: Run) -> Path:
        """Where a run's files are."""
        return self.root / run.dataset / run.id

    def cohorts(self, dataset: str) -> Path:
        """Where the checkpoints of a dataset's unfinished cohorts are."""
        return self.root / dataset / "cohorts"

    def lock(self, run: Run) -> FileLock:
        """The exclusive claim on training a run; it ends with the process that holds it.

        Raises:
            UserError: the folder cannot be written.
        """
        folder = self.folder(run)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder with --runs") from error
        return FileLock(folder / "run.lock")

    def record(self, run: Run) -> Record | None:
        """The record of a finished or failed run, or None.

        Raises:
            UserError: the record is damaged or belongs to another run.
        """
        path = self.folder(run) / "record.json"
        if not path.exists():
            return None
        record = _read_record(path)
        if record["digest"] != run.digest:
            raise UserError(f"record {path} belongs to another run; delete its folder to train this one again")
        return record

    def found(self, runs: Sequence[Run]) -> dict[Run, Record | None]:
        """The records of some runs, None for those that have none."""
        return {run: self.record(run) for run in runs}

    def is_finished(self, run: Run) -> bool:
        """Whether the run has a record of success."""
        record = self.record(run)
        return record is not None and record["status"] == "finished"

    def begin(self, run: Run) -> None:
        """Write the spec of a run that is about to be trained, by the process that holds its lock."""
        remove_leftovers(self.folder(run))
        write_text(self.folder(run) / "run.json", run.model_dump_json(indent=1) + "\n")

    def write_epochs(self, run: Run, epochs: list[dict[str, Any]]) -> None:
        """Write the figures of all epochs so far, a line each."""
        write_text(self.folder(run) / "epochs.jsonl", "".join(json.dumps(figures) + "\n" for figures in epochs))

    def finish(self, run: Run, record: Record, weights: dict[str, dict[str, Tensor]]) -> None:
        """Write the weights (`student`, `method`) and then the record, which makes the run a finished one."""
        digests = {}
        for part, tensors in weights.items():
            path = self.folder(run) / f"{part}.safetensors"
            with replacing(path) as file:
                save_tensors(file.temporary, tensors)
                digests[part] = sha256_of(file.temporary)
        whole = {"format": FORMAT, "id": run.id, "digest": run.digest, "run": run.model_dump(mode="json")}
        write_text(
            self.folder(run) / "record.json", json.dumps({**whole, **record, "weights": digests}, indent=1) + "\n"
        )

    def weights(self, run: Run, part: str = "student") -> dict[str, Tensor]:
        """The weights of a finished run, verified by checksum.

        Raises:
            UserError: the run has none, or they are damaged.
        """
        record = self.record(run)
        path = self.folder(run) / f"{part}.safetensors"
        if record is None or part not in record["weights"] or not path.exists():
            raise UserError(f"{path} is not there; delete its folder to train the run again")
        if sha256_of(path) != record["weights"][part]:
            raise UserError(f"{path} is damaged (its checksum differs); delete its folder to train the run again")
        return safetensors.torch.load_file(path)

    def keep_released_figures(self, dataset: str, sha256: str, figures: Mapping[str, float]) -> None:
        """Remember what a teacher from a file reaches on a dataset's test images."""
        write_text(self.root / dataset / "teachers" / f"{sha256}.json", json.dumps(dict(figures)) + "\n")

    def released_figures(self) -> dict[str, dict[str, float]]:
        """What teachers from files reach, by their file's sha256, as far as it was measured."""
        found = {}
        for path in sorted(self.root.glob("*/teachers/*.json")):
            with contextlib.suppress(OSError, ValueError):
                found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def forget_failure(self, run: Run) -> None:
        """Remove the record of a failed run, so that it is trained again; any other stays."""
        record = self.record(run)
        if record is not None and record["status"] == "failed":
            (self.folder(run) / "record.json").unlink(missing_ok=True)

    def records(self) -> Iterator[Record]:
        """Every record in the store."""
        for path in sorted(self.root.glob("*/*/record.json")):
            yield _read_record(path)

    def readable(self) -> tuple[list[Record], list[str]]:
        """Every record that can be read and lies in its dataset's folder, and a line on each other one."""
        records, damaged = [], []
        for path in sorted(self.root.glob("*/*/record.json")):
            try:
                record = _read_record(path)
            except UserError as error:
                damaged.append(str(error))
                continue
            # Reports name their files after datasets; a crafted name could lead them out of their folder.
            if path.parent.parent.name == record["run"]["dataset"]:
                records.append(record)
            else:
                damaged.append(f"record {path} is of another dataset than its folder; move it to where it belongs")
        return records, damaged


def outcome(record: Record) -> dict[str, Any]:
    """What must be equal, bit by bit, when a run is repeated: everything but provenance."""
    return {key: value for key, value in record.items() if key != "provenance"}


def load(root: Path = Path("runs")) -> pd.DataFrame:
    """Every record as one row, as `frame_of` has them.

    Raises:
        UserError: a record is damaged.
    """
    return frame_of(Store(root).records())


def frame_of(records: Iterable[Record]) -> pd.DataFrame:
    """One row a record: the spec's main fields, final figures, best-on-test figures, cost and provenance.

    What is a list or has fields of its own (`stages`, `terms`, `cohort`, ...) stands there as JSON.
    """
    rows = []
    for record in records:
        run = Run.model_validate(record["run"])
        row = {
            "id": run.id,
            "status": record["status"],
            "dataset": run.dataset,
            "fraction": run.fraction,
            "validation": run.validation,
            "method": run.method,
            "augmentation": run.augmentation,
            "student": run.student,
            "teacher": run.teacher_network,
            "protocol": run.protocol.name,
            "scale": run.scale.name,
            "epochs": run.schedule.epochs,
            "precision": run.precision,
            "seed": run.seed,
            "options": run.options,
            "reason": record.get("reason"),
            **record.get("final", {}),
            **{f"best_{key}": value for key, value in record.get("best_on_test", {}).items()},
            **{f"cost_{key}": value for key, value in record.get("cost", {}).items()},
            **{f"provenance_{key}": value for key, value in record["provenance"].items()},
        }
        rows.append({key: _flat(value) for key, value in row.items()})
    return pd.DataFrame(rows)


def _flat(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def _read_record(path: Path) -> Record:
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT or record["status"] not in ("finished", "failed"):
            raise ValueError("unknown format or status")
        for part in ("digest", "provenance", "weights", "final" if record["status"] == "finished" else "reason"):
            record[part]
        Run.model_validate(record["run"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise UserError(
            f"record {path} cannot be read ({type(error).__name__}); delete its folder to train the run again"
        ) from error
    return record
