"""Report whatever runs there are: `python -m benchmark.report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from benchmark.audit.audit import write_audit
from benchmark.audit.render import summarise_audit
from benchmark.audit.verdicts import Audit
from benchmark.cli.app import run_app
from benchmark.cli.options import DEFAULT_RUNS, Pages, Runs, WithoutHost, check_exists
from benchmark.io.files import check_writable, replacing, write_text
from benchmark.report import figures, text
from benchmark.report.api import write_api
from benchmark.report.badges import write_badges
from benchmark.report.data import Report, collect_report
from benchmark.report.decisions import DecidedClaim, read_decisions
from benchmark.report.faithfulness import FaithfulnessListing, read_faithfulness
from benchmark.report.figures import Drawing
from benchmark.report.html import to_html
from benchmark.report.readme import RESULTS
from benchmark.results import to_dataframe
from figures.render import check_drawing
from tables.render import write_reports
from tables.specification import OWN_METHOD


def main(
    runs: Runs = DEFAULT_RUNS,
    reports: Pages = Path("reports"),
    scale: Annotated[str, typer.Option(help="Only runs of this scale: demo, quick or paper. [all]")] = "",
    table: Annotated[
        list[str] | None, typer.Option(help="Only this table, by name or TOML file (may be repeated). [the suite's]")
    ] = None,
    method: Annotated[str, typer.Option(help="The method that is compared with all others.")] = OWN_METHOD,
    without_host: WithoutHost = True,
) -> int:
    """Write index.html, report.md, tables.tex, every table and figure, the audit, and all records."""
    console = Console()
    check_exists(runs)
    check_writable(reports, "--reports")
    check_drawing()
    if not runs.is_dir() and RESULTS.is_dir():
        console.print(Text(f"There is no folder {runs} here, so this is the report of {RESULTS}."), soft_wrap=True)
        runs = RESULTS
    with console.status("reading records"):
        report = collect_report(runs, method, scale, table or (), without_host)
    written = []
    with console.status("drawing figures"):
        drawings = figures.draw_figures(report, reports)
        written += [path for drawing in drawings for path in drawing.files.values()]
    with console.status("judging claims"):
        audit = figures.audit_report(report, drawings)
    with console.status("writing"):
        decided, refused = read_decisions(reports)
        faithful, unread = read_faithfulness(reports)
        refused += unread
        drawings += [faithful.drawing] if faithful and faithful.drawing else []
        written += _write(report, drawings, audit, decided, faithful, reports)
    for line in refused:
        console.print(Text(f"left out: {line}", style="yellow"), soft_wrap=True)
    _print(console, report, audit, reports, len(written))
    return 0


def _write(
    report: Report,
    drawings: list[Drawing],
    audit: Audit,
    decided: list[DecidedClaim],
    faithful: FaithfulnessListing | None,
    folder: Path,
) -> list[Path]:
    written = [*write_audit(audit, folder), *write_badges(audit, folder), *write_api(report, audit, folder)]
    for table in report.tables:
        written += write_reports(table.result, folder, table.stem)
    frame = to_dataframe(report.records)
    with replacing(folder / "records.parquet") as file:
        frame.to_parquet(file.temporary)
    write_text(folder / "records.csv", frame.to_csv(index=False, lineterminator="\n"))
    for name, content in (
        ("report.md", text.to_markdown(report, drawings, audit, decided, faithful)),
        ("tables.tex", text.to_latex(report, drawings, audit)),
        ("index.html", to_html(report, drawings, audit, decided, faithful)),
    ):
        write_text(folder / name, content)
        written.append(folder / name)
    return [*written, folder / "records.parquet", folder / "records.csv"]


def _print(console: Console, report: Report, audit: Audit, folder: Path, files: int) -> None:
    def say(line: str, style: str = "") -> None:
        console.print(Text(line, style=style), soft_wrap=True)

    say(f"{report.headline}.", "bold")
    for sentence in (*report.sentences, report.origin):
        say(sentence)
    for covered in report.covered:
        parts = [f"{covered.done} of {covered.cells} cells done"]
        parts += [f"{covered.partial} partial"] if covered.partial else []
        parts += [f"{covered.failed} failed"] if covered.failed else []
        say(f"  Table {covered.table}, {covered.scale}, {covered.dataset}, {covered.protocol}: {', '.join(parts)}")
    for line in report.damaged:
        say(f"left out: {line}", "yellow")
    for sentence in summarise_audit(audit):
        say(sentence)
    say(f"Written: {files} files in {folder}; open {folder / 'index.html'}")


if __name__ == "__main__":
    run_app(main, "python -m benchmark.report")
