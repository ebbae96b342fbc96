"""The plan of a sweep: its runs, its jobs and what each job needs, in one SQLite file that never changes."""

from __future__ import annotations

import contextlib
import functools
import json
import sqlite3
import time
import uuid
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.io.files import replacing, restore
from benchmark.io.untrusted import UntrustedInputError, check_strings, escape_control_chars, parse_json_limited, sized
from benchmark.planning.jobs import Job, critical_path_lengths, find_needed
from benchmark.planning.request import collect_dependencies
from benchmark.results.leases import this_user
from benchmark.results.record import Amount
from benchmark.results.store import Store

SCHEMA = """
create table about (name text primary key, content text);
create table targets (number integer primary key, title text);
create table wanted (target integer, run text);
create table jobs (number integer primary key, title text, name text, source text, seconds real, priority real);
create table needs (job integer, needed integer, primary key (job, needed)) without rowid;
create table runs (place integer primary key, digest text unique, id text, dataset text, job integer, content blob);
create index runs_by_job on runs (job);
"""
STRANGE = "select count(*) from sqlite_master where type not in ('table', 'index') or sql like 'create virtual%'"
LARGEST_RUN = 2**20
"""Bytes of the JSON of one run without its parts; that of the largest has some ten thousand."""
LARGEST_VALUE = 2**24
"""Bytes of a text or blob that is read from the file."""
PARTS = ("teacher", "head", "start")
"""The fields of a run that are runs themselves; a plan holds each of them once."""


@dataclass(frozen=True)
class SweepRequest:
    """What a command asks of a sweep: the runs of each table and figure, and by dataset the jobs that train them."""

    title: str
    command: str
    grouping: str
    targets: Mapping[str, Sequence[Run]]
    plans: Mapping[str, Sequence[Job]]


class PlannedJob(NamedTuple):
    """A job without its runs. seconds: estimated; priority: the seconds of the longest chain of jobs it begins."""

    number: int
    title: str
    name: str
    source: str
    seconds: Amount
    priority: Amount


class PlannedRun(NamedTuple):
    """A run of a table or figure: the job that trains it, and where its record will be."""

    job: int | None
    dataset: str
    id: str


_JOBS = TypeAdapter(list[PlannedJob])
_NEEDS = TypeAdapter(list[tuple[int, int]])
_RUNS = TypeAdapter(list[PlannedRun])


class Plan:
    """Reads the plan of a sweep. Somebody else may have written the file, so every value is checked.

    Raises:
        UserError: the file is damaged or missing; so do all methods.
    """

    def __init__(self, path: Path) -> None:
        self._runs: dict[str, Run] = {}
        self.path = path
        with self._reading():
            if not path.is_file():
                raise UntrustedInputError("it is no plain file" if path.exists() else "it is missing")
            # Immutable: SQLite then takes no locks, which are unreliable on shared folders.
            self._database = sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)
            self._database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
            # A view or a virtual table would compute what it likes.
            (strange,) = self._database.execute(STRANGE).fetchone()
            if strange:
                raise UntrustedInputError("it holds more than tables")
            self._database.execute("select count(*) from jobs").fetchone()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn whatever is wrong with the file into one line."""
        try:
            yield
        except (sqlite3.Error, UntrustedInputError) as error:
            raise self._refuse(escape_control_chars(error)) from error
        except (zlib.error, ValueError, TypeError, KeyError, RecursionError) as error:
            raise self._refuse("it is no plan") from error

    def _refuse(self, reason: str) -> UserError:
        return UserError(f"{self.path} cannot be read ({reason}); remove {self.path.parent} and plan the sweep again")

    def read_fact(self, name: str) -> Any:
        """A fact of the plan: `title`, `command`, `grouping`, `by`, `created` (seconds since 1970)."""
        with self._reading():
            (text,) = self._database.execute("select content from about where name = ?", (name,)).fetchone()
            return parse_json_limited(text)

    @functools.cached_property
    def jobs(self) -> list[PlannedJob]:
        """All jobs by number; a job only needs jobs of lower numbers."""
        with self._reading():
            rows = self._database.execute("select * from jobs order by number").fetchall()
            jobs = _JOBS.validate_python(rows)
            check_strings([[job.title, job.name, job.source] for job in jobs])
            if [job.number for job in jobs] != list(range(len(jobs))):
                raise UntrustedInputError("its jobs are not numbered from 0 on")
            return jobs

    @functools.cached_property
    def needs(self) -> Mapping[int, set[int]]:
        """The jobs that must have ended before a job starts."""
        needs: dict[int, set[int]] = {job.number: set() for job in self.jobs}
        with self._reading():
            for job, needed in _NEEDS.validate_python(
                self._database.execute("select job, needed from needs").fetchall()
            ):
                if not 0 <= needed < job:
                    raise UntrustedInputError("a job needs one that comes after it")
                needs[job].add(needed)
        return needs

    @functools.cached_property
    def targets(self) -> Mapping[str, list[PlannedRun]]:
        """The runs of each table and figure."""
        targets: dict[str, list[PlannedRun]] = defaultdict(list)
        with self._reading():
            rows = self._database.execute(
                "select title, job, dataset, id from targets join wanted on target = number join runs on digest = run"
            ).fetchall()
            runs = _RUNS.validate_python([row[1:] for row in rows])
            for (title, *_), run in zip(rows, runs, strict=True):
                check_strings([title, run.dataset, run.id])
                targets[title].append(run)
        return targets

    def read_runs(self, job: int) -> list[Run]:
        """The runs that a job trains."""
        with self._reading():
            rows = self._database.execute("select digest from runs where job = ? order by place", (job,)).fetchall()
            return [self._read_run(digest) for (digest,) in rows]

    def find_job(self, run: Run) -> int | None:
        """The job that trains a run."""
        with self._reading():
            row = self._database.execute("select job from runs where digest = ?", (run.digest,)).fetchone()
            if row is None or row[0] is None:
                return None
            if row[0] not in range(len(self.jobs)):
                raise UntrustedInputError("a run is trained by a job that it does not have")
            return int(row[0])

    def _read_run(self, digest: str) -> Run:
        if digest not in self._runs:
            (content,) = self._database.execute("select content from runs where digest = ?", (digest,)).fetchone()
            values = parse_json_limited(decompress_limited(content, LARGEST_RUN).decode())
            for part in PARTS:
                if isinstance(values[part], str):
                    values[part] = self._read_run(values[part])
            run = Run.model_validate(values)
            if run.digest != digest:
                raise UserError(f"another version of the suite wrote {self.path}; remove it and plan the sweep again")
            self._runs[digest] = run
        return self._runs[digest]


def decompress_limited(content: bytes, most: int) -> bytes:
    """The bytes that zlib compressed.

    Raises:
        UntrustedInputError: they are more than `most`, or some are missing. zlib.error: they are damaged.
    """
    decompressor = zlib.decompressobj()
    found = decompressor.decompress(content, most + 1)
    if len(found) > most or not decompressor.eof:
        raise UntrustedInputError(f"a run of it has more than {sized(most)}, or is cut")
    return found


def write_plan(path: Path, request: SweepRequest) -> None:
    """Write the plan of a request; if two processes write it at once, the first plan is kept.

    Raises:
        UserError: the folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with replacing(draft) as replacement, contextlib.closing(sqlite3.connect(":memory:")) as database:
        _fill(database, request)
        replacement.temporary.write_bytes(database.serialize())
    try:
        restore(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _fill(database: sqlite3.Connection, request: SweepRequest) -> None:
    database.executescript(SCHEMA)
    about = {
        "title": request.title,
        "command": request.command,
        "grouping": request.grouping,
        "by": this_user(),
        "created": time.time(),
    }
    database.executemany("insert into about values (?, ?)", [(key, json.dumps(about[key])) for key in about])
    ordered = topological_order(request.plans)
    jobs = [job for _, job in ordered]
    trained = {run.digest for job in jobs for run in job.runs}
    priorities = critical_path_lengths(jobs)
    for number, ((source, job), needed) in enumerate(zip(ordered, find_needed(jobs), strict=True)):
        row = (number, job.title, job.name, source, job.seconds, priorities[number])
        database.execute("insert into jobs values (?, ?, ?, ?, ?, ?)", row)
        database.executemany("insert into needs values (?, ?)", [(number, other) for other in needed])
        for run in job.runs:
            _write_run(database, run, number)
        for other in collect_dependencies(job.runs):
            if other.digest not in trained:
                _write_run(database, other, None)
    for number, (title, runs) in enumerate(request.targets.items()):
        database.execute("insert into targets values (?, ?)", (number, title))
        database.executemany("insert into wanted values (?, ?)", [(number, run.digest) for run in runs])
    database.commit()


def _write_run(database: sqlite3.Connection, run: Run, job: int | None) -> None:
    fields = run.model_dump(mode="json", exclude=set(PARTS))
    for part in PARTS:
        value = getattr(run, part)
        fields[part] = value.digest if isinstance(value, Run) else value and value.model_dump(mode="json")
    database.execute(
        "insert or ignore into runs (digest, id, dataset, job, content) values (?, ?, ?, ?, ?)",
        (run.digest, run.id, run.dataset, job, zlib.compress(json.dumps(fields).encode(), 1)),
    )


def pending_jobs(jobs: Sequence[Job], store: Store, retry_failed: bool = False) -> list[Job]:
    """The jobs that have runs without a record (or, with `retry_failed`, without a record of success)."""
    missing = set(store.missing([run for job in jobs for run in job.runs], retry_failed))
    return [job for job in jobs if not missing.isdisjoint(job.runs)]


def topological_order(plans: Mapping[str, Sequence[Job]]) -> list[tuple[str, Job]]:
    """All jobs with their dataset, each after the jobs that it needs."""
    jobs = [(source, job) for source, jobs in plans.items() for job in jobs]
    needed = find_needed([job for _, job in jobs])

    @functools.cache
    def depth(position: int) -> int:
        return 1 + max(map(depth, needed[position]), default=0)

    return [jobs[position] for position in sorted(range(len(jobs)), key=depth)]
