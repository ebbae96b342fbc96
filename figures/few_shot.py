"""Draw accuracy over the share of the training images that students learn from, a line a method."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from benchmark.core.statistics import summarise
from figures.result import FigureResult, PanelResult, select_by_seed
from figures.specification import PublishedMarks
from figures.style import (
    GREY,
    NORMAL,
    Style,
    choose_styles,
    make_failure_marker,
    make_page,
    split_legend,
)
from tables.specification import get_number

Point = tuple[float, float, float | None]
"""Place, mean and standard deviation; None for a single seed."""
HEIGHT, UNDER = 2.45, 0.44
"""Inches of the axes, and of what is written under them."""
LEAST_SPAN = 10.0
"""Points of accuracy that the vertical axis spans at least, so that it does not magnify noise."""
STEP = 5.0
WIDEST = 50
"""The largest share over the smallest, up to which shares stand at their percentages."""
CLUSTER, NEIGHBOUR = 0.42, 0.045
"""Of the distance to the next share: how far apart all marks of one share may stand, and two neighbours, so that error
bars do not hide each other."""


def draw(result: FigureResult) -> Drawing:
    """Draw the figure; call and save it within `figures.style.settings`."""
    styles = choose_styles(result.methods, result.figure.highlight)
    published = _published(result)
    measured = [
        (Line2D([], [], **styles[method].line_properties), result.figure.title(method)) for method in _measured(result)
    ]
    marks = [(Line2D([], [], **styles[one.method].open_marker_properties), one.name) for one in published]
    count = len(result.panels)
    lines = [("measured", line) for line in split_legend(measured, count, named=True)]
    lines += [("published", line) for line in split_legend(marks, count, named=True)]
    limits = [_limits(result, panel) for panel in result.panels]
    sentences = _sentences(result, published, cut=any(low > 0 for low, _ in limits))
    page = make_page(result, [(HEIGHT, UNDER)], len(lines), sentences)
    for number, (ax, panel) in enumerate(zip(page.axes[0], result.panels, strict=True)):
        _draw_panel(ax, result, panel, styles, limits[number])
        ax.set_xlabel("share of the training images, %", labelpad=2)
        if number % 2 == 0:
            ax.set_ylabel("top-1 accuracy, %", labelpad=3)
    before = ""
    for place, (name, entries) in enumerate(lines):
        page.legend(place, name if name != before else " ", entries)
        before = name
    return page.drawing


def place_shares(fractions: Sequence[float]) -> list[float]:
    """Choose where each share stands on the axis: at its percentage, or at even distances if some would coincide."""
    if fractions[-1] > WIDEST * fractions[0]:
        return [100 * place / len(fractions) for place in range(1, len(fractions) + 1)]
    return [100 * fraction for fraction in fractions]


def _draw_panel(
    ax: Axes, result: FigureResult, panel: PanelResult, styles: dict[str, Style], limits: tuple[float, float]
) -> None:
    labels = [f"{100 * fraction:g}" for fraction in result.figure.fractions]
    shares = place_shares(result.figure.fractions)
    gap = min((after - before for before, after in itertools.pairwise(shares)), default=25.0)
    drawn, marks = _measured(result), [one for one in panel.published if one.method in result.methods]
    slots = len(drawn) + len(marks)
    step = gap * min(CLUSTER / max(slots - 1, 1), NEIGHBOUR)
    ax.set_xlim(shares[0] - 0.45 * gap, shares[-1] + 0.45 * gap)
    ax.set_ylim(*limits)
    ax.set_xticks(shares, labels)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    for place, method in enumerate(drawn):
        offset = (place - (slots - 1) / 2) * step
        _draw_method(ax, result, panel, method, [share + offset for share in shares], styles[method])
    for place, one in enumerate(marks):
        offset = (len(drawn) + place - (slots - 1) / 2) * step
        _draw_published(ax, one, [share + offset for share in shares], styles[one.method])
    if not panel.has_values():
        ax.text(0.98, 0.04, "no runs yet", transform=ax.transAxes, ha="right", fontsize=NORMAL, color=GREY)


def _draw_method(
    ax: Axes, result: FigureResult, panel: PanelResult, method: str, places: Sequence[float], style: Style
) -> None:
    points: list[Point] = []
    bottom, top = ax.get_ylim()
    for x, fraction in zip(places, result.figure.fractions, strict=True):
        cell = panel.cell(method, fraction)
        values = select_by_seed(cell).values()
        # A missing point leaves a gap in the line.
        points.append((x, summarise(values).mean, summarise(values).std) if values else (x, math.nan, None))
        if cell.status == "failed":
            ax.plot([x], [bottom + 0.03 * (top - bottom)], linestyle="none", **make_failure_marker(style))
    _draw_points(ax, points, style, style.level, style.line_properties)


def _draw_published(ax: Axes, marks: PublishedMarks, places: Sequence[float], style: Style) -> None:
    points = [
        (x, mean, get_number(marks.std, place))
        for place, x in enumerate(places)
        if (mean := get_number(marks.mean, place)) is not None
    ]
    _draw_points(ax, points, style, 2.5, style.open_marker_properties)


def _draw_points(ax: Axes, points: Sequence[Point], style: Style, level: float, properties: dict[str, Any]) -> None:
    """Draw points, and behind them the error bars of those that have a standard deviation."""
    ax.plot([x for x, _, _ in points], [mean for _, mean, _ in points], zorder=level, **properties)
    if spread := [point for point in points if point[2] is not None]:
        x, mean, std = zip(*spread, strict=True)
        ax.errorbar(
            x, mean, std, fmt="none", ecolor=style.colour, elinewidth=1.0, capsize=2.0, capthick=1.0, zorder=level - 0.5
        )


def _measured(result: FigureResult) -> list[str]:
    """List the methods that have something to draw."""
    measured = {
        method
        for panel in result.panels
        for (method, _), cell in panel.cells.items()
        if cell.values or cell.status == "failed"
    }
    return [method for method in result.methods if method in measured]


def _published(result: FigureResult) -> list[PublishedMarks]:
    """List the published series of the methods that are shown, each name once."""
    marks = {one.name: one for panel in result.panels for one in panel.published if one.method in result.methods}
    return list(marks.values())


def _limits(result: FigureResult, panel: PanelResult) -> tuple[float, float]:
    """Choose the ends of the vertical axis: around all values with their errors, in steps of 5, 10 points at least."""
    ends: list[float] = []
    for number in result.numbers():
        if number.panel is not panel:
            continue
        if number.summary:
            std = number.summary.std or 0.0
            ends += [number.summary.mean - std, number.summary.mean + std]
        ends += [end for _, mean, std in number.published for end in (mean - (std or 0.0), mean + (std or 0.0))]
    if not ends:
        return 0.0, 100.0
    low, high = min(ends), max(ends)
    missing = max(0.0, LEAST_SPAN - (high - low)) / 2
    margin = 0.04 * max(high - low, LEAST_SPAN)
    low = STEP * math.floor((low - missing - margin) / STEP)
    high = STEP * math.ceil((high + missing + margin) / STEP)
    # A little over 100, so that the marks of a perfect score are whole.
    return max(0.0, low), min(101.0, high)


def _sentences(result: FigureResult, published: Sequence[PublishedMarks], cut: bool) -> list[str]:
    learnt = "all the images" if result.teacher_data == "all" else "the same images as their students"
    sentences = [f"Teachers learn from {learnt}."]
    if published:
        sources = "; ".join(dict.fromkeys(one.source for one in published))
        spread = " \N{PLUS-MINUS SIGN} standard deviation" if any(one.std for one in published) else ""
        sentences.append(f"Open marks: published{spread} ({sources}).")
    if cut:
        alone = len(result.panels) == 1
        sentences.append(f"The vertical {'axis does' if alone else 'axes do'} not start at 0.")
    return sentences
