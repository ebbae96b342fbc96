"""Records as rows of a DataFrame, and a cache of them: `<root>/index.json`.

The cache holds, for each record of a store, its row and how the run ended.

Reading a record of 240 epochs takes some milliseconds; without the cache, every command would pay them for each of
thousands of records. An entry counts only while the record's file is the one that was read. A cache that is damaged,
or that other code made, counts as empty. Where it cannot be written, there is none. If processes write at once, the
last one wins.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import TypeAdapter

from benchmark.core import spec
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.io.files import write_text
from benchmark.io.untrusted import UntrustedInputError, read_text_limited
from benchmark.results.record import Record, RecordStatus, Status, get_status

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
"""A record's columns: texts, numbers, booleans and None."""
NAME = "index.json"
MIN_LOOKUPS = 100
"""For the status of fewer runs, reading their records is faster than the cache."""
MAX_BYTES = 2**30
"""A thousand times the cache of the paper's runs."""


FileStat = tuple[int, int, int]
"""Size, time of the last change and inode: records are replaced by renaming, so another record is another inode."""


class CachedRow(NamedTuple):
    """What the cache knows of a record."""

    size: int
    modified: int
    inode: int
    digest: str
    status: Status
    code: str | None
    row: Row


_ENTRIES = TypeAdapter(dict[str, CachedRow])


def load(root: Path, read: Callable[[Path], Record]) -> pd.DataFrame:
    """A row for each record under `root`, in the order of their paths; reads the records that the cache does not have.

    read: returns the record of a file, and raises FileNotFoundError if it has gone.

    Raises:
        UserError: see `read`; what was read before is kept in the cache.
    """

    import pandas as pd  # Late: it is slow to import, and plans need the entries only.

    def read_or_skip(path: str) -> Record | None:
        with contextlib.suppress(FileNotFoundError):
            return read(root / path / "record.json")
        return None

    # In the order of paths.
    folders = (f"{dataset}/{name}" for dataset in _list_names(root) for name in _list_names(root / dataset))
    stats = {path: stat for path in folders if (stat := _stat(root / path / "record.json"))}
    return pd.DataFrame([entry.row for entry in _load_entries(root, stats, read_or_skip).values()])


def read_statuses(
    root: Path, runs: Iterable[Run], read: Callable[[Run], Record | None]
) -> dict[Run, RecordStatus | None]:
    """How runs ended, None for those without a record; reads the records that the cache does not have.

    read: returns the record of a run, or None if it has gone.

    Raises:
        UserError: see `read`.
    """
    statuses: dict[Run, RecordStatus | None] = dict.fromkeys(runs)
    # On a shared disk, one listing takes less time than a look at the place of each of thousands of missing records.
    names = {dataset: set(_list_names(root / dataset)) for dataset in {run.dataset for run in statuses}}
    present = {f"{run.dataset}/{run.id}": run for run in statuses if run.id in names[run.dataset]}
    stats = {path: stat for path in present if (stat := _stat(root / path / "record.json"))}
    if len(stats) <= MIN_LOOKUPS:
        records = {path: read(present[path]) for path in stats}
        return statuses | {present[path]: get_status(record) for path, record in records.items() if record is not None}
    for path, entry in _load_entries(root, stats, lambda path: read(present[path])).items():
        if entry.digest == present[path].digest:
            statuses[present[path]] = RecordStatus(entry.status, entry.code)
        else:
            # The record of another run, which `read` reports.
            read(present[path])
    return statuses


def _load_entries(
    root: Path, stats: Mapping[str, FileStat], read: Callable[[str], Record | None]
) -> dict[str, CachedRow]:
    """The entries of the records at some paths; records that the cache does not have are read and added to it."""
    cached = _read(root)
    entries = {path: cached[path] for path, stat in stats.items() if path in cached and cached[path][:3] == stat}
    try:
        for path in [path for path in stats if path not in entries]:
            if (record := read(path)) is not None:
                entries[path] = CachedRow(*stats[path], record["digest"], *get_status(record), to_row(record))
    finally:
        # Entries of other records stay, as long as these are there.
        others = {path: entry for path, entry in cached.items() if path not in stats and (root / path).exists()}
        if others | entries != cached:
            _write(root, others | entries)
    return {path: entries[path] for path in stats if path in entries}


def _list_names(folder: Path) -> list[str]:
    """The sorted names in a folder; none if there is no such folder or it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _stat(path: Path) -> FileStat | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns, status.st_ino)


@functools.cache
def _schema_version() -> str:
    """Identifies the code that makes rows: a cache that other code wrote is not used."""
    paths = (str(spec.__file__), __file__)
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in paths)).hexdigest()


def _read(root: Path) -> dict[str, CachedRow]:
    """The entries of a folder's cache, by path; none if there is no cache, or none that can be used."""
    try:
        checksum, _, text = read_text_limited(root / NAME, MAX_BYTES).partition("\n")
        return _ENTRIES.validate_json(text) if checksum == _compute_checksum(text) else {}
    except (OSError, ValueError, UntrustedInputError):
        return {}


def _write(root: Path, entries: dict[str, CachedRow]) -> None:
    # A folder that cannot be written has no cache.
    with contextlib.suppress(UserError):
        text = json.dumps(entries)
        write_text(root / NAME, f"{_compute_checksum(text)}\n{text}")


def _compute_checksum(text: str) -> str:
    return hashlib.sha256(f"{_schema_version()}\n{text}".encode()).hexdigest()


def to_dataframe(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a record: the spec's main fields, final figures, best-on-test figures, cost and provenance.

    Lists and values with fields of their own (`stages`, `terms`, `cohort`, ...) are JSON texts.
    """
    import pandas as pd  # Late: it is slow to import, and training does not need it.

    return pd.DataFrame([to_row(record) for record in records])


def to_row(record: Mapping[str, Any]) -> Row:
    """The row of one record, see `to_dataframe`."""
    run = Run.model_validate(record["run"])
    own = {
        "id": run.id,
        "status": record["status"],
        "dataset": run.dataset,
        "fraction": run.fraction,
        "validation": run.validation,
        "method": run.method,
        "augmentation": run.augmentation,
        "student": run.student,
        "teacher": run.teacher_network,
        "teacher_outputs": run.teacher_outputs,
        "protocol": run.protocol.name,
        "scale": run.scale.name,
        "epochs": run.schedule.epochs,
        "precision": run.precision,
        "seed": run.seed,
        "options": run.options,
        "reason": record.get("reason"),
    }
    row = {
        **own,
        **record.get("final", {}),
        **{f"best_{key}": value for key, value in record.get("best_on_test", {}).items()},
        **{f"cost_{key}": value for key, value in record.get("cost", {}).items()},
        **{f"provenance_{key}": value for key, value in record["provenance"].items()},
        # Last, so that no figure takes the place of what the run is.
        **own,
    }
    return {
        key: json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value
        for key, value in row.items()
    }
