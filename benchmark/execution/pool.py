"""Runs jobs on this machine: in this process, or in worker processes of one core each, in dependency order."""

from __future__ import annotations

import signal
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.execution.scheduler import ExecutionSummary, JobCallback, JobScheduler
from benchmark.planning.jobs import Job
from benchmark.results.record import CorruptRun
from benchmark.results.store import Store
from benchmark.training.failures import RunsFailed
from benchmark.training.job import run_until_done
from benchmark.training.launcher import WorkerProcess, check_sharing
from benchmark.training.settings import LogFn, ProgressCallback, StopFn, TrainSettings


def run_jobs(jobs: Sequence[Job], settings: TrainSettings, workers: int, callback: JobCallback) -> ExecutionSummary:
    """Train all jobs; a job whose dependency failed is reported as failed, all others go on.

    A run whose record or weights turn out to be corrupt is quarantined and trained again, once; its dependents wait.

    Ctrl-C (or SIGTERM) lets each job write a checkpoint after the current step and exit; a second one ends at once.

    Raises:
        UserError: several processes should share each batch of a run but cannot.
    """
    for job in jobs:
        check_sharing(job.runs[0], settings.device, workers)
    scheduler = JobScheduler(jobs, Store(settings.runs), callback)
    with _stop_on_signals() as stopping:
        if workers == 1:
            _run_here(scheduler, settings, stopping)
        else:
            _Pool(scheduler, settings, min(workers, len(jobs)), stopping).run()
    scheduler.summary.stopped = stopping.is_set()
    return scheduler.summary


def _run_here(scheduler: JobScheduler, settings: TrainSettings, stopping: threading.Event) -> None:
    callback = scheduler.callback
    while not stopping.is_set() and (job := scheduler.next_ready()):
        callback.on_start(job)
        on_progress, log = partial(callback.on_progress, job), partial(callback.on_message, job)
        error = _attempt(job.runs, settings, stopping.is_set, on_progress, log)
        scheduler.end(job, error)


def _attempt(
    runs: Sequence[Run], settings: TrainSettings, stop: StopFn, on_progress: ProgressCallback, log: LogFn
) -> Exception | None:
    """Train runs; returns the error that ended it, as one that another process can be sent."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: log(f"warning: {message}")
        try:
            run_until_done(runs, settings, stop, on_progress, log)
        except CorruptRun as error:
            return error
        except UserError as error:
            # A method may raise a kind of its own, which pickle cannot always make again.
            return UserError(str(error))
        except RunsFailed as error:
            return RuntimeError(str(error))
        except Exception as error:
            log(traceback.format_exc().rstrip())
            return RuntimeError(str(error) or type(error).__name__)
    return None


class _Pool:
    """Worker processes that each train one job after another."""

    def __init__(self, scheduler: JobScheduler, settings: TrainSettings, size: int, stopping: threading.Event) -> None:
        self.scheduler, self.settings, self.stopping = scheduler, settings, stopping
        self.callback = scheduler.callback
        self.size = size
        self.idle: list[WorkerProcess] = []
        self.busy: dict[Connection, tuple[WorkerProcess, Job]] = {}

    def run(self) -> None:
        """Train until no job is left that can start."""
        stop_sent = False
        try:
            while True:
                if self.stopping.is_set() and not stop_sent:
                    stop_sent = True
                    for worker, _ in self.busy.values():
                        worker.send("stop")
                if not self.stopping.is_set():
                    self._start_ready_jobs()
                if not self.busy:
                    return
                # The timeout bounds the reaction time to a signal; everything else arrives through the connections.
                for ready in wait(list(self.busy), timeout=0.2):
                    assert isinstance(ready, Connection)
                    self._receive(ready)
        except KeyboardInterrupt:
            for worker in self._workers():
                worker.process.kill()
            raise
        finally:
            # Close all connections before waiting for any process.
            for worker in self._workers():
                worker.connection.close()
            for worker in self._workers():
                worker.close()

    def _workers(self) -> list[WorkerProcess]:
        return [*self.idle, *(worker for worker, _ in self.busy.values())]

    def _start_ready_jobs(self) -> None:
        while len(self.busy) < self.size and (job := self.scheduler.next_ready()):
            worker = self.idle.pop() if self.idle else WorkerProcess(_work, self.settings)
            worker.send(job.runs)
            self.busy[worker.connection] = (worker, job)
            self.callback.on_start(job)

    def _receive(self, connection: Connection) -> None:
        worker, job = self.busy[connection]
        try:
            kind, value = connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            del self.busy[connection]
            self.scheduler.finish(job, f"its process died (exit code {worker.process.exitcode})")
            return
        if kind == "progress":
            self.callback.on_progress(job, value)
        elif kind == "said":
            self.callback.on_message(job, value)
        else:
            del self.busy[connection]
            error, leaving = value
            if leaving:
                worker.close()
                if not self.stopping.is_set():
                    error = error or RuntimeError("its process was told to stop")
            else:
                self.idle.append(worker)
            self.scheduler.end(job, error)


def _work(connection: Connection, settings: TrainSettings) -> None:
    """Run the main loop of a worker process; it ends when its pipe closes, also when the parent dies."""
    stop_requested = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop_requested.set())

    def stop() -> bool:
        if not stop_requested.is_set() and connection.poll():
            with suppress(EOFError):
                connection.recv()
            stop_requested.set()
        return stop_requested.is_set()

    def send(kind: str, value: object) -> None:
        try:
            connection.send((kind, value))
        except OSError:
            stop_requested.set()

    while True:
        try:
            runs = connection.recv()
        except (EOFError, OSError):
            return
        if runs == "stop":
            return
        error = _attempt(runs, settings, stop, partial(send, "progress"), partial(send, "said"))
        leaving = stop_requested.is_set()
        send("ended", (error, leaving))
        if leaving:
            return


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set; a second signal interrupts as usual."""
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
