"""Render the report in Markdown, for a code host, and in LaTeX, for a paper; both refer to the files beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.audit import render as audit_words
from benchmark.audit.verdicts import Audit
from benchmark.report.data import LEAD, TITLE, Report
from benchmark.report.decisions import DecidedClaim
from benchmark.report.faithfulness import FaithfulnessListing
from benchmark.report.figures import Drawing
from benchmark.report.table import ReportTable
from tables.escaping import Markup, escape_latex, escape_markdown, format_pipe_table, make_environment

TEMPLATES = Path(__file__).parent / "templates"


def to_markdown(
    report: Report,
    drawings: Sequence[Drawing],
    audit: Audit,
    decided: Sequence[DecidedClaim] = (),
    faithful: FaithfulnessListing | None = None,
) -> str:
    """Render a page with the coverage, links to the tables' files, the pictures, and the verdicts on claims."""
    more = {"listing": format_table, "decided": decided, "faithful": faithful}
    return _render("report.md.j2", escape_markdown, report, drawings, audit, **more)


def to_latex(report: Report, drawings: Sequence[Drawing], audit: Audit) -> str:
    """Render a document that inputs the tables' files; it compiles where these and the figures lie beside it."""
    return _render("tables.tex.j2", escape_latex, report, drawings, audit)


def format_table(listing: ReportTable) -> Markup:
    """Lay out a table of the report as a pipe table."""
    lines = [[escape_markdown(heading.name) for heading in listing.headings]]
    for row in listing.rows:
        lines.append(
            [escape_markdown(" ".join(filter(None, (datum.text, *datum.below.splitlines())))) for datum in row]
        )
    numeric = [index for index, column in enumerate(listing.headings) if column.numeric]
    return format_pipe_table(lines, numeric)


def _render(template: str, escape: Any, report: Report, drawings: Sequence[Drawing], audit: Audit, **more: Any) -> str:
    return (
        make_environment(TEMPLATES, escape)
        .get_template(template)
        .render(
            title=TITLE,
            lead=LEAD,
            report=report,
            drawings=drawings,
            audit=audit,
            audit_words=audit_words,
            **more,
        )
    )
