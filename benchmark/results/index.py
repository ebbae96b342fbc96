"""A cache of a store's records: `<root>/index.json` holds, for each record, its row of a DataFrame and how it ended.

Reading a record of 240 epochs takes some milliseconds, which a sweep of thousands would pay at every command. An entry
counts only while the record's file is the one that was read. A cache that is damaged, or was made by other code, counts
as empty; where it cannot be written, there is none. Of processes that write at once the last one wins.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
from pydantic import TypeAdapter

from benchmark.core import spec
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.io.files import write_text
from benchmark.io.untrusted import UntrustedInputError, read_text_limited
from benchmark.results import frame
from benchmark.results.frame import Row, to_row
from benchmark.results.record import RecordStatus, Status, _ending

if TYPE_CHECKING:
    from benchmark.results.record import Record

NAME = "index.json"
MIN_LOOKUPS = 100
"""Fewer records are read sooner than the cache is."""
MIN_WRITES = 1000
"""Fewer new records do not pay for writing the cache while a sweep is planned."""


MAX_BYTES = 2**30
"""A thousand times the cache of the paper's runs."""


class FileStat(NamedTuple):
    """Identifies a file's content; records are replaced by renaming, so another record is another inode."""

    size: int
    modified: int
    inode: int


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
    """A row for each record under `root`, in the order of their paths; reads the records that the cache does not know.

    read: returns the record of a file, and raises FileNotFoundError if it has gone.

    Raises:
        UserError: see `read`; what was read before is kept in the cache.
    """
    cached, stats = _read(root), dict(_scan(root))
    current = {path: entry for path, entry in cached.items() if entry[:3] == stats.get(path)}
    try:
        for path in [path for path in stats if path not in current]:
            with contextlib.suppress(FileNotFoundError):
                current[path] = _make_entry(stats[path], read(root / path / "record.json"))
    finally:
        if current != cached:
            _write(root, current)
    return pd.DataFrame([current[path].row for path in stats if path in current])


def endings(root: Path, runs: Sequence[Run], read: Callable[[Run], Record | None]) -> dict[Run, RecordStatus | None]:
    """How runs ended, None for those without a record; reads the records that the cache does not know.

    read: returns the record of a run, or None if it has gone.

    Raises:
        UserError: see `read`.
    """
    statuses: dict[Run, RecordStatus | None] = dict.fromkeys(runs)
    folders = {dataset: set(_list_names(root / dataset)) for dataset in {run.dataset for run in runs}}
    present = [run for run in statuses if (names := folders[run.dataset]) and run.id in names]
    cached = _read(root) if len(present) > MIN_LOOKUPS else {}
    fresh: dict[str, CachedRow] = {}
    try:
        for run in present:
            path = f"{run.dataset}/{run.id}"
            stat = _stat(root / path / "record.json")
            if stat is None:
                continue
            entry = cached.get(path)
            if entry is not None and entry[:4] == (*stat, run.digest):
                statuses[run] = RecordStatus(entry.status, entry.code)
            elif (record := read(run)) is not None:
                statuses[run] = _ending(record)
                if len(present) >= MIN_WRITES:
                    fresh[path] = _make_entry(stat, record, run)
    finally:
        if fresh and len(fresh) >= MIN_WRITES:
            _write(root, cached | fresh)
    return statuses


def _scan(root: Path) -> Iterator[tuple[str, FileStat]]:
    """The folder of every record, from the root, with its file's state, in the order of paths."""
    for dataset in _list_names(root):
        for name in _list_names(root / dataset):
            path = f"{dataset}/{name}"
            if stat := _stat(root / path / "record.json"):
                yield path, stat


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
    return FileStat(status.st_size, status.st_mtime_ns, status.st_ino)


def _make_entry(stat: FileStat, record: Record, run: Run | None = None) -> CachedRow:
    return CachedRow(*stat, record["digest"], *_ending(record), to_row(record, run))


@functools.cache
def _schema_version() -> str:
    """Identifies the code that makes rows: a cache that other code wrote is not used."""
    paths = [*(str(module.__file__) for module in (frame, spec)), __file__]
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
