"""A job: claim the runs of a cohort, train those that nobody else trains, wait for the rest."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.results.leases import BEAT_SECONDS, Lease, LeaseManager
from benchmark.results.owners import LeaseHolder
from benchmark.results.store import Store
from benchmark.training import checkpoint as checkpoints
from benchmark.training.callbacks import ProgressCallback, Say, StopFn
from benchmark.training.checkpoint import cohort_folder
from benchmark.training.cohort import train
from benchmark.training.failures import RunsFailed, log_failure, save_traceback
from benchmark.training.launcher import WorkerProcessDied, train_distributed
from benchmark.training.settings import TrainSettings

WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class AttemptResult:
    """What came of an attempt to train some runs: whether it was stopped, and who trains those that were left."""

    stopped: bool = False
    held_by_others: Mapping[Run, LeaseHolder] = field(default_factory=dict)


def run_until_done(
    runs: Sequence[Run],
    settings: TrainSettings,
    stop: StopFn = lambda: False,
    listen: ProgressCallback = lambda progress: None,
    say: Say = lambda line: None,
) -> bool:
    """Bring the runs to their records; False if `stop` asked to leave before that.

    A run that another process trains is waited for, and trained here if that process ends without a record.

    Raises:
        UserError, RunsFailed: see `attempt`.
    """
    told = False
    while True:
        came = run_available(runs, settings, stop, listen, say)
        if came.stopped or not came.held_by_others:
            return not came.stopped
        if stop():
            return False
        if not told:
            run, owner = next(iter(came.held_by_others.items()))
            say(f"waiting for another process that trains {run.id} ({owner.label})")
            told = True
        time.sleep(WAIT_SECONDS)


def run_available(
    runs: Sequence[Run],
    settings: TrainSettings,
    stop: StopFn = lambda: False,
    listen: ProgressCallback = lambda progress: None,
    say: Say = lambda line: None,
    claims: LeaseManager | None = None,
) -> AttemptResult:
    """Bring those runs to their records that nobody else trains, and say who trains the others.

    Raises:
        UserError: something that the user must mend, such as a full disk.
        RunsFailed: runs raised errors; their tracebacks are in their folders.
    """
    store = Store(settings.runs)
    claims = claims or LeaseManager(settings.runs, timeout=settings.silent_seconds)
    while True:
        pending = [run for run in runs if store.record(run) is None]
        held, held_by_others = _claimed(store, claims, pending)
        try:
            mine = [run for run in pending if run.id in held and store.record(run) is None]
            if not mine:
                # What another process ended since it was looked at has a record by now.
                return AttemptResult(
                    held_by_others={run: owner for run, owner in held_by_others.items() if store.record(run) is None}
                )
            watch = _LeaseGuard(list(held.values()), stop)
            if not _trained(mine, settings, watch, listen, say) and not watch.lost:
                return AttemptResult(stopped=True)
            if watch.lost:
                say("another process has taken this one for dead and trains on; leaving it to that one")
            else:
                if settings.keep:
                    checkpoints.keep_checkpoints(cohort_folder(store, mine))
                remove_finished_checkpoints(store, mine[0].dataset)
        finally:
            for run in pending:
                if run.id in held:
                    held[run.id].release(forget=store.has_record(run))


def _trained(runs: Sequence[Run], settings: TrainSettings, stop: StopFn, listen: ProgressCallback, say: Say) -> bool:
    """Train runs as one cohort; False if `stop` asked to leave before its end.

    Raises:
        UserError: something that the user must mend.
        RunsFailed: runs raised errors; their tracebacks are in their folders.
    """
    store = Store(settings.runs)
    for run in runs:
        with contextlib.suppress(OSError):
            store.traceback(run).unlink(missing_ok=True)
    together = train_distributed if runs[0].processes > 1 else train
    try:
        return together(runs, settings, stop, listen, say)
    except WorkerProcessDied as error:
        if error.__cause__ is not None:
            save_traceback(store, runs[0], error)
        raise
    except (UserError, RunsFailed):
        raise
    except Exception as error:
        raise RunsFailed(log_failure(store, runs, error)) from error


class _LeaseGuard:
    """Asks for a stop when the user does, or when another process holds what this one claimed."""

    def __init__(self, claims: Sequence[Lease], stop: StopFn) -> None:
        self.claims, self.stop = claims, stop
        self.lost = False
        self._looked = time.monotonic()

    def __call__(self) -> bool:
        if time.monotonic() - self._looked > BEAT_SECONDS:
            self._looked = time.monotonic()
            self.lost = not all(claim.is_valid() for claim in self.claims)
        return self.lost or self.stop()


def remove_finished_checkpoints(store: Store, dataset: str) -> None:
    """Remove the checkpoints (and with them the tables of past predictions) of cohorts whose runs all have records.

    Those that were marked to be kept stay.
    """
    cohorts = store.cohorts(dataset)
    for folder in list(cohorts.iterdir()) if cohorts.is_dir() else []:
        members = checkpoints.members(folder)
        finished = [(store.root / dataset / run_id / "record.json").exists() for run_id in members]
        if members and all(finished) and not checkpoints.are_kept(folder):
            checkpoints.remove_checkpoints(folder)


def _claimed(
    store: Store, claims: LeaseManager, runs: Sequence[Run]
) -> tuple[dict[str, Lease], dict[Run, LeaseHolder]]:
    """The claims, by run id, that could be had, and who holds the others.

    Raises:
        UserError: a claim cannot be made there.
    """
    held: dict[str, Lease] = {}
    held_by_others: dict[Run, LeaseHolder] = {}
    try:
        for run in sorted(runs, key=lambda run: run.id):
            taken = claims.acquire(store.folder(run))
            if isinstance(taken, Lease):
                held[run.id] = taken
            else:
                held_by_others[run] = taken
    except BaseException:
        for claim in held.values():
            claim.release()
        raise
    return held, held_by_others
