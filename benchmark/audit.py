"""Hold a paper's text against its own tables, the literature and our runs: `python -m benchmark.audit`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import benchmark
from benchmark.audit_pages import to_csv, to_json, to_markdown, to_terminal
from benchmark.audit_results import measured
from benchmark.claims import FILE, Claim, Claims, load_claims
from benchmark.command_line import names, run_app
from benchmark.expressions import title_of
from benchmark.files import check_writable, write_text
from benchmark.findings import Audit, Finding, on_paper, other_readings, verdict_on_paper
from benchmark.findings_of_runs import on_runs, settings_of
from benchmark.options import Reports, Runs
from benchmark.provenance import commit
from benchmark.sources import Paper
from tables.result import TableResult

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    claims: Annotated[Path, typer.Option(help="A file of claims (docs/audit.md). [those of the LSSKD paper]")] = FILE,
    only: Annotated[str, typer.Option(help="Only these claims: a list of ids such as ps-kd-average,coc-boost.")] = "",
    runs: Runs = Path("runs"),
    reports: Reports = Path("reports"),
) -> int:
    """Judge every claim and write audit.md, audit.csv and audit.json; no run is needed."""
    console = Console()
    check_writable(reports, "--reports")
    asked = load_claims(claims).selected(names(only))
    results, damaged = measured(asked, runs)
    for line in damaged:
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    found = audit_of(asked, results)
    written: list[Path] = []
    try:
        written = write_audit(found, reports)
    finally:
        console.print(to_terminal(found, console.width, written))
    return 0


def audit_of(claims: Claims, results: Iterable[TableResult] = ()) -> Audit:
    """Every claim with its verdicts.

    results: of tables, and of figures' panels under the names that the claims give them, in any number of settings.

    Raises:
        UserError: an expression of a claim cannot be computed.
    """
    known = {*claims.loaded, *claims.figures}
    results = [result for result in results if result.table.name in known and _has_values(result)]
    paper = Paper(claims)
    return Audit(
        title=claims.title,
        findings=tuple(_finding(claim, paper, results) for claim in claims.claims),
        settings=tuple(
            f"{title_of(result.table.name)} at scale {result.scale} on {result.dataset}"
            for setting in settings_of(results)
            for result in setting.values()
        ),
        generated_from=f"kd-benchmark {benchmark.__version__}, commit {(commit() or 'unknown')[:12]}",
    )


def write_audit(audit: Audit, folder: Path) -> list[Path]:
    """Write `audit.md`, `.csv` and `.json`, each whole or not at all, and say where they are.

    Raises:
        UserError: the folder cannot be written.
    """
    paths = []
    for ending, text in (("md", to_markdown(audit)), ("csv", to_csv(audit)), ("json", to_json(audit))):
        paths.append(folder / f"audit.{ending}")
        write_text(paths[-1], text)
    return paths


def _has_values(result: TableResult) -> bool:
    return any(cell.values for cell in result.cells.values())


def _finding(claim: Claim, paper: Paper, results: list[TableResult]) -> Finding:
    printed, published = on_paper(claim, paper, "printed"), on_paper(claim, paper, "published")
    return Finding(
        claim=claim,
        printed=printed,
        published=published,
        measured=on_runs(claim, paper, results),
        paper=verdict_on_paper(printed.verdict, published.verdict),
        others=other_readings(claim, paper),
    )


if __name__ == "__main__":
    run_app(app, "python -m benchmark.audit")
