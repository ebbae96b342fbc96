"""What a job of a sweep does on its node: train, say how it goes, leave in time, look after the sweep when it ends."""

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
        leaving = "done" if is_over else _worked(sweep, number, signals)
    finally:
        _, profile = sweep.settings()
        if profile.submit_from_jobs and not sweep.is_stopped:
            _looked_after(sweep)
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
    """Look after the sweep in a folder; what a sweep's keeper does when all that was submitted has ended.

    Nobody comes after it, so it tries again for some minutes where SLURM, or the folder, does not answer, and then has
    itself started again, for which there is always room.
    """
    signals, sweep = Signals(), Sweep(Path(folder))
    deadline = time.monotonic() + WATCHDOG_PATIENCE_SECONDS
    while not _looked_after(sweep):
        if signals.told is not None:
            return
        if time.monotonic() > deadline:
            with contextlib.suppress(SchedulerError):
                client.requeue(this_owner().job)
            return
        time.sleep(BEAT_SECONDS)


def _looked_after(sweep: Sweep) -> bool:
    """Look after a sweep; whether that was possible, and somebody will look again."""
    try:
        tended = reconcile(sweep, say=_say)
    except (UserError, SchedulerError) as error:
        # Whoever looks after the sweep next makes good for it; what this job has trained is safe.
        _say(f"the sweep was not looked after: {error}")
        return False
    return tended is None or (tended.answers and tended.is_followed)


def _say(line: str) -> None:
    print(line, flush=True)


class Signals:
    """What the cluster, or a user through it, has told this job."""

    def __init__(self) -> None:
        self.told: ExitReason | None = None
        self.parent = os.getppid()
        self.clock = False
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        signal.signal(signal.SIGUSR2, self._look_at_clock)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)

    def _end(self, number: int, frame: Any) -> None:
        self.told = self.told or "preempted"

    def _look_at_clock(self, number: int, frame: Any) -> None:
        # SLURM sends it up to a minute early, so that it alone would cut short jobs in half.
        self.clock = True


class StopCondition:
    """Says when a job must leave, and why: by signal, by the clock, because it was cancelled or nobody watches it."""

    def __init__(self, sweep: Sweep, profile: Profile, signals: Signals, job: str) -> None:
        self.sweep, self.signals, self.job, self.grace = sweep, signals, job, profile.grace_seconds
        end = client.end_time(job) if job else None
        self.deadline = None if end is None else end - self.grace
        self._looked = time.monotonic()

    def __call__(self) -> bool:
        signals = self.signals
        if signals.told is None and signals.clock:
            self._hear_clock()
        if signals.told is None and self.deadline is not None and time.time() > self.deadline:
            signals.told = "time limit"
        if signals.told is None and time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            if os.getppid() != signals.parent:
                # What started this process for the cluster was killed; nothing would end it, or start it again.
                signals.told = "interrupted"
            elif self.sweep.is_stopped:
                signals.told = "cancelled"
        return signals.told is not None

    def _hear_clock(self) -> None:
        """The time is nearly over, says the cluster; somebody may have changed the limit since this job began."""
        self.signals.clock = False
        end = client.end_time(self.job, tries=1) if self.job else None
        if end is not None:
            self.deadline = end - self.grace
        elif self.deadline is None:
            self.signals.told = "time limit"


class AttemptLog:
    """Writes down what becomes of an attempt; a thread does, so that a slow folder holds up no training."""

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
        threading.Thread(target=self._go_on, name="diary", daemon=True).start()
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

    def heard(self, progress: Progress) -> None:
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
        _say(f"left: {leaving}{': ' + reason if reason else ''}")
        try:
            self.write(leaving=leaving, reason=reason, waits_for=waits_for, ended=time.time())
        except UserError as error:
            _say(str(error))
            client.comment(self.attempt.owner.job, f"{reason or leaving}; {error}")
        return leaving


def _worked(sweep: Sweep, number: int, signals: Signals) -> ExitReason:
    """One attempt at a job, written down from its beginning to its end; how it was left."""
    settings, profile = sweep.settings()
    owner = this_owner()
    with AttemptLog(sweep, number) as diary:
        if diary.before.no_progress_attempts > profile.resubmissions:
            return _answered(diary, [give_up_reason(diary.before)])
        found = readiness(sweep, number)
        if found.waiting:
            return diary.close("waiting", found.waiting)
        reasons = list(found.lost)
        guard = StopCondition(sweep, profile, signals, owner.job)
        claims = LeaseManager(settings.runs, client.is_alive, settings.silent_seconds)
        try:
            with _warnings_said():
                here = replace(settings, dataset=sweep.jobs[number].source)
                came = run_available(found.ready, here, guard, diary.heard, _say, claims)
        except CorruptRun as damage:
            for line in quarantine_corrupt(sweep, damage):
                _say(f"warning: {line}")
            if len(list(sweep.store.folder(damage.run).glob("damaged-*"))) > MOST_DAMAGED:
                return _answered(diary, [f"{damage}, again and again"])
            return diary.close("waiting", str(damage))
        except Exception as error:
            traceback.print_exc()
            told = isinstance(error, UserError | RunsFailed)
            reasons.append(str(error) if told else f"{type(error).__name__}: {error}")
            return _answered(diary, reasons)
        if came.stopped:
            return diary.close(_why_told(signals, owner.job))
        if came.held_by_others:
            run, holder = next(iter(came.held_by_others.items()))
            return diary.close("elsewhere", f"{run.id} is trained by {holder.label}", holder.job)
        return _answered(diary, reasons)


def _answered(diary: AttemptLog, reasons: list[str]) -> ExitReason:
    """Note a job as done, or as failed where a run of it has no record of success and never will by itself."""
    sweep, number = diary.sweep, diary.before.job
    for run in sweep.runs_of(number):
        try:
            record = record_of(sweep, run)
        except UserError as error:
            reasons.append(str(error))
            continue
        if record is not None and record["status"] == "failed":
            reasons.append(f"{describe_run(run)}: {record['reason']}")
    reason = "; ".join(dict.fromkeys(reasons))
    if reason and diary.is_superseded:
        return diary.close("elsewhere", f"this job was started again meanwhile; here {reason}", diary.attempt.owner.job)
    leaving = diary.close("failed" if reason else "done", reason)
    try:
        sweep.end(number, "failed" if reason else "done", reason)
    except UserError as error:
        _say(str(error))
    return leaving


def _why_told(signals: Signals, job: str) -> ExitReason:
    """Why a job was told to leave; the cluster's signal is the same for all that it may mean."""
    if signals.told == "preempted" and job and client.state_of(job) == "CANCELLED":
        return "cancelled"
    return signals.told or "interrupted"


@contextlib.contextmanager
def _warnings_said() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
        yield
