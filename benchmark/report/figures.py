"""Draw the figures of a report and make its audit, from the records that it was collected from."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.analysis.figures import collect_figure_runs
from benchmark.audit.audit import make_court
from benchmark.audit.claims import load_papers
from benchmark.audit.results import collect_tables, make_panel_tables
from benchmark.audit.verdicts import Audit
from benchmark.report.curves import collect_pair_curves, write_curves
from benchmark.report.data import Report
from figures.render import write_figure
from figures.result import FigureResult
from figures.specification import figure_names, load_figure
from tables.escaping import Markup

_LINES, _DECIMALS = re.compile(rb'\sd="[^"]*"'), re.compile(rb"(\.\d)\d+")
"""The path of a line in an SVG, and the digits of a coordinate that nobody sees."""


@dataclass(frozen=True)
class Drawing:
    """A figure as it was drawn.

    title: the figure and its scale; caption: what it shows, and where its numbers come from; alt: what is drawn, for
    those who do not see it; reproduces: whether its numbers may be set against the paper's; files: what was written of
    it, by ending; result: what is drawn, where it is a figure of the paper.
    """

    stem: str
    title: str
    caption: str
    alt: str
    reproduces: bool
    files: dict[str, Path]
    result: FigureResult | None = None

    def file(self, ending: str) -> Markup:
        """Name one of its files; the name holds nothing that a format would read."""
        return Markup(self.files[ending].name)

    @property
    def source(self) -> str:
        """The vector drawing as a data URI, its lines to a tenth of a point, which halves it."""
        drawn = _LINES.sub(lambda found: _DECIMALS.sub(rb"\1", found[0]), self.files["svg"].read_bytes())
        return "data:image/svg+xml;base64," + base64.b64encode(drawn).decode()


def describe_drawing(result: FigureResult, paths: Iterable[Path]) -> Drawing:
    """Describe a figure of the paper, with the files that were written of it."""
    name, files = f"Figure {result.figure.name}", {path.suffix.removeprefix("."): path for path in paths}
    return Drawing(
        stem=result.stem,
        title=f"{name}, {result.scale}" if result.has_values() else name,
        caption=" ".join([result.figure.caption, result.statement, *result.remarks, *result.notes]),
        alt=f"{result.figure.caption} Shown: {', '.join(result.methods)}. Its numbers are in {files['md'].name}.",
        reproduces=result.reproduces,
        files=files,
        result=result,
    )


def draw_figures(report: Report, folder: Path) -> list[Drawing]:
    """Draw the curves of each table, and the figures in every setting that there are runs of, into a folder.

    Figures without any runs are drawn with the published numbers alone.

    Raises:
        UserError: the folder cannot be written.
    """
    figures = map(load_figure, figure_names())
    results = [found for one in figures for found in collect_figure_runs(one, report.query, report.scale or None)]
    results.sort(key=lambda result: (result.figure.name, not result.has_values()))
    drawn = [describe_drawing(result, write_figure(result, folder)) for result in results]
    return [*draw_curves(report, folder), *drawn]


def draw_curves(report: Report, folder: Path) -> list[Drawing]:
    """Draw the test accuracy over epochs for each measured table, for the pair that most rows have curves of."""
    records = {record["id"]: record for record in report.records}
    drawings = []
    for table in report.tables:
        if curves := collect_pair_curves(table.result, records):
            paths = write_curves(curves, folder, f"curves_{table.stem}")
            drawings.append(
                Drawing(
                    stem=f"curves_{table.stem}",
                    title=f"Curves, {table.title}",
                    caption=curves.caption,
                    alt=f"{curves.caption} Shown: {', '.join(curve.name for curve in curves.curves)}.",
                    reproduces=table.result.reproduces,
                    files={path.suffix.removeprefix("."): path for path in paths},
                )
            )
    return drawings


def audit_report(report: Report, drawings: Sequence[Drawing]) -> Audit:
    """Judge the papers' texts by their own tables, by the literature and by the runs of the report."""
    papers = load_papers()
    found = {table.result.table.name: table for table in report.tables}
    panels = make_panel_tables(drawing.result for drawing in drawings if drawing.result)
    others = collect_tables(papers.values(), report.query, but=found)
    return make_court(papers, [*(table.result for table in report.tables), *others, *panels])
