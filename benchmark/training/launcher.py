"""Trains one cohort in several processes of this machine, each on a GPU of its own or all on the CPU.

This process starts the workers, holds the leases of the runs and receives messages; the first worker evaluates, writes
and decides when to stop. If a worker fails or dies, the others are killed, because they would wait for it for ever. If
this process dies, the workers end themselves.

`torch.multiprocessing.start_processes` would be shorter, but it reports the worker whose exit it sees first, which is
often one that only lost its connection to the worker that failed. It also passes on neither progress, nor a request to
stop, nor which run is corrupt. The pool of `benchmark.execution` starts its workers by `WorkerProcess` too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from benchmark.core.devices import resolve_device
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.data.decoding import WORKERS, decode_workers
from benchmark.method.collectives import FEWEST_ROWS
from benchmark.results.record import CorruptRun
from benchmark.training.cohort import train
from benchmark.training.ddp import init_process_group
from benchmark.training.failures import RunsFailed
from benchmark.training.settings import LogFn, ProgressCallback, StopFn, TrainSettings

LOOK_SECONDS = 0.2
"""How soon a request to stop or a dead worker is noticed."""
BLAME_SECONDS = 1.0
"""How long, after a worker has failed, to look for another one whose death was the cause."""
PATIENCE_SECONDS = 30.0
"""How long a worker may take to exit when it has done its work or its pipe is closed."""
RENDEZVOUS_FILE = "meeting"
"""Name of the file by which the workers find each other."""


class WorkerProcessDied(RunsFailed):
    """A worker failed or died, so that all were killed."""


class RemoteTraceback(Exception):
    """The traceback of an error in a worker."""


@dataclass(frozen=True)
class Failure:
    """Why a worker cannot go on: a line for the user, and the traceback unless the user must fix something.

    corrupt: the run that must be trained again, if that is why.
    """

    reason: str
    traceback: str | None
    corrupt: CorruptRun | None = None


def check_sharing(run: Run, device_name: str, workers: int = 1) -> None:
    """Refuse a run whose batches cannot be shared among its processes.

    Raises:
        UserError: there are too few devices, the batch cannot be split into equal parts, or several jobs would run at
            once.
    """
    size, batch = run.processes, run.batch_size
    if size == 1:
        return
    if workers > 1 or multiprocessing.current_process().daemon:
        raise UserError(f"runs that {size} processes share are trained one after another; use --workers 1")
    if batch % size or batch < FEWEST_ROWS * size:
        allowed = [count for count in range(2, batch // FEWEST_ROWS + 1) if batch % count == 0]
        raise UserError(
            f"a batch of {batch} images does not go into equal parts of {FEWEST_ROWS} or more for {size} processes; "
            f"choose --processes-per-run from 1{''.join(f', {count}' for count in allowed)}"
        )
    device = resolve_device(device_name)
    if device.type != "cuda":
        return
    if device.index is not None:
        raise UserError(f"{size} processes need a device each, not {device_name!r} alone; use --device cuda")
    devices = torch.cuda.device_count()
    if devices < size:
        raise UserError(
            f"{size} processes need as many CUDA devices, and there {'is' if devices == 1 else 'are'} {devices}; "
            f"choose --processes-per-run {devices} or fewer, or --device cpu"
        )


def train_distributed(
    runs: Sequence[Run], settings: TrainSettings, stop: StopFn, on_progress: ProgressCallback, log: LogFn
) -> bool:
    """Do what `cohort.train` does, in as many processes as the runs say.

    Raises:
        UserError: the user must fix something.
        WorkerProcessDied: a worker failed or died.
    """
    check_sharing(runs[0], settings.device)
    with _spawn_workers(runs, settings) as workers:
        return _Supervisor(workers, stop, on_progress, log).wait()


class WorkerProcess:
    """A new process and the pipe to it. target: takes the other end of the pipe and the arguments."""

    def __init__(self, target: Callable[..., None], *arguments: object, daemon: bool = True) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=target, args=(other, *arguments), daemon=daemon)
        # Ctrl-C in a terminal reaches all processes of it; workers are stopped through their pipe instead.
        with ignored(signal.SIGINT):
            self.process.start()
        other.close()

    def send(self, message: object) -> None:
        """Send a message; that a worker has died is noticed when it is waited for."""
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def close(self) -> None:
        """Close the pipe, and kill the process unless it ends soon."""
        self.connection.close()
        self.process.join(timeout=PATIENCE_SECONDS)
        if self.process.is_alive():
            self.process.kill()


@contextlib.contextmanager
def _quiet_torch() -> Iterator[None]:
    """Let the processes that start meanwhile hear errors only from torch's C++ code, unless the user says otherwise.

    It would warn in each worker whose method uses all of its parameters in every step.
    """
    name = "TORCH_CPP_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "ERROR"
    try:
        yield
    finally:
        del os.environ[name]


@contextlib.contextmanager
def _spawn_workers(runs: Sequence[Run], settings: TrainSettings) -> Iterator[list[WorkerProcess]]:
    """Start the workers; kill those that are left afterwards."""
    folder = tempfile.mkdtemp(prefix="benchmark-")
    workers: list[WorkerProcess] = []
    try:
        with _quiet_torch():
            for rank in range(runs[0].processes):
                # A daemon could not start processes that decode images.
                workers.append(WorkerProcess(_work, rank, tuple(runs), settings, folder, daemon=False))
        yield workers
    finally:
        for worker in workers:
            if worker.process.is_alive():
                worker.process.kill()
        for worker in workers:
            # Until it is gone, it may write: the leases of its runs are released after this.
            worker.process.join()
            worker.close()
        shutil.rmtree(folder, ignore_errors=True)


class _Supervisor:
    """Receives messages of the workers until all have done their work or one has failed."""

    def __init__(self, workers: list[WorkerProcess], stop: StopFn, on_progress: ProgressCallback, log: LogFn) -> None:
        self.workers, self.stop, self.on_progress, self.log = workers, stop, on_progress, log
        self.stop_sent = False
        self.results: dict[int, bool] = {}
        """Whether the cohort is finished, by the rank of each worker that has done its work."""
        self.silent: set[int] = set()
        """Workers that have closed their pipe."""

    def wait(self) -> bool:
        """Wait for all workers; returns whether the cohort is finished, or False if it was stopped.

        Raises:
            UserError, WorkerProcessDied: see `train_distributed`.
        """
        while len(self.results) < len(self.workers):
            self._forward_stop()
            busy = {worker.connection: rank for rank, worker in enumerate(self.workers) if rank not in self.results}
            for ready in wait(list(busy), timeout=LOOK_SECONDS):
                assert isinstance(ready, Connection)
                self._receive(busy[ready])
            for rank in busy.values():
                if self._died(rank):
                    if self._was_stopped_by_signal(rank):
                        return False
                    raise self._death(rank)
        for worker in self.workers:
            worker.process.join(timeout=PATIENCE_SECONDS)
        return self.results[0]

    def _forward_stop(self) -> None:
        if not self.stop_sent and self.stop():
            self.stop_sent = True
            self.workers[0].send("stop")

    def _receive(self, rank: int) -> None:
        try:
            kind, value = self.workers[rank].connection.recv()
        except (EOFError, OSError):
            # It has died or is about to; its exit code will say more.
            self.silent.add(rank)
            self.workers[rank].process.join(timeout=PATIENCE_SECONDS)
            return
        if kind == "progress":
            self.on_progress(value)
        elif kind == "said":
            self.log(value)
        elif kind == "ended":
            self.results[rank] = value
        else:
            self._fail(rank, value)

    def _fail(self, rank: int, failure: Failure) -> None:
        if failure.corrupt is not None:
            raise failure.corrupt
        if failure.traceback is None:
            raise UserError(failure.reason)
        # Of a worker that died, the others only notice that it no longer answers.
        others = [other for other in range(len(self.workers)) if other not in (rank, *self.results)]
        deadline = time.monotonic() + BLAME_SECONDS
        while time.monotonic() < deadline:
            for other in others:
                if self.workers[other].process.exitcode:
                    raise self._death(other)
            wait([self.workers[other].process.sentinel for other in others], timeout=LOOK_SECONDS)
        raise WorkerProcessDied(f"{self._name(rank)}: {failure.reason}") from RemoteTraceback(failure.traceback)

    def _died(self, rank: int) -> bool:
        """Return whether nothing more can come from a worker that has not done its work."""
        if rank in self.results:
            return False
        worker = self.workers[rank]
        # Its own child processes may outlive it for a moment and keep its pipe open.
        return rank in self.silent or (worker.process.exitcode is not None and not worker.connection.poll())

    def _was_stopped_by_signal(self, rank: int) -> bool:
        """Return whether a SIGTERM to all processes ended a worker before it had installed its handler."""
        return self.workers[rank].process.exitcode == -signal.SIGTERM and (self.stop_sent or self.stop())

    def _death(self, rank: int) -> WorkerProcessDied:
        return WorkerProcessDied(f"{self._name(rank)} died (exit code {self.workers[rank].process.exitcode})")

    def _name(self, rank: int) -> str:
        return f"process {rank + 1} of {len(self.workers)}"


def _work(connection: Connection, rank: int, runs: tuple[Run, ...], settings: TrainSettings, folder: str) -> None:
    """Run a worker, from its start to its end."""
    stop_requested = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop_requested.set())
    threading.Thread(target=_parent_watch, args=(connection, stop_requested, folder), daemon=True).start()

    def send(kind: str, value: object) -> None:
        # If the parent has died, this process ends at once too.
        with contextlib.suppress(OSError):
            connection.send((kind, value))

    size = runs[0].processes
    warning = "warning" if rank == 0 else f"warning of process {rank + 1}"
    try:
        device = resolve_device(settings.device)
        if device.type == "cuda":
            device = torch.device("cuda", rank)
        if (decoding := decode_workers()) > 1:
            # If the user has set it, it counts for each process.
            os.environ.setdefault(WORKERS, str(max(1, decoding // size)))
        warnings.showwarning = lambda message, *_: send("said", f"{warning}: {message}")
        with init_process_group(rank, size, device, Path(folder, RENDEZVOUS_FILE)) as group:
            own_settings = replace(settings, device=str(device))
            finished = train(
                runs, own_settings, stop_requested.is_set, partial(send, "progress"), partial(send, "said"), group
            )
        send("ended", finished)
    except BaseException as error:
        for_the_user = isinstance(error, UserError)
        reason = str(error) if isinstance(error, UserError | RunsFailed) else f"{type(error).__name__}: {error}"
        corrupt = error if isinstance(error, CorruptRun) else None
        send("failed", Failure(reason, None if for_the_user else traceback.format_exc().rstrip(), corrupt))
        # If this process exited now, the others would fail too, and the first failure could not be found.
        threading.Event().wait()


def _parent_watch(connection: Connection, stop_requested: threading.Event, folder: str) -> None:
    """Note that the parent asks to stop; end this process when the parent dies."""
    try:
        while True:
            connection.recv()
            stop_requested.set()
    except (EOFError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)


@contextlib.contextmanager
def ignored(number: int) -> Iterator[None]:
    """Ignore a signal, also in processes that are started meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)
