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
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError
from benchmark.planning.request import describe_run
from benchmark.results.leases import LeaseManager
from benchmark.results.owners import this_owner
from benchmark.results.record import CorruptRun
from benchmark.training.callbacks import Progress
from benchmark.training.failures import RunsFailed
from benchmark.training.job import run_available
from slurm import client
from slurm.client import SchedulerError
from slurm.dependencies import quarantine_corrupt, readiness, record_of
from slurm.dispatcher import give_up_reason, reconcile
from slurm.profile import WATCHDOG_MINUTES, Profile
from slurm.states import Attempt, ExitReason, ShownProgress, State
from slurm.sweep import Sweep

BEAT_SECONDS = 10.0
"""How often a job writes down how it goes."""
FIRST_SECONDS = 1.0
"""How soon it writes down where it is for the first time."""
MOST_DAMAGED = 6
"""So many files of a run may be put aside as damaged before it is given up."""
WATCHDOG_PATIENCE_SECONDS = 60.0 * (WATCHDOG_MINUTES - 3)
LOOK_SECONDS = 5.0
"""How often it looks whether the sweep was cancelled."""


def run_job(folder: str, number: int) -> None:
    """Bring a job of the sweep in a folder as far as its time on the cluster allows; what submitit calls on a node."""
    sweep = Sweep(Path(folder))
    signals = Signals()
    leaving: ExitReason = "failed"
    try:
        is_over = number in sweep.ended() or sweep.is_stopped
        leaving = "done" if is_over else _attempt_job(sweep, number, signals)
    finally:
        _, profile = sweep.settings()
        if profile.submit_from_jobs and not sweep.is_stopped:
            _reconcile(sweep)
    _start_again(this_owner().job, leaving)
    if leaving == "failed":
        # For people who look at the cluster's own accounting.
        sys.exit(1)


def _start_again(job: str, leaving: ExitReason) -> None:
    """Have the cluster start this job again, where it has time left to do or nothing else would."""
    # A job that leaves in the grace time of its preemption would otherwise count as completed; of one that is cancelled
    # or already requeued the state is COMPLETING, and nothing is asked for.
    preempted = leaving == "preempted" and client.state_of(job) == "RUNNING"
    if job and (preempted or leaving in ("time limit", "interrupted")):
        try:
            client.requeue(job)
        except SchedulerError as error:
            _say(f"not requeued ({error}); whoever looks after the sweep next submits it again")


def keep(folder: str) -> None:
    """Reconcile the sweep in a folder; the watchdog job calls this when all submitted jobs have ended.

    No other job follows it. So it retries for some minutes if SLURM or the folder does not answer, and then requeues
    itself, which needs no room in the queue.
    """
    signals, sweep = Signals(), Sweep(Path(folder))
    deadline = time.monotonic() + WATCHDOG_PATIENCE_SECONDS
    while not _reconcile(sweep):
        if signals.stop_reason is not None:
            return
        if time.monotonic() > deadline:
            with contextlib.suppress(SchedulerError):
                client.requeue(this_owner().job)
            return
        time.sleep(BEAT_SECONDS)


def _reconcile(sweep: Sweep) -> bool:
    """Reconcile the sweep; returns whether that worked and somebody will reconcile it again."""
    try:
        result = reconcile(sweep, say=_say)
    except (UserError, SchedulerError) as error:
        # Whoever looks after the sweep next makes good for it; what this job has trained is safe.
        _say(f"the sweep was not looked after: {error}")
        return False
    return result is None or (result.answers and result.is_followed)


def _say(line: str) -> None:
    print(line, flush=True)


class Signals:
    """Receives the signals that SLURM sends to this job, and keeps why the job must stop."""

    def __init__(self) -> None:
        self.stop_reason: ExitReason | None = None
        self.parent = os.getppid()
        self.clock = False
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        signal.signal(signal.SIGUSR2, self._look_at_clock)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)

    def _end(self, number: int, frame: Any) -> None:
        self.stop_reason = self.stop_reason or "preempted"

    def _look_at_clock(self, number: int, frame: Any) -> None:
        # SLURM sends it up to a minute early, so that it alone would cut short jobs in half.
        self.clock = True


class StopCondition:
    """Decides when a job must stop: after a signal, near its time limit, when cancelled, or when its parent died."""

    def __init__(self, sweep: Sweep, profile: Profile, signals: Signals, job: str) -> None:
        self.sweep, self.signals, self.job, self.grace = sweep, signals, job, profile.grace_seconds
        end = client.end_time(job) if job else None
        self.deadline = None if end is None else end - self.grace
        self._looked = time.monotonic()

    def __call__(self) -> bool:
        signals = self.signals
        if signals.stop_reason is None and signals.clock:
            self._refresh_deadline()
        if signals.stop_reason is None and self.deadline is not None and time.time() > self.deadline:
            signals.stop_reason = "time limit"
        if signals.stop_reason is None and time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            if os.getppid() != signals.parent:
                # What started this process for the cluster was killed; nothing would end it, or start it again.
                signals.stop_reason = "interrupted"
            elif self.sweep.is_stopped:
                signals.stop_reason = "cancelled"
        return signals.stop_reason is not None

    def _refresh_deadline(self) -> None:
        """Ask SLURM for the end time again after its warning; the limit may have changed since this job began."""
        self.signals.clock = False
        end = client.end_time(self.job, tries=1) if self.job else None
        if end is not None:
            self.deadline = end - self.grace
        elif self.deadline is None:
            self.signals.stop_reason = "time limit"


class AttemptLog:
    """Writes the state of an attempt from a thread, so that a slow folder does not delay training."""

    def __init__(self, sweep: Sweep, number: int) -> None:
        before = sweep.state(number)
        reached = before.reached
        now = time.time()
        self.sweep, self.before = sweep, before
        self.attempt = Attempt(owner=this_owner(), began=now, beat=now, reached=reached)
        self.shown: ShownProgress | None = None
        self.reached = reached
        self.lock, self.over = threading.Lock(), threading.Event()

    def __enter__(self) -> AttemptLog:
        self.write()
        threading.Thread(target=self._go_on, name="attempt-log", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()

    def _go_on(self) -> None:
        beat, is_shown = time.monotonic(), False
        while not self.over.wait(FIRST_SECONDS):
            # Where it is, is written as soon as there is something to tell.
            is_news = self.shown is not None and not is_shown
            if time.monotonic() - beat < BEAT_SECONDS and not is_news:
                continue
            beat, is_shown = time.monotonic(), self.shown is not None
            # The folder may be full for a while; what is trained is kept in memory meanwhile.
            with self.lock, contextlib.suppress(UserError):
                self._write_now()

    def write(self, **changes: Any) -> None:
        """Write the attempt down as it is now.

        Raises:
            UserError: the shared folder cannot be written.
        """
        with self.lock:
            self.attempt = self.attempt.replace(**changes)
            self._write_now()

    def _write_now(self) -> None:
        self.attempt = self.attempt.replace(beat=time.time(), reached=self.reached)
        present, others = self._others()
        attempts = tuple(sorted((*others, self.attempt), key=lambda attempt: attempt.began))
        shown = self.shown if attempts[-1] is self.attempt else present.shown
        self.sweep.write_state(State(job=self.before.job, attempts=attempts, shown=shown, forgiven=present.forgiven))

    def _others(self) -> tuple[State, list[Attempt]]:
        """What is written down by now, and the attempts in it that are not this one.

        Another process may make one at the same time: the cluster starts a job again when it loses sight of its node.
        """
        present = self.sweep.state(self.before.job)
        if not present.attempts:
            present = self.before
        return present, [attempt for attempt in present.attempts if attempt.owner.token != self.attempt.owner.token]

    @property
    def is_superseded(self) -> bool:
        """Whether the job was started again since, so that this attempt no longer speaks for it."""
        return any(attempt.began > self.attempt.began for attempt in self._others()[1])

    def on_progress(self, progress: Progress) -> None:
        """Note where the cohort is; it is written with the next beat."""
        self.shown = ShownProgress(
            epoch=progress.epoch,
            epochs=progress.epochs,
            images_per_second=progress.images_per_second,
            seconds_left=progress.seconds_left,
            top1=progress.top1,
        )
        # Without the lock, which a slow folder may keep for long.
        self.reached = max(self.reached, progress.share_done)

    def close(self, leaving: ExitReason, reason: str = "", waits_for: str = "") -> ExitReason:
        """Write down how the attempt ended; where the folder takes nothing, SLURM is told instead."""
        self.over.set()
        if leaving == "done":
            # Training reports only now and then; a short attempt may end before its first report.
            self.reached = 1.0
        _say(f"left: {leaving}{': ' + reason if reason else ''}")
        try:
            self.write(leaving=leaving, reason=reason, waits_for=waits_for, ended=time.time())
        except UserError as error:
            _say(str(error))
            client.comment(self.attempt.owner.job, f"{reason or leaving}; {error}")
        return leaving


def _attempt_job(sweep: Sweep, number: int, signals: Signals) -> ExitReason:
    """Make one attempt at a job and log it from start to end; returns how it ended."""
    settings, profile = sweep.settings()
    owner = this_owner()
    with AttemptLog(sweep, number) as log:
        if log.before.no_progress_attempts > profile.resubmissions:
            return _record_outcome(log, [give_up_reason(log.before)])
        status = readiness(sweep, number)
        if status.waiting:
            return log.close("waiting", status.waiting)
        reasons = list(status.lost)
        stop_condition = StopCondition(sweep, profile, signals, owner.job)
        leases = LeaseManager(settings.runs, client.is_alive, settings.silent_seconds)
        try:
            with _print_warnings():
                job_settings = replace(settings, dataset=sweep.jobs[number].source)
                result = run_available(status.ready, job_settings, stop_condition, log.on_progress, _say, leases)
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
            return log.close(_exit_reason(signals, owner.job))
        if result.held_by_others:
            run, holder = next(iter(result.held_by_others.items()))
            return log.close("elsewhere", f"{run.id} is trained by {holder.label}", holder.job)
        return _record_outcome(log, reasons)


def _record_outcome(log: AttemptLog, reasons: list[str]) -> ExitReason:
    """Note a job as done, or as failed where a run of it has no record of success and never will by itself."""
    sweep, number = log.sweep, log.before.job
    for run in sweep.runs_of(number):
        try:
            record = record_of(sweep, run)
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
        sweep.end(number, "failed" if reason else "done", reason)
    except UserError as error:
        _say(str(error))
    return leaving


def _exit_reason(signals: Signals, job: str) -> ExitReason:
    """Return why a job had to stop; SLURM sends the same signal for preemption and for scancel."""
    if signals.stop_reason == "preempted" and job and client.state_of(job) == "CANCELLED":
        return "cancelled"
    return signals.stop_reason or "interrupted"


@contextlib.contextmanager
def _print_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
        yield
