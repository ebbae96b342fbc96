"""The command line: `python -m benchmark.audit` judges papers by their tables, the literature and our runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmark.audit.audit import make_court, write_audit
from benchmark.audit.claims import load_claims, load_papers
from benchmark.audit.results import collect_measured
from benchmark.audit.terminal import to_terminal
from benchmark.cli.app import run_app, split_names
from benchmark.cli.options import Pages, Runs, check_exists
from benchmark.io.files import check_writable


def main(
    claims: Annotated[
        Path | None,
        typer.Option(help="Only this file of claims (docs/audit.md). [those of the suite: LSSKD's and the court's]"),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Only these claims, into audit_part.md: a list of ids such as ps-kd-average,coc-boost."),
    ] = None,
    runs: Runs = Path("runs"),
    reports: Pages = Path("reports"),
) -> int:
    """Judge every claim and write audit.md, .csv and .json, and such files for every other paper; no run is needed."""
    console = Console()
    check_exists(runs)
    check_writable(reports, "--reports")
    names = split_names(only, "--only")
    papers = {"": load_claims(claims).selected(names)} if claims else load_papers(names)
    results, damaged = collect_measured(papers.values(), runs)
    for line in damaged:
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    audit = make_court(papers, results)
    written: list[Path] = []
    try:
        # The report links to the whole audit, so a part of it gets a name of its own.
        written = write_audit(audit, reports, "audit" if only is None else "audit_part")
    finally:
        console.print(to_terminal(audit, written))
    return 0


if __name__ == "__main__":
    run_app(main, "python -m benchmark.audit")
