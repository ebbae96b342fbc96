"""Test accuracy over epochs: all methods of one pair in one drawing, the mean over seeds and how far they spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.core.text import format_range
from benchmark.io.files import write_text
from benchmark.results.record import Record
from figures.render import import_matplotlib, make_metadata, save_drawing
from tables.escaping import format_csv
from tables.result import Cell, TableResult
from tables.specification import OWN_METHOD, TEACHER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST = 2
"""Rows that a drawing needs, and points that a curve needs."""
MARKERS = 13
"""Markers of a curve at most."""


@dataclass(frozen=True)
class Curve:
    """The test accuracy of one row, in %. values: by epoch, one for each seed."""

    name: str
    values: Mapping[int, tuple[float, ...]]

    @property
    def seeds(self) -> int:
        """How many seeds it is the mean of."""
        return len(next(iter(self.values.values())))

    @property
    def means(self) -> list[float]:
        """The mean over seeds after each epoch."""
        return [sum(values) / len(values) for values in self.values.values()]

    @property
    def last(self) -> float:
        """The mean after the last epoch."""
        return self.means[-1]


@dataclass(frozen=True)
class PairCurves:
    """The curves of one column of a table, the best last epoch first, and the teacher's where there is one."""

    result: TableResult
    column: str
    curves: tuple[Curve, ...]
    teacher: Curve | None

    @property
    def seeds(self) -> str:
        """How many seeds stand behind the curves: `n=1`, `n=1 to 3`."""
        return f"n={format_range([curve.seeds for curve in self.curves])}"

    @property
    def title(self) -> str:
        """The networks that were trained and on what; a column keeps its name where a scale has other networks."""
        column = next(column for column in self.result.table.columns if column.name == self.column)
        place = "" if column.name == column.pair else f" (column {column.name})"
        return f"{column.pair} on {self.result.dataset}{place}"

    @property
    def caption(self) -> str:
        """What is drawn, and where it comes from."""
        spread = "" if self.seeds == "n=1" else ", the mean over seeds and the range from the lowest to the highest"
        return (
            f"Test accuracy after each epoch, {self.title}, every row of Table {self.result.table.name} that has "
            f"curves, {self.seeds}{spread}. {self.result.statement}"
        )


def collect_pair_curves(result: TableResult, records: Mapping[str, Record]) -> PairCurves | None:
    """Collect the curves of the column in which most rows have one; None where no column has two.

    records: by run id.
    """
    best: PairCurves | None = None
    for column in result.table.columns:
        cells = {row.name: result.cell(row.name, column.name) for row in result.table.rows}
        curves = [curve for name, cell in cells.items() if (curve := _make_curve(name, cell, records))]
        if len(curves) >= max(LEAST, len(best.curves) + 1 if best else 0):
            curves.sort(key=lambda curve: -curve.last)
            teacher = _make_curve(TEACHER, result.cell(TEACHER, column.name), records)
            best = PairCurves(result, column.name, tuple(curves), teacher)
    return best


def _make_curve(name: str, cell: Cell, records: Mapping[str, Record]) -> Curve | None:
    """Make the curve of a cell, of the epochs after which all its seeds were tested; None for too few of them."""
    runs = [
        {int(epoch["epoch"]): float(epoch[cell.metric]) for epoch in record["epochs"] if cell.metric in epoch}
        for seed in cell.finished
        if (record := records.get(seed.run))
    ]
    epochs = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    if len(epochs) < LEAST:
        return None
    return Curve(name, {epoch: tuple(run[epoch] for run in runs) for epoch in epochs})


def write_curves(curves: PairCurves, folder: Path, stem: str) -> list[Path]:
    """Write the drawing as `.png`, `.pdf` and `.svg`, and its numbers as `.csv`.

    Raises:
        UserError: the folder cannot be written.
    """
    metadata = make_metadata(f"Curves, Table {curves.result.table.name}, {curves.column}", curves.caption)
    paths = save_drawing(folder, stem, lambda: draw(curves), metadata)
    write_text(folder / f"{stem}.csv", to_csv(curves))
    return [*paths, folder / f"{stem}.csv"]


def to_csv(curves: PairCurves) -> str:
    """Write a line for each row and epoch."""
    lines = []
    for curve in (*filter(None, [curves.teacher]), *curves.curves):
        for (epoch, values), mean in zip(curve.values.items(), curve.means, strict=True):
            numbers = {"n": len(values), "mean": mean, "lowest": min(values), "highest": max(values)}
            lines.append({"column": curves.column, "row": curve.name, "epoch": epoch, **numbers})
    return format_csv(lines)


def draw(curves: PairCurves) -> Figure:
    """Draw the curves; call this within `figures.style.settings`."""
    with import_matplotlib():
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        from figures.style import GREY, NORMAL, SMALL, choose_styles, shorten, watermark

    drawing = Figure(figsize=(7.0, 4.2), layout="constrained")
    ax = drawing.add_subplot()
    if curves.teacher:
        label = f"{curves.teacher.last:.2f}  {TEACHER}"
        ax.plot([*curves.teacher.values], curves.teacher.means, color=GREY, linewidth=1.0, label=label)
    styles = choose_styles(sorted(curve.name for curve in curves.curves), OWN_METHOD)
    for curve in curves.curves:
        _draw_curve(ax, curve, styles[curve.name], shorten(curve.name, 24))
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"test accuracy, % ({curves.seeds})")
    ax.set_title(shorten(curves.title, 60), fontsize=NORMAL, fontweight="bold", loc="left")
    ax.grid(True, linewidth=0.5, color="0.9", zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    drawing.legend(
        loc="outside right upper",
        frameon=False,
        fontsize=SMALL,
        handlelength=3.2,
        title="last epoch, %",
        title_fontsize=SMALL,
    )
    if not curves.result.reproduces:
        watermark(ax, curves.result.scale, "watermark-curves")
    return drawing


def _draw_curve(ax: Axes, curve: Curve, style: Any, name: str) -> None:
    epochs = list(curve.values)
    ax.plot(
        epochs,
        curve.means,
        label=f"{curve.last:.2f}  {name}",
        markevery=max(1, len(epochs) // MARKERS),
        zorder=style.level,
        **style.line_properties,
    )
    if curve.seeds > 1:
        lowest, highest = ([pick(values) for values in curve.values.values()] for pick in (min, max))
        ax.fill_between(epochs, lowest, highest, color=style.colour, alpha=0.15, linewidth=0, zorder=1)
