"""How a sweep stands: `python -m slurm.status`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmark.command_line import run_app
from benchmark.options import Runs, check_there
from slurm.screen import LOOK_SECONDS, Display, picture
from slurm.snapshot import Reader
from slurm.sweep import chosen_sweep, sweeps_in

app = typer.Typer(add_completion=False, rich_markup_mode=None)
SweepName = Annotated[str, typer.Option("--sweep", help="Which sweep, by its name. [the latest]")]


@app.command()
def main(
    runs: Runs = Path("runs"),
    sweep: SweepName = "",
    once: Annotated[bool, typer.Option("--once", help="Show it once, also on a terminal.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Name every job, also those that wait.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Name the sweeps there are.")] = False,
) -> int:
    """Show what of a sweep waits, runs, is done and has failed, how much of each table is there, and what it cost.

    On a terminal it is shown again and again until the sweep is over; Ctrl-C leaves, and the sweep goes on.
    """
    console = Console()
    check_there(runs)
    chosen = chosen_sweep(runs, sweep)
    if listing:
        for found in sweeps_in(runs):
            said = f"{found.name}  {len(found.jobs)} jobs, {found.about('command')}"
            console.print(said, highlight=False, markup=False)
        return 0
    reader = Reader(chosen)
    if once or not console.is_terminal:
        snapshot = reader.snapshot()
        console.print(picture(snapshot, verbose))
        return 0 if not any(snapshot.counts[bad] for bad in ("failed", "blocked")) else 1
    with Display(console) as display:
        while True:
            snapshot = reader.snapshot()
            display.show(snapshot)
            if snapshot.is_over:
                return 0
            time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    run_app(app, "python -m slurm.status")
