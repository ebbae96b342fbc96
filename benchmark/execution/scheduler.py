"""The job scheduler: chooses the next job and records how jobs ended."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.planning.jobs import Job, critical_path_lengths
from benchmark.planning.request import describe_run
from benchmark.results.record import CorruptRun, Record
from benchmark.results.store import Store
from benchmark.training.settings import Progress

MAX_CORRUPTIONS = 2
"""How often a run may be found corrupt in one command before it is given up; whatever corrupts it would do so again."""
MAX_FALSE_ALARMS = 5
"""How often a job may report a corrupt dependency that then turns out to be intact."""


@dataclass
class ExecutionSummary:
    """The outcome of a plan: which jobs failed and why, and whether the user stopped it."""

    stopped: bool = False
    failures: dict[Job, str] = field(default_factory=dict)
    """The reason for each job that ended without records."""
    tracebacks: dict[Job, list[Path]] = field(default_factory=dict)
    """The traceback files of jobs that an exception ended."""
    user_errors: list[str] = field(default_factory=list)

    @classmethod
    def merge(cls, summaries: Sequence[ExecutionSummary]) -> ExecutionSummary:
        """Combine the summaries of several plans."""
        return cls(
            stopped=any(summary.stopped for summary in summaries),
            failures={job: reason for summary in summaries for job, reason in summary.failures.items()},
            tracebacks={job: paths for summary in summaries for job, paths in summary.tracebacks.items()},
            user_errors=[error for summary in summaries for error in summary.user_errors],
        )


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended: the reason if it failed, whether it was stopped, and the result of each run."""

    reason: str | None
    stopped: bool
    outcomes: dict[str, str]
    """Final accuracy in %, or why there is none, by method and changed options."""


class JobCallback:
    """Receives the events of jobs; a display overrides the ones that it shows."""

    def on_start(self, job: Job) -> None:
        """Called when a job starts."""

    def on_progress(self, job: Job, progress: Progress) -> None:
        """Called with the position of a running job."""

    def on_message(self, job: Job, line: str) -> None:
        """Called with a line that a job prints."""

    def on_end(self, job: Job, outcome: JobOutcome) -> None:
        """Called when a job has ended."""


class JobScheduler:
    """Chooses the next job: of those whose dependencies are finished, the one with the most work waiting for it."""

    def __init__(self, jobs: Sequence[Job], store: Store, callback: JobCallback) -> None:
        self.store, self.callback = store, callback
        self.waiting = list(jobs)
        self.running: list[Job] = []
        self.summary = ExecutionSummary()
        self._failed: dict[str, str] = {}
        self._datasets = {run.dataset for job in jobs for run in job.runs}
        self._priority = dict(zip(jobs, critical_path_lengths(jobs), strict=True))
        self._given_up: dict[str, str] = {}
        self._corruptions: Counter[str] = Counter()
        self._false_alarms: Counter[str] = Counter()

    def next_ready(self) -> Job | None:
        """Take the next job that can start; on the way, fail the runs whose dependencies have failed."""
        while True:
            records: dict[Run, Record | None] = {}
            considered = sorted(self.waiting, key=lambda job: -self._priority[job])
            for job in considered:
                needed = dict.fromkeys(needed for run in job.runs for needed in run.dependencies())
                records |= {run: self._record(run) for run in needed if run not in records}
                blocked = {run: reason for run in job.runs if (reason := self._blocked(run, records))}
                if blocked:
                    self._fail_blocked(job, blocked)
                    break
                if all(records[run] is not None for run in needed):
                    self.waiting.remove(job)
                    self.running.append(job)
                    return job
            else:
                # Every dependency had a record or a job when planned; one whose record became corrupt needs a job now.
                failed = len(self._failed)
                self._add(run for run, record in records.items() if record is None)
                if len(self.waiting) == len(considered) and len(self._failed) == failed:
                    return None

    def _add(self, runs: Iterable[Run]) -> None:
        """Plan a job for each run that no job trains yet; those on other datasets count as failed."""
        planned = {run for job in (*self.waiting, *self.running) for run in job.runs}
        for run in dict.fromkeys(runs):
            if run.dataset not in self._datasets:
                # The student of a probe: only the command that plans it with its own dataset can train it.
                self._failed.setdefault(run.digest, f"it has no record on {run.dataset}")
            elif run not in planned:
                # They come first: others wait for them.
                self._wait(Job((run,), seconds=0.0), priority=math.inf)

    def _wait(self, job: Job, priority: float) -> None:
        self.waiting.append(job)
        self._priority[job] = priority

    def _blocked(self, run: Run, records: Mapping[Run, Record | None]) -> str | None:
        """Return why a run can never start, if that is known."""
        for needed in run.dependencies():
            if reason := self._failure(needed, records[needed]):
                return f"{needed.method} of {needed.student}, which it needs, has failed: {reason}"
        return None

    def _fail_blocked(self, job: Job, blocked: dict[Run, str]) -> None:
        """Report the runs of a job that can never start as failed; its other runs keep waiting."""
        self.waiting.remove(job)
        rest = [run for run in job.runs if run not in blocked]
        if rest:
            self._wait(job.with_runs(rest), self._priority[job])
        blocked_job = job.with_runs(list(blocked))
        self.callback.on_start(blocked_job)
        self.finish(blocked_job, "; ".join(dict.fromkeys(blocked.values())))

    def _failure(self, run: Run, record: Record | None) -> str | None:
        """Return why a run will have no weights, if that is known."""
        if record is not None and record["status"] == "failed":
            return str(record["reason"])
        return self._given_up.get(run.digest) or (None if record is not None else self._failed.get(run.digest))

    def _record(self, run: Run) -> Record | None:
        """Read the record of a run; None if there is none, or if it is corrupt, which requeues the run."""
        try:
            return self.store.record(run)
        except CorruptRun as damage:
            self._requeue_corrupt(damage)
            return None

    def _requeue_corrupt(self, damage: CorruptRun) -> str | None:
        """Quarantine the corrupt files of a run and queue it again; returns the reason if it is given up.

        If nothing is corrupt any more, another process or job has already repaired it.
        """
        run = damage.run
        lines = self.store.quarantine(run)
        for line in lines:
            self.callback.on_message(Job((run,), seconds=0.0), line)
        counts, allowed = (self._corruptions, MAX_CORRUPTIONS) if lines else (self._false_alarms, MAX_FALSE_ALARMS)
        counts[run.digest] += 1
        if counts[run.digest] < allowed:
            # A worker may have met, long ago, damage whose repair has ended since.
            if lines or not self.store.has_record(run):
                self._add([run])
            return None
        reason = f"damaged {counts[run.digest]} times while this command ran: {damage}"
        self._given_up[run.digest] = reason
        return reason

    def end(self, job: Job, error: Exception | None) -> None:
        """Record how an attempt at a job ended: well, or with an error. Damage to its runs or to its needs requeues it.

        A UserError, which the user must mend, is kept for the end of the command.
        """
        if isinstance(error, CorruptRun):
            self._requeue_job(job, error)
            return
        if isinstance(error, UserError):
            self.summary.user_errors.append(str(error))
        self.finish(job, None if error is None else str(error) or type(error).__name__)

    def _requeue_job(self, job: Job, damage: CorruptRun) -> None:
        reason = self._requeue_corrupt(damage)
        if reason is not None and damage.run in job.runs:
            self.finish(job, reason)
            return
        # If the run was given up, `next_ready` fails the jobs that depend on it.
        self.running.remove(job)
        unfinished = [run for run in job.runs if self._record(run) is None]
        if unfinished:
            self._wait(job if len(unfinished) == len(job.runs) else job.with_runs(unfinished), self._priority[job])
        self.callback.on_end(job, JobOutcome(None, stopped=True, outcomes={}))

    def finish(self, job: Job, reason: str | None) -> None:
        """Record how a job ended and report it."""
        has_run = job in self.running
        if has_run:
            self.running.remove(job)
        records = {run: self._record(run) for run in job.runs}
        reason = reason or next((self._given_up[run.digest] for run in job.runs if run.digest in self._given_up), None)
        if reason is not None:
            self.summary.failures[job] = reason
            if has_run:
                paths = [self.store.traceback(run) for run in job.runs if records[run] is None]
                self.summary.tracebacks[job] = [path for path in paths if path.exists()]
            self._failed.update({run.digest: reason for run in job.runs if records[run] is None})
        several = len({run.student for run in job.runs}) > 1
        names = {run: f"{run.student} {describe_run(run)}" if several else describe_run(run) for run in job.runs}
        stopped = reason is None and None in records.values()
        outcomes = {names[run]: _outcome(record) for run, record in records.items() if record is not None}
        self.callback.on_end(job, JobOutcome(reason, stopped, outcomes))


def _outcome(record: Record) -> str:
    if record["status"] == "failed":
        return f"failed ({record['reason']})"
    return f"{record['final']['top1']:.1f} %" if "top1" in record["final"] else "trained"
