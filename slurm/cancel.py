"""Cancels a sweep: `python -m slurm.cancel`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmark.cli.app import run_app
from benchmark.cli.options import A_DAY, Runs, check_exists
from benchmark.core.errors import UserError
from slurm import client
from slurm.client import SchedulerError
from slurm.pace import CANCEL_SECONDS
from slurm.status import SweepName
from slurm.sweep import Sweep, find_sweep


def main(
    runs: Runs = Path("runs"),
    sweep: SweepName = "",
    wait_seconds: Annotated[
        float,
        typer.Option(
            "--wait-seconds", min=0.0, max=A_DAY, help="How long to wait for running jobs to write a checkpoint."
        ),
    ] = 120.0,
) -> int:
    """Cancel every job of a sweep; those that run write a checkpoint first. Its command, given again, goes on."""
    console = Console()
    check_exists(runs)
    client.check_installed()
    chosen = find_sweep(runs, sweep, is_ambiguity_refused=True)
    if chosen.is_over:
        console.print(f"sweep {chosen.name} is over; there is nothing to cancel", highlight=False)
        return 0
    # The mark comes first, so that no job that ends submits others.
    chosen.cancel()
    try:
        left = cancel_jobs(chosen, wait_seconds)
    except SchedulerError as error:
        if "denied" in str(error):
            chosen.undo_cancel()
            raise UserError(
                f"sweep {chosen.name} has jobs of somebody else ({error}); ask them to cancel it"
            ) from error
        raise UserError(f"SLURM does not answer ({error}); nothing new is submitted, give the command again") from error
    if left:
        console.print(f"{left} jobs have not ended after {wait_seconds:.0f} s; SLURM will end them", highlight=False)
        return 1
    console.print(f"sweep {chosen.name} is cancelled; what was done is kept, and its command goes on with it")
    return 0


def cancel_jobs(sweep: Sweep, wait_seconds: float) -> int:
    """Cancel all jobs of a sweep, even those that are being submitted now; returns how many are left after the wait.

    Raises:
        SchedulerError: SLURM does not answer.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        arrays, names = set(), []
        for submission in sweep.journal.read_submissions():
            array = submission.array or client.find_by_name(sweep.queue_name(submission))
            if array is None:
                raise SchedulerError("squeue gave no answer")
            arrays |= {array} if array else set()
            names.append(f"-{submission.token}")
        queue = client.queue(arrays)
        if queue is None:
            raise SchedulerError("squeue gave no answer")
        # Somebody else may have written the notes: a number in them counts only if its job has a name of this sweep.
        own = [task for task, queued in queue.items() if queued.name.endswith(tuple(names))]
        if not own:
            return 0
        client.cancel(sorted({task.partition("_")[0] for task in own}, key=int))
        if time.monotonic() > deadline:
            return len(own)
        time.sleep(CANCEL_SECONDS)


if __name__ == "__main__":
    run_app(main, "python -m slurm.cancel")
