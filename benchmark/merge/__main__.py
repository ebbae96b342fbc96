"""The command line: `python -m benchmark.merge DIR`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmark.cli.app import run_app
from benchmark.cli.options import Runs, WithoutHost
from benchmark.core.errors import UserError
from benchmark.io.files import check_writable
from benchmark.io.untrusted import escape_control_chars
from benchmark.merge.merging import Kind, Merge, MergeFinding
from benchmark.results.store import Store

MEANINGS: dict[Kind, str] = {
    "new": "brought in",
    "replaced": "took the place of a run that failed or was damaged here",
    "equal": "here already, with the same outcome",
    "kept": "finished here, failed there: ours stays",
    "busy": "being trained here right now: left; call again later",
    "unfinished": "without a record there: left",
    "conflicting": "the same run with another outcome: both stay where they are",
    "refused": "not taken",
}
FORESEEN: dict[Kind, str] = {
    "new": "would be brought in",
    "replaced": "would take the place of a run that failed or is damaged here",
}
"""The meanings that a dry run prints instead."""
STYLES: dict[Kind, str] = {
    "new": "green",
    "replaced": "green",
    "conflicting": "red",
    "refused": "red",
    "busy": "yellow",
}
LISTED: tuple[Kind, ...] = ("replaced", "kept", "busy", "conflicting", "refused")
"""The kinds of which a line is printed for each run."""


def main(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Stores of runs, copied from anywhere.")],
    runs: Runs = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")] = False,
    without_host: WithoutHost = False,
    without_weights: Annotated[
        bool, typer.Option("--without-weights", help="Take records and curves only: enough for tables and reports.")
    ] = False,
) -> int:
    """Bring in the runs of other stores that are new here, and list the conflicting and the refused ones."""
    console = Console()
    for folder in folders:
        _check_folder(folder, runs)
    check_writable(runs, "--runs")
    merge = Merge(Store(runs), dry_run, without_host, without_weights)
    has_problems = False
    for folder in folders:
        with console.status(f"reading {escape_control_chars(folder)}"):
            findings = merge.merge(folder)
        _print(console, folder, runs, findings, dry_run)
        has_problems |= any(finding.kind in ("conflicting", "refused") for finding in findings)
    return int(has_problems)


def _check_folder(folder: Path, runs: Path) -> None:
    if not folder.is_dir():
        raise UserError(
            f"{escape_control_chars(folder)} is no folder; give one with runs, such as a copy of a colleague's"
        )
    if runs.exists() and folder.resolve().is_relative_to(runs.resolve()):
        raise UserError(f"{escape_control_chars(folder)} is {runs} itself or lies in it; give a store from elsewhere")


def _print(console: Console, folder: Path, runs: Path, findings: Sequence[MergeFinding], dry_run: bool) -> None:
    for kind in LISTED:
        for finding in findings:
            if finding.kind == kind:
                line = Text.assemble((f"{kind}: ", STYLES.get(kind, "")), finding.name, f": {finding.why}")
                console.print(line, soft_wrap=True)
    heading = f"{'dry run: ' if dry_run else ''}{escape_control_chars(folder)} into {runs}"
    table = Table(title=heading, title_justify="left", title_style="bold", box=None, pad_edge=False)
    counts = {
        is_run: Counter(finding.kind for finding in findings if finding.is_run == is_run) for is_run in (True, False)
    }
    table.add_column("")
    table.add_column("runs", justify="right")
    if counts[False]:
        table.add_column("teachers", justify="right")
    table.add_column("")
    for kind, meaning in (MEANINGS | FORESEEN if dry_run else MEANINGS).items():
        numbers = [str(counts[True][kind]), *([str(counts[False][kind])] if counts[False] else [])]
        if any(number != "0" for number in numbers) or kind in ("new", "equal", "conflicting", "refused"):
            table.add_row(Text(kind, style=STYLES.get(kind, "")), *numbers, meaning)
    console.print(table)


if __name__ == "__main__":
    run_app(main, "python -m benchmark.merge")
