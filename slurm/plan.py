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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.io.files import replacing, restore
from benchmark.planning.jobs import Job, critical_path_lengths
from benchmark.results.owners import this_user
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


@dataclass(frozen=True)
class PlannedJob:
    """A job without its runs. seconds: estimated; priority: the seconds of the longest chain of jobs it begins."""

    number: int
    title: str
    name: str
    source: str
    seconds: float
    priority: float


@dataclass(frozen=True)
class PlannedRun:
    """A run of a table or figure: where its record will be, and the job that trains it."""

    job: int | None
    dataset: str
    id: str


class Plan:
    """Reads the plan of a sweep.

    Raises:
        UserError: the file is damaged or missing.
    """

    def __init__(self, path: Path) -> None:
        self._runs: dict[str, Run] = {}
        self.path = path
        try:
            # Immutable: SQLite then takes no locks, which are unreliable on shared folders.
            self._database = sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)
            self._database.execute("select count(*) from jobs").fetchone()
        except sqlite3.Error as error:
            raise UserError(
                f"{path} cannot be read ({error}); remove {path.parent} and plan the sweep again"
            ) from error

    def read_fact(self, name: str) -> Any:
        """A fact of the plan: `title`, `command`, `grouping`, `by`, `created` (seconds since 1970)."""
        (text,) = self._database.execute("select content from about where name = ?", (name,)).fetchone()
        return json.loads(text)

    @functools.cached_property
    def jobs(self) -> list[PlannedJob]:
        """All jobs by number; a job only needs jobs of lower numbers."""
        return [PlannedJob(*row) for row in self._database.execute("select * from jobs order by number")]

    @functools.cached_property
    def needs(self) -> Mapping[int, set[int]]:
        """The jobs that must have ended before a job starts."""
        needs: dict[int, set[int]] = {job.number: set() for job in self.jobs}
        for job, needed in self._database.execute("select job, needed from needs"):
            needs[job].add(needed)
        return needs

    @functools.cached_property
    def targets(self) -> Mapping[str, list[PlannedRun]]:
        """The runs of each table and figure."""
        targets: dict[str, list[PlannedRun]] = defaultdict(list)
        for title, *run in self._database.execute(
            "select title, job, dataset, id from targets join wanted on target = number join runs on digest = run"
        ):
            targets[title].append(PlannedRun(*run))
        return targets

    def read_runs(self, job: int) -> list[Run]:
        """The runs that a job trains."""
        rows = self._database.execute("select digest from runs where job = ? order by place", (job,)).fetchall()
        return [self._read_run(digest) for (digest,) in rows]

    def find_job(self, run: Run) -> int | None:
        """The job that trains a run."""
        row = self._database.execute("select job from runs where digest = ?", (run.digest,)).fetchone()
        return row[0] if row else None

    def _read_run(self, digest: str) -> Run:
        if digest not in self._runs:
            (content,) = self._database.execute("select content from runs where digest = ?", (digest,)).fetchone()
            fields = json.loads(zlib.decompress(content))
            for part in PARTS:
                if isinstance(fields[part], str):
                    fields[part] = self._read_run(fields[part])
            self._runs[digest] = Run.model_validate(fields)
            if self._runs[digest].digest != digest:
                raise UserError(f"another version of the suite wrote {self.path}; remove it and plan the sweep again")
        return self._runs[digest]


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
    jobs = topological_order(request.plans)
    makers = {run.digest: number for number, (_, job) in enumerate(jobs) for run in job.runs}
    priorities = critical_path_lengths([job for _, job in jobs])
    for number, (source, job) in enumerate(jobs):
        row = (number, job.title, job.name, source, job.seconds, priorities[number])
        database.execute("insert into jobs values (?, ?, ?, ?, ?, ?)", row)
        needed = {makers[digest] for digest in job.needs if digest in makers} - {number}
        database.executemany("insert into needs values (?, ?)", [(number, other) for other in needed])
        for run in job.runs:
            _write_run(database, run, number)
            for other in run.dependencies():
                if other.digest not in makers:
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
    makers = {run.digest: place for place, (_, job) in enumerate(jobs) for run in job.runs}
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for place, (_, job) in enumerate(jobs):
        sorter.add(place, *({makers[digest] for digest in job.needs if digest in makers} - {place}))
    sorter.prepare()
    order: list[int] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        order += ready
        sorter.done(*ready)
    return [jobs[place] for place in order]
