"""Runs one job of a sweep on its node: trains, reports progress, stops in time, and reconciles the sweep at its end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError
from benchmark.planning.request import describe_run
from benchmark.results.leases import LeaseManager, this_owner
from benchmark.results.record import CorruptRun
from benchmark.training.failures import RunsFailed
from benchmark.training.job import run_available
from benchmark.training.settings import Progress
from slurm import client
from slurm.client import SchedulerError
from slurm.dependencies import check_readiness, quarantine_corrupt, read_record
from slurm.dispatcher import give_up_reason, reconcile
from slurm.journal import Attempt, ExitReason, ShownProgress, State
from slurm.pace import CHECK_SECONDS, FIRST_PROGRESS_SECONDS, HEARTBEAT_SECONDS
from slurm.profile import WATCHDOG_MINUTES
from slurm.sweep import Sweep

MOST_DAMAGED = 6
"""How many files of a run may be put aside as damaged before the run is given up."""
WATCHDOG_PATIENCE_SECONDS = 60.0 * (WATCHDOG_MINUTES - 3)


def run_job(folder: str, number: int) -> None:
    """Train a job of the sweep in a folder as far as its time allows; submitit calls this on a node."""
    sweep = Sweep(Path(folder))
    stop = StopCondition(sweep)
    leaving: ExitReason = "failed"
    try:
        is_over = number in sweep.journal.read_endings() or sweep.is_cancelled
        leaving = "done" if is_over else _attempt_job(sweep, number, stop)
    finally:
        _, profile = sweep.read_settings()
        if profile.submit_from_jobs and not sweep.is_cancelled:
            _reconcile(sweep)
    _requeue_if_unfinished(stop.job, leaving)
    if leaving == "failed":
        # For people who look at the cluster's own accounting.
        sys.exit(1)


def _requeue_if_unfinished(job: str, leaving: ExitReason) -> None:
    # SLURM counts a job that leaves in the grace time of its preemption as completed. A job that is cancelled or
    # already requeued is COMPLETING and is left alone.
    is_preempted = leaving == "preempted" and client.state_of(job) == "RUNNING"
    if job and (is_preempted or leaving in ("time limit", "interrupted")):
        try:
            client.requeue(job)
        except SchedulerError as error:
            _say(f"not requeued ({error}); whoever looks after the sweep next submits it again")


def keep(folder: str) -> None:
    """Reconcile the sweep in a folder; the watchdog job calls this when all submitted jobs have ended.

    No other job follows it. So it retries for some minutes if SLURM or the folder does not answer, and then requeues
    itself, which needs no room in the queue.
    """
    sweep = Sweep(Path(folder))
    stop = StopCondition(sweep)
    deadline = time.monotonic() + WATCHDOG_PATIENCE_SECONDS
    while not _reconcile(sweep):
        if stop():
            return
        if time.monotonic() > deadline:
            with contextlib.suppress(SchedulerError):
                client.requeue(stop.job)
            return
        time.sleep(HEARTBEAT_SECONDS)


def _reconcile(sweep: Sweep) -> bool:
    """Reconcile the sweep; returns whether that worked and somebody will reconcile it again."""
    try:
        result = reconcile(sweep, say=_say)
    except (UserError, SchedulerError) as error:
        # The results of this job are safe, and the next process reconciles the sweep.
        _say(f"the sweep was not looked after: {error}")
        return False
    return result is None or (result.answers and result.is_followed)


def _say(line: str) -> None:
    print(line, flush=True)


class StopCondition:
    """Decides when a job must stop: after a signal, near its time limit, when cancelled, or when its parent died."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.job = sweep, this_owner().job
        self.reason: ExitReason | None = None
        self.deadline: float | None = None
        self.grace_seconds = 0
        self._is_warned = False
        self._parent, self._looked = os.getppid(), time.monotonic()
        signal.signal(signal.SIGTERM, self._on_end)
        signal.signal(signal.SIGINT, self._on_end)
        signal.signal(signal.SIGUSR2, self._on_warning)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)

    def _on_end(self, number: int, frame: Any) -> None:
        self.reason = self.reason or "preempted"

    def _on_warning(self, number: int, frame: Any) -> None:
        # SLURM may send it a minute early, so that stopping at once could halve a short job.
        self._is_warned = True

    def start_clock(self, grace_seconds: int) -> None:
        """Stop from now on so long before SLURM's time limit."""
        self.grace_seconds = grace_seconds
        self._read_limit()

    def _read_limit(self, tries: int = client.TRIES) -> None:
        end = client.end_time(self.job, tries) if self.job else None
        self.deadline = self.deadline if end is None else end - self.grace_seconds

    def __call__(self) -> bool:
        # A signal that arrives meanwhile is not overwritten.
        if self.reason is None and (reason := self._find_reason()):
            self.reason = self.reason or reason
        return self.reason is not None

    def _find_reason(self) -> ExitReason | None:
        is_warned, self._is_warned = self._is_warned, False
        if is_warned:
            # The limit may have changed since this job began.
            self._read_limit(tries=1)
        is_late = is_warned if self.deadline is None else time.time() > self.deadline
        if is_late:
            return "time limit"
        if time.monotonic() - self._looked > CHECK_SECONDS:
            self._looked = time.monotonic()
            if os.getppid() != self._parent:
                # The daemon of this step was killed: SLURM would neither end this process nor start it again.
                return "interrupted"
            if self.sweep.is_cancelled:
                return "cancelled"
        return None


class AttemptLog:
    """Writes the state of an attempt from a thread, so that a slow folder does not delay training."""

    def __init__(self, sweep: Sweep, job: int) -> None:
        self.sweep, self.before = sweep, sweep.journal.read_state(job)
        now = time.time()
        self.attempt = Attempt(owner=this_owner(), began=now, beat=now, reached=self.before.reached)
        self.shown: ShownProgress | None = None
        self.reached = self.before.reached
        self._lock, self._over = threading.Lock(), threading.Event()

    def __enter__(self) -> AttemptLog:
        self._write()
        threading.Thread(target=self._beat, name="attempt-log", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _beat(self) -> None:
        beat, is_shown = time.monotonic(), False
        while not self._over.wait(FIRST_PROGRESS_SECONDS):
            is_first_progress = self.shown is not None and not is_shown
            if is_first_progress or time.monotonic() - beat >= HEARTBEAT_SECONDS:
                beat, is_shown = time.monotonic(), self.shown is not None
                # The folder may be full for a while; training goes on meanwhile.
                with contextlib.suppress(UserError):
                    self._write()

    def _write(self, **changes: Any) -> None:
        with self._lock:
            self.attempt = self.attempt.replace(**changes, beat=time.time(), reached=self.reached)
            present, others = self._read_others()
            attempts = tuple(sorted((*others, self.attempt), key=lambda attempt: attempt.began))
            shown = self.shown if attempts[-1] is self.attempt else present.shown
            self.sweep.journal.write_state(present.replace(attempts=attempts, shown=shown))

    def _read_others(self) -> tuple[State, list[Attempt]]:
        """The state as it is written by now, and the other attempts in it.

        Two attempts may run at once: the cluster starts a job again when it loses contact with its node.
        """
        present = self.sweep.journal.read_state(self.before.job)
        if not present.attempts:
            present = self.before
        return present, [attempt for attempt in present.attempts if attempt.owner.token != self.attempt.owner.token]

    @property
    def is_superseded(self) -> bool:
        """Whether the job was started again since, so that this attempt no longer speaks for it."""
        return any(attempt.began > self.attempt.began for attempt in self._read_others()[1])

    def on_progress(self, progress: Progress) -> None:
        """Keep the position of the cohort; the next heartbeat writes it."""
        self.shown = ShownProgress(**{name: getattr(progress, name) for name in ShownProgress.model_fields})
        # Without the lock, which a slow folder may hold for long.
        self.reached = max(self.reached, progress.share_done)

    def close(self, leaving: ExitReason, reason: str = "", waits_for: str = "") -> ExitReason:
        """Write how the attempt ended."""
        self._over.set()
        if leaving == "done":
            # A short attempt may end before its first report of progress.
            self.reached = 1.0
        _say(f"left: {leaving}{': ' + reason if reason else ''}")
        try:
            self._write(leaving=leaving, reason=reason, waits_for=waits_for, ended=time.time())
        except UserError as error:
            _say(str(error))
        return leaving


def _attempt_job(sweep: Sweep, number: int, stop: StopCondition) -> ExitReason:
    """Make one attempt at a job and log it from start to end; returns how it ended."""
    settings, profile = sweep.read_settings()
    with AttemptLog(sweep, number) as log:
        if log.before.no_progress_attempts > profile.resubmissions:
            return _record_outcome(log, [give_up_reason(log.before)])
        status = check_readiness(sweep, number, sweep.journal.read_endings())
        if status.waiting:
            return log.close("waiting", status.waiting)
        reasons = list(status.lost)
        stop.start_clock(profile.grace_seconds)
        leases = LeaseManager(settings.runs, client.is_alive, settings.silent_seconds)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
                job_settings = replace(settings, dataset=sweep.plan.jobs[number].source)
                result = run_available(status.ready, job_settings, stop, log.on_progress, _say, leases)
        except CorruptRun as damage:
            for line in quarantine_corrupt(sweep, damage):
                _say(f"warning: {line}")
            if len(list(sweep.store.folder(damage.run).glob("damaged-*"))) > MOST_DAMAGED:
                return _record_outcome(log, [f"{damage}, again and again"])
            return log.close("waiting", str(damage))
        except Exception as error:
            traceback.print_exc()
            is_for_users = isinstance(error, UserError | RunsFailed)
            reasons.append(str(error) if is_for_users else f"{type(error).__name__}: {error}")
            return _record_outcome(log, reasons)
        if result.stopped:
            # SLURM sends the same signal for preemption and for scancel.
            is_cancelled = stop.reason == "preempted" and stop.job and client.state_of(stop.job) == "CANCELLED"
            return log.close("cancelled" if is_cancelled else stop.reason or "interrupted")
        if result.held_by_others:
            run, holder = next(iter(result.held_by_others.items()))
            return log.close("elsewhere", f"{run.id} is trained by {holder.label}", holder.job)
        return _record_outcome(log, reasons)


def _record_outcome(log: AttemptLog, reasons: list[str]) -> ExitReason:
    """Note a job as done, or as failed if a run of it has no record of success and will never get one by itself."""
    sweep, number = log.sweep, log.before.job
    for run in sweep.plan.read_runs(number):
        try:
            record = read_record(sweep, run)
        except UserError as error:
            reasons.append(str(error))
            continue
        if record is not None and record["status"] == "failed":
            reasons.append(f"{describe_run(run)}: {record['reason']}")
    reason = "; ".join(dict.fromkeys(reasons))
    if reason and log.is_superseded:
        return log.close("elsewhere", f"this job was started again meanwhile; here {reason}", log.attempt.owner.job)
    leaving = log.close("failed" if reason else "done", reason)
    try:
        sweep.journal.write_ending(number, "failed" if reason else "done", reason)
    except UserError as error:
        _say(str(error))
    return leaving
