"""Make the page of a table, which all formats render: entries, ranks, footnotes, and what the numbers are worth."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from benchmark.core.protocols import base_scale
from benchmark.core.statistics import Summary, summarise
from benchmark.core.text import format_signed
from tables.gains import compute_measured_gain, compute_printed_gain, compute_published_gain
from tables.result import ABSENT, Status, TableResult
from tables.specification import TEACHER, Column, Row, get_number
from tables.tiers import GAIN, GAIN_MEANING, MEANINGS, NAMES, SIGNS, Tier, describe_origin

BEST_TITLE = "Best epoch on the test set"
BEST_EXPLANATION = (
    "The epoch of these was chosen by looking at the test set. They are kept apart from the numbers above, "
    "which are those of the last epoch; they are no result."
)
Marks = tuple[int, ...]


@dataclass(frozen=True)
class PageReference:
    """A number that was not measured here, of one tier, with its footnotes.

    gain: over the baseline of its own, where the table shows gains; difference: measured minus this one, where the two
    may be compared.
    """

    tier: Tier
    mean: str
    std: str = ""
    marks: Marks = ()
    gain: str = ""
    difference: str = ""

    @property
    def sign(self) -> str:
        """What tells its tier apart from the others in a cell."""
        return SIGNS[self.tier]


@dataclass(frozen=True)
class PageCell:
    """One cell, in words and digits.

    status, summary: what was measured, in % (no summary: no finished seed; no status: nothing to say);
    seeds: how many stand behind it;
    rank: 1 for the best of the column among the methods measured, 2 for the second, else 0; marks: its footnotes;
    gain: of the measured number over Baseline of the same seeds, where the table shows gains; references: the printed
    number and those from elsewhere.
    """

    status: Status | Literal[""]
    summary: Summary | None
    seeds: str
    rank: int = 0
    marks: Marks = ()
    gain: str = ""
    references: tuple[PageReference, ...] = ()

    @property
    def mean(self) -> str:
        """The measured mean; empty where nothing was measured."""
        return f"{self.summary.mean:.2f}" if self.summary else ""

    @property
    def std(self) -> str:
        """The standard deviation over seeds; empty for less than two."""
        return f"{self.summary.std:.2f}" if self.summary and self.summary.std is not None else ""


@dataclass(frozen=True)
class PageRow:
    """A row, with its footnotes and an entry for each column."""

    name: str
    marks: Marks
    entries: tuple[PageCell, ...]


@dataclass(frozen=True)
class Page:
    """A table with all that is said over and under it.

    columns, rows: those that are shown; best: the best-on-test values of the rows that have any; footnotes: by their
    numbers, which marks refer to; counts: of the cells, in a sentence.
    """

    result: TableResult
    columns: tuple[Column, ...]
    rows: tuple[PageRow, ...]
    best: tuple[PageRow, ...]
    footnotes: tuple[tuple[int, str], ...]
    counts: str

    @property
    def scale_note(self) -> str:
        """What is particular to this scale."""
        return self.result.table.scale_notes.get(base_scale(self.result.scale), "")

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say of the table as a whole."""
        renamed = _describe_renamed(self.result.table.columns, self.result.scale)
        return (*filter(None, [self.scale_note]), *self.result.table.footnotes, *renamed)

    @property
    def entries(self) -> tuple[PageCell, ...]:
        """All entries."""
        return tuple(entry for row in self.rows for entry in row.entries)

    @property
    def has_teachers(self) -> bool:
        """Whether the first row is that of the teachers."""
        return bool(self.rows) and self.rows[0].name == TEACHER

    @property
    def has_references(self) -> bool:
        """Whether any number is not measured here."""
        return any(entry.references for entry in self.entries)

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The tiers of the numbers that are not measured here, in their order."""
        shown = {reference.tier for entry in self.entries for reference in entry.references}
        return tuple(tier for tier in NAMES if tier in shown)

    @property
    def has_gains(self) -> bool:
        """Whether any number has its gain beside it."""
        return any(entry.gain or any(found.gain for found in entry.references) for entry in self.entries)

    @property
    def tier_note(self) -> str:
        """What the tiers of the page are, and which epoch and how many runs their numbers are of."""
        words, table = [], self.result.table
        for tier in self.tiers:
            origin = f", {describe_origin(table.printed_runs, table.printed_epoch)}" if tier == "printed" else ""
            words.append(f"{NAMES[tier].capitalize()}{SIGNS[tier]}: {MEANINGS[tier]}{origin}.")
        return " ".join(words)

    @property
    def gain_note(self) -> str:
        """What a gain is; empty where none is shown."""
        return f"{GAIN}: {GAIN_MEANING}." if self.has_gains else ""

    @property
    def has_absent(self) -> bool:
        """Whether the suite lacks a method of the table."""
        return any(entry.status in ABSENT for entry in self.entries)

    @property
    def has_ranks(self) -> bool:
        """Whether any column has methods to rank."""
        return any(entry.rank for entry in self.entries)


def find_usual_seeds(rows: Iterable[PageRow]) -> str:
    """Find how many seeds stand behind most numbers, in the words of a cell; empty where nothing was measured."""
    found = [entry.seeds for row in rows for entry in row.entries if entry.seeds]
    return statistics.mode(found) if found else ""


def make_page(result: TableResult, selected: Collection[tuple[str, str]] | None = None) -> Page:
    """Make the page of a result.

    selected: the cells that are shown, by row and column name; all of them for None. Ranks and the numbers of footnotes
    are those of the whole table.
    """
    footnotes: dict[str, int] = {}
    ranks = _rank_cells(result)
    rows = []
    for row in result.rows:
        marks = _number_footnotes(row.footnotes, footnotes)
        entries = [
            _make_cell(result, row, position, ranks.get((row.name, column.name), 0), footnotes)
            for position, column in enumerate(result.table.columns)
        ]
        rows.append(PageRow(row.name, marks, tuple(entries)))
    page = Page(
        result=result,
        columns=result.table.columns,
        rows=tuple(rows),
        best=tuple(_list_best(result)),
        footnotes=tuple((number, text) for text, number in footnotes.items()),
        counts=describe_counts(result),
    )
    return page if selected is None else _select_cells(page, result, selected)


def _select_cells(page: Page, result: TableResult, selected: Collection[tuple[str, str]]) -> Page:
    """Reduce a page to the rows and columns of some cells, and to the footnotes on these."""
    names = {row for row, _ in selected} | ({TEACHER} if page.has_teachers else set())
    positions = [
        position for position, column in enumerate(page.columns) if column.name in {name for _, name in selected}
    ]

    def keep(rows: Iterable[PageRow]) -> tuple[PageRow, ...]:
        return tuple(
            dataclasses.replace(row, entries=tuple(row.entries[position] for position in positions))
            for row in rows
            if row.name in names
        )

    rows = keep(page.rows)
    marks = {mark for row in rows for mark in row.marks}
    for entry in (entry for row in rows for entry in row.entries):
        marks |= {*entry.marks, *(mark for reference in entry.references for mark in reference.marks)}
    return dataclasses.replace(
        page,
        columns=tuple(page.columns[position] for position in positions),
        rows=rows,
        best=keep(page.best),
        footnotes=tuple((number, text) for number, text in page.footnotes if number in marks),
        counts=describe_counts(result, selected),
    )


def _number_footnotes(texts: Iterable[str], footnotes: dict[str, int]) -> Marks:
    """Number footnotes in the order in which they are first met; footnotes: those so far, with their numbers."""
    return tuple(sorted({footnotes.setdefault(text, len(footnotes) + 1) for text in texts}))


def _describe_renamed(columns: Iterable[Column], scale: str) -> Iterator[str]:
    """Name the networks behind columns whose title names others, and the datasets on which they are probed."""
    for column in columns:
        probed = column.tested_on(scale)
        if column.name != column.pair and (probed or not column.probe):
            yield f"Column {column.name} is {column.pair}{f', probed on {probed},' if probed else ''} here."


def describe_counts(result: TableResult, selected: Collection[tuple[str, str]] | None = None) -> str:
    """Count the cells that are done, partial, failed, not run yet, or of methods that the suite lacks.

    selected: the cells that count, all for None.
    """
    cells = selected or [(row.name, column.name) for row in result.table.rows for column in result.table.columns]
    counts = Counter(result.cell(*cell).status for cell in cells)
    without = {status: counts.pop(status, 0) for status in ("not in the suite", "no teacher", "no dataset")}
    parts = [f"{counts['done']} of {counts.total()} cells done"]
    for status in ("partial", "failed", "not run yet"):
        if counts[status]:
            parts.append(f"{counts[status]} {status}")
    explained = {
        "are of methods that are not in the suite": without["not in the suite"],
        "are of methods that run when they are named": counts["runs when named"],
        "are of methods that need a teacher, in columns without one": without["no teacher"],
        "are in columns that probe on no dataset at this scale": without["no dataset"],
    }
    return "; ".join([", ".join(parts), *(f"{number} {words}" for words, number in explained.items() if number)]) + "."


def _make_cell(result: TableResult, row: Row, position: int, rank: int, footnotes: dict[str, int]) -> PageCell:
    cell = result.cell(row.name, result.table.columns[position].name)
    marks = _number_footnotes(cell.notes, footnotes)
    summary = summarise(cell.values) if cell.values else None
    seeds = f"n={len(cell.values)}" if cell.values else ""
    if seeds and cell.status == "partial":
        seeds += f" of {cell.seeds}" if cell.seeds else ", partial"
    gain = compute_measured_gain(result, cell) if result.table.gains else None
    references = tuple(_list_references(result, row, position, summary, footnotes))
    return PageCell(cell.status, summary, seeds, rank, marks, "" if gain is None else format_signed(gain), references)


def _list_references(
    result: TableResult, row: Row, position: int, summary: Summary | None, footnotes: dict[str, int]
) -> Iterator[PageReference]:
    """List the printed number, then those from elsewhere, each with a footnote on its source, runs and epoch."""

    def describe_gain(gain: float | None) -> str:
        return format_signed(gain) if result.table.gains and gain is not None else ""

    printed = get_number(row.printed, position)
    if printed is not None:
        difference = format_signed(summary.mean - printed) if result.reproduces and summary else ""
        gain = describe_gain(compute_printed_gain(result.table, row, position))
        yield PageReference("printed", f"{printed:.2f}", gain=gain, difference=difference)
    for tier, published in row.from_elsewhere.items():
        mean = get_number(published.mean, position)
        if mean is None:
            continue
        tier = "printed" if published.printed else tier
        std = get_number(published.std, position)
        lineage = f"; teachers and baseline of {published.lineage}" if published.lineage else ""
        note = f"; {published.note}" if published.note else ""
        origin = f"{published.source}{note}; {describe_origin(published.runs, published.epoch)}{lineage}"
        yield PageReference(
            tier,
            f"{mean:.2f}",
            "" if std is None else f"{std:.2f}",
            _number_footnotes([f"{NAMES[tier].capitalize()}: {origin}."], footnotes),
            describe_gain(compute_published_gain(published, position)),
        )


def _rank_cells(result: TableResult) -> dict[tuple[str, str], int]:
    """Rank the best (1) and second-best (2) cells of each column that has at least two measured ones."""
    ranks = {}
    for column in result.table.columns:
        means = {}
        for row in result.table.rows:
            values = result.cell(row.name, column.name).values
            if values:
                # Numbers that look equal on the page rank as equal.
                means[row.name] = round(summarise(values).mean, 2)
        distinct = sorted(set(means.values()), reverse=True)
        if len(means) > 1:
            for name, mean in means.items():
                if mean in distinct[:2]:
                    ranks[name, column.name] = distinct.index(mean) + 1
    return ranks


def _list_best(result: TableResult) -> Iterator[PageRow]:
    for row in result.table.rows:
        found = [result.cell(row.name, column.name).best for column in result.table.columns]
        if any(found):
            summaries = [summarise(best) if best else None for best in found]
            entries = (PageCell("", summary, f"n={summary.n}" if summary else "") for summary in summaries)
            yield PageRow(row.name, (), tuple(entries))
