"""The report for printing: a PDF set by Typst, whose compiler comes as a Python package."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jinja2
import typst

from benchmark.audit.render import in_brief, summary
from benchmark.audit.verdicts import Audit
from benchmark.report import wording
from benchmark.report.data import TITLE, Report
from benchmark.report.figures import Drawing
from benchmark.report.table import ReportCell, ReportTable
from benchmark.report.typst_markup import escape_typst, finalise, typst_string
from tables.escaping import Markup
from tables.result import ABSENT
from tables.view import Marks, Page, PageCell

MOST_UPRIGHT = 6
"""Columns of results that an upright page has room for."""
MOST_ON_A_PAGE = 24
"""Rows of results that a page has room for; a table of more goes on on the next one."""
TEMPLATES = Path(__file__).parent / "templates"


def to_typst(report: Report, drawings: Sequence[Drawing], audit: Audit) -> str:
    """The document's source; its pictures lie beside it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        finalize=finalise,
        trim_blocks=True,
        lstrip_blocks=True,
        # Typst's own comments and labels use what Jinja's would.
        comment_start_string="{##",
        comment_end_string="##}",
    )
    environment.filters["code"] = Markup
    return environment.get_template("report.typ.j2").render(
        title=TITLE,
        lead=wording.LEAD,
        legend=wording.LEGEND,
        not_run=wording.NOT_RUN,
        differences=wording.DIFFERENCES,
        cost=wording.COST,
        audit_words=wording.AUDIT,
        audit_summary=summary(audit),
        report=report,
        drawings=drawings,
        audit=audit,
        records=wording.records_line(report),
        brief=in_brief,
        string=typst_string,
        listing=listing_markup,
        grid=grid_markup,
        most_upright=MOST_UPRIGHT,
        most_on_a_page=MOST_ON_A_PAGE,
    )


def to_pdf(report: Report, drawings: Sequence[Drawing], audit: Audit) -> bytes:
    """The document, with the pictures that were drawn before."""
    with tempfile.TemporaryDirectory() as folder:
        for drawing in drawings:
            shutil.copy(drawing.files["svg"], folder)
        source = Path(folder, "report.typ")
        source.write_text(to_typst(report, drawings, audit), encoding="utf-8")
        compiled: bytes = typst.compile(source, format="pdf")
    return compiled


def listing_markup(listing: ReportTable, size: float) -> Markup:
    """A table in letters of so many points, its head repeated on every page."""
    aligned = ", ".join("right" if heading.numeric else "left" for heading in listing.headings)
    head = ", ".join(f"[{_lines(heading.lines)}]" for heading in listing.headings)
    lines = [f"  {', '.join(map(_datum, row))}, hair," for row in listing.rows]
    columns = f"columns: {len(listing.headings)}"
    return _table(size, columns, f"align: ({aligned},)", head, lines)


def grid_markup(page: Page) -> Markup:
    """A table of results: measured over printed."""
    head = [("method",), *(column.heading for column in page.columns)]
    cells = [f"[{_lines(title)}]" for title in head]
    aligned = ", ".join(["left", *("right" for _ in page.columns)])
    lines = []
    for row in page.rows:
        name = f"[{escape_typst(row.name)}{_marks(row.marks)}]"
        lines.append(f"  {', '.join([name, *map(_entry, row.entries)])}, hair,")
    # Few columns would stand far apart on the whole width.
    width = "1fr" if len(page.columns) > 3 else "auto"
    size = 7.5 if len(page.columns) <= MOST_UPRIGHT else 6.5
    return _table(
        size,
        f"columns: (auto, {', '.join([width] * len(page.columns))},)",
        f"align: ({aligned},)",
        ", ".join(cells),
        lines,
    )


def _table(size: float, columns: str, align: str, head: str, lines: Sequence[str]) -> Markup:
    # The last line's rule is the table's own.
    body = [*lines[:-1], *(line.removesuffix(" hair,") for line in lines[-1:])]
    settings = f"#[\n#set text({size}pt)\n#table({columns}, {align},\n  thick, table.header({head}), thin,\n"
    return Markup(settings + "\n".join(body) + "\n  thick,\n)\n]")


def _lines(parts: Sequence[str]) -> str:
    return " \\ ".join(escape_typst(part) for part in parts if part)


def _datum(datum: ReportCell) -> str:
    below = "".join(f" \\ #small[{escape_typst(line)}]" for line in datum.below.splitlines())
    return f"[{escape_typst(datum.text)}{below}]"


def _entry(entry: PageCell) -> str:
    if entry.summary:
        mean = {1: "#strong[{}]", 2: "#underline[{}]"}.get(entry.rank, "{}").format(escape_typst(entry.mean))
        spread = f" {escape_typst(f'± {entry.std}')}" if entry.std else ""
        first = f"{mean}{spread} #small[{escape_typst(entry.seeds)}]"
    else:
        first = f"#small[{escape_typst('–' if entry.status in ABSENT else entry.status)}]"  # noqa: RUF001
    first += _marks(entry.marks)
    if not entry.reference:
        return f"[{first}]"
    reference = f"{entry.reference} ± {entry.reference_std}" if entry.reference_std else entry.reference
    difference = f" {escape_typst(f'({entry.difference})')}" if entry.difference else ""
    return f"[{first} \\ #quiet[#emph[{escape_typst(reference)}]{_marks(entry.reference_marks)}{difference}]]"


def _marks(marks: Marks) -> str:
    return f"#super[{escape_typst(', '.join(map(str, marks)))}]" if marks else ""
