"""Make the page of a table, which all formats render: entries, ranks, footnotes, and what the numbers are worth."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from benchmark.core.protocols import base_scale
from benchmark.core.statistics import Summary, summarise
from benchmark.core.text import format_signed
from tables.gains import compute_measured_gain, compute_printed_gain, compute_published_gain
from tables.result import ABSENT, Cell, Status, TableResult
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
    rank: int
    marks: Marks
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

    @property
    def absent(self) -> bool:
        """Whether the suite does not have this method."""
        return all(entry.status in ABSENT for entry in self.entries)


@dataclass(frozen=True)
class Page:
    """A table with all that is said over and under it.

    best: the best-on-test values of the rows that have any; scale_note: what is particular to this scale; footnotes: by
    their numbers, which marks refer to; notes: on the table as a whole.
    """

    name: str
    caption: str
    metric: str
    scale: str
    dataset: str
    statement: str
    remarks: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[PageRow, ...]
    best: tuple[PageRow, ...]
    scale_note: str
    footnotes: tuple[tuple[int, str], ...]
    notes: tuple[str, ...]
    counts: str
    generated_from: str
    reproduces: bool
    printed_origin: str

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
        words = []
        for tier in self.tiers:
            origin = f", {self.printed_origin}" if tier == "printed" else ""
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


class _Footnotes:
    """Numbers footnotes in the order in which they are first met."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def marks(self, texts: Iterable[str]) -> Marks:
        return tuple(sorted({self.numbers.setdefault(text, len(self.numbers) + 1) for text in texts}))


def make_page(result: TableResult, selected: Collection[tuple[str, str]] | None = None) -> Page:
    """Make the page of a result.

    selected: the cells that are shown, by row and column name; all of them for None. Ranks and the numbers of footnotes
    are those of the whole table.
    """
    table = result.table
    footnotes = _Footnotes()
    ranks = _ranks(result)
    has_teachers = any(column.teacher for column in table.columns)
    rows = [_teacher_row(result, footnotes)] if has_teachers else []
    for row in table.rows:
        marks = footnotes.marks(row.footnotes)
        entries = []
        for position, column in enumerate(table.columns):
            cell = result.cell(row.name, column.name)
            rank = ranks.get((row.name, column.name), 0)
            entries.append(_entry(cell, rank, row, position, result, footnotes))
        rows.append(PageRow(row.name, marks, tuple(entries)))
    scale_note = table.scale_notes.get(base_scale(result.scale), "")
    page = Page(
        name=table.name,
        caption=table.caption,
        metric=table.metric,
        scale=result.scale,
        dataset=result.dataset,
        statement=describe_result(result),
        columns=table.columns,
        rows=tuple(rows),
        best=tuple(_best_rows(result)),
        footnotes=tuple((number, text) for text, number in footnotes.numbers.items()),
        scale_note=scale_note,
        remarks=result.remarks,
        notes=(*([scale_note] if scale_note else []), *table.footnotes, *_renamed(table.columns, result.scale)),
        counts=describe_counts(result),
        generated_from=result.generated_from,
        reproduces=result.reproduces,
        printed_origin=describe_origin(table.printed_runs, table.printed_epoch),
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


def _renamed(columns: Iterable[Column], scale: str) -> list[str]:
    """Name the networks behind columns whose title names others, and the datasets on which they are probed."""
    texts = []
    for column in columns:
        pair = f"{column.teacher}>{column.student}" if column.teacher else column.student
        probed = column.tested_on(scale)
        if column.name == pair or (column.probe and probed is None):
            continue
        texts.append(f"Column {column.name} is {pair}{f', probed on {probed},' if probed else ''} here.")
    return texts


def describe_result(result: TableResult) -> str:
    """Say in one line where the numbers come from, and whether they may be compared with the paper's."""
    epochs = f"{result.epochs} epoch" if result.epochs == "1" else f"{result.epochs} epochs"
    origin = f"scale {result.scale}, on dataset {result.dataset}, after {epochs}"
    if result.reproduces:
        return f"Measured at {origin}."
    printed = any(row.printed or row.published for row in result.table.rows)
    against = "are not comparable with the paper's" if printed else "are no results of the full protocol"
    return f"These numbers are from {origin}, and {against}."


def describe_counts(result: TableResult, selected: Collection[tuple[str, str]] | None = None) -> str:
    """Count the cells that are done, partial, failed, not run yet, or of methods that the suite lacks.

    selected: the cells that count, all for None.
    """
    cells = selected or [(row.name, column.name) for row in result.table.rows for column in result.table.columns]
    counts = Counter(result.cell(*cell).status for cell in cells)
    absent = counts.pop("not in the suite", 0)
    untaught = counts.pop("no teacher", 0)
    without = counts.pop("no dataset", 0)
    parts = [f"{counts['done']} of {counts.total()} cells done"]
    for status in ("partial", "failed", "not run yet"):
        if counts[status]:
            parts.append(f"{counts[status]} {status}")
    named = counts.pop("runs when named", 0)
    ending = f"; {absent} are of methods that are not in the suite" if absent else ""
    ending += f"; {named} are of methods that run when they are named" if named else ""
    ending += f"; {untaught} are of methods that need a teacher, in columns without one" if untaught else ""
    ending += f"; {without} are in columns that probe on no dataset at this scale" if without else ""
    return f"{', '.join(parts)}{ending}."


def _entry(cell: Cell, rank: int, row: Row, position: int, result: TableResult, footnotes: _Footnotes) -> PageCell:
    marks = footnotes.marks(cell.notes)
    summary = summarise(cell.values) if cell.values else None
    gain = compute_measured_gain(result, cell) if result.table.gains else None
    return PageCell(
        status=cell.status,
        summary=summary,
        seeds=_seeds(cell),
        rank=rank,
        marks=marks,
        gain="" if gain is None else format_signed(gain),
        references=tuple(_references(row, position, result, summary, footnotes)),
    )


def _references(
    row: Row, position: int, result: TableResult, summary: Summary | None, footnotes: _Footnotes
) -> Iterable[PageReference]:
    """The printed number, then those from elsewhere, each with a footnote on its source, its runs and its epoch."""

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
            footnotes.marks([f"{NAMES[tier].capitalize()}: {origin}."]),
            describe_gain(compute_published_gain(published, position)),
        )


def _seeds(cell: Cell) -> str:
    if not cell.values:
        return ""
    if cell.status != "partial":
        return f"n={len(cell.values)}"
    return f"n={len(cell.values)} of {cell.seeds}" if cell.seeds else f"n={len(cell.values)}, partial"


def _teacher_row(result: TableResult, footnotes: _Footnotes) -> PageRow:
    row = Row(method=TEACHER, published=result.table.teachers)
    entries = [
        _entry(result.teacher(column.name), 0, row, position, result, footnotes)
        for position, column in enumerate(result.table.columns)
    ]
    return PageRow(TEACHER, (), tuple(entries))


def _ranks(result: TableResult) -> dict[tuple[str, str], int]:
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


def _best_rows(result: TableResult) -> Iterable[PageRow]:
    for row in result.table.rows:
        entries = []
        for column in result.table.columns:
            cell = result.cell(row.name, column.name)
            summary = summarise(cell.best) if cell.best else None
            seeds = f"n={len(cell.best)}" if cell.best else ""
            entries.append(PageCell("", summary, seeds, 0, ()))
        if any(entry.summary for entry in entries):
            yield PageRow(row.name, (), tuple(entries))
