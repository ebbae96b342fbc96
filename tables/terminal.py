"""A table's results for the terminal: each cell measured over printed, in as many panels as the width needs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from tables.escaping import plain
from tables.result import ABSENT, TableResult
from tables.view import Page, PageCell, PageRow, make_page

WIDEST_GAP = 3
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_STYLES = {"failed": "red", "partial": "yellow", "not run yet": "dim"}
_RANK_STYLES = {1: "bold green", 2: "underline"}


def superscript(marks: Sequence[int]) -> str:
    """The numbers of footnotes as superscript digits."""
    return "˒".join(str(mark).translate(_SUPERSCRIPTS) for mark in marks)


def to_terminal(result: TableResult, width: int, written: Sequence[Path] = ()) -> RenderableType:
    """The table for a terminal so many characters wide, and under it what is missing and where the reports are."""
    page = make_page(result)
    parts: list[RenderableType] = [
        Text.assemble((f"Table {page.name}. ", "bold"), plain(page.caption)),
        Text(plain(page.statement), style="" if page.reproduces else "yellow"),
    ]
    parts += [Text(plain(remark), style="yellow") for remark in page.remarks]
    # Said once for all, the number of seeds may save a panel.
    layouts = [_Layout(page, width, seeds) for seeds in ("", _usual_seeds(page))]
    layout = min(layouts, key=lambda layout: len(layout.spans))
    parts += [Padding(grid, (1, 0, 0, 0)) for grid in layout.panels()]
    parts.append(Padding(Text(_legend(page, layout.seeds), style="dim"), (1, 0, 0, 0)))
    parts.append(Padding(_footnotes(page), (1, 0)))
    parts.append(Text(page.counts, style="bold"))
    if written:
        parts.append(Text(f"Written: {', '.join(str(path) for path in written)}", overflow="fold"))
    return Group(*parts)


class _Layout:
    """The grid, its columns spread evenly over as few panels as fit the width; no cell is broken.

    seeds: what is left out of the cells because it is said once for all of them.
    """

    def __init__(self, page: Page, width: int, seeds: str) -> None:
        self.seeds, self.width = seeds, width
        self.names = [_name(row) for row in page.rows]
        self.headings = [Text("\n".join(map(plain, column.heading)).strip("\n")) for column in page.columns]
        self.cells = [
            [_cell(row.entries[position], seeds) for row in page.rows] for position in range(len(page.columns))
        ]
        columns = [[heading, *column] for heading, column in zip(self.headings, self.cells, strict=True)]
        widest = [max(map(_widest_line, column)) for column in columns]
        firsts = [min(max(map(measure, self.names)), max(width // 3, 1)) for measure in (_widest_line, _widest_word)]
        # Names are broken between words where that saves a panel.
        self.first = min(firsts, key=lambda first: len(_split(widest, width - first)))
        self.spans = _split(widest, width - self.first)
        # Where a single cell is wider than a terminal it is folded after all.
        self.widths = [min(least, max(width - self.first - 1, 1)) for least in widest]

    def panels(self) -> Iterator[Grid]:
        """A grid for each panel."""
        for start, end in self.spans:
            room = self.width - self.first - sum(self.widths[start:end])
            gap = max(1, min(WIDEST_GAP, room // (end - start)))
            # The box itself puts one space between columns.
            padding = (0, gap - 1, 0, 0)
            grid = Grid(box=box.SIMPLE_HEAD, padding=padding, pad_edge=False, show_edge=False, header_style="bold")
            grid.add_column("", width=self.first, overflow="fold")
            for heading, least in zip(self.headings[start:end], self.widths[start:end], strict=True):
                grid.add_column(heading, width=least, overflow="fold")
            for name, *entries in zip(self.names, *self.cells[start:end], strict=True):
                grid.add_row(name, *entries)
            yield grid


def _usual_seeds(page: Page) -> str:
    """What most cells say of the number of their seeds; empty where none says anything."""
    found = Counter(entry.seeds for entry in page.entries if entry.seeds)
    return found.most_common(1)[0][0] if found else ""


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


def _widest_line(text: Text) -> int:
    return max(map(cell_len, text.plain.split("\n")))


def _widest_word(text: Text) -> int:
    return max((cell_len(word) for word in text.plain.split()), default=0)


def _name(row: PageRow) -> Text:
    return Text.assemble(plain(row.name), (superscript(row.marks), "dim"))


def _cell(entry: PageCell, left_out: str) -> Text:
    """Measured over printed; on one line for a method that the suite lacks. left_out: a number of seeds not to say."""
    reference = Text.assemble((entry.reference, "cyan"), (superscript(entry.reference_marks), "dim"))
    if entry.status in ABSENT:
        return Text.assemble(("\N{EN DASH} " if left_out else "\N{EN DASH}   ", "dim"), reference)
    seeds = "" if entry.seeds == left_out else entry.seeds.replace(" of ", "/")
    # The printed numbers stand under each other, whether or not a number of seeds stands before them.
    width = 0 if left_out else 3
    below = Text(f"{seeds:<{width}} " if entry.reference and (seeds or width) else seeds, style="dim")
    marks = (superscript(entry.marks), "dim")
    if entry.summary:
        measured = Text.assemble((_value(entry), _RANK_STYLES.get(entry.rank, "")), marks)
    else:
        measured = Text.assemble((entry.status.removesuffix(" yet"), _STYLES.get(entry.status, "")), marks)
    return Text.assemble(measured, "\n", below, reference)


def _value(entry: PageCell) -> str:
    return f"{entry.mean}±{entry.std}" if entry.std else entry.mean


def _legend(page: Page, seeds: str) -> str:
    """What the cells hold; seeds: what is left out of them because it is said here."""
    parts = ["the number of seeds (n)"] if not seeds else []
    parts += ["the printed number"] if page.has_references else []
    sentences = [f"Upper line: {plain(page.metric)}, measured mean ± standard deviation over seeds, last epoch."]
    sentences += [f"Lower line: {' and '.join(parts)}."] if parts else []
    if seeds:
        others = any(entry.seeds not in ("", seeds) for entry in page.entries)
        sentences.append(f"Seeds: {seeds}{', unless a cell says otherwise' if others else ''}.")
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
