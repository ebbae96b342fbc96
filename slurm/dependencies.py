"""What the records say of a job: whether it can start, how it ended, and what must be trained again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.planning.request import describe_run
from benchmark.results.record import CorruptRun, Record
from slurm.journal import JobState
from slurm.sweep import Sweep

TERMINAL_FAILURES: tuple[JobState, ...] = ("failed", "blocked", "cancelled")


@dataclass(frozen=True)
class Readiness:
    """The runs of a job without a record: those that can be trained now, and why others cannot."""

    ready: tuple[Run, ...]
    waiting: str
    """A run that needs another one whose record is still missing; empty if there is none."""
    lost: tuple[str, ...]
    """Why some runs can never be trained."""


def check_readiness(sweep: Sweep, job: int, ended: Mapping[int, JobState]) -> Readiness:
    """Which runs of a job can be trained. ended: how jobs have ended."""
    ready: list[Run] = []
    lost: list[str] = []
    waiting = ""
    for run in sweep.plan.read_runs(job):
        if sweep.store.has_record(run):
            continue
        obstacles = [_check_needed(sweep, needed, ended) for needed in run.dependencies()]
        if never := [reason for reason, is_final in obstacles if reason and is_final]:
            lost.append(never[-1])
        elif later := [reason for reason, _ in obstacles if reason]:
            waiting = f"{describe_run(run)} waits for {later[-1]}"
        else:
            ready.append(run)
    return Readiness(tuple(ready), waiting, tuple(dict.fromkeys(lost)))


def _check_needed(sweep: Sweep, needed: Run, ended: Mapping[int, JobState]) -> tuple[str, bool]:
    """Why a run that others need has no record of success, and whether it never will; "" if it has one."""
    name = f"{needed.method} of {needed.student}"
    try:
        record = read_record(sweep, needed)
    except UserError as error:
        return f"{name}, which it needs: {error}", True
    if record is not None:
        is_finished = record["status"] == "finished"
        return "" if is_finished else f"{name}, which it needs, has failed: {record['reason']}", True
    job = sweep.plan.find_job(needed)
    if job is not None and ended.get(job) not in TERMINAL_FAILURES:
        return name, False
    reason = "" if job is None else sweep.journal.read_reason(job)
    return f"{name}, which it needs, has no record{': ' + reason if reason else ''}", True


def read_record(sweep: Sweep, run: Run) -> Record | None:
    """The record of a run; a damaged one is put aside, and the run is trained again."""
    try:
        return sweep.store.record(run)
    except CorruptRun as damage:
        quarantine_corrupt(sweep, damage)
        return None


def quarantine_corrupt(sweep: Sweep, damage: CorruptRun) -> list[str]:
    """Put aside what is damaged of a run, and have it trained again; returns lines for the user."""
    lines = sweep.store.quarantine(damage.run)
    job = sweep.plan.find_job(damage.run)
    if job is not None:
        sweep.journal.remove_ending(job)
    return lines


def outcome_from_records(sweep: Sweep, job: int) -> tuple[JobState, str] | None:
    """How a job ended by its records, with the reason if a run failed; None if some records are missing.

    A record that cannot be used, such as one of another version, counts as a failure.
    """
    try:
        records = [read_record(sweep, run) for run in sweep.plan.read_runs(job)]
    except UserError as error:
        return "failed", str(error)
    if any(record is None for record in records):
        return None
    reasons = [str(record["reason"]) for record in records if record and record["status"] == "failed"]
    return ("failed" if reasons else "done"), "; ".join(dict.fromkeys(reasons))


def resume(sweep: Sweep) -> list[int]:
    """Bring the journal in line with the records, and resume a cancelled sweep; returns the jobs to do once more.

    These are jobs whose records have gone, cancelled jobs, and jobs that lacked something that now exists.

    Raises:
        UserError: the shared folder cannot be written.
    """
    ended, was_cancelled = sweep.journal.read_endings(), sweep.is_cancelled
    again = []
    for job in range(len(sweep.plan.jobs)):
        ending = ended.get(job)
        if all(sweep.store.has_record(run) for run in sweep.plan.read_runs(job)):
            if ending is None and (outcome := outcome_from_records(sweep, job)) is not None:
                sweep.journal.write_ending(job, *outcome)
        elif ending in ("done", "cancelled"):
            _reopen(sweep, job)
            again.append(job)
        elif ending is None and was_cancelled:
            # It is not to count as cancelled with scancel.
            _reopen(sweep, job)
    sweep.undo_cancel()
    return again + _unblock(sweep)


def retry(sweep: Sweep, endings: tuple[JobState, ...] = ("failed",)) -> list[int]:
    """Reopen jobs that ended badly, and those that they blocked; returns these jobs.

    Records of failure are removed; records of success stay.

    Raises:
        UserError: the shared folder cannot be written.
    """
    ended = sweep.journal.read_endings()
    jobs = [job.number for job in sweep.plan.jobs if ended.get(job.number) in endings]
    for job in jobs:
        for run in sweep.plan.read_runs(job):
            sweep.store.forget_failure(run)
        _reopen(sweep, job)
    return jobs + _unblock(sweep)


def _reopen(sweep: Sweep, job: int) -> None:
    """Have a job submitted anew, whatever happened to it before."""
    # Even a job that never ran gets a state: SLURM may still know it as cancelled.
    state = sweep.journal.read_state(job)
    sweep.journal.write_state(state.replace(forgiven=time.time(), shown=None))
    sweep.journal.remove_ending(job)


def _unblock(sweep: Sweep) -> list[int]:
    """Reopen what was blocked by jobs that are open again, in dependency order."""
    ended = sweep.journal.read_endings()
    unblocked = []
    for job, needs in sweep.plan.needs.items():
        if ended.get(job) == "blocked" and not any(ended.get(needed) in TERMINAL_FAILURES for needed in needs):
            _reopen(sweep, job)
            del ended[job]
            unblocked.append(job)
    return unblocked
