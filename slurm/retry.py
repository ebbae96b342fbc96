"""Tries the failed jobs of a sweep again, on other nodes: `python -m slurm.retry --failed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmark.cli.app import run_app
from benchmark.cli.options import Runs, check_exists
from benchmark.core.errors import UserError
from slurm import client
from slurm.dependencies import retry
from slurm.executor import reconcile_and_print
from slurm.journal import JobState
from slurm.status import SweepName
from slurm.sweep import find_sweep


def main(
    failed: Annotated[bool, typer.Option("--failed", help="Failed jobs, and those that they blocked.")] = False,
    cancelled: Annotated[bool, typer.Option("--cancelled", help="Jobs that were cancelled with scancel.")] = False,
    runs: Runs = Path("runs"),
    sweep: SweepName = "",
) -> int:
    """Submit failed or cancelled jobs of a sweep again; failed jobs avoid the nodes that they failed on."""
    if not (failed or cancelled):
        raise UserError("nothing says which jobs to try again; pass --failed, --cancelled, or both")
    console = Console()
    check_exists(runs)
    client.check_installed()
    chosen = find_sweep(runs, sweep)
    if chosen.is_cancelled:
        raise UserError(f"sweep {chosen.name} is cancelled; give its command again to go on with it")
    endings: dict[JobState, bool] = {"failed": failed, "cancelled": cancelled}
    again = retry(chosen, tuple(ending for ending, is_asked in endings.items() if is_asked))
    if not again:
        console.print("nothing to try again")
        return 0
    for number in again:
        nodes = ", ".join(sorted(chosen.journal.read_state(number).failed_on))
        away = f" (not on {nodes})" if nodes else ""
        console.print(f"again: {chosen.plan.jobs[number].name}{away}", highlight=False, markup=False, soft_wrap=True)
    reconcile_and_print(chosen, console)
    return 0


if __name__ == "__main__":
    run_app(main, "python -m slurm.retry")
