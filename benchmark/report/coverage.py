"""How much of the tables is measured, and at which scale: what a reader must know before any number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from benchmark.core.protocols import PAPER, SCALES, base_scale
from benchmark.report.table import ReportCell, ReportColumn, ReportTable, format_number, format_word
from tables.result import NEVER, TableResult


@dataclass(frozen=True)
class Coverage:
    """The cells of one table in one setting; those that no run can fill do not count."""

    table: str
    scale: str
    dataset: str
    protocol: str
    cells: int
    done: int
    partial: int
    failed: int
    comparable: bool

    @property
    def missing(self) -> int:
        """Cells of which nothing was run."""
        return self.cells - self.done - self.partial - self.failed


def make_coverage(result: TableResult, rows: Collection[str]) -> Coverage:
    """Count the cells of a table in these rows, those of its specification: rows of other methods cover nothing."""
    found = Counter(
        result.cell(row.name, column.name).status
        for row in result.table.rows
        for column in result.table.columns
        if row.name in rows
    )
    cells = sum(number for status, number in found.items() if status not in NEVER)
    return Coverage(
        result.table.name,
        result.scale,
        result.dataset,
        result.protocol,
        cells,
        found["done"],
        found["partial"],
        found["failed"],
        result.reproduces,
    )


def write_headline(counted: Sequence[Coverage]) -> str:
    """In one line, how many cells are measured as the paper's protocol asks: `7 of 90 cells at paper scale`."""
    done, cells = count_paper_cells(counted)
    return f"{done} of {cells} cells at paper scale"


def count_paper_cells(counted: Iterable[Coverage]) -> tuple[int, int]:
    """Cells done in the best comparable setting of each table, and all cells that could be."""
    best: dict[str, tuple[int, int]] = {}
    for coverage in counted:
        if base_scale(coverage.scale) != PAPER:
            continue
        done = coverage.done if coverage.comparable else 0
        best[coverage.table] = max(best.get(coverage.table, (0, 0)), (done, coverage.cells))
    return sum(done for done, _ in best.values()), sum(cells for _, cells in best.values())


def write_sentences(counted: Sequence[Coverage]) -> list[str]:
    """What is measured here and what may be concluded of it."""
    done, cells = count_paper_cells(counted)
    said = []
    if not any(coverage.done + coverage.partial for coverage in counted):
        said.append("Nothing was run yet: the tables below show what the paper printed, and no number of ours.")
        return said
    if done == 0:
        said.append(
            "Nothing here is measured by the paper's full protocol, so nothing here confirms or refutes the paper."
        )
    elif done < cells:
        said.append("Only cells at paper scale can be set against the printed numbers; most questions are still open.")
    smaller = sorted({coverage.scale for coverage in counted if coverage.done and not coverage.comparable}, key=_order)
    if smaller:
        names = " and ".join(filter(None, (", ".join(smaller[:-1]), smaller[-1])))
        said.append(
            f"Numbers at scale {names} come from shorter schedules or other data. They show that the suite works, and "
            "which method is better they do not show."
        )
    return said


def list_coverage(counted: Sequence[Coverage]) -> ReportTable:
    """A line for each table and setting."""
    headings = (
        ReportColumn("table", numeric=False),
        ReportColumn("scale", numeric=False),
        ReportColumn("dataset", numeric=False),
        ReportColumn("protocol", numeric=False),
        ReportColumn("cells", "that a run can fill"),
        ReportColumn("done", "all seeds asked for are finished"),
        ReportColumn("partial", "some seeds are finished"),
        ReportColumn("failed"),
        ReportColumn("not run yet"),
    )
    lines = tuple(
        (
            ReportCell(f"Table {coverage.table}", coverage.table),
            format_word(coverage.scale, "" if coverage.comparable else "not comparable"),
            format_word(coverage.dataset),
            format_word(coverage.protocol),
            format_number(coverage.cells, 0),
            format_number(coverage.done, 0),
            format_number(coverage.partial, 0),
            format_number(coverage.failed, 0),
            format_number(coverage.missing, 0),
        )
        for coverage in counted
    )
    return ReportTable("Coverage", headings, lines)


def _order(scale: str) -> tuple[int, str]:
    base = base_scale(scale)
    return (list(SCALES).index(base) if base in SCALES else len(SCALES), scale)
