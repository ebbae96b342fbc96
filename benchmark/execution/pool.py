"""Runs jobs on this machine: in this process, or in worker processes of one core each, in dependency order."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.execution.scheduler import ExecutionSummary, JobCallback, JobScheduler
from benchmark.planning.jobs import Job
from benchmark.results.record import CorruptRun
from benchmark.results.store import Store
from benchmark.training.callbacks import Progress
from benchmark.training.failures import RunsFailed
from benchmark.training.job import run_until_done
from benchmark.training.launcher import check_sharing, ignored
from benchmark.training.settings import TrainSettings

START_METHOD = "spawn"
"""How worker processes are started, as `multiprocessing` names it."""


def run_jobs(jobs: Sequence[Job], settings: TrainSettings, workers: int, watcher: JobCallback) -> ExecutionSummary:
    """Train all jobs; those whose needs failed are reported and left, all others go on.

    A run whose record or weights turn out to be damaged is put aside and trained again, once, and what needs it waits.

    Ctrl-C (or SIGTERM) lets each job write a checkpoint after the step under way and leave; a second one ends at once.

    Raises:
        UserError: several processes are to share each batch of a run, and cannot.
    """
    for job in jobs:
        check_sharing(job.runs[0], settings.device, workers)
    schedule = JobScheduler(jobs, Store(settings.runs))
    with _stop_on_signals() as stopping:
        if workers == 1:
            _run_here(schedule, settings, watcher, stopping)
        else:
            _Pool(schedule, settings, min(workers, len(jobs)), watcher, stopping).run()
    schedule.report.stopped = stopping.is_set()
    return schedule.report


def _run_here(schedule: JobScheduler, settings: TrainSettings, watcher: JobCallback, stopping: threading.Event) -> None:
    while not stopping.is_set() and (job := schedule.next(watcher)):
        watcher.started(job)
        reason = _attempt(
            job.runs,
            settings,
            stopping.is_set,
            lambda progress, job=job: watcher.progress(job, progress),  # type: ignore[misc]
            lambda line, job=job: watcher.said(job, line),  # type: ignore[misc]
        )
        if isinstance(reason, CorruptRun):
            schedule.on_corrupt(job, reason, watcher)
            continue
        if isinstance(reason, UserError):
            schedule.report.user_errors.append(str(reason))
        schedule.ended(job, None if reason is None else str(reason), watcher)


def _attempt(
    runs: Sequence[Run],
    settings: TrainSettings,
    stop: Callable[[], bool],
    listen: Callable[[Progress], None],
    say: Callable[[str], None],
) -> Exception | None:
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"warning: {message}")
        try:
            run_until_done(runs, settings, stop, listen, say)
        except (UserError, RunsFailed) as error:
            return error
        except Exception as error:
            say(traceback.format_exc().rstrip())
            return error
    return None


class _Pool:
    """Worker processes, each of which trains one job after another."""

    def __init__(
        self,
        schedule: JobScheduler,
        settings: TrainSettings,
        size: int,
        watcher: JobCallback,
        stopping: threading.Event,
    ) -> None:
        self.schedule, self.settings, self.watcher, self.stopping = schedule, settings, watcher, stopping
        self.context = multiprocessing.get_context(START_METHOD)
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
            reason, users, damage, leaving = value
            if leaving:
                worker.close()
                if not self.stopping.is_set():
                    reason = reason or "its process was told to stop"
            else:
                self.idle.append(worker)
            if damage is not None:
                self.schedule.on_corrupt(job, damage, self.watcher)
                return
            if users:
                self.schedule.report.user_errors.append(reason)
            self.schedule.ended(job, reason, self.watcher)


class _Worker:
    def __init__(self, context: Any, settings: TrainSettings) -> None:
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


def _work(connection: Connection, settings: TrainSettings) -> None:
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
        damage = error if isinstance(error, CorruptRun) else None
        send("ended", (reason, isinstance(error, UserError), damage, leaving))
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
