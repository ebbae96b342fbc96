"""Answer a reader's first questions: what was measured, what the audit found, what pays, and what is best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmark.audit.verdicts import Audit, Finding, Verdict, count_verdicts
from benchmark.core.statistics import summarise
from benchmark.report.data import TableReport
from benchmark.report.pareto import LETTER, CostPicture, Label, draw_all_costs
from benchmark.report.table import (
    ReportCell,
    ReportColumn,
    ReportTable,
    format_difference,
    format_with_std,
    format_word,
    make_word_columns,
)
from tables.result import NEVER, Cell
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
BOX, GAP = 13, 2


@dataclass(frozen=True)
class Box:
    """A cell in the picture of a table: its shade (`SHADES`), what it says when it is pointed at, and its address."""

    x: float
    y: float
    shade: str
    title: str
    address: str


@dataclass(frozen=True)
class CoverageMap:
    """A table as a picture with a box for each cell; words: the same for those who do not see it."""

    title: str
    address: str
    width: float
    height: float
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    boxes: tuple[Box, ...]
    words: str

    @property
    def shades(self) -> tuple[str, ...]:
        """The shades that occur, in the order of the legend."""
        return tuple(shade for shade in SHADES if any(box.shade == shade for box in self.boxes))


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
        shown = {shade for one in self.maps for shade in one.shades}
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
    page = table.page
    rows = [row for row in page.rows if not row.absent]
    left = max((len(row.name) for row in rows), default=0) * LETTER + 6
    headings = ["\N{RIGHTWARDS ARROW}".join(column.name.split(">")) for column in page.columns]
    top = max((len(heading) for heading in headings), default=0) * LETTER + 6
    boxes, step = [], BOX + GAP
    for line, row in enumerate(rows):
        for place, (column, entry) in enumerate(zip(page.columns, row.entries, strict=True)):
            shade, says = _shade(entry)
            if shade:
                title = f"{row.name}, {column.name}: {says}"
                address = table.addresses[row.name, column.name]
                boxes.append(Box(round(left + place * step, 1), round(top + line * step, 1), shade, title, address))
    done = sum(box.shade not in ("missing", "failed", "partial") for box in boxes)
    return CoverageMap(
        title=table.title,
        address=table.address,
        width=round(left + len(headings) * step + 2),
        height=round(top + len(rows) * step + 2),
        rows=tuple(Label(left - 5, round(top + line * step + 10, 1), row.name) for line, row in enumerate(rows)),
        columns=tuple(
            Label(round(left + place * step + 10, 1), round(top - 4, 1), heading)
            for place, heading in enumerate(headings)
        ),
        boxes=tuple(boxes),
        words=f"{table.title}: {done} of {len(boxes)} cells measured, those of teachers included",
    )


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
