"""What a job waits for: runs that others train, which may be finished, not there yet, or never to be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmark.errors import UserError
from benchmark.plan import label
from benchmark.results import DamagedRun, Record
from benchmark.spec import Run
from slurm.states import Ending
from slurm.sweep import Sweep

LOST: tuple[Ending, ...] = ("failed", "blocked", "cancelled")


@dataclass(frozen=True)
class Standing:
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


def standing(sweep: Sweep, number: int, ended: Mapping[int, Ending] | None = None) -> Standing:
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
            elif maker is None or ended.get(maker) in LOST:
                why = "" if maker is None else sweep.reason(maker)
                never = f"{what}, has no record{': ' + why if why else ''}"
            else:
                later = f"{label(run)} waits for {needed.method} of {needed.student}"
        if never:
            lost.append(never)
        elif later:
            waiting = later
        else:
            ready.append(run)
    return Standing(tuple(ready), waiting, tuple(dict.fromkeys(lost)))


def record_of(sweep: Sweep, run: Run) -> Record | None:
    """The record of a run; one that is damaged is put aside, and its job is open again."""
    try:
        return sweep.store.record(run)
    except DamagedRun as damage:
        heal(sweep, damage)
        return None


def heal(sweep: Sweep, damage: DamagedRun) -> list[str]:
    """Put aside what is damaged of a run, and have it trained again; returns what there is to say of it."""
    lines = sweep.store.put_aside(damage.run)
    maker = sweep.job_of(damage.run)
    if maker is not None:
        sweep.reopen(maker)
    return lines


def answer_of(sweep: Sweep, number: int) -> tuple[Ending, str] | None:
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
