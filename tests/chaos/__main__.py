"""Kill workers and damage files of a small sweep, and compare what comes out: `python -m tests.chaos`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmark.cli.app import run_app
from benchmark.core.errors import UserError
from benchmark.io.files import check_writable
from tests.chaos.compare import Verdict
from tests.chaos.faults import DAMAGES, KILLS
from tests.chaos.harness import Harness

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    faults: Annotated[int, typer.Option(min=1, help="How many faults must count.")] = 200,
    seconds: Annotated[float, typer.Option(min=1.0, help="After so long it is given up to reach them.")] = 300.0,
    seed: Annotated[int, typer.Option(help="The same seed intends the same faults.")] = 0,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Processes that train at once.")] = 2,
    keep: Annotated[
        Path | None, typer.Option(help="Work in this new folder and keep it. [kept only where something is wrong]")
    ] = None,
) -> int:
    """Kill workers and damage files of a small sweep, let it finish, and compare every record with an undisturbed one.

    A fault counts only if it hit a worker that held a claim, or a file that was read afterwards. Exit code 0: nothing
    was lost, wrong or duplicated, and enough faults counted; 1 otherwise.
    """
    if not sys.platform.startswith(("linux", "darwin")):
        raise UserError("workers are forked, which this system cannot do; use Linux or macOS")
    if keep is not None:
        check_writable(keep, "--keep")
        if keep.exists() and any(keep.iterdir()):
            raise UserError(f"{keep} is not empty; name a new folder with --keep")
    folder = (keep or Path(tempfile.mkdtemp(prefix="chaos-"))).absolute()
    console = Console()
    harness = Harness(folder)
    harness.train_undisturbed()
    verdict = harness.disturb(folder / "disturbed", faults, seconds, seed, workers)
    enough = verdict.counted.total() >= faults
    report(verdict, console)
    if not enough:
        counted = f"only {verdict.counted.total()} of {faults} faults counted in {verdict.seconds:.0f} s"
        console.print(Text(f"{counted}; give it more --seconds", style="red"), soft_wrap=True)
    clean = enough and verdict.is_clean
    if keep is not None or not clean:
        console.print(Text(f"kept: {folder}"), soft_wrap=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if clean else 1


def report(verdict: Verdict, console: Console) -> None:
    """Print the faults by kind, what is wrong, and the verdict."""
    table = Table("fault", box=None, pad_edge=False)
    for name in ("injected", "counted"):
        table.add_column(name, justify="right")
    for kind in (*KILLS, *DAMAGES):
        table.add_row(kind, str(verdict.injected[kind]), str(verdict.counted[kind]))
    table.add_row("total", str(verdict.injected.total()), str(verdict.counted.total()), style="bold")
    console.print(table)
    for kind, lines in verdict.problems.items():
        for line in lines:
            console.print(Text(f"{kind}: {line}", style="red"), soft_wrap=True)
    figures = ", ".join(f"{len(lines)} {kind}" for kind, lines in verdict.problems.items())
    console.print(
        f"{verdict.rounds} rounds in {verdict.seconds:.0f} s, {verdict.records} records: {figures}", highlight=False
    )


if __name__ == "__main__":
    run_app(app, "python -m tests.chaos")
