"""One cohort trained by several processes of this machine, each on a GPU of its own or all on the CPU.

This process starts them, holds the runs' locks and hears what they say; the first of them evaluates, writes and
decides. If one fails or dies, the others are ended: they would wait for it for ever. If this process dies, they end
themselves.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from benchmark.core.devices import resolve_device
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.data.decoding import WORKERS, decode_workers
from benchmark.method.collectives import FEWEST_ROWS
from benchmark.results.record import CorruptRun
from benchmark.training.callbacks import ProgressCallback, Say, StopFn
from benchmark.training.cohort import train
from benchmark.training.ddp import init_process_group
from benchmark.training.failures import RunsFailed
from benchmark.training.settings import TrainSettings

LOOK_SECONDS = 0.2
"""How soon a stop or a death is noticed."""
BLAME_SECONDS = 1.0
"""How long, after one process has failed, it is looked whether the death of another one was the cause."""
PATIENCE_SECONDS = 30.0
"""How long a process that has done its work may take to end."""
RENDEZVOUS_FILE = "meeting"
"""Name of the file by which the processes find each other."""
LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"


class WorkerProcessDied(RunsFailed):
    """One of the processes that train a cohort failed or died, so that all were ended."""


class RemoteTraceback(Exception):
    """Where in another process an error was raised."""


@dataclass(frozen=True)
class Failure:
    """Why a process cannot go on: a line for the user, and, unless it is for the user to mend, where it happened."""

    reason: str
    place: str | None
    damage: CorruptRun | None = None
    """The run that must be trained again, where that is why."""


def check_sharing(run: Run, device_name: str, workers: int = 1) -> None:
    """Refuse a run whose batches cannot be shared by as many processes as it says.

    Raises:
        UserError: there are too few devices, the batch does not go into equal parts, or several jobs are to run at
            once.
    """
    size, batch = run.processes, run.protocol.batch_size
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
    runs: Sequence[Run], settings: TrainSettings, stop: StopFn, listen: ProgressCallback, say: Say
) -> bool:
    """What `cohort.train` does, by as many processes as the runs say.

    Raises:
        UserError: something that the user must mend.
        BrokenProcesses: a process failed or died.
    """
    check_sharing(runs[0], settings.device)
    with _spawn_workers(runs, settings) as crew:
        return _Supervisor(crew, stop, listen, say).until_ended()


@dataclass(frozen=True)
class _WorkerHandle:
    """A process that trains, and the pipe to it."""

    process: Any
    connection: Connection


@contextlib.contextmanager
def _spawn_workers(runs: Sequence[Run], settings: TrainSettings) -> Iterator[list[_WorkerHandle]]:
    """The processes, started; none of them is left afterwards."""
    context = multiprocessing.get_context("spawn")
    folder = tempfile.mkdtemp(prefix="benchmark-")
    crew: list[_WorkerHandle] = []
    try:
        for rank in range(runs[0].processes):
            here, there = context.Pipe()
            # No daemons, which could not start processes that decode images.
            process = context.Process(target=_work, args=(there, rank, tuple(runs), settings, folder))
            # A Ctrl-C in a terminal reaches the whole process group; they are stopped through the first one's pipe.
            with ignored(signal.SIGINT), _quiet_torch():
                process.start()
            there.close()
            crew.append(_WorkerHandle(process, here))
        yield crew
    finally:
        for member in crew:
            if member.process.is_alive():
                member.process.kill()
        for member in crew:
            member.process.join()
            member.connection.close()
        shutil.rmtree(folder, ignore_errors=True)


class _Supervisor:
    """Hears the processes until all have done their work or one cannot."""

    def __init__(self, crew: list[_WorkerHandle], stop: StopFn, listen: ProgressCallback, say: Say) -> None:
        self.crew, self.stop, self.listen, self.say = crew, stop, listen, say
        self.told_to_stop = False
        self.results: dict[int, bool] = {}
        """By rank, of those that have done their work: whether the cohort is finished."""
        self.silent: set[int] = set()
        """Those that have closed their pipe."""

    def until_ended(self) -> bool:
        """Whether the cohort is finished; False if it was stopped.

        Raises:
            UserError, BrokenProcesses: see `train_distributed`.
        """
        while len(self.results) < len(self.crew):
            self._pass_on_stop()
            busy = {member.connection: rank for rank, member in enumerate(self.crew) if rank not in self.results}
            for ready in wait(list(busy), timeout=LOOK_SECONDS):
                assert isinstance(ready, Connection)
                self._hear(busy[ready])
            for rank in busy.values():
                if self._died(rank):
                    if self._told_by_the_same_signal(rank):
                        return False
                    raise self._death(rank)
        for member in self.crew:
            member.process.join(timeout=PATIENCE_SECONDS)
        return self.results[0]

    def _pass_on_stop(self) -> None:
        if not self.told_to_stop and self.stop():
            self.told_to_stop = True
            with contextlib.suppress(OSError):
                self.crew[0].connection.send("stop")

    def _hear(self, rank: int) -> None:
        try:
            kind, value = self.crew[rank].connection.recv()
        except (EOFError, OSError):
            # It has died, or is about to; its exit code will tell more.
            self.silent.add(rank)
            self.crew[rank].process.join(timeout=PATIENCE_SECONDS)
            return
        if kind == "progress":
            self.listen(value)
        elif kind == "said":
            self.say(value)
        elif kind == "ended":
            self.results[rank] = value
        else:
            self._fail(rank, value)

    def _fail(self, rank: int, failure: Failure) -> None:
        if failure.damage is not None:
            raise failure.damage
        if failure.place is None:
            raise UserError(failure.reason)
        # Of one that died the others only notice that it no longer answers.
        others = [other for other in range(len(self.crew)) if other not in (rank, *self.results)]
        deadline = time.monotonic() + BLAME_SECONDS
        while time.monotonic() < deadline:
            for other in others:
                if self.crew[other].process.exitcode:
                    raise self._death(other)
            wait([self.crew[other].process.sentinel for other in others], timeout=LOOK_SECONDS)
        raise WorkerProcessDied(f"{self._named(rank)}: {failure.reason}") from RemoteTraceback(failure.place)

    def _died(self, rank: int) -> bool:
        """Whether nothing more will be heard of a process that has not done its work."""
        if rank in self.results:
            return False
        member = self.crew[rank]
        # Processes of its own that outlive it for a moment may hold its pipe open.
        return rank in self.silent or (member.process.exitcode is not None and not member.connection.poll())

    def _told_by_the_same_signal(self, rank: int) -> bool:
        """Whether it was ended, before it could know better, by a signal to all processes that means to stop."""
        return self.crew[rank].process.exitcode == -signal.SIGTERM and (self.told_to_stop or self.stop())

    def _death(self, rank: int) -> WorkerProcessDied:
        return WorkerProcessDied(f"{self._named(rank)} died (exit code {self.crew[rank].process.exitcode})")

    def _named(self, rank: int) -> str:
        return f"process {rank + 1} of {len(self.crew)}"


def _work(connection: Connection, rank: int, runs: tuple[Run, ...], settings: TrainSettings, folder: str) -> None:
    """One of the processes, from its start to its end."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    threading.Thread(target=_parent_watch, args=(connection, asked, folder), daemon=True).start()

    def send(kind: str, value: object) -> None:
        # Where the parent has died, so will this process at once.
        with contextlib.suppress(OSError):
            connection.send((kind, value))

    size = runs[0].processes
    warning = "warning" if rank == 0 else f"warning of process {rank + 1}"
    try:
        device = resolve_device(settings.device)
        if device.type == "cuda":
            device = torch.device("cuda", rank)
        if (decoding := decode_workers()) > 1:
            # Set already, it was the user, and for each process.
            os.environ.setdefault(WORKERS, str(max(1, decoding // size)))
        warnings.showwarning = lambda message, *_: send("said", f"{warning}: {message}")
        with init_process_group(rank, size, device, Path(folder, RENDEZVOUS_FILE)) as group:
            place = replace(settings, device=str(device))
            finished = train(runs, place, asked.is_set, partial(send, "progress"), partial(send, "said"), group)
        send("ended", finished)
    except BaseException as error:
        for_the_user = isinstance(error, UserError)
        reason = str(error) if isinstance(error, UserError | RunsFailed) else f"{type(error).__name__}: {error}"
        damage = error if isinstance(error, CorruptRun) else None
        send("failed", Failure(reason, None if for_the_user else traceback.format_exc().rstrip(), damage))
        # To leave now would make the others fail too, and who was first could not be told.
        threading.Event().wait()


def _parent_watch(connection: Connection, asked: threading.Event, folder: str) -> None:
    """Note when the parent asks to stop; end this process when it dies."""
    try:
        while True:
            connection.recv()
            asked.set()
    except (EOFError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)


@contextlib.contextmanager
def _quiet_torch() -> Iterator[None]:
    """Within it, processes that are started print no warnings of torch's C++ side, unless the user has asked for them.

    One of them tells every process whose methods use all of their parameters that this could have been promised.
    """
    if LOG_LEVEL in os.environ:
        yield
        return
    os.environ[LOG_LEVEL] = "ERROR"
    try:
        yield
    finally:
        del os.environ[LOG_LEVEL]


@contextlib.contextmanager
def ignored(number: int) -> Iterator[None]:
    """Within it, a signal is ignored, also by processes that are started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)
