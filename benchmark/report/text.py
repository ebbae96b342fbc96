"""The report in Markdown, for a code host, and in LaTeX, for a paper: both lead to the files beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from rich.cells import cell_len

from benchmark.audit.render import in_brief, summary
from benchmark.audit.verdicts import Audit
from benchmark.report.data import TITLE, Report
from benchmark.report.figures import Drawing
from benchmark.report.table import ReportTable
from benchmark.report.wording import LEAD, records_line
from tables.escaping import Markup, escape_latex, escape_markdown

TEMPLATES = Path(__file__).parent / "templates"


def to_markdown(report: Report, drawings: Sequence[Drawing], audit: Audit) -> str:
    """A page with the coverage, links to the tables' files, the pictures, and what was found of the claims."""
    return _render("report.md.j2", escape_markdown, report, drawings, audit, listing=markdown_listing)


def to_latex(report: Report, drawings: Sequence[Drawing], audit: Audit) -> str:
    """A document that inputs the tables' files; it compiles where these and the figures lie beside it."""
    return _render("tables.tex.j2", escape_latex, report, drawings, audit, brief=in_brief)


def markdown_listing(listing: ReportTable) -> Markup:
    """A pipe table whose cells are padded to one width a column."""
    lines = [[escape_markdown(heading.name) for heading in listing.headings]]
    for row in listing.rows:
        lines.append(
            [escape_markdown(" ".join(filter(None, (datum.text, *datum.below.splitlines())))) for datum in row]
        )
    widths = [max(3, *(cell_len(line[place]) for line in lines)) for place in range(len(listing.headings))]
    rule = [
        "-" * (width - 1) + ":" if heading.numeric else "-" * width
        for heading, width in zip(listing.headings, widths, strict=True)
    ]
    lines.insert(1, [Markup(part) for part in rule])
    padded = (
        " | ".join(text + " " * (width - cell_len(text)) for text, width in zip(line, widths, strict=True))
        for line in lines
    )
    return Markup("\n".join(f"| {line} |" for line in padded))


def _render(template: str, escape: Any, report: Report, drawings: Sequence[Drawing], audit: Audit, **more: Any) -> str:
    delimiters = (
        {
            "block_start_string": "(*",
            "block_end_string": "*)",
            "variable_start_string": "((",
            "variable_end_string": "))",
            "comment_start_string": "(#",
            "comment_end_string": "#)",
        }
        if template.endswith(".tex.j2")
        else {}
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else escape(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **delimiters,  # type: ignore[arg-type]
    )
    environment.filters["markup"] = Markup
    return environment.get_template(template).render(
        title=TITLE,
        lead=LEAD,
        report=report,
        drawings=drawings,
        audit=audit,
        audit_summary=summary(audit),
        records=records_line(report),
        **more,
    )
