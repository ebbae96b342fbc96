"""An index of a store's records, so that reading a hundred thousand of them again is reading one file.

`<root>/index.parquet` holds the row that each record makes in a DataFrame, and what the record's file was like when it
was read. It is derived: the records stay the truth. A record whose file is not exactly like that is read; an index that
is damaged, or was made by other code, or for another folder, is made anew; and where it cannot be written, nothing is.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.core import spec
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.io.files import replacing
from benchmark.results import frame
from benchmark.results.frame import Row, to_row
from benchmark.results.record import RecordStatus, Status, _ending

if TYPE_CHECKING:
    from benchmark.results.record import Record

NAME = "index.parquet"
MIN_LOOKUPS = 100
"""So many records are sooner read than the index is."""
MIN_WRITES = 1000
"""So many records take about as long to read as a large index takes to write."""
OWN = ("path", "size", "modified", "inode", "digest", "status", "code", "shape")
"""The columns about a record; those of its row begin with a colon."""


class FileStat(NamedTuple):
    """What a file is like that was not written since: its bytes, when it was written (ns), and which file it is.

    A record is replaced by renaming, so another one is another file, and so is each one in a copy of a store.
    """

    size: int
    modified: int
    inode: int


CachedRow = tuple[int, int, int, str, Status, str | None]
"""Of an entry the numbers of its stamp, its digest and its ending."""


@dataclass
class IndexEntry:
    """What the index knows of a record. path: of its folder, from the root; row: None in an index without rows."""

    path: str
    stamp: FileStat
    digest: str
    ending: RecordStatus
    row: Row | None = None


@dataclass
class Table:
    """Entries by column. values: of each column of the rows, None also where a row has no such column.

    shapes: the columns of a row, in order, for each kind of row that there is; shape: which of them a row has.
    """

    own: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in OWN})
    shapes: list[tuple[str, ...]] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.own["path"])

    def entries(self) -> dict[str, CachedRow]:
        """What is known of each entry, by path."""
        path, *others, _ = (self.own[name] for name in OWN)
        return dict(zip(path, zip(*others, strict=True), strict=True))

    def add(self, entries: Iterable[IndexEntry]) -> None:
        """Append entries with their rows."""
        numbers = {shape: number for number, shape in enumerate(self.shapes)}
        for entry in entries:
            row = entry.row or {}
            shape = numbers.setdefault(tuple(row), len(numbers))
            about = (entry.path, *entry.stamp, entry.digest, *entry.ending, shape)
            for name, value in zip(OWN, about, strict=True):
                self.own[name].append(value)
            for name in row.keys() - self.values.keys():
                self.values[name] = [None] * (len(self) - 1)
            for name, values in self.values.items():
                values.append(row.get(name))
        self.shapes = list(numbers)

    def taken(self, numbers: Sequence[int]) -> Table:
        """The entries of these numbers, in this order."""
        if list(numbers) == list(range(len(self))):
            return self

        def of(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
            return {name: [values[number] for number in numbers] for name, values in columns.items()}

        return Table(of(self.own), self.shapes, of(self.values))

    def frame(self) -> pd.DataFrame:
        """What `pandas.DataFrame` makes of the rows."""
        used = dict.fromkeys(self.own["shape"])
        names = dict.fromkeys(name for shape in used for name in self.shapes[shape])
        return pd.DataFrame({name: self._column(name, used) for name in names})

    def _column(self, name: str, used: Iterable[int]) -> pd.Series:
        lacking = {shape for shape in used if name not in self.shapes[shape]}
        values = self.values[name]
        if lacking:
            shapes = self.own["shape"]
            nothing = float("nan")
            values = [nothing if shape in lacking else value for value, shape in zip(values, shapes, strict=True)]
        # From rows, so that pandas infers the type of the column as it does from those of the records.
        return pd.DataFrame(list(zip(values, strict=True)), columns=[name])[name]


def load(root: Path, read: Callable[[Path], Record]) -> pd.DataFrame:
    """A row for each record under `root`, in the order of their paths; reads those that the index does not know.

    read: gives the record of a file, and raises FileNotFoundError where it has gone. The index is written anew if
    anything has changed.

    Raises:
        UserError: see `read`; what was read before is kept in the index.
    """
    table = _read(root) or Table()
    known, before = table.entries(), len(table)
    stamps = scan(root)
    numbers = {path: number for number, path in enumerate(known) if known[path][:3] == stamps.get(path)}
    fresh: list[IndexEntry] = []
    try:
        for path in [path for path in stamps if path not in numbers]:
            with contextlib.suppress(FileNotFoundError):
                fresh.append(_entry(path, stamps[path], read(root / path / "record.json")))
                numbers[path] = before + len(fresh) - 1
    finally:
        table.add(fresh)
        table = table.taken([numbers[path] for path in stamps if path in numbers])
        if fresh or len(table) != before:
            _write(root, table)
    return table.frame()


def endings(root: Path, runs: Sequence[Run], read: Callable[[Run], Record | None]) -> dict[Run, RecordStatus | None]:
    """How runs ended, None for those that have no record; reads the records that the index does not know.

    read: gives the record of a run, or None where it has gone.

    Raises:
        UserError: see `read`.
    """
    found: dict[Run, RecordStatus | None] = dict.fromkeys(runs)
    folders = {dataset: _names(root / dataset) for dataset in {run.dataset for run in runs}}
    # An id is not needed where there is nothing.
    there = [run for run in found if (names := folders[run.dataset]) and run.id in names]
    known = _entries(root, _stamp(root / NAME)) if len(there) > MIN_LOOKUPS else {}
    fresh: list[IndexEntry] = []
    place = str(root)
    try:
        for run in there:
            path = f"{run.dataset}/{run.id}"
            stamp = _stamp(f"{place}/{path}/record.json")
            if stamp is None:
                continue
            entry = known.get(path)
            if entry is not None and entry[:4] == (*stamp, run.digest):
                found[run] = RecordStatus(*entry[4:])
            elif (record := read(run)) is not None:
                found[run] = _ending(record)
                if len(there) >= MIN_WRITES:
                    fresh.append(_entry(path, stamp, record, run))
    finally:
        if len(fresh) >= MIN_WRITES:
            _remember(root, fresh)
    return found


def scan(root: Path) -> dict[str, FileStat]:
    """The stamp of every record, by the path of its folder, in the order of paths."""
    found = {}
    place = str(root)
    for dataset in sorted(_names(root)):
        for name in sorted(_names(root / dataset)):
            path = f"{dataset}/{name}"
            stamp = _stamp(f"{place}/{path}/record.json")
            if stamp is not None:
                found[path] = stamp
    return found


def _names(folder: Path) -> set[str]:
    """What is in a folder; nothing where there is no such folder or it may not be read."""
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _stamp(path: str | Path) -> FileStat | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return FileStat(status.st_size, status.st_mtime_ns, status.st_ino)


def _entry(path: str, stamp: FileStat, record: Record, run: Run | None = None) -> IndexEntry:
    return IndexEntry(path, stamp, record["digest"], _ending(record), to_row(record, run))


@functools.lru_cache(maxsize=1)
def _entries(root: Path, stamp: FileStat | None) -> dict[str, CachedRow]:
    """What the index knows of each record, by path, see `Table.entries`. stamp: that of the index."""
    table = _read(root, rows=False) if stamp else None
    return table.entries() if table else {}


def _remember(root: Path, fresh: Sequence[IndexEntry]) -> None:
    """Put records into the index in the place of what it knew of them."""
    table = _read(root) or Table()
    paths = {entry.path for entry in fresh}
    table = table.taken([number for number, path in enumerate(table.own["path"]) if path not in paths])
    table.add(fresh)
    _write(root, table)


@functools.cache
def _schema_version() -> str:
    """Names the code that makes rows of records: an index that other code has made is no use."""
    sources = (Path(str(module.__file__)).read_bytes() for module in (frame, spec))
    return hashlib.sha256(b"".join([*sources, Path(__file__).read_bytes()])).hexdigest()


def _read(root: Path, rows: bool = True) -> Table | None:
    """The index of a folder; None where there is none, or none that is of use. rows: whether the rows are wanted."""
    path = root / NAME
    try:
        if not path.is_file():
            return None
        schema = pq.read_schema(path)
        # Pages have checksums of their own; what stands apart from them has this one.
        if schema.metadata[b"seal"].decode() != _compute_seal(schema, schema.metadata[b"shapes"].decode()):
            return None
        table = pq.read_table(path, columns=None if rows else list(OWN), page_checksum_verification=True)
        own = {name: table.column(name).to_pylist() for name in OWN}
        values = {name[1:]: _decoded(table, name) for name in table.column_names if name not in OWN}
        shapes = [tuple(shape) for shape in json.loads(schema.metadata[b"shapes"])]
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return None
    return Table(own, shapes, values)


def _write(root: Path, table: Table) -> None:
    """Write the index, whole or not at all; where the folder may not be written or is full, there is none."""
    # Names that are no text in UTF-8 have no place in such a file.
    with contextlib.suppress(UserError, UnicodeError, pa.ArrowException), replacing(root / NAME) as file:
        pq.write_table(_as_arrow(table), file.temporary, write_page_checksum=True)


def _as_arrow(table: Table) -> pa.Table:
    columns = {name: (pa.array(values), "own") for name, values in table.own.items()}
    used = dict.fromkeys(name for shape in table.shapes for name in shape)
    columns |= {f":{name}": _encoded(table.values[name]) for name in used}
    fields = [pa.field(name, array.type, metadata={"coding": coding}) for name, (array, coding) in columns.items()]
    shapes = json.dumps(table.shapes)
    schema = pa.schema(fields)
    schema = schema.with_metadata({"seal": _compute_seal(schema, shapes), "shapes": shapes})
    return pa.Table.from_arrays([array for array, _ in columns.values()], schema=schema)


def _compute_seal(schema: pa.Schema, shapes: str) -> str:
    """A checksum of what an index says of its columns, and of the code that made it."""
    columns = [(column.name, str(column.type), column.metadata[b"coding"].decode()) for column in schema]
    return hashlib.sha256(json.dumps([_schema_version(), shapes, columns]).encode()).hexdigest()


_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _encoded(values: Sequence[Any]) -> tuple[pa.Array, str]:
    """A column that loses nothing: of one type if its values are, else each as JSON."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) == 1 and (kind := kinds.pop()) in _TYPES:
        # An integer may be too large, a text may have half a character in it.
        with contextlib.suppress(OverflowError, UnicodeError, pa.ArrowException):
            return pa.array(values, _TYPES[kind]), "plain"
    texts = [None if value is None else json.dumps(value) for value in values]
    return pa.array(texts, pa.string()), "json"


def _decoded(table: pa.Table, name: str) -> list[Any]:
    values = table.column(name).to_pylist()
    if table.schema.field(name).metadata[b"coding"] == b"plain":
        return values
    return [None if value is None else json.loads(value) for value in values]
