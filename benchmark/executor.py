"""Runs jobs on this machine: in this process, or in worker processes of one core each, in dependency order."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmark.errors import UserError
from benchmark.plan import Job, label
from benchmark.results import Record, Store
from benchmark.spec import Run
from benchmark.training.cohort import Progress
from benchmark.training.job import execute
from benchmark.training.material import Settings
from benchmark.training.processes import check_sharing, ignored


@dataclass
class Report:
    """What came of a plan: which jobs ended well, which could not be trained and why, and whether it was stopped."""

    stopped: bool = False
    failures: dict[Job, str] = field(default_factory=dict)
    """Why, for jobs that ended without records."""
    user_errors: list[str] = field(default_factory=list)

    @classmethod
    def joined(cls, reports: Sequence[Report]) -> Report:
        """What came of several plans, one after another."""
        return cls(
            stopped=any(report.stopped for report in reports),
            failures={job: reason for report in reports for job, reason in report.failures.items()},
            user_errors=[error for report in reports for error in report.user_errors],
        )


@dataclass(frozen=True)
class Ending:
    """How a job ended: for which reason if not well, whether it was stopped, and what each run reached."""

    reason: str | None
    stopped: bool
    outcomes: dict[str, str]
    """By method and changed options: final accuracy in %, or why there is none."""


class Watcher:
    """Hears what goes on; a display overrides what it shows."""

    def started(self, job: Job) -> None:
        """A job begins."""

    def progress(self, job: Job, progress: Progress) -> None:
        """A job tells where it is."""

    def said(self, job: Job, line: str) -> None:
        """A job has something to tell."""

    def ended(self, job: Job, ending: Ending) -> None:
        """A job ended."""


def run_jobs(jobs: Sequence[Job], settings: Settings, workers: int, watcher: Watcher) -> Report:
    """Train all jobs; those whose needs failed are reported and left, all others go on.

    Ctrl-C (or SIGTERM) lets each job write a checkpoint after the step under way and leave; a second one ends at once.

    Raises:
        UserError: several processes are to share each batch of a run, and cannot.
    """
    for job in jobs:
        check_sharing(job.runs[0], settings.device, workers)
    schedule = _Schedule(jobs, Store(settings.runs))
    with _stop_on_signals() as stopping:
        if workers == 1:
            _run_here(schedule, settings, watcher, stopping)
        else:
            _Pool(schedule, settings, min(workers, len(jobs)), watcher, stopping).run()
    schedule.report.stopped = stopping.is_set()
    return schedule.report


class _Schedule:
    """Which job may start next: of those whose needs are met, the one with the most work depending on it."""

    def __init__(self, jobs: Sequence[Job], store: Store) -> None:
        self.store = store
        self.waiting = list(jobs)
        self.report = Report()
        self._lost: dict[str, str] = {}
        self._priority = {id(job): self._chain(job) for job in jobs}

    def _chain(self, job: Job) -> float:
        produced = {run.digest for run in job.runs}
        followers = [other for other in self.waiting if other.needs & produced]
        return job.seconds + max((self._chain(follower) for follower in followers), default=0.0)

    def next(self, watcher: Watcher) -> Job | None:
        """Take the next job that can start; runs whose needs have failed are struck off on the way."""
        for job in sorted(self.waiting, key=lambda job: -self._priority[id(job)]):
            blocked = {run: reason for run in job.runs if (reason := self._blocked(run))}
            if blocked:
                self._strike_off(job, blocked, watcher)
                return self.next(watcher)
            if all(self.store.is_finished(needed) for run in job.runs for needed in run.dependencies()):
                self.waiting.remove(job)
                return job
        return None

    def _blocked(self, run: Run) -> str | None:
        """Why a run can never start, where that is known by now."""
        for needed in run.dependencies():
            if reason := self._failure(needed):
                return f"{needed.method} of {needed.student}, which it needs, has failed: {reason}"
        return None

    def _strike_off(self, job: Job, blocked: dict[Run, str], watcher: Watcher) -> None:
        """Report the runs of a job that can never start; the rest of its runs go on waiting."""
        self.waiting.remove(job)
        rest = [run for run in job.runs if run not in blocked]
        if rest:
            remaining = job.with_runs(rest)
            self.waiting.append(remaining)
            self._priority[id(remaining)] = self._priority[id(job)]
        lost = job.with_runs(list(blocked))
        watcher.started(lost)
        self.ended(lost, "; ".join(dict.fromkeys(blocked.values())), watcher)

    def _failure(self, run: Run) -> str | None:
        """Why a run will have no weights, where that is known by now."""
        record = self.store.record(run)
        if record is not None and record["status"] == "failed":
            return str(record["reason"])
        return self._lost.get(run.digest)

    def ended(self, job: Job, reason: str | None, watcher: Watcher) -> None:
        """Note how a job ended."""
        if reason is not None:
            self.report.failures[job] = reason
            self._lost.update({run.digest: reason for run in job.runs if self.store.record(run) is None})
        several = len({run.student for run in job.runs}) > 1
        names = {run: f"{run.student} {label(run)}" if several else label(run) for run in job.runs}
        records = {names[run]: self.store.record(run) for run in job.runs}
        stopped = reason is None and None in records.values()
        outcomes = {name: _outcome(record) for name, record in records.items() if record is not None}
        watcher.ended(job, Ending(reason, stopped, outcomes))


def _outcome(record: Record) -> str:
    if record["status"] == "failed":
        return f"failed ({record['reason']})"
    return f"{record['final']['top1']:.1f} %" if "top1" in record["final"] else "trained"


def _run_here(schedule: _Schedule, settings: Settings, watcher: Watcher, stopping: threading.Event) -> None:
    while not stopping.is_set() and (job := schedule.next(watcher)):
        watcher.started(job)
        reason = _attempt(
            job.runs,
            settings,
            stopping.is_set,
            lambda progress, job=job: watcher.progress(job, progress),  # type: ignore[misc]
            lambda line, job=job: watcher.said(job, line),  # type: ignore[misc]
        )
        if isinstance(reason, UserError):
            schedule.report.user_errors.append(str(reason))
        schedule.ended(job, None if reason is None else str(reason), watcher)


def _attempt(
    runs: Sequence[Run],
    settings: Settings,
    stop: Callable[[], bool],
    listen: Callable[[Progress], None],
    say: Callable[[str], None],
) -> Exception | None:
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"warning: {message}")
        try:
            execute(runs, settings, stop, listen, say)
        except UserError as error:
            return error
        except Exception as error:
            say(traceback.format_exc().rstrip())
            return error
    return None


class _Pool:
    """Worker processes, each of which trains one job after another."""

    def __init__(
        self, schedule: _Schedule, settings: Settings, size: int, watcher: Watcher, stopping: threading.Event
    ) -> None:
        self.schedule, self.settings, self.watcher, self.stopping = schedule, settings, watcher, stopping
        self.context = multiprocessing.get_context("spawn")
        self.size = size
        self.idle: list[_Worker] = []
        self.busy: dict[Connection, tuple[_Worker, Job]] = {}

    def run(self) -> None:
        """Work until nothing is left that can start."""
        told_to_stop = False
        try:
            while True:
                if self.stopping.is_set() and not told_to_stop:
                    told_to_stop = True
                    for worker, _ in self.busy.values():
                        worker.send("stop")
                if not self.stopping.is_set():
                    self._start_what_can()
                if not self.busy:
                    return
                # The time-out is how soon a signal is acted on; nothing is polled for otherwise.
                for ready in wait(list(self.busy), timeout=0.2):
                    assert isinstance(ready, Connection)
                    self._hear(ready)
        except KeyboardInterrupt:
            for worker in self._workers():
                worker.process.kill()
            raise
        finally:
            # All are told before any is waited for.
            for worker in self._workers():
                worker.connection.close()
            for worker in self._workers():
                worker.close()

    def _workers(self) -> list[_Worker]:
        return [*self.idle, *(worker for worker, _ in self.busy.values())]

    def _start_what_can(self) -> None:
        while len(self.busy) < self.size and (job := self.schedule.next(self.watcher)):
            worker = self.idle.pop() if self.idle else _Worker(self.context, self.settings)
            worker.send(job.runs)
            self.busy[worker.connection] = (worker, job)
            self.watcher.started(job)

    def _hear(self, connection: Connection) -> None:
        worker, job = self.busy[connection]
        try:
            kind, value = connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            del self.busy[connection]
            self.schedule.ended(job, f"its process died (exit code {worker.process.exitcode})", self.watcher)
            return
        if kind == "progress":
            self.watcher.progress(job, value)
        elif kind == "said":
            self.watcher.said(job, value)
        else:
            del self.busy[connection]
            reason, users, leaving = value
            if leaving:
                worker.close()
                if not self.stopping.is_set():
                    reason = reason or "its process was told to stop"
            else:
                self.idle.append(worker)
            if users:
                self.schedule.report.user_errors.append(reason)
            self.schedule.ended(job, reason, self.watcher)


class _Worker:
    def __init__(self, context: Any, settings: Settings) -> None:
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, settings), daemon=True)
        # A Ctrl-C in a terminal reaches the whole process group; workers are stopped through their pipe instead.
        with ignored(signal.SIGINT):
            self.process.start()
        other.close()

    def send(self, message: object) -> None:
        # Where it has died, the next receive finds that out.
        with suppress(OSError):
            self.connection.send(message)

    def close(self) -> None:
        self.connection.close()
        self.process.join(timeout=30)
        if self.process.is_alive():
            self.process.kill()


def _work(connection: Connection, settings: Settings) -> None:
    """The main loop of a worker process; it ends when its pipe is closed, also by the death of its parent."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: asked.set())

    def stop() -> bool:
        if not asked.is_set() and connection.poll():
            with suppress(EOFError):
                connection.recv()
            asked.set()
        return asked.is_set()

    def send(kind: str, value: object) -> None:
        try:
            connection.send((kind, value))
        except OSError:
            asked.set()

    while True:
        try:
            runs = connection.recv()
        except (EOFError, OSError):
            return
        if runs == "stop":
            return
        error = _attempt(
            runs, settings, stop, lambda progress: send("progress", progress), lambda line: send("said", line)
        )
        reason = None if error is None else str(error) or type(error).__name__
        leaving = asked.is_set()
        send("ended", (reason, isinstance(error, UserError), leaving))
        if leaving:
            return


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second one interrupts as usual."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def handle(number: int, frame: Any) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
