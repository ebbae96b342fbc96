"""Write the page of one command: its tables and figures, the curves of its runs, and links to its files."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmark.core.spec import Run
from benchmark.decisions.render import PREFIX, DecisionReport
from benchmark.io.files import write_text
from benchmark.report.citing import collect_makers
from benchmark.report.data import TableReport
from benchmark.report.decisions import DecidedClaim
from benchmark.report.figures import Drawing, describe_drawing
from benchmark.report.html import SECTIONS, render_page
from benchmark.report.runs import collect_curves
from benchmark.results.provenance import describe_environment
from benchmark.results.store import Store
from figures.result import FigureResult
from tables.result import TableResult

NAME = "index.html"
LEAD = (
    "The tables and figures that one command made, and the curves of its runs. The command python -m benchmark.report "
    "replaces this page by the whole report: paired differences, costs, the audit of the paper's text, and every run."
)


def write_overview(
    rendered: Sequence[tuple[TableResult | FigureResult, Sequence[Path]]],
    runs: Iterable[Run],
    store: Store,
    folder: Path,
    decisions: DecisionReport | None = None,
) -> Path:
    """Write `index.html`, which needs no other file to be read, and return its path.

    rendered: tables and figures with the files that were written of them; runs: those whose curves it can draw;
    decisions: what the command decided, if it was asked to.

    Raises:
        UserError: the folder cannot be written.
    """
    tables: list[TableReport] = []
    drawings: list[Drawing] = []
    for result, paths in rendered:
        if isinstance(result, TableResult):
            tables.append(TableReport(result, result.stem))
        else:
            drawings.append(describe_drawing(result, paths))
    decided = [DecidedClaim.of(decisions)] if decisions else []
    shown = {"decisions": decided, "tables": tables, "figures": drawings, "files": True}
    made = {path.name for _, paths in rendered for path in paths} | {one.report.file_name for one in decided}
    patterns = ("table_*", "figure_*", f"{PREFIX}*", "report.md")
    others = {path.name for pattern in patterns for path in folder.glob(pattern)} - made
    title = ", ".join([*(table.title for table in tables), *(drawing.title for drawing in drawings)])
    pairs = [(run, record) for run in runs if (record := store.record(run)) is not None]
    page = render_page(
        {name: SECTIONS[name] for name, content in shown.items() if content},
        collect_curves(pairs),
        collect_makers(pairs),
        heading=title,
        subtitle="kd-benchmark",
        lead=LEAD,
        tables=tables,
        drawings=drawings,
        decided=decided,
        files={"Made by this command": sorted(made), "From before": sorted(others)},
        generated_from=describe_environment(),
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    write_text(folder / NAME, page)
    return folder / NAME
