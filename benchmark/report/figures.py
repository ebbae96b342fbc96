"""The figures and the audit of a report, from the records that it was collected from."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.analysis.figures import collect_figure_runs
from benchmark.analysis.tables import make_table_results
from benchmark.audit.audit import make_audit
from benchmark.audit.claims import ClaimSet, load_claims
from benchmark.audit.results import make_panel_tables
from benchmark.audit.verdicts import Audit
from benchmark.report.data import Report
from figures.render import write_figure
from figures.result import FigureResult
from figures.specification import figure_names, load_figure
from tables.escaping import Markup
from tables.result import TableResult


@dataclass(frozen=True)
class Drawing:
    """A figure as it was drawn. files: what was written of it, by ending."""

    result: FigureResult
    files: dict[str, Path]

    @property
    def stem(self) -> str:
        """What its files are called."""
        return self.result.stem

    def file(self, ending: str) -> Markup:
        """The name of one of its files, which holds nothing that a format would read."""
        return Markup(self.files[ending].name)

    @property
    def title(self) -> str:
        """The figure and its scale."""
        name = f"Figure {self.result.figure.name}"
        return f"{name}, {self.result.scale}" if self.result.has_values() else name

    @property
    def caption(self) -> str:
        """What it shows, and where its numbers come from."""
        return " ".join([self.result.figure.caption, self.result.statement, *self.result.remarks, *self.result.notes])

    @property
    def reproduces(self) -> bool:
        """Whether its numbers may be set against the paper's."""
        return self.result.reproduces

    @property
    def alt(self) -> str:
        """For those who do not see it: what is drawn, and where its numbers stand."""
        methods = ", ".join(self.result.methods)
        table = self.files["md"].name if "md" in self.files else "the files"
        return f"{self.result.figure.caption} Shown: {methods}. Its numbers are in {table}."

    @property
    def source(self) -> str:
        """The vector drawing as a data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.files["svg"].read_bytes()).decode()


def draw_figures(report: Report, folder: Path) -> list[Drawing]:
    """Draw the figures in every setting that there are runs of, or with the published numbers alone, into a folder.

    Raises:
        UserError: the folder cannot be written.
    """
    drawings = []
    for name in figure_names():
        for result in collect_figure_runs(load_figure(name), report.collection, report.scale or None):
            files = {path.suffix.removeprefix("."): path for path in write_figure(result, folder)}
            drawings.append(Drawing(result, files))
    return sorted(drawings, key=lambda drawing: (drawing.result.figure.name, not drawing.result.has_values()))


def audit_report(report: Report, drawings: Sequence[Drawing]) -> Audit:
    """The paper's text against its own tables and the runs of the report."""
    claims = load_claims()
    return make_audit(claims, [*_tables(report, claims), *make_panel_tables(drawing.result for drawing in drawings)])


def _tables(report: Report, claims: ClaimSet) -> Iterable[TableResult]:
    """The report's results of the tables that claims are about; collected now where the report has others."""
    found = {table.page.name for table in report.tables}
    for table in report.tables:
        if table.page.name in claims.loaded:
            yield table.result
    for name, table_of_claims in claims.loaded.items():
        if name not in found:
            yield from make_table_results(table_of_claims, report.collection, report.collection.settings())
