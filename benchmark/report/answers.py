"""Answer a reader's first questions: what was measured, what the audit found, what pays, and what is best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmark.audit.verdicts import Audit, Finding, Verdict, count_verdicts
from benchmark.core.statistics import summarise
from benchmark.report.data import TableReport
from benchmark.report.pareto import CostPicture, draw_all_costs
from benchmark.report.table import (
    ReportCell,
    ReportColumn,
    ReportTable,
    format_difference,
    format_with_std,
    format_word,
    make_word_columns,
)
from tables.result import ABSENT, NEVER, Cell
from tables.specification import BASELINE
from tables.view import PageCell

CLOSE, FAR = 0.3, 1.0
"""Points of difference to a printed number up to which it is called equal, and from which it is called far."""
SHADES = {
    "above2": f"at least {FAR:g} points above the printed number",
    "above1": "above it",
    "equal": f"within {CLOSE:g} points",
    "below1": "below it",
    "below2": f"at least {FAR:g} points below",
    "measured": "measured, not comparable with a printed number",
    "partial": "some seeds",
    "failed": "failed",
    "missing": "not run yet",
}


@dataclass(frozen=True)
class Box:
    """A cell in the picture of a table: its shade (`SHADES`), what it says when it is pointed at, and its address.

    The shade of a cell that no run can fill is empty, and it is not drawn.
    """

    shade: str
    title: str
    address: str


@dataclass(frozen=True)
class CoverageMap:
    """A table as a picture with a box for each cell; rows: the boxes by the name of the row."""

    title: str
    address: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[Box, ...]]

    @property
    def boxes(self) -> list[Box]:
        """Those that are drawn."""
        return [box for line in self.rows.values() for box in line if box.shade]

    @property
    def words(self) -> str:
        """What is to be seen, for those who do not see it."""
        done = sum(box.shade not in ("missing", "failed", "partial") for box in self.boxes)
        return f"{self.title}: {done} of {len(self.boxes)} cells measured, those of teachers included"


@dataclass(frozen=True)
class VerdictBar:
    """Verdicts as one bar; parts: the verdict, how many claims have it, where the part begins and ends, of 100."""

    title: str
    parts: tuple[tuple[Verdict, int, float, float], ...]

    @property
    def words(self) -> str:
        """The counts as a sentence."""
        return f"{self.title}: {', '.join(f'{number} {verdict}' for verdict, number, _, _ in self.parts)}."


@dataclass(frozen=True)
class Answers:
    """All answers of the first screen; unmeasured: the tables of which nothing was run, by name."""

    maps: tuple[CoverageMap, ...]
    bars: tuple[VerdictBar, ...]
    costs: tuple[CostPicture, ...]
    best: tuple[ReportTable, ...]
    unmeasured: tuple[str, ...]

    @property
    def legend(self) -> tuple[tuple[str, str], ...]:
        """The shades that occur and what they mean."""
        shown = {box.shade for one in self.maps for box in one.boxes}
        return tuple((shade, meaning) for shade, meaning in SHADES.items() if shade in shown)


def make_answers(tables: Iterable[TableReport], audit: Audit) -> Answers:
    """Make the answers of the tables that have any run, and of the audit."""
    tables = list(tables)
    measured = [table for table in tables if table.measured]
    names = {table.name for table in measured}
    return Answers(
        maps=tuple(map(draw_map, measured)),
        bars=tuple(count_claims(audit)),
        costs=tuple(draw_all_costs(measured)),
        best=tuple(list_best(measured)),
        unmeasured=tuple(dict.fromkeys(table.name for table in tables if table.name not in names)),
    )


def draw_map(table: TableReport) -> CoverageMap:
    """Draw a table as boxes, coloured by the difference to the printed number where the two may be compared."""
    names = [column.name for column in table.page.columns]
    rows = {}
    for row in table.page.rows:
        if all(entry.status in ABSENT for entry in row.entries):
            continue
        boxes = []
        for name, entry in zip(names, row.entries, strict=True):
            shade, says = _shade(entry)
            boxes.append(Box(shade, f"{row.name}, {name}: {says}", table.addresses[row.name, name]))
        rows[row.name] = tuple(boxes)
    columns = tuple(name.replace(">", "\N{RIGHTWARDS ARROW}") for name in names)
    return CoverageMap(table.title, table.address, columns, rows)


def _shade(entry: PageCell) -> tuple[str, str]:
    """Choose the shade of a cell and say what is in it; no shade where no run can fill it."""
    if entry.status in NEVER or not (entry.status or entry.summary):
        return "", ""
    if not entry.summary:
        return ("failed", "failed") if entry.status == "failed" else ("missing", "not run yet")
    says = f"{entry.mean} % ({entry.seeds})"
    printed = [found for found in entry.references if found.tier == "printed" and found.difference]
    if entry.status == "partial":
        return "partial", says
    if not printed:
        return "measured", says
    difference = float(printed[0].difference.replace("\N{MINUS SIGN}", "-"))
    says += f", {printed[0].difference} to the printed {printed[0].mean}"
    if abs(difference) <= CLOSE:
        return "equal", says
    return f"{'above' if difference > 0 else 'below'}{2 if abs(difference) >= FAR else 1}", says


def count_claims(audit: Audit) -> list[VerdictBar]:
    """Count the verdicts on the paper's text, on those of the court, and of our runs on the first."""
    court = [finding for other in audit.court for finding in other.findings]
    bars = [
        _bar("By its own tables and the literature", audit.findings, "paper"),
        _bar("By our runs", audit.findings, "runs"),
    ]
    if court:
        bars.append(_bar(f"Sentences of {len(audit.court)} other papers, by tables and literature", court, "paper"))
    return [bar for bar in bars if bar.parts]


def _bar(title: str, findings: Sequence[Finding], of: Literal["paper", "runs"]) -> VerdictBar:
    counts = count_verdicts(findings, of)
    total, at, parts = sum(count.number for count in counts.values()), 0, []
    for verdict, count in counts.items():
        parts.append((verdict, count.number, round(100 * at / total, 2), round(100 * (at + count.number) / total, 2)))
        at += count.number
    return VerdictBar(title, tuple(parts))


def list_best(tables: Iterable[TableReport]) -> Iterator[ReportTable]:
    """List the best and second method of each column, with the gain over Baseline, for each table with any two."""
    seen: set[frozenset[str]] = set()
    for table in tables:
        lines, seeds = [], set()
        result = table.result
        for column in result.table.columns:
            cells = [result.cell(row.name, column.name) for row in result.table.rows]
            ranked = sorted((cell for cell in cells if cell.values), key=_compute_top, reverse=True)
            runs = frozenset(seed.run for cell in ranked for seed in cell.finished)
            # Two tables may share the runs of a pair, and one method alone is not the best of anything.
            if len(ranked) < 2 or runs in seen:
                continue
            seen.add(runs)
            best, second = ranked[:2]
            seeds |= {len(best.values), len(second.values)}
            base = result.cell(BASELINE, column.name)
            gain = _compute_top(best) - _compute_top(base) if base.values and best.row != BASELINE else None
            lead = _compute_top(best) - _compute_top(second)
            lines.append(
                (
                    ReportCell(column.name, column.name, f"of {len(ranked)} methods"),
                    format_word(best.row, f"then {second.row}, {lead:.2f} behind"),
                    ReportCell(format_with_std(summarise(best.values)), _compute_top(best), f"n={len(best.values)}"),
                    format_difference(gain),
                )
            )
        if lines:
            notes = ("One seed: a small lead may be chance.",) if 1 in seeds else ()
            yield ReportTable(f"Best method of each pair, {table.title}", _BEST_HEADINGS, tuple(lines), notes)


def _compute_top(cell: Cell) -> float:
    return summarise(cell.values).mean


_BEST_HEADINGS = (
    *make_word_columns("pair", "best method"),
    ReportColumn("top-1, %"),
    ReportColumn("over\nBaseline"),
)
