"""A job: lease the runs of a cohort, train those that nobody else trains, wait for the rest."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.results.leases import BEAT_SECONDS, Lease, LeaseHolder, LeaseManager
from benchmark.results.store import Store
from benchmark.training import checkpoint as checkpoints
from benchmark.training.atlas_making import make_atlas
from benchmark.training.checkpoint import cohort_folder
from benchmark.training.cohort import train
from benchmark.training.failures import RunsFailed, log_failure, save_traceback
from benchmark.training.launcher import WorkerProcessDied, train_distributed
from benchmark.training.probing import FittedCohort, is_fitted
from benchmark.training.settings import LogFn, ProgressCallback, StopFn, TrainSettings

WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class AttemptResult:
    """The result of an attempt to train some runs: whether it was stopped, and who trains the runs that were left."""

    stopped: bool = False
    held_by_others: Mapping[Run, LeaseHolder] = field(default_factory=dict)


def run_until_done(
    runs: Sequence[Run],
    settings: TrainSettings,
    stop: StopFn = lambda: False,
    on_progress: ProgressCallback = lambda progress: None,
    log: LogFn = lambda line: None,
) -> bool:
    """Train runs until each has a record; False if `stop` asked to leave before that.

    A run that another process trains is waited for, and trained here if that process ends without a record.

    Raises:
        UserError, RunsFailed: see `run_available`.
    """
    announced = False
    while True:
        result = run_available(runs, settings, stop, on_progress, log)
        if result.stopped or not result.held_by_others:
            return not result.stopped
        if stop():
            return False
        if not announced:
            run, owner = next(iter(result.held_by_others.items()))
            log(f"waiting for another process that trains {run.id} ({owner.label})")
            announced = True
        time.sleep(WAIT_SECONDS)


def run_available(
    runs: Sequence[Run],
    settings: TrainSettings,
    stop: StopFn = lambda: False,
    on_progress: ProgressCallback = lambda progress: None,
    log: LogFn = lambda line: None,
    leases: LeaseManager | None = None,
) -> AttemptResult:
    """Train the runs that nobody else trains until they have records, and return who trains the others.

    Raises:
        UserError: the user must fix something, such as a full disk.
        RunsFailed: runs raised errors; their tracebacks are in their folders.
    """
    store = Store(settings.runs)
    leases = leases or LeaseManager(settings.runs, timeout=settings.silent_seconds)
    while True:
        pending = [run for run in runs if store.record(run) is None]
        with contextlib.ExitStack() as held:
            free, held_by_others = _acquire(store, leases, pending, held)
            mine = [run for run in pending if run in free and store.record(run) is None]
            if not mine:
                # Another process may have ended a run since it was looked at.
                return AttemptResult(
                    held_by_others={run: owner for run, owner in held_by_others.items() if store.record(run) is None}
                )
            guard = _LeaseGuard(list(free.values()), stop)
            if not _train(mine, settings, leases, guard, on_progress, log) and not guard.lease_lost:
                return AttemptResult(stopped=True)
            if guard.lease_lost:
                log("another process has taken this one for dead and trains on; leaving it to that one")
            else:
                if settings.keep:
                    checkpoints.keep_checkpoints(cohort_folder(store, mine))
                remove_finished_checkpoints(store, mine[0].dataset)


def _train(
    runs: Sequence[Run],
    settings: TrainSettings,
    leases: LeaseManager,
    stop: StopFn,
    on_progress: ProgressCallback,
    log: LogFn,
) -> bool:
    """Train runs as one cohort, after the atlas that they read is made; False if `stop` asked to leave before its end.

    Raises:
        UserError: the user must fix something.
        RunsFailed: runs raised errors; their tracebacks are in their folders.
    """
    store = Store(settings.runs)
    for run in runs:
        with contextlib.suppress(OSError):
            store.traceback(run).unlink(missing_ok=True)
    try:
        if not make_atlas(runs, settings, leases, stop, on_progress, log):
            return False
        if runs[0].processes > 1:
            return train_distributed(runs, settings, stop, on_progress, log)
        if is_fitted(runs[0]):
            return FittedCohort.from_store(runs, settings, on_progress).train(stop)
        return train(runs, settings, stop, on_progress, log)
    except WorkerProcessDied as error:
        if error.__cause__ is not None:
            save_traceback(store, runs[0], error)
        raise
    except (UserError, RunsFailed):
        raise
    except Exception as error:
        raise RunsFailed(log_failure(store, runs, error)) from error


class _LeaseGuard:
    """Asks for a stop when the user does, or when another process has taken over a lease of this one."""

    def __init__(self, leases: Sequence[Lease], stop: StopFn) -> None:
        self.leases, self.stop = leases, stop
        self.lease_lost = False
        self._checked = time.monotonic()

    def __call__(self) -> bool:
        if time.monotonic() - self._checked > BEAT_SECONDS:
            self._checked = time.monotonic()
            self.lease_lost = not all(lease.is_valid() for lease in self.leases)
        return self.lease_lost or self.stop()


def remove_finished_checkpoints(store: Store, dataset: str) -> None:
    """Remove the checkpoints of cohorts whose runs all have records, except those that are marked to be kept."""
    cohorts = store.cohorts(dataset)
    for folder in list(cohorts.iterdir()) if cohorts.is_dir() else []:
        members = checkpoints.members(folder)
        finished = [(store.root / dataset / run_id / "record.json").exists() for run_id in members]
        if members and all(finished) and not (folder / checkpoints.KEEP).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _acquire(
    store: Store, leases: LeaseManager, runs: Sequence[Run], held: contextlib.ExitStack
) -> tuple[dict[Run, Lease], dict[Run, LeaseHolder]]:
    """Acquire the free leases of some runs, which are released with `held`, and find who holds the others.

    Raises:
        UserError: a lease cannot be written.
    """
    free: dict[Run, Lease] = {}
    held_by_others: dict[Run, LeaseHolder] = {}
    for run in sorted(runs, key=lambda run: run.id):
        lease = leases.acquire(store.folder(run))
        if isinstance(lease, Lease):
            free[run] = lease
            held.callback(_release, lease, store, run)
        else:
            held_by_others[run] = lease
    return free, held_by_others


def _release(lease: Lease, store: Store, run: Run) -> None:
    lease.release(forget=store.has_record(run))
