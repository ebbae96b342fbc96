"""Goes over a sweep when a command takes it up: what its records say is the truth, and what was lost is to do again."""

from __future__ import annotations

import time
from collections import defaultdict

from slurm.needs import LOST, answer_of
from slurm.states import Ending
from slurm.sweep import Sweep


def take_up(sweep: Sweep) -> list[int]:
    """Bring what is noted of a sweep's jobs in line with the records; returns the jobs that are to do once more.

    A cancelled sweep goes on. A job whose records have gone is open again, and so is one that lacked what now is there.

    Raises:
        UserError: the shared folder cannot be written.
    """
    sweep.resume()
    ended, missing = sweep.ended(), _missing(sweep)
    again = []
    for job in sweep.jobs:
        ending = ended.get(job.number)
        if not missing[job.number]:
            if ending is None and (answer := answer_of(sweep, job.number)) is not None:
                sweep.end(job.number, *answer)
        elif ending in ("done", "cancelled"):
            _open_again(sweep, job.number)
            again.append(job.number)
    return again + _unblocked(sweep)


def retry(sweep: Sweep, endings: tuple[Ending, ...] = ("failed",)) -> list[int]:
    """Have jobs that ended badly tried again, and with them what was blocked by them; returns these jobs.

    Records of failure are removed; records of success stay.

    Raises:
        UserError: the shared folder cannot be written.
    """
    ended = sweep.ended()
    chosen = [number for number, ending in sorted(ended.items()) if ending in endings]
    for number in chosen:
        for run in sweep.runs_of(number):
            sweep.store.forget_failure(run)
        _open_again(sweep, number)
    return chosen + _unblocked(sweep)


def _open_again(sweep: Sweep, number: int) -> None:
    """Have a job submitted anew, whatever became of it before."""
    # Also of one that never ran: the cluster may still know it as cancelled, for want of what it needed.
    sweep.write_state(sweep.state(number).changed(forgiven=time.time(), shown=None))
    sweep.reopen(number)


def _unblocked(sweep: Sweep) -> list[int]:
    """Open what was blocked by jobs that are open again, in dependency order."""
    ended = sweep.ended()
    opened = []
    for job in sweep.jobs:
        needed = sweep.needs.get(job.number, frozenset())
        if ended.get(job.number) == "blocked" and not any(ended.get(other) in LOST for other in needed):
            _open_again(sweep, job.number)
            del ended[job.number]
            opened.append(job.number)
    return opened


def _missing(sweep: Sweep) -> dict[int, int]:
    """How many runs of each job have no record."""
    found: dict[int, int] = defaultdict(int)
    for job, dataset, run_id in sweep.outline():
        if not sweep.is_recorded(dataset, run_id):
            found[job] += 1
    return found
