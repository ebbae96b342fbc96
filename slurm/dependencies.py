"""What a job waits for: runs that others train, which may be finished, not there yet, or never to be had."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.planning.request import describe_run
from benchmark.results.record import CorruptRun, Record
from slurm.states import JobState
from slurm.sweep import Sweep

TERMINAL_FAILURES: tuple[JobState, ...] = ("failed", "blocked", "cancelled")


@dataclass(frozen=True)
class Readiness:
    """Of the runs of a job that have no record: those that can be trained, and why others cannot."""

    ready: tuple[Run, ...]
    waiting: str
    """What is not there yet; empty if nothing is waited for."""
    lost: tuple[str, ...]
    """Why some can never be trained."""

    @property
    def is_hopeless(self) -> bool:
        """Whether none of them can be trained, now or later."""
        return bool(self.lost) and not self.ready and not self.waiting


def readiness(sweep: Sweep, number: int, ended: Mapping[int, JobState] | None = None) -> Readiness:
    """How the runs of a job stand. ended: how jobs have ended, if that was just looked up."""
    ready: list[Run] = []
    lost: list[str] = []
    waiting = ""
    ended = sweep.ended() if ended is None else ended
    for run in sweep.runs_of(number):
        if sweep.store.has_record(run):
            continue
        never, later = "", ""
        for needed in run.dependencies():
            what = f"{needed.method} of {needed.student}, which it needs"
            try:
                record = record_of(sweep, needed)
            except UserError as error:
                never = f"{what}: {error}"
                continue
            if record is not None and record["status"] == "finished":
                continue
            maker = sweep.job_of(needed)
            if record is not None:
                never = f"{what}, has failed: {record['reason']}"
            elif maker is None or ended.get(maker) in TERMINAL_FAILURES:
                why = "" if maker is None else sweep.reason(maker)
                never = f"{what}, has no record{': ' + why if why else ''}"
            else:
                later = f"{describe_run(run)} waits for {needed.method} of {needed.student}"
        if never:
            lost.append(never)
        elif later:
            waiting = later
        else:
            ready.append(run)
    return Readiness(tuple(ready), waiting, tuple(dict.fromkeys(lost)))


def record_of(sweep: Sweep, run: Run) -> Record | None:
    """The record of a run; one that is damaged is put aside, and its job is open again."""
    try:
        return sweep.store.record(run)
    except CorruptRun as damage:
        quarantine_corrupt(sweep, damage)
        return None


def quarantine_corrupt(sweep: Sweep, damage: CorruptRun) -> list[str]:
    """Put aside what is damaged of a run, and have it trained again; returns what there is to say of it."""
    lines = sweep.store.quarantine(damage.run)
    maker = sweep.job_of(damage.run)
    if maker is not None:
        sweep.reopen(maker)
    return lines


def outcome_from_records(sweep: Sweep, number: int) -> tuple[JobState, str] | None:
    """How a job ended by its records: well, or, where a run failed, for what reason; None if some are missing.

    A record that is not to be used, say of another version, counts as a failure.
    """
    try:
        records = [record_of(sweep, run) for run in sweep.runs_of(number)]
    except UserError as error:
        return "failed", str(error)
    if any(record is None for record in records):
        return None
    reasons = [str(record["reason"]) for record in records if record and record["status"] == "failed"]
    return ("failed" if reasons else "done"), "; ".join(dict.fromkeys(reasons))


def resume(sweep: Sweep) -> list[int]:
    """Bring what is noted of a sweep's jobs in line with the records; returns the jobs that are to do once more.

    A cancelled sweep goes on. A job whose records have gone is open again, and so is one that lacked what now is there.

    Raises:
        UserError: the shared folder cannot be written.
    """
    sweep.resume()
    ended, missing = sweep.ended(), _missing(sweep)
    again = []
    for job in sweep.jobs:
        ending = ended.get(job.number)
        if not missing[job.number]:
            if ending is None and (answer := outcome_from_records(sweep, job.number)) is not None:
                sweep.end(job.number, *answer)
        elif ending in ("done", "cancelled"):
            _open_again(sweep, job.number)
            again.append(job.number)
    return again + _unblocked(sweep)


def retry(sweep: Sweep, endings: tuple[JobState, ...] = ("failed",)) -> list[int]:
    """Have jobs that ended badly tried again, and with them what was blocked by them; returns these jobs.

    Records of failure are removed; records of success stay.

    Raises:
        UserError: the shared folder cannot be written.
    """
    ended = sweep.ended()
    chosen = [number for number, ending in sorted(ended.items()) if ending in endings]
    for number in chosen:
        for run in sweep.runs_of(number):
            sweep.store.forget_failure(run)
        _open_again(sweep, number)
    return chosen + _unblocked(sweep)


def _open_again(sweep: Sweep, number: int) -> None:
    """Have a job submitted anew, whatever became of it before."""
    # Also of one that never ran: the cluster may still know it as cancelled, for want of what it needed.
    sweep.write_state(sweep.state(number).replace(forgiven=time.time(), shown=None))
    sweep.reopen(number)


def _unblocked(sweep: Sweep) -> list[int]:
    """Open what was blocked by jobs that are open again, in dependency order."""
    ended = sweep.ended()
    opened = []
    for job in sweep.jobs:
        needed = sweep.needs.get(job.number, frozenset())
        if ended.get(job.number) == "blocked" and not any(ended.get(other) in TERMINAL_FAILURES for other in needed):
            _open_again(sweep, job.number)
            del ended[job.number]
            opened.append(job.number)
    return opened


def _missing(sweep: Sweep) -> dict[int, int]:
    """How many runs of each job have no record."""
    found: dict[int, int] = defaultdict(int)
    for job, dataset, run_id in sweep.outline():
        if not sweep.is_recorded(dataset, run_id):
            found[job] += 1
    return found
