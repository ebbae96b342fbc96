"""Answer a reader's first questions: what was measured, what the audit found, what pays, and what is best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmark.audit.verdicts import Audit, Finding, Verdict, count_verdicts
from benchmark.core.statistics import summarise
from benchmark.core.text import format_signed
from benchmark.report.data import TableReport
from benchmark.report.metrics import BASELINE
from benchmark.report.table import (
    EMPTY,
    ReportCell,
    ReportColumn,
    ReportTable,
    compute_mean,
    format_with_std,
    format_word,
)
from tables.result import NEVER, Cell
from tables.view import TEACHER, PageCell

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
FEW = 10
"""Up to so many points of a picture all have their names beside them."""
LETTER = 6.2
"""The width of a letter of a picture's labels, roughly, in pixels."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 330, 46, 14, 12, 40


@dataclass(frozen=True)
class Box:
    """A cell in the picture of a table: its shade (`SHADES`), what it says when it is pointed at, and its address."""

    x: float
    y: float
    shade: str
    title: str
    address: str


@dataclass(frozen=True)
class Label:
    """A word in a picture."""

    x: float
    y: float
    text: str


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
class Point:
    """A row of a table by cost and accuracy; front: no other row is as good for less."""

    name: str
    cost: float
    accuracy: float
    front: bool
    x: float = 0.0
    y: float = 0.0
    label: Label | None = None
    anchor: str = "start"

    @property
    def words(self) -> str:
        """The point in words."""
        return f"{self.name}: {self.accuracy:.2f} % for {self.cost:.2f}\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class CostPicture:
    """Accuracy over the cost of training; unit: what a cost is a multiple of; path: the front, as SVG draws it."""

    title: str
    unit: str
    note: str
    points: tuple[Point, ...]
    path: str
    x_ticks: tuple[Label, ...]
    y_ticks: tuple[Label, ...]

    @property
    def words(self) -> str:
        """What is to be seen, for those who do not see it."""
        front = "; ".join(point.words for point in self.points if point.front)
        return f"{self.title}. No row is better for less than each of these: {front}."


@dataclass(frozen=True)
class Answers:
    """All answers of the first screen; unmeasured: the tables of which nothing was run, by name."""

    maps: tuple[CoverageMap, ...]
    bars: tuple[VerdictBar, ...]
    costs: tuple[CostPicture, ...]
    best: ReportTable | None
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
    names = {table.page.name for table in measured}
    return Answers(
        maps=tuple(map(draw_map, measured)),
        bars=tuple(count_claims(audit)),
        costs=tuple(_drop_repeated(picture for table in measured if (picture := draw_costs(table)))),
        best=list_best(measured),
        unmeasured=tuple(dict.fromkeys(table.page.name for table in tables if table.page.name not in names)),
    )


def _drop_repeated(pictures: Iterable[CostPicture]) -> Iterator[CostPicture]:
    """Drop pictures of the same points: two tables may share their runs."""
    seen: list[tuple[Point, ...]] = []
    for picture in pictures:
        if picture.points not in seen:
            seen.append(picture.points)
            yield picture


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


def _bar(title: str, findings: Sequence[Finding], of: str) -> VerdictBar:
    counts = count_verdicts(findings, "paper" if of == "paper" else "runs")
    total, at, parts = sum(count.number for count in counts.values()), 0, []
    for verdict, count in counts.items():
        parts.append((verdict, count.number, round(100 * at / total, 2), round(100 * (at + count.number) / total, 2)))
        at += count.number
    return VerdictBar(title, tuple(parts))


def draw_costs(table: TableReport) -> CostPicture | None:
    """Draw mean top-1 over the multiply-adds of training a row with its teacher; None for fewer than two rows.

    Only columns that most rows have count, and only rows that have all of these, so that all means are of the same
    pairs. The teachers are a point of their own.
    """
    result = table.result
    names = [column.name for column in result.table.columns]
    known = {row.name: _measure_all(result.cell(row.name, name) for name in names) for row in result.table.rows}
    trained = _measure_all(map(result.teacher, names))
    most = max((len(found) for found in known.values()), default=0)
    wide = [found for found in known.values() if len(found) == most]
    if not most or len(wide) < 2:
        return None
    columns = [name for name in wide[0] if all(name in found for found in wide)]
    drawn = {name: found for name, found in known.items() if columns and set(columns) <= found.keys()}
    means = {name: _average(found, columns) for name, found in drawn.items()}
    if len(means) < 2:
        return None
    left_out = sum(bool(found) for found in known.values()) - len(means)
    unit = BASELINE if BASELINE in means else min(means, key=lambda name: means[name][0])
    base = means[unit][0]
    points = [Point(name, cost / base, accuracy, _is_on_front(name, means)) for name, (cost, accuracy) in means.items()]
    if set(columns) <= trained.keys():
        # A teacher is another network, so it beats no student.
        cost, accuracy = _average(trained, columns)
        points.append(Point(TEACHER, cost / base, accuracy, front=False))
    note = f"Means over {', '.join(columns)}."
    note += f" {left_out} rows that were run on other pairs are not drawn." if left_out else ""
    return _place(table.title, unit, note, points)


def _measure_all(cells: Iterable[Cell]) -> dict[str, tuple[float, float]]:
    """Measure the cells of a row, by column."""
    return {cell.column: found for cell in cells if (found := _measure(cell))}


def _measure(cell: Cell) -> tuple[float, float] | None:
    """Compute the cost of a cell with its teacher, and its accuracy; None where either is unknown."""
    costs = [
        None
        if seed.price.multiply_adds is None or seed.price.teacher_multiply_adds is None
        else float(seed.price.multiply_adds + seed.price.teacher_multiply_adds)
        for seed in cell.finished
    ]
    cost = compute_mean(costs)
    return (cost, summarise(cell.values).mean) if cost and cell.values else None


def _average(found: dict[str, tuple[float, float]], columns: Sequence[str]) -> tuple[float, float]:
    costs, accuracies = zip(*(found[name] for name in columns), strict=True)
    return sum(costs) / len(columns), sum(accuracies) / len(columns)


def _is_on_front(name: str, means: dict[str, tuple[float, float]]) -> bool:
    cost, accuracy = means[name]
    return not any(
        other_cost <= cost and other >= accuracy and (other_cost, other) != (cost, accuracy)
        for other_cost, other in means.values()
    )


def _place(title: str, unit: str, note: str, points: list[Point]) -> CostPicture:
    """Place points, labels and ticks; costs on a logarithmic axis."""
    low, high = min(point.accuracy for point in points), max(point.accuracy for point in points)
    pad = max(0.5, 0.06 * (high - low))
    low, high = low - pad, high + pad
    first, last = (math.log(f(point.cost for point in points)) for f in (min, max))
    first, last = first - 0.1, last + 0.1

    def x(cost: float) -> float:
        return round(LEFT + (math.log(cost) - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def y(accuracy: float) -> float:
        return round(HEIGHT - BOTTOM - (accuracy - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    placed, taken = [], []
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy)):
        at, label, anchor = (x(point.cost), y(point.accuracy)), None, "start"
        if point.front or len(points) <= FEW or point.name in (BASELINE, TEACHER):
            wide = len(point.name) * LETTER
            anchor = "end" if at[0] + wide + 8 > WIDTH - RIGHT else "start"
            begin = at[0] - wide - 8 if anchor == "end" else at[0] + 8
            down = at[1] - 6
            while any(abs(down - other) < 12 and begin < stop and start < begin + wide for start, stop, other in taken):
                down += 3
            taken.append((begin, begin + wide, down))
            label = Label(round(at[0] - 8 if anchor == "end" else at[0] + 8, 1), round(down, 1), point.name)
        placed.append(Point(point.name, point.cost, point.accuracy, point.front, *at, label, anchor))
    front = [point for point in placed if point.front]
    path = "".join(f"H{point.x}V{point.y}" if place else f"M{point.x} {point.y}" for place, point in enumerate(front))
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    x_ticks = tuple(
        Label(x(step), HEIGHT - BOTTOM + 15, f"{step:g}\N{MULTIPLICATION SIGN}")
        for step in steps
        if first <= math.log(step) <= last
    )
    wanted = (high - low) / 5
    size = next((step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if step >= wanted), 20)
    values = [size * count for count in range(math.ceil(low / size), math.floor(high / size) + 1)]
    y_ticks = tuple(Label(LEFT - 6, y(value), f"{value:g}" if size >= 1 else f"{value:.1f}") for value in values)
    return CostPicture(title, unit, note, tuple(placed), path, x_ticks, y_ticks)


def list_best(tables: Iterable[TableReport]) -> ReportTable | None:
    """List the best and second method of each column, with the gain over Baseline; None where no two were measured."""
    lines, seeds, seen = [], set(), set()
    for table in tables:
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
                    ReportCell(column.name, column.name, f"{table.title}, {len(ranked)} methods"),
                    format_word(best.row),
                    ReportCell(format_with_std(summarise(best.values)), _compute_top(best), f"n={len(best.values)}"),
                    EMPTY if gain is None else ReportCell(format_signed(gain), gain),
                    format_word(second.row, f"{lead:.2f} behind"),
                )
            )
    notes = ("One seed: a small lead may be chance.",) if 1 in seeds else ()
    return ReportTable("Best method of each pair", _BEST_HEADINGS, tuple(lines), notes) if lines else None


def _compute_top(cell: Cell) -> float:
    return summarise(cell.values).mean


_BEST_HEADINGS = (
    ReportColumn("pair", numeric=False),
    ReportColumn("best method", numeric=False),
    ReportColumn("top-1, %"),
    ReportColumn("over\nBaseline"),
    ReportColumn("second", numeric=False),
)
