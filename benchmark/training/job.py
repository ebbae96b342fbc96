"""A job: claim the runs of a cohort, train those that nobody else trains, wait for the rest."""

from __future__ import annotations

import time
from collections.abc import Sequence

from filelock import FileLock, Timeout

from benchmark.errors import UserError
from benchmark.results import Store
from benchmark.spec import Run
from benchmark.training import checkpoint as checkpoints
from benchmark.training.cohort import Listener, Say, Stop, cohort_folder, train
from benchmark.training.material import Settings
from benchmark.training.processes import train_together

WAIT_SECONDS = 1.0


def execute(
    runs: Sequence[Run],
    settings: Settings,
    stop: Stop = lambda: False,
    listen: Listener = lambda progress: None,
    say: Say = lambda line: None,
) -> bool:
    """Bring the runs to their records; False if `stop` asked to leave before that.

    A run that another process trains is waited for, and trained here if that process ends without a record.

    Raises:
        UserError: something that the user must mend, such as a full disk.
    """
    store = Store(settings.runs)
    told = False
    while pending := [run for run in runs if store.record(run) is None]:
        locks = _claim(store, pending)
        try:
            mine = [run for run in pending if run.id in locks and store.record(run) is None]
            if mine:
                together = train_together if mine[0].processes > 1 else train
                if not together(mine, settings, stop, listen, say):
                    return False
                if settings.keep:
                    checkpoints.keep_checkpoints(cohort_folder(store, mine))
                remove_finished_checkpoints(store, mine[0].dataset)
                continue
        finally:
            for lock in locks.values():
                lock.release()
        if stop():
            return False
        if not told:
            say(f"waiting for another process that trains {pending[0].id}")
            told = True
        time.sleep(WAIT_SECONDS)
    return True


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


def _claim(store: Store, runs: Sequence[Run]) -> dict[str, FileLock]:
    """The locks, by run id, of those runs that no other process holds.

    Raises:
        UserError: a lock cannot be made there.
    """
    held: dict[str, FileLock] = {}
    for run in sorted(runs, key=lambda run: run.id):
        lock = store.lock(run)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        except (OSError, NotImplementedError) as error:
            raise UserError(f"cannot lock {store.folder(run)}: {error}; choose another folder with --runs") from error
        held[run.id] = lock
    return held
