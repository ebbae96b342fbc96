"""From jobs to the plan of a sweep: written once, in dependency order, with what each job is worth doing first."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.planning.jobs import Job, critical_path_lengths
from benchmark.results.owners import this_user
from benchmark.results.store import Store
from slurm.sweep import FOLDER, PARTS, PLAN, Sweep

SCHEMA = """
create table about (name text primary key, content text);
create table targets (number integer primary key, title text);
create table wanted (target integer, run text);
create table jobs (number integer primary key, title text, name text, source text, seconds real, priority real);
create table needs (job integer, needed integer, primary key (job, needed)) without rowid;
create table runs (place integer primary key, digest text unique, id text, dataset text, job integer, content blob);
create index runs_by_job on runs (job);
"""


@dataclass(frozen=True)
class SweepRequest:
    """What a command wants of a sweep: runs by the tables and figures they are for, and the jobs that train them.

    plans: by dataset, as `load_dataset` takes it.
    """

    title: str
    command: str
    grouping: str
    targets: Mapping[str, Sequence[Run]]
    plans: Mapping[str, Sequence[Job]]


def name_of(asked: SweepRequest) -> str:
    """What a sweep is called: the same for the same runs, whoever asks for them."""
    digests = sorted({run.digest for runs in asked.targets.values() for run in runs})
    return f"{asked.title}-{hashlib.sha256(''.join(digests).encode()).hexdigest()[:8]}"


def create_or_open_sweep(runs: Path, asked: SweepRequest) -> tuple[Sweep, bool]:
    """The sweep that a command asks for, and whether it is new; the same command again finds the same one.

    Raises:
        UserError: the folder cannot be written.
    """
    sweep = Sweep(runs.absolute() / FOLDER / name_of(asked))
    if (sweep.folder / PLAN).exists():
        return sweep, False
    temporary = sweep.folder / f".{PLAN}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as local:
            # Writing it takes locks, which some shared folders do not have.
            _write_plan(Path(local) / PLAN, asked)
            shutil.copyfile(Path(local) / PLAN, temporary)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        # Of two that plan it at once the first one's plan holds.
        try:
            os.link(temporary, sweep.folder / PLAN)
        except FileExistsError:
            return sweep, False
        except OSError:
            # A folder without hard links: the second one replaces it by its equal.
            os.replace(temporary, sweep.folder / PLAN)
        return sweep, True
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"cannot write {sweep.folder}: {error}; choose another folder with --runs") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_plan(path: Path, asked: SweepRequest) -> None:
    ordered = topological_order(asked.plans)
    number_of = {run.digest: number for number, (_, job) in enumerate(ordered) for run in job.runs}
    connection = sqlite3.connect(path)
    try:
        connection.executescript(SCHEMA)
        about = {
            "title": asked.title,
            "command": asked.command,
            "grouping": asked.grouping,
            "by": this_user(),
            "created": time.time(),
        }
        connection.executemany("insert into about values (?, ?)", [(key, json.dumps(about[key])) for key in about])
        priorities = critical_path_lengths([job for _, job in ordered])
        for number, (source, job) in enumerate(ordered):
            connection.execute(
                "insert into jobs values (?, ?, ?, ?, ?, ?)",
                (number, job.title, job.name, source, job.seconds, priorities[number]),
            )
            needed = {number_of[digest] for digest in job.needs if digest in number_of} - {number}
            connection.executemany("insert into needs values (?, ?)", [(number, other) for other in needed])
            for run in job.runs:
                _write_run(connection, run, number)
                for other in run.dependencies():
                    if other.digest not in number_of:
                        _write_run(connection, other, None)
        for number, (title, runs) in enumerate(asked.targets.items()):
            connection.execute("insert into targets values (?, ?)", (number, title))
            connection.executemany("insert into wanted values (?, ?)", [(number, run.digest) for run in runs])
        connection.commit()
    finally:
        connection.close()


def _write_run(connection: sqlite3.Connection, run: Run, job: int | None) -> None:
    fields = run.model_dump(mode="json", exclude=set(PARTS))
    for part in PARTS:
        value = getattr(run, part)
        fields[part] = value.digest if isinstance(value, Run) else value and value.model_dump(mode="json")
    connection.execute(
        "insert or ignore into runs (digest, id, dataset, job, content) values (?, ?, ?, ?, ?)",
        (run.digest, run.id, run.dataset, job, zlib.compress(json.dumps(fields).encode(), 1)),
    )


def pending_jobs(jobs: Sequence[Job], store: Store, retry_failed: bool = False) -> list[Job]:
    """Those of the jobs that have runs without a record (or, with `retry_failed`, without one of success)."""
    missing = set(store.missing([run for job in jobs for run in job.runs], retry_failed))
    return [job for job in jobs if not missing.isdisjoint(job.runs)]


def topological_order(plans: Mapping[str, Sequence[Job]]) -> list[tuple[str, Job]]:
    """All jobs with their dataset, each after those that it needs."""
    waiting = [(source, job) for source, jobs in plans.items() for job in jobs]
    planned = {run.digest for _, job in waiting for run in job.runs}
    placed: set[str] = set()
    ordered: list[tuple[str, Job]] = []
    while waiting:
        ready = [(source, job) for source, job in waiting if (job.needs & planned) <= placed]
        assert ready, "a plan without a first job"
        ordered += ready
        placed |= {run.digest for _, job in ready for run in job.runs}
        chosen = {id(job) for _, job in ready}
        waiting = [(source, job) for source, job in waiting if id(job) not in chosen]
    return ordered
