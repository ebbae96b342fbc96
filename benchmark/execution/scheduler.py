"""Which job may start next, and what came of those that ended."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.core.spec import Run
from benchmark.planning.jobs import Job, critical_path_lengths
from benchmark.planning.request import label
from benchmark.results.record import CorruptRun, Record
from benchmark.results.store import Store
from benchmark.training.callbacks import Progress

MAX_CORRUPTIONS = 2
"""A run that is damaged so often in one command is given up: whatever damages it would do so again."""
MAX_FALSE_ALARMS = 5
"""So often a job may meet damage that is healed by the time it is looked at."""


@dataclass
class ExecutionSummary:
    """What came of a plan: which jobs ended well, which could not be trained and why, and whether it was stopped."""

    stopped: bool = False
    failures: dict[Job, str] = field(default_factory=dict)
    """Why, for jobs that ended without records."""
    tracebacks: dict[Job, list[Path]] = field(default_factory=dict)
    """Where it is kept what ended them, for those of them that an error has ended."""
    user_errors: list[str] = field(default_factory=list)

    @classmethod
    def joined(cls, reports: Sequence[ExecutionSummary]) -> ExecutionSummary:
        """What came of several plans, one after another."""
        return cls(
            stopped=any(report.stopped for report in reports),
            failures={job: reason for report in reports for job, reason in report.failures.items()},
            tracebacks={job: paths for report in reports for job, paths in report.tracebacks.items()},
            user_errors=[error for report in reports for error in report.user_errors],
        )


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended: for which reason if not well, whether it was stopped, and what each run reached."""

    reason: str | None
    stopped: bool
    outcomes: dict[str, str]
    """By method and changed options: final accuracy in %, or why there is none."""


class JobCallback:
    """Hears what goes on; a display overrides what it shows."""

    def started(self, job: Job) -> None:
        """A job begins."""

    def progress(self, job: Job, progress: Progress) -> None:
        """A job tells where it is."""

    def said(self, job: Job, line: str) -> None:
        """A job has something to tell."""

    def ended(self, job: Job, ending: JobOutcome) -> None:
        """A job ended."""


class JobScheduler:
    """Which job may start next: of those whose needs are met, the one with the most work depending on it."""

    def __init__(self, jobs: Sequence[Job], store: Store) -> None:
        self.store = store
        self.waiting = list(jobs)
        self.running: list[Job] = []
        self.report = ExecutionSummary()
        self._lost: dict[str, str] = {}
        self._priority = {id(job): seconds for job, seconds in zip(jobs, critical_path_lengths(jobs), strict=True)}
        self._kept = list(jobs)
        """Every job, so that no two have the same id."""
        self._given_up: dict[str, str] = {}
        self._damages: Counter[str] = Counter()
        self._in_vain: Counter[str] = Counter()

    def next(self, watcher: JobCallback) -> Job | None:
        """Take the next job that can start; runs whose needs have failed are struck off on the way."""
        while True:
            found = self._look(watcher)
            if not isinstance(found, bool):
                return found
            if not found:
                return None

    def _look(self, watcher: JobCallback) -> Job | bool:
        """The next job that can start; where there is none, whether to look again, as what waits has changed."""
        records: dict[Run, Record | None] = {}
        considered = sorted(self.waiting, key=lambda job: -self._priority[id(job)])
        for job in considered:
            needed = dict.fromkeys(needed for run in job.runs for needed in run.dependencies())
            records |= {run: self._record(run, watcher) for run in needed if run not in records}
            blocked = {run: reason for run in job.runs if (reason := self._blocked(run, records))}
            if blocked:
                self._fail_blocked(job, blocked, watcher)
                return True
            if all(records[run] is not None for run in needed):
                self.waiting.remove(job)
                self.running.append(job)
                return job
        # What is needed had its record when all was planned; where that was damaged, a job for it waits by now.
        self._add(run for run, record in records.items() if record is None)
        return len(self.waiting) > len(considered)

    def _planned(self) -> set[Run]:
        """The runs that jobs are training or will train."""
        return {run for job in (*self.waiting, *self.running) for run in job.runs}

    def _add(self, runs: Iterable[Run]) -> None:
        """Plan jobs for those of some runs that no job is to train."""
        planned = self._planned()
        for run in dict.fromkeys(runs):
            if run not in planned:
                # They come first: others wait for them.
                self._wait(_job_for(run), priority=math.inf)

    def _wait(self, job: Job, priority: float) -> None:
        self.waiting.append(job)
        self._kept.append(job)
        self._priority[id(job)] = priority

    def _blocked(self, run: Run, records: Mapping[Run, Record | None]) -> str | None:
        """Why a run can never start, where that is known by now."""
        for needed in run.dependencies():
            if reason := self._failure(needed, records[needed]):
                return f"{needed.method} of {needed.student}, which it needs, has failed: {reason}"
        return None

    def _fail_blocked(self, job: Job, blocked: dict[Run, str], watcher: JobCallback) -> None:
        """Report the runs of a job that can never start; the rest of its runs go on waiting."""
        self.waiting.remove(job)
        rest = [run for run in job.runs if run not in blocked]
        if rest:
            self._wait(job.with_runs(rest), self._priority[id(job)])
        lost = job.with_runs(list(blocked))
        watcher.started(lost)
        self.ended(lost, "; ".join(dict.fromkeys(blocked.values())), watcher)

    def _failure(self, run: Run, record: Record | None) -> str | None:
        """Why a run will have no weights, where that is known by now."""
        if record is not None and record["status"] == "failed":
            return str(record["reason"])
        return self._given_up.get(run.digest) or (None if record is not None else self._lost.get(run.digest))

    def _record(self, run: Run, watcher: JobCallback) -> Record | None:
        """The record of a run; None where there is none, or it was damaged, which plans the run anew."""
        try:
            return self.store.record(run)
        except CorruptRun as damage:
            self._heal(damage, watcher)
            return None

    def _heal(self, damage: CorruptRun, watcher: JobCallback) -> str | None:
        """Put aside what is damaged of a run and plan it anew; returns why not, where it is given up.

        What is not damaged any more has been healed by another process or job.
        """
        run = damage.run
        lines = self.store.quarantine(run)
        for line in lines:
            watcher.said(_job_for(run), line)
        counted, allowed = (self._damages, MAX_CORRUPTIONS) if lines else (self._in_vain, MAX_FALSE_ALARMS)
        counted[run.digest] += 1
        if counted[run.digest] < allowed:
            self._add([run])
            return None
        reason = f"damaged {counted[run.digest]} times while this command ran: {damage}"
        self._given_up[run.digest] = reason
        return reason

    def on_corrupt(self, job: Job, damage: CorruptRun, watcher: JobCallback) -> None:
        """A job ended because a run that it needs, or one of its own, was found to be damaged: it is to start again."""
        reason = self._heal(damage, watcher)
        if reason is not None and damage.run in job.runs:
            self.ended(job, reason, watcher)
            return
        # Where it was given up, those that need it are struck off when they would start.
        self.running.remove(job)
        unfinished = [run for run in job.runs if self._record(run, watcher) is None]
        if unfinished:
            self._wait(job if len(unfinished) == len(job.runs) else job.with_runs(unfinished), self._priority[id(job)])
        watcher.ended(job, JobOutcome(None, stopped=True, outcomes={}))

    def ended(self, job: Job, reason: str | None, watcher: JobCallback) -> None:
        """Note how a job ended."""
        has_run = job in self.running
        if has_run:
            self.running.remove(job)
        found = {run: self._record(run, watcher) for run in job.runs}
        reason = reason or next((self._given_up[run.digest] for run in job.runs if run.digest in self._given_up), None)
        if reason is not None:
            self.report.failures[job] = reason
            if has_run:
                paths = [self.store.traceback(run) for run in job.runs if found[run] is None]
                self.report.tracebacks[job] = [path for path in paths if path.exists()]
            self._lost.update({run.digest: reason for run in job.runs if found[run] is None})
        several = len({run.student for run in job.runs}) > 1
        names = {run: f"{run.student} {label(run)}" if several else label(run) for run in job.runs}
        stopped = reason is None and None in found.values()
        outcomes = {names[run]: _outcome(record) for run, record in found.items() if record is not None}
        watcher.ended(job, JobOutcome(reason, stopped, outcomes))


def _job_for(run: Run) -> Job:
    """A job for a run that was planned to be finished by now; nobody has reckoned how long it takes."""
    return Job((run,), frozenset(needed.digest for needed in run.dependencies()), seconds=0.0)


def _outcome(record: Record) -> str:
    if record["status"] == "failed":
        return f"failed ({record['reason']})"
    return f"{record['final']['top1']:.1f} %" if "top1" in record["final"] else "trained"
