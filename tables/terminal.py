"""A table's results for the terminal: each cell measured over printed, in as many panels as the width needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from tables.escaping import plain
from tables.page import Entry, Page, PageRow, page_of
from tables.result import ABSENT, TableResult

WIDEST_GAP = 3
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_STYLES = {"failed": "red", "partial": "yellow", "not run yet": "dim"}
_RANK_STYLES = {1: "bold green", 2: "underline"}


def superscript(marks: Sequence[int]) -> str:
    """The numbers of footnotes as superscript digits."""
    return "˒".join(str(mark).translate(_SUPERSCRIPTS) for mark in marks)


def to_terminal(result: TableResult, width: int, written: Sequence[Path] = ()) -> RenderableType:
    """The table for a terminal so many characters wide, and under it what is missing and where the reports are."""
    page = page_of(result)
    parts: list[RenderableType] = [
        Text.assemble((f"Table {page.name}. ", "bold"), plain(page.caption)),
        Text(plain(page.statement), style="" if page.reproduces else "yellow"),
    ]
    parts += [Text(plain(remark), style="yellow") for remark in page.remarks]
    parts += [Padding(grid, (1, 0, 0, 0)) for grid in _panels(page, width)]
    parts.append(Padding(Text(_legend(page), style="dim"), (1, 0, 0, 0)))
    parts.append(Padding(_footnotes(page), (1, 0)))
    parts.append(Text(page.counts, style="bold"))
    if written:
        parts.append(Text(f"Written: {', '.join(str(path) for path in written)}", overflow="fold"))
    return Group(*parts)


def _panels(page: Page, width: int) -> Iterator[Grid]:
    """The grid, its columns spread evenly over as few panels as fit the width."""
    names = [_name(row) for row in page.rows]
    headings = [Text("\n".join(map(plain, column.heading)).strip("\n")) for column in page.columns]
    cells = [[_cell(row.entries[position]) for row in page.rows] for position in range(len(headings))]
    columns = [[heading, *column] for heading, column in zip(headings, cells, strict=True)]
    names_as_wide_as = [
        min(max(measure(name) for name in names), max(width // 3, 1)) for measure in (_length, _widest_word)
    ]
    layouts = [
        (first, [max(map(measure, column)) for column in columns])
        for first in names_as_wide_as
        for measure in (_widest_line, _widest_word)
    ]
    # The first of those that need the fewest panels: names and cells are broken only where that saves one.
    first, widths = min(layouts, key=lambda layout: len(_split(layout[1], width - layout[0])))
    for start, end in _split(widths, width - first):
        gap = max(1, min(WIDEST_GAP, (width - first - sum(widths[start:end])) // (end - start)))
        # The box itself puts one space between columns.
        padding = (0, gap - 1, 0, 0)
        grid = Grid(box=box.SIMPLE_HEAD, padding=padding, pad_edge=False, show_edge=False, header_style="bold")
        grid.add_column("", width=first, overflow="fold")
        for heading, least in zip(headings[start:end], widths[start:end], strict=True):
            grid.add_column(heading, width=least, overflow="fold")
        for name, *entries in zip(names, *cells[start:end], strict=True):
            grid.add_row(name, *entries)
        yield grid


def _split(widths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Consecutive columns, each with a gap of one before it, in the fewest even groups no wider than the room.

    A column that is wider than the room by itself makes a group of its own.
    """
    for size in range(len(widths), 0, -1):
        groups = -(-len(widths) // size)
        bounds = [round(group * len(widths) / groups) for group in range(groups + 1)]
        spans = list(itertools.pairwise(bounds))
        if all(sum(widths[start:end]) + end - start <= room for start, end in spans):
            return spans
    return [(position, position + 1) for position in range(len(widths))]


def _length(text: Text) -> int:
    return cell_len(text.plain)


def _widest_line(text: Text) -> int:
    return max(map(cell_len, text.plain.split("\n")))


def _widest_word(text: Text) -> int:
    return max((cell_len(word) for word in text.plain.split()), default=0)


def _name(row: PageRow) -> Text:
    return Text.assemble(plain(row.name), (superscript(row.marks), "dim"))


def _cell(entry: Entry) -> Text:
    """Measured over printed; on one line for a method that the suite lacks."""
    reference = Text.assemble((entry.reference, "cyan"), (superscript(entry.reference_marks), "dim"))
    if entry.status in ABSENT:
        return Text.assemble(("\N{EN DASH}   ", "dim"), reference)
    # The printed numbers stand under each other, whether or not a number of seeds stands before them.
    below = Text(f"{entry.seeds.replace(' of ', '/'):<3} " if entry.reference else entry.seeds, style="dim")
    marks = (superscript(entry.marks), "dim")
    if entry.summary:
        measured = Text.assemble((_value(entry), _RANK_STYLES.get(entry.rank, "")), marks)
    else:
        measured = Text.assemble((entry.status.removesuffix(" yet"), _STYLES.get(entry.status, "")), marks)
    return Text.assemble(measured, "\n", below, reference)


def _value(entry: Entry) -> str:
    return f"{entry.mean}±{entry.std}" if entry.std else entry.mean


def _legend(page: Page) -> str:
    below = "the number of seeds (n) and the printed number" if page.has_references else "the number of seeds (n)"
    sentences = [
        f"Upper line: {plain(page.metric)}, measured mean ± standard deviation over seeds, last epoch. "
        f"Lower line: {below}."
    ]
    if page.has_ranks:
        sentences.append("Bold: best measured of the column; underlined: second.")
    if page.has_absent:
        sentences.append("\N{EN DASH}: not in the suite, or run only when named.")
    if page.best:
        sentences.append("The best epochs on the test set stand in the reports, apart.")
    return " ".join(sentences)


def _footnotes(page: Page) -> Grid:
    grid = Grid.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for number, text in page.footnotes:
        grid.add_row(superscript([number]), Text(plain(text)), style="dim")
    for text in page.notes:
        grid.add_row("", Text(plain(text)), style="dim")
    return grid
