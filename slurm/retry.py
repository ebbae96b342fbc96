"""Has what failed of a sweep tried again, on other nodes: `python -m slurm.retry --failed`."""

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
from slurm.executor import looked_after
from slurm.states import JobState
from slurm.status import SweepName
from slurm.sweep import find_sweep

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    failed: Annotated[bool, typer.Option("--failed", help="What failed, and what was blocked by it.")] = False,
    cancelled: Annotated[bool, typer.Option("--cancelled", help="What was cancelled with scancel.")] = False,
    runs: Runs = Path("runs"),
    sweep: SweepName = "",
) -> int:
    """Submit again what failed or was cancelled of a sweep; what failed keeps away from the nodes it failed on."""
    if not (failed or cancelled):
        raise UserError("what is to be tried again? pass --failed, --cancelled, or both")
    console = Console()
    check_exists(runs)
    client.check_installed()
    chosen = find_sweep(runs, sweep)
    if chosen.is_stopped:
        raise UserError(f"sweep {chosen.name} is cancelled; give its command again to go on with it")
    wanted: list[tuple[bool, JobState]] = [(failed, "failed"), (cancelled, "cancelled")]
    again = retry(chosen, tuple(ending for asked, ending in wanted if asked))
    if not again:
        console.print("nothing to try again")
        return 0
    for number in again:
        nodes = ", ".join(sorted(chosen.state(number).failed_on))
        away = f" (not on {nodes})" if nodes else ""
        console.print(f"again: {chosen.jobs[number].name}{away}", highlight=False, markup=False, soft_wrap=True)
    console.print(looked_after(chosen, console), highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_app(app, "python -m slurm.retry")
