"""Rank the rows of a table by their gain over the own baseline, for every tier of numbers that they have."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmark.core.text import format_range
from benchmark.report.table import (
    NOTHING,
    ReportColumn,
    ReportTable,
    format_difference,
    format_number,
    format_word,
    make_word_columns,
)
from tables.gains import compute_measured_gain, compute_printed_gain, compute_published_gain
from tables.result import TableResult
from tables.specification import Row
from tables.tiers import GAIN_MEANING, NAMES, Tier, describe_origin


@dataclass(frozen=True)
class Gain:
    """The gains of a row in one tier, in percentage points, by the position of their column.

    origin: how many runs are behind the numbers and which epoch they are of; lineage: whose baseline it is.
    """

    row: str
    tier: Tier
    gains: dict[int, float]
    origin: str
    lineage: str

    @property
    def mean(self) -> float:
        """The mean over the columns that have one."""
        return statistics.fmean(self.gains.values())


def list_gains(result: TableResult) -> ReportTable | None:
    """List the mean gain of each row in each tier, the largest first; None where there is none.

    Rows with a gain in every column come first, because a mean over fewer columns is one of another thing.
    """
    columns = len(result.table.columns)
    found = [gain for row in result.table.rows for gain in _gains_of(result, row)]
    found.sort(key=lambda gain: (len(gain.gains) < columns, -gain.mean))
    lines = tuple(
        (
            format_word(gain.row),
            format_word(NAMES[gain.tier]),
            format_difference(gain.mean),
            format_number(len(gain.gains), 0),
            format_word(gain.origin),
            format_word(gain.lineage),
        )
        for gain in found
    )
    return ReportTable("Gains over the own baseline, ranked", _HEADINGS, lines, _NOTES) if lines else None


def _gains_of(result: TableResult, row: Row) -> Iterator[Gain]:
    def by_column(gain: Callable[[int], float | None]) -> dict[int, float]:
        found = {position: gain(position) for position in range(len(result.table.columns))}
        return {position: value for position, value in found.items() if value is not None}

    cells = [result.cell(row.name, column.name) for column in result.table.columns]
    measured = by_column(lambda position: compute_measured_gain(result, cells[position]))
    printed = by_column(lambda position: compute_printed_gain(result.table, row, position))
    if measured:
        runs = format_range([len(cells[position].values) for position in measured])
        yield Gain(row.name, "measured", measured, f"n={runs}, last epoch", f"scale {result.scale}")
    if printed:
        origin = describe_origin(result.table.printed_runs, result.table.printed_epoch)
        yield Gain(row.name, "printed", printed, origin, "the paper's own")
    for tier, numbers in row.from_elsewhere.items():
        if gains := by_column(lambda position, numbers=numbers: compute_published_gain(numbers, position)):  # type: ignore[misc]
            yield Gain(row.name, tier, gains, describe_origin(numbers.runs, numbers.epoch), numbers.lineage or NOTHING)


_HEADINGS = (
    *make_word_columns("method", "tier"),
    ReportColumn("mean gain", "in percentage points, over the columns that have one"),
    ReportColumn("columns", "how many of the table's have one"),
    ReportColumn("n and epoch", numeric=False),
    ReportColumn("baseline", "the lineage whose student it is over", numeric=False),
)
_NOTES = (
    f"A gain is {GAIN_MEANING}. Rows without a gain in every column come last: their means are over fewer pairs.",
)
