"""Simulate how often sweeps that stop when they are decided are wrong: `python -m benchmark.decisions`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmark.cli.app import run_app
from benchmark.core.sequences import FIRST
from benchmark.core.statistics import LEVEL
from benchmark.decisions.simulation import (
    DISTRIBUTIONS,
    count_any_wrong,
    draw_differences,
    simulate,
    simulate_students,
)

EFFECTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Mean differences, in standard deviations of the differences."""
COLUMNS = 6


def main(
    sweeps: Annotated[int, typer.Option(min=100, max=100_000, help="How many are simulated for each line.")] = 10_000,
    max_seeds: Annotated[int, typer.Option(min=FIRST, max=100, help="How many seeds one has at most.")] = 10,
) -> int:
    """Print how often sweeps are decided, rightly and wrongly, and how many seeds they take."""
    console = Console()
    console.print(f"{sweeps:,} sweeps a line, at most {max_seeds} seeds, intervals at {LEVEL:.0%}", highlight=False)
    screen = Table(
        "mean difference",
        "interval missed",
        "decided",
        "wrongly",
        "seeds",
        f"t at {max_seeds} only",
        box=None,
        pad_edge=False,
    )
    for effect in EFFECTS:
        differences = draw_differences("normal", effect, sweeps, max_seeds)
        found, once = simulate(differences, effect), simulate_students(differences, effect, fixed=True)
        shares = [f"{share:.1%}" for share in (found.missed, found.right, found.wrong)]
        screen.add_row(f"{effect:g} std", *shares, f"{found.seeds:.2f}", f"{once.right or once.wrong:.1%}")
    console.print(screen)
    screen = Table("differences without a mean", "interval missed", "Student's, each seed", box=None, pad_edge=False)
    for name in DISTRIBUTIONS:
        differences = draw_differences(name, 0.0, sweeps, max_seeds)
        missed = simulate(differences, 0.0).missed, simulate_students(differences, 0.0, fixed=False).missed
        screen.add_row(name, *(f"{share:.1%}" for share in missed))
    console.print(screen)
    own, shared = (count_any_wrong(COLUMNS, sweeps, max_seeds, (1 - LEVEL) / share) for share in (1, COLUMNS))
    console.print(
        f"{COLUMNS} columns without a difference: one or more is decided in {own:.1%} of the sweeps; "
        f"with the error shared among the columns, in {shared:.1%}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    run_app(main, "python -m benchmark.decisions")
