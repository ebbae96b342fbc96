"""Print a table on the terminal: each measured number over the printed one, in as many panels as the width needs."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from tables.escaping import plain
from tables.result import ABSENT, TableResult
from tables.tiers import GAIN, NAMES, SIGNS
from tables.view import Page, PageCell, PageReference, find_usual_seeds, make_page

WIDEST_GAP = 3
USUAL_LINES, MOST_LINES = 3, 5
"""Lines of notes under a table; more than the usual only for what went wrong."""
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_STYLES = {"failed": "red", "partial": "yellow", "not run yet": "dim"}
_RANK_STYLES = {1: "bold green", 2: "underline"}


def superscript(marks: Sequence[int]) -> str:
    """Write the numbers of footnotes as superscript digits."""
    return "˒".join(str(mark).translate(_SUPERSCRIPTS) for mark in marks)


def to_terminal(
    result: TableResult,
    width: int,
    written: Sequence[Path] = (),
    selected: Collection[tuple[str, str]] | None = None,
) -> RenderableType:
    """Render the table for a terminal of some width in characters, with a few lines under it.

    written: the table's files, where all cells and notes stand; selected: the cells that are shown, by row and column,
    all of them for None.
    """
    page = make_page(result, selected)
    seeds = find_usual_seeds(page.rows)
    lines, marks = _choose_notes(page, seeds, width)
    above: list[RenderableType] = [
        Text.assemble((f"Table {result.table.name}. ", "bold"), plain(result.table.caption)),
        Text(plain(result.statement), style="" if result.reproduces else "yellow"),
        *(Text(plain(remark), style="yellow") for remark in result.remarks),
    ]
    panels = [Padding(grid, (1, 0, 0, 0)) for grid in _lay_out(page, width, seeds, marks)]
    below = [Text(line, style="dim") for line in lines]
    return Group(*above, *panels, Text(), *below, _describe_counts(page, written))


def _choose_notes(page: Page, seeds: str, width: int) -> tuple[list[str], set[int]]:
    """Choose the lines of notes under the table, and say which footnotes are among them.

    Each failure has one line while there is room. Other notes are shown whole or left to the files.
    """
    lines = [*_wrap(_legend(page, seeds), width), *_wrap(plain(page.scale_note), width)]
    problems = {mark for entry in page.entries for mark in entry.marks}
    marks = set()
    for number, text in sorted(page.footnotes, key=lambda note: note[0] not in problems):
        note = _wrap(f"{superscript([number])} {plain(text)}", width)
        if number in problems:
            note = note if len(note) == 1 else [f"{note[0][: width - 1]}\N{HORIZONTAL ELLIPSIS}"]
        if len(lines) + len(note) <= (MOST_LINES if number in problems else USUAL_LINES):
            lines += note
            marks.add(number)
    return lines, marks


def _describe_counts(page: Page, written: Sequence[Path]) -> Text:
    """Say how many cells are done, and in which files everything about the table stands."""
    text = Text(page.counts, style="bold", overflow="fold")
    return text.append(f" All cells and notes: {describe_files(written)}", style="not bold") if written else text


def describe_files(written: Sequence[Path]) -> str:
    """Name files that differ in their ending only: `reports/table_II_demo.md (also .tex, .csv)`."""
    first, *others = written
    return f"{first} (also {', '.join(path.suffix for path in others)})" if others else str(first)


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 2))


def _lay_out(page: Page, width: int, seeds: str, marks: Collection[int]) -> Iterator[Grid]:
    """Spread the columns evenly over as few panels as the width allows, and make the grid of each; break no cell.

    seeds: what is left out of the cells because it is said once for all of them; marks: the footnotes that are shown.
    """
    names = [Text.assemble(plain(row.name), _mark(row.marks, marks)) for row in page.rows]
    headings = [Text("\n".join(map(plain, column.heading)).strip("\n")) for column in page.columns]
    cells = [[_cell(row.entries[position], seeds, marks) for row in page.rows] for position in range(len(page.columns))]
    columns = [[heading, *column] for heading, column in zip(headings, cells, strict=True)]
    widest = [max(map(_widest_line, column)) for column in columns]
    firsts = [min(max(map(measure, names)), max(width // 3, 1)) for measure in (_widest_line, _widest_word)]
    # Break names between words where that saves a panel.
    first = min(firsts, key=lambda first: len(_split(widest, width - first)))
    # A single cell that is wider than the terminal is folded all the same.
    widths = [min(least, max(width - first - 1, 1)) for least in widest]
    for start, end in _split(widest, width - first):
        room = width - first - sum(widths[start:end])
        gap = max(1, min(WIDEST_GAP, room // (end - start)))
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
    """Split columns, each with a gap of one before it, into the fewest even groups that are no wider than the room.

    A column that is wider than the room is a group of its own.
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


def _mark(marks: Sequence[int], shown: Collection[int]) -> tuple[str, str]:
    return superscript([mark for mark in marks if mark in shown]), "dim"


def _cell(entry: PageCell, usual_seeds: str, shown: Collection[int]) -> Text:
    """Make a cell: measured over what was printed and published, a line each. shown: the footnotes that are."""
    references = [_reference(found, shown) for found in entry.references]
    if entry.status in ABSENT:
        return Text.assemble(("\N{EN DASH} ", "dim"), Text("\n").join(references))
    marks = _mark(entry.marks, shown)
    if entry.summary:
        measured = Text.assemble((_value(entry), _RANK_STYLES.get(entry.rank, "")), marks, _gain(entry.gain))
    else:
        measured = Text.assemble((entry.status.removesuffix(" yet"), _STYLES.get(entry.status, "")), marks)
    seeds = "" if entry.seeds == usual_seeds else entry.seeds.replace(" of ", "/")
    first, *others = references or [Text()]
    below = Text(" ").join(part for part in (Text(seeds, style="dim"), first) if part)
    return Text("\n").join(line for line in (measured, below, *others) if line)


def _reference(found: PageReference, shown: Collection[int]) -> Text:
    return Text.assemble((f"{found.mean}{found.sign}", "cyan"), _mark(found.marks, shown), _gain(found.gain))


def _gain(gain: str) -> Text:
    return Text(f" {GAIN}{gain}" if gain else "", style="dim")


def _value(entry: PageCell) -> str:
    return f"{entry.mean}±{entry.std}" if entry.std else entry.mean


def _legend(page: Page, seeds: str) -> str:
    """Say what the cells hold, in a line or two."""
    spread = " \N{PLUS-MINUS SIGN} standard deviation" if any(entry.std for entry in page.entries) else ""
    others = any(entry.seeds not in ("", seeds) for entry in page.entries)
    usual = f", {seeds}{' unless a cell says otherwise' if others else ''}" if seeds else ""
    names = [f"{NAMES[tier]}{SIGNS[tier]}" for tier in page.tiers]
    tiers = " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
    measured = f"Measured {plain(page.result.table.metric)}{spread}, last epoch{usual}"
    sentences = [f"{measured}, over {tiers}." if tiers else f"{measured}."]
    if page.has_gains:
        sentences.append(f"{GAIN}: gain over the own baseline.")
    if page.has_ranks:
        sentences.append("Bold: best; underlined: second.")
    if page.has_absent:
        sentences.append("\N{EN DASH}: not in the suite, or run only when named.")
    return " ".join(sentences)
