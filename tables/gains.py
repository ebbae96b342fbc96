"""Gains over the own baseline, in percentage points: for each tier of numbers over the baseline of that tier."""

from __future__ import annotations

from benchmark.core.statistics import common_seeds, paired_difference
from tables.result import Cell, TableResult
from tables.specification import BASELINE, TEACHER, Published, Row, Table, get_number


def compute_measured_gain(result: TableResult, cell: Cell) -> float | None:
    """Compute how far a cell is above Baseline in its column, a mean over the seeds that both have.

    None for Baseline itself and for teachers, and where no seed is shared.
    """
    base = result.cell(BASELINE, cell.column).by_seed()
    if cell.row in (BASELINE, TEACHER) or not common_seeds((cell.by_seed(), base)):
        return None
    return paired_difference(cell.by_seed(), base).mean


def compute_printed_gain(table: Table, row: Row, position: int) -> float | None:
    """Compute how far a row's printed number is above the same table's printed Baseline; None where one is missing."""
    base = next((other.printed for other in table.rows if other.name == BASELINE), ())
    number, below = get_number(row.printed, position), get_number(base, position)
    return None if row.name == BASELINE or number is None or below is None else number - below


def compute_published_gain(published: Published, position: int) -> float | None:
    """Compute how far a number from elsewhere is above the baseline of its own lineage; None where one is missing."""
    number, below = get_number(published.mean, position), get_number(published.baseline, position)
    return None if number is None or below is None else number - below
