"""Draw what accuracy costs to train: the rows of a table by mean top-1 and multiply-adds, with their Pareto front."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmark.core.statistics import summarise
from benchmark.report.data import TableReport
from benchmark.report.metrics import average_price
from tables.result import Cell
from tables.specification import BASELINE, OWN_METHOD
from tables.view import TEACHER

FEW = 10
"""Up to so many points of a picture all have their names beside them."""
LETTER = 6.2
"""The width of a letter of a picture's labels, roughly, in pixels."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 330, 46, 14, 12, 40


@dataclass(frozen=True)
class Label:
    """A word in a picture."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Point:
    """A row of a table by cost and accuracy; front: whether no other row is as good for less."""

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


def draw_all_costs(tables: Iterable[TableReport]) -> Iterator[CostPicture]:
    """Draw each table with enough rows, but no picture of the same points twice: two tables may share their runs."""
    seen: list[tuple[Point, ...]] = []
    for table in tables:
        picture = draw_costs(table)
        if picture and picture.points not in seen:
            seen.append(picture.points)
            yield picture


def draw_costs(table: TableReport) -> CostPicture | None:
    """Draw mean top-1 over the multiply-adds of training a row with its teacher; None for fewer than two rows.

    Only columns that most rows have count, and only rows that have all of these, so that all means are of the same
    pairs. The teachers are a point of their own.
    """
    result = table.result
    names = [column.name for column in result.table.columns]
    known = {row.name: _measure_all(result.cell(row.name, name) for name in names) for row in result.table.rows}
    trained = _measure_all(result.cell(TEACHER, name) for name in names)
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
    """Compute the cost with its teacher and the accuracy of those cells of a row that have both, by column."""
    costs = [(cell, average_price(cell).total_multiply_adds) for cell in cells if cell.values]
    return {cell.column: (cost, summarise(cell.values).mean) for cell, cost in costs if cost}


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

    placed: list[Point] = []
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy)):
        at, label, anchor = (x(point.cost), y(point.accuracy)), None, "start"
        if point.front or len(points) <= FEW or point.name in (BASELINE, TEACHER, OWN_METHOD):
            wide = len(point.name) * LETTER
            anchor = "end" if at[0] + wide + 8 > WIDTH - RIGHT else "start"
            begin = at[0] - wide - 8 if anchor == "end" else at[0] + 8
            down = at[1] - 6
            while any(abs(down - other) < 12 and begin < stop and start < begin + wide for start, stop, other in taken):
                down += 3
            taken.append((begin, begin + wide, down))
            label = Label(round(at[0] - 8 if anchor == "end" else at[0] + 8, 1), round(down, 1), point.name)
        placed.append(dataclasses.replace(point, x=at[0], y=at[1], label=label, anchor=anchor))
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
