"""Write a table's results as Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.core.statistics import summarise
from benchmark.io.files import write_text
from tables.escaping import Markup, escape_latex, escape_markdown, format_csv, format_pipe_table, make_environment
from tables.gains import compute_measured_gain, compute_printed_gain, compute_published_gain
from tables.result import ABSENT, Cell, TableResult
from tables.specification import Column, Published, Row, get_number
from tables.terminal import superscript, to_terminal
from tables.tiers import GAIN
from tables.view import (
    BEST_EXPLANATION,
    BEST_TITLE,
    Marks,
    Page,
    PageCell,
    PageReference,
    PageRow,
    find_usual_seeds,
    make_page,
)

__all__ = ["Cell", "TableResult", "to_csv", "to_latex", "to_markdown", "to_terminal", "write_reports"]

CSV_FIELDS = (
    "table",
    "row",
    "column",
    "teacher",
    "student",
    "scale",
    "dataset",
    "n",
    "mean",
    "std",
    "values",
    "best_on_test_mean",
    "printed",
    "difference",
    "status",
    "notes",
    "published",
    "published_std",
    "published_source",
    *("epoch", "gain", "printed_n", "printed_epoch", "printed_gain"),
    *("published_n", "published_epoch", "published_lineage", "published_gain"),
    *("reproduced", "reproduced_source", "reproduced_n", "reproduced_epoch", "reproduced_lineage", "reproduced_gain"),
)

TEMPLATES = Path(__file__).parent / "templates"


def to_markdown(result: TableResult) -> str:
    """Render the page in Markdown, its tables aligned so that it also reads well as plain text."""
    page = make_page(result)
    return (
        make_environment(TEMPLATES, escape_markdown)
        .get_template("table.md.j2")
        .render(
            page=page,
            table=_markdown_table(page.columns, page.rows),
            best=_markdown_table(page.columns, page.best),
            best_title=BEST_TITLE,
            best_explanation=BEST_EXPLANATION,
            superscript=superscript,
        )
    )


def to_latex(result: TableResult) -> str:
    """Render a float for a document that loads booktabs: a line for each method, printed beside measured numbers.

    Best in bold, second underlined. A table that has no printed or published numbers has no columns for them.
    """
    page = make_page(result)
    return (
        make_environment(TEMPLATES, escape_latex)
        .get_template("table.tex.j2")
        .render(
            page=page,
            label=Markup(result.table.name),
            all=_latex_grid(page, page.rows, page.has_references),
            best=_latex_grid(page, page.best, beside=False),
            best_title=BEST_TITLE,
            best_explanation=BEST_EXPLANATION,
        )
    )


def to_csv(result: TableResult) -> str:
    """Write a line for each cell, with full precision; `difference` only where the numbers may be compared."""
    table = result.table
    lines = []
    for row in result.rows:
        for position, column in enumerate(table.columns):
            place = {
                "table": table.name,
                "row": row.name,
                "column": column.name,
                "teacher": column.teacher or "",
                "student": column.student,
                "scale": result.scale,
                "dataset": column.tested_on(result.scale) or result.dataset,
            }
            measured = _csv_fields(result.cell(row.name, column.name), row, position, result)
            lines.append(dict.fromkeys(CSV_FIELDS) | place | measured)
    return format_csv(lines)


def write_reports(result: TableResult, folder: Path, stem: str = "") -> list[Path]:
    """Write `table_<name>_<scale>.md`, `.tex` and `.csv`, each whole or not at all, and return their paths.

    stem: another name for the files, where two results would have the same.

    Raises:
        UserError: the folder cannot be written.
    """
    paths = []
    for ending, text in (("md", to_markdown(result)), ("tex", to_latex(result)), ("csv", to_csv(result))):
        paths.append(folder / f"{stem or result.stem}.{ending}")
        write_text(paths[-1], text)
    return paths


def _csv_fields(cell: Cell, row: Row, position: int, result: TableResult) -> dict[str, object]:
    summary = summarise(cell.values) if cell.values else None
    printed = get_number(row.printed, position)
    gains = result.table.gains
    return {
        "n": len(cell.values),
        "mean": summary.mean if summary else None,
        "std": summary.std if summary else None,
        "values": " ".join(map(str, cell.values)),
        "best_on_test_mean": summarise(cell.best).mean if cell.best else None,
        "printed": printed,
        "difference": summary.mean - printed if result.reproduces and summary and printed is not None else None,
        "status": cell.status,
        "notes": "; ".join(cell.notes),
        "published_std": get_number(row.published.std, position) if row.published else None,
        "epoch": "last" if summary else None,
        "gain": compute_measured_gain(result, cell) if gains else None,
        "printed_n": result.table.printed_runs if printed is not None else None,
        "printed_epoch": result.table.printed_epoch if printed is not None else None,
        "printed_gain": compute_printed_gain(result.table, row, position) if gains else None,
        **_csv_published("published", row.published, position, gains),
        **_csv_published("reproduced", row.reproduced, position, gains),
    }


def _csv_published(tier: str, found: Published | None, position: int, gains: bool) -> dict[str, object]:
    """Make the fields of a number from elsewhere; none where there is no number."""
    number = get_number(found.mean, position) if found else None
    if found is None or number is None:
        return {}
    return {
        tier: number,
        f"{tier}_source": found.source,
        f"{tier}_n": found.runs,
        f"{tier}_epoch": found.epoch,
        f"{tier}_lineage": found.lineage,
        f"{tier}_gain": compute_published_gain(found, position) if gains else None,
    }


def _markdown_table(columns: Sequence[Column], rows: Sequence[PageRow]) -> Markup:
    """Lay out rows as a pipe table; nothing without rows."""
    if not rows:
        return Markup("")
    lines = [["method", *(escape_markdown(column.name) for column in columns)]]
    for row in rows:
        name = escape_markdown(row.name) + superscript(row.marks)
        lines.append([name, *(_markdown_cell(entry) for entry in row.entries)])
    return format_pipe_table(lines)


def _markdown_cell(entry: PageCell) -> str:
    if entry.summary:
        text = f"{entry.mean} ± {entry.std}" if entry.std else entry.mean
        measured = f"{f'**{text}**' if entry.rank == 1 else text} ({entry.seeds})"
    else:
        measured = "\N{EN DASH}" if entry.status in ("", *ABSENT) else entry.status
    measured += f"{superscript(entry.marks)}{_gain(entry.gain)}"
    return " · ".join([measured, *map(_markdown_reference, entry.references)])


def _markdown_reference(found: PageReference) -> str:
    number = f"{found.mean} ± {found.std}" if found.std else found.mean
    difference = f" ({found.difference})" if found.difference else ""
    return f"*{number}*{found.sign}{superscript(found.marks)}{_gain(found.gain)}{difference}"


def _gain(gain: str) -> str:
    return f" {GAIN}{gain}" if gain else ""


def _latex_grid(page: Page, rows: Sequence[PageRow], beside: bool) -> dict[str, Any]:
    """Make the parts of a tabular; beside: whether printed numbers stand beside the measured ones."""
    usual = find_usual_seeds(rows)
    others = any(entry.seeds not in ("", usual) for row in rows for entry in row.entries)
    return {
        # Decimal points align by themselves, because all numbers have two decimals.
        "columns": Markup(f"@{{}}l*{{{len(page.columns)}}}{{{'rl' if beside else 'l'}}}@{{}}"),
        "heading": _latex_heading(page, beside),
        "rows": [_latex_row(row, beside, usual) for row in rows],
        "seeds": f"Seeds: {usual}{', unless a cell says otherwise' if others else ''}." if usual else "",
    }


def _latex_line(cells: Sequence[str]) -> Markup:
    return Markup(" & ".join(cells))


def _latex_marks(marks: Marks) -> str:
    return f"\\textsuperscript{{{','.join(map(str, marks))}}}" if marks else ""


def _latex_heading(page: Page, beside: bool) -> list[Markup]:
    """Make the lines of the head: the columns' names, over `printed` and `measured` where anything is printed."""

    def over_both(text: str) -> str:
        name = escape_latex(text)
        return f"\\multicolumn{{2}}{{c}}{{{name}}}" if beside else name

    upper = [over_both(column.heading[0]) for column in page.columns]
    lower = [over_both(column.heading[1]) for column in page.columns]
    has_upper = any(column.heading[0] for column in page.columns)
    lines = [["method", *upper], ["", *lower]] if has_upper else [["method", *lower]]
    head = [Markup(f"{_latex_line(line)} \\\\") for line in lines]
    if not beside:
        return head
    rules = " ".join(f"\\cmidrule(lr){{{2 * place}-{2 * place + 1}}}" for place in range(1, len(page.columns) + 1))
    kinds = ["", *("printed & measured" for _ in page.columns)]
    return [*head, Markup(rules), Markup(f"{_latex_line(kinds)} \\\\")]


def _latex_row(row: PageRow, beside: bool, usual: str) -> Markup:
    """Make the line of a method, with the number of seeds behind a value where it is not the usual one."""
    cells = [escape_latex(row.name) + _latex_marks(row.marks)]
    for entry in row.entries:
        if beside:
            cells.append(_latex_stack([_latex_reference(found) for found in entry.references]))
        cells.append(_latex_measured(entry, usual))
    return _latex_line(cells)


def _latex_measured(entry: PageCell, usual: str) -> str:
    marks = _latex_marks(entry.marks)
    if not entry.summary:
        return {"not in the suite": "--", "runs when named": "--", "not run yet": "not run"}.get(
            entry.status, escape_latex(entry.status)
        ) + marks
    command = {1: "\\textbf", 2: "\\underline"}.get(entry.rank, "")
    mean = f"{command}{{{entry.mean}}}" if command else entry.mean
    spread = f" $\\pm$ {entry.std}" if entry.std else ""
    seeds = f" {{\\tiny {entry.seeds.replace(' of ', '/')}}}" if entry.seeds != usual else ""
    return _latex_stack([f"{mean}{spread}{seeds}{marks}", *([_latex_gain(entry.gain)] if entry.gain else [])])


def _latex_reference(found: PageReference) -> str:
    sign = {"†": r"\textsuperscript{\dag}", "‡": r"\textsuperscript{\ddag}", "": ""}[found.sign]
    gain = f" {_latex_gain(found.gain)}" if found.gain else ""
    return f"{found.mean}{sign}{_latex_marks(found.marks)}{gain}"


def _latex_gain(gain: str) -> str:
    return f"{{\\tiny $\\Delta${escape_latex(gain)}}}"


def _latex_stack(lines: Sequence[str]) -> str:
    """Set lines under each other in one cell."""
    if len(lines) < 2:
        return "".join(lines)
    stacked = r" \\ ".join(lines)
    return rf"\shortstack[l]{{{stacked}}}"
