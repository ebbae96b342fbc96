"""A table's results as Markdown, LaTeX, CSV and on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len

from benchmark.files import write_text
from benchmark.statistics import summarise
from tables.escaping import Markup, environment, escape_latex, escape_markdown, plain
from tables.page import BEST_EXPLANATION, BEST_TITLE, TEACHER, Entry, Marks, PageRow, page_of
from tables.result import Cell, TableResult
from tables.specification import Column, Row, number_at
from tables.terminal import superscript, to_terminal

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
)

_MARKDOWN = environment(escape_markdown)
_LATEX = environment(
    escape_latex,
    block_start_string="(*",
    block_end_string="*)",
    variable_start_string="((",
    variable_end_string="))",
    comment_start_string="(#",
    comment_end_string="#)",
)


def to_markdown(result: TableResult) -> str:
    """The page in Markdown with pipe tables, aligned so that it also reads well as plain text."""
    page = page_of(result)
    return _MARKDOWN.get_template("table.md.j2").render(
        page=page,
        table=_markdown_table(page.columns, page.rows),
        best=_markdown_table(page.columns, page.best),
        best_title=BEST_TITLE,
        best_explanation=BEST_EXPLANATION,
        superscript=superscript,
    )


def to_latex(result: TableResult) -> str:
    """A float for a document that loads booktabs: one or two lines a method, best in bold, second underlined."""
    page = page_of(result)
    upper = [escape_latex(column.heading[0]) for column in page.columns]
    lower = [escape_latex(column.heading[1]) for column in page.columns]
    heading = [["method", *upper], ["", *lower]] if any(upper) else [["method", *lower]]
    return _LATEX.get_template("table.tex.j2").render(
        page=page,
        label=Markup(page.name),
        heading=[_latex_line(line) for line in heading],
        groups=[_latex_rows(row) for row in page.rows],
        best=[_latex_rows(row) for row in page.best],
        best_title=BEST_TITLE,
        best_explanation=BEST_EXPLANATION,
    )


def to_csv(result: TableResult) -> str:
    """Long form, a line for each cell, with full precision; `difference` only where the numbers may be compared."""
    table = result.table
    written = io.StringIO()
    writer = csv.DictWriter(written, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    teachers = (
        [Row(method=TEACHER, published=table.teachers)] if any(column.teacher for column in table.columns) else []
    )
    for row in (*teachers, *table.rows):
        for position, column in enumerate(table.columns):
            is_teacher = row.method == TEACHER
            cell = result.teacher(column.teacher or "") if is_teacher else result.cell(row.name, column.name)
            measured = _csv_fields(cell, row, position, result.reproduces)
            place = {
                "table": table.name,
                "row": plain(row.name),
                "scale": result.scale,
                "dataset": plain(result.dataset),
            }
            pair = {
                "column": plain(column.name),
                "teacher": plain(column.teacher or ""),
                "student": plain(column.student),
            }
            writer.writerow({**place, **pair, **measured})
    return written.getvalue()


def write_reports(result: TableResult, folder: Path) -> list[Path]:
    """Write `table_<name>.md`, `.tex` and `.csv`, each whole or not at all, and say where they are.

    Raises:
        UserError: the folder cannot be written.
    """
    paths = []
    for ending, text in (("md", to_markdown(result)), ("tex", to_latex(result)), ("csv", to_csv(result))):
        paths.append(folder / f"table_{result.table.name}.{ending}")
        write_text(paths[-1], text)
    return paths


def _csv_fields(cell: Cell, row: Row, position: int, reproduces: bool) -> dict[str, object]:
    summary = summarise(cell.values) if cell.values else None
    printed = number_at(row.printed, position)
    published = number_at(row.published.mean, position) if row.published else None
    return {
        "n": len(cell.values),
        "mean": summary.mean if summary else None,
        "std": summary.std if summary else None,
        "values": " ".join(map(str, cell.values)),
        "best_on_test_mean": summarise(cell.best).mean if cell.best else None,
        "printed": printed,
        "difference": summary.mean - printed if reproduces and summary and printed is not None else None,
        "status": cell.status,
        "notes": "; ".join(plain(note) for note in cell.notes),
        "published": published,
        "published_std": number_at(row.published.std, position) if row.published else None,
        "published_source": plain(row.published.source) if row.published and published is not None else None,
    }


def _markdown_table(columns: Sequence[Column], rows: Sequence[PageRow]) -> Markup:
    """A pipe table whose cells are padded to one width a column; empty without rows."""
    if not rows:
        return Markup("")
    lines = [["method", *(escape_markdown(column.name) for column in columns)]]
    for row in rows:
        name = escape_markdown(row.name) + superscript(row.marks)
        lines.append([name, *(_markdown_cell(entry) for entry in row.entries)])
    widths = [max(3, *(cell_len(line[position]) for line in lines)) for position in range(len(columns) + 1)]
    lines.insert(1, ["-" * width for width in widths])
    padded = (
        " | ".join(text + " " * (width - cell_len(text)) for text, width in zip(line, widths, strict=True))
        for line in lines
    )
    return Markup("\n".join(f"| {line} |" for line in padded))


def _markdown_cell(entry: Entry) -> str:
    if entry.summary:
        text = f"{entry.mean} ± {entry.std}" if entry.std else entry.mean
        measured = f"{f'**{text}**' if entry.rank == 1 else text} ({entry.seeds})"
    else:
        measured = "\N{EN DASH}" if entry.status in ("", "not in the suite") else entry.status
    measured += superscript(entry.marks)
    if not entry.reference:
        return measured
    reference = f"{entry.reference} ± {entry.reference_std}" if entry.reference_std else entry.reference
    marks: Marks = entry.reference_marks
    difference = f" ({entry.difference})" if entry.difference else ""
    return f"{measured} · *{reference}*{superscript(marks)}{difference}"


def _latex_line(cells: Sequence[str]) -> Markup:
    return Markup(" & ".join(cells))


def _latex_marks(marks: Marks) -> str:
    return f"\\textsuperscript{{{','.join(map(str, marks))}}}" if marks else ""


def _latex_rows(row: PageRow) -> list[Markup]:
    """What was measured over its number of seeds and the printed number; one line for an absent method."""
    name = escape_latex(row.name) + _latex_marks(row.marks)
    if row.absent:
        return [_latex_line([name, *(f"-- {_latex_reference(entry)}".strip() for entry in row.entries)])]
    lines = [_latex_line([name, *(_latex_measured(entry) for entry in row.entries)])]
    below = ["; ".join(filter(None, (_latex_seeds(entry), _latex_reference(entry)))) for entry in row.entries]
    if any(below):
        lines.append(_latex_line(["", *below]))
    return lines


def _latex_measured(entry: Entry) -> str:
    if not entry.summary:
        return escape_latex(entry.status or "\N{EN DASH}") + _latex_marks(entry.marks)
    command = {1: "\\textbf", 2: "\\underline"}.get(entry.rank, "")
    mean = f"{command}{{{entry.mean}}}" if command else entry.mean
    spread = f" $\\pm$ {entry.std}" if entry.std else ""
    return f"{mean}{spread}{_latex_marks(entry.marks)}"


def _latex_seeds(entry: Entry) -> str:
    return entry.seeds.replace(" of ", "/")


def _latex_reference(entry: Entry) -> str:
    return f"\\textit{{{entry.reference}}}{_latex_marks(entry.reference_marks)}" if entry.reference else ""
