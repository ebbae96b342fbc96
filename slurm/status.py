"""Shows the status of a sweep: `python -m slurm.status`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmark.cli.app import run_app
from benchmark.cli.options import Runs, check_exists
from benchmark.core.errors import UserError
from benchmark.core.text import counted
from slurm.monitor import take_snapshot
from slurm.screen import SweepDisplay, render_screen, watch
from slurm.sweep import find_sweep, list_sweeps

SweepName = Annotated[str, typer.Option("--sweep", help="Which sweep, by its name. [the latest]")]


def main(
    runs: Runs = Path("runs"),
    sweep: SweepName = "",
    once: Annotated[bool, typer.Option("--once", help="Show it once, also on a terminal.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Name every job, also those that wait.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Name the sweeps there are.")] = False,
) -> int:
    """Show what of a sweep waits, runs, is done and has failed, how much of each table is there, and what it cost.

    On a terminal it is shown again and again until the sweep is over or cancelled; Ctrl-C leaves it to go on.
    The exit code is 1 if a job failed, or was blocked by one that did.
    """
    console = Console()
    check_exists(runs)
    chosen = find_sweep(runs, sweep)
    if listing:
        for each in list_sweeps(runs):
            line = f"{each.name}  {counted(len(each.plan.jobs), 'job')}, {each.plan.read_fact('command')}"
            console.print(line, highlight=False, markup=False)
        return 0
    try:
        snapshot = take_snapshot(chosen)
    except OSError as error:
        # A later error may be temporary; the watch waits for its end.
        raise UserError(f"sweep {chosen.name} cannot be read: {error}; look whether the folder is there") from error
    if once or not console.is_terminal:
        console.print(render_screen(snapshot, verbose))
    else:
        with SweepDisplay(console) as display:
            snapshot = watch(lambda: take_snapshot(chosen), display)
    return snapshot.exit_code


if __name__ == "__main__":
    run_app(main, "python -m slurm.status")
