"""Count how much of the tables is measured, at which scale, and say what can be concluded from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from benchmark.core.protocols import PAPER, PROTOCOLS, SCALES, base_scale
from benchmark.core.statistics import LEAST
from benchmark.core.text import format_range
from benchmark.report.table import (
    ReportCell,
    ReportColumn,
    ReportTable,
    format_number,
    format_word,
    make_word_columns,
)
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
    """Say in one line how many cells are measured by the paper's protocol: `7 of 90 cells at paper scale`."""
    done, cells = count_paper_cells(counted)
    return f"{done} of {cells} cells at paper scale"


def count_paper_cells(counted: Iterable[Coverage]) -> tuple[int, int]:
    """Count the cells that are done in the best comparable setting of each table, and all that could be."""
    best: dict[str, tuple[int, int]] = {}
    for coverage in counted:
        if base_scale(coverage.scale) != PAPER:
            continue
        done = coverage.done if coverage.comparable else 0
        best[coverage.table] = max(best.get(coverage.table, (0, 0)), (done, coverage.cells))
    return sum(done for done, _ in best.values()), sum(cells for _, cells in best.values())


def write_sentences(counted: Sequence[Coverage]) -> list[str]:
    """Say how much is measured by the paper's protocol, and what follows."""
    done, cells = count_paper_cells(counted)
    if not any(coverage.done + coverage.partial for coverage in counted):
        return ["Nothing was run yet: the tables below show what the paper printed, and no number of ours."]
    if done == 0:
        return ["Nothing here is measured by the paper's full protocol, so nothing here confirms or refutes the paper."]
    if done < cells:
        return ["Only cells at paper scale can be set against the printed numbers; most questions are still open."]
    return []


def write_limits(results: Iterable[TableResult]) -> list[str]:
    """Say for each setting that is not the paper's what can and what cannot be concluded from its numbers."""
    settings: dict[tuple[str, str, str], list[TableResult]] = {}
    for result in results:
        if not result.reproduces and any(cell.values for cell in result.cells.values()):
            settings.setdefault((result.scale, result.dataset, result.protocol), []).append(result)
    said = []
    for (scale, dataset, protocol), group in sorted(settings.items(), key=lambda setting: _order(setting[0][0])):
        epochs = group[0].epochs
        # A record may name a protocol that this version does not have.
        whole = str(PROTOCOLS[protocol].schedule.epochs) if protocol in PROTOCOLS else epochs
        cells = [cell for result in group for cell in result.cells.values() if cell.values]
        counts = {len(cell.values) for cell in cells}
        schedule = f"{epochs} epochs instead of {whole}" if whole != epochs else f"{whole} epochs"
        noun = "seed" if counts == {1} else "seeds"
        said.append(
            f"Scale {scale} on {dataset}: {schedule}, {format_range(counts)} {noun} a cell. These numbers show that "
            f"{len({cell.row for cell in cells})} methods train, and how far each comes in this schedule. They do not "
            f"show which of them is better by the paper's protocol ({whole} epochs on the paper's images): a short "
            f"schedule favours methods that learn fast at first. {_describe_chance(counts)}"
        )
    return said


def _describe_chance(counts: set[int]) -> str:
    """Say what the numbers of seeds of the cells tell of differences between methods."""
    holds = "holds for this schedule where its interval leaves out 0."
    if min(counts) >= LEAST:
        return f"A difference between two methods {holds}"
    if max(counts) >= LEAST:
        return (
            f"Where a method has fewer than {LEAST} seeds, no difference from it can be told from chance. A difference "
            f"between methods of {LEAST} seeds or more {holds}"
        )
    if max(counts) == 1:
        return (
            "One seed does not show how much a number varies, so no difference between two methods can be told from "
            "chance."
        )
    return "Two seeds show that a number varies, and not yet by how much."


def list_coverage(counted: Sequence[Coverage]) -> ReportTable:
    """List the coverage of each table and setting."""
    headings = (
        *make_word_columns("table", "scale", "dataset", "protocol"),
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
