"""Draw the accuracy of the classifier after every stage, as bars: of the class, and of class and rotation together."""

from __future__ import annotations

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Patch

from benchmark.core.statistics import BySeed, summarise
from figures.result import FINAL, KINDS, STAGE_METRICS, FigureResult, PanelResult, StageMetric, select_by_seed
from figures.style import (
    GREY,
    NORMAL,
    SMALL,
    Style,
    choose_styles,
    compute_inner_width,
    make_failure_marker,
    make_page,
    split_legend,
)

HEIGHT, UNDER = 1.75, 0.32
"""Inches of each axes, and of what is written under it."""
GROUP = 0.9
"""Of the distance from a stage to the next: the width of all its bars."""
APART = 0.15
"""How much further than a stage's distance the backbone's classifier stands behind the last stage."""
NUMBER = 0.25
"""Inches that a number over a bar needs to stand upright."""
ROOM = 1.14
"""How far the axis reaches over the highest bar, for the number on it."""
TITLES: dict[StageMetric, str] = {
    "stages": "class accuracy, %",
    "stages_joint": "joint accuracy, %",
}


def draw(result: FigureResult) -> Drawing:
    """Draw the figure; call and save it within `figures.style.settings`."""
    styles = choose_styles(result.methods, result.figure.highlight)
    entries: list[tuple[Artist, str]] = [
        (Patch(**styles[method].bar_properties), result.figure.title(method)) for method in result.methods
    ]
    lines = split_legend(entries, len(result.panels), named=False)
    kinds = "; lower row: ".join(KINDS[metric] for metric in STAGE_METRICS)
    own = f"{FINAL}: the backbone's own classifier, all that is left at inference."
    sentences = [f"Upper row: {kinds}.", own]
    page = make_page(result, [(HEIGHT, UNDER)] * len(STAGE_METRICS), len(lines), sentences)
    for metric, row in zip(STAGE_METRICS, page.axes, strict=True):
        top = max((end for panel in result.panels for end in _ends(result, panel, metric)), default=100.0 / ROOM)
        for number, (ax, panel) in enumerate(zip(row, result.panels, strict=True)):
            _draw_panel(ax, result, panel, metric, styles, top)
            if number % 2 == 0:
                ax.set_ylabel(TITLES[metric], labelpad=3)
    for place, line in enumerate(lines):
        page.legend(place, "", line)
    return page.drawing


def _draw_panel(
    ax: Axes, result: FigureResult, panel: PanelResult, metric: StageMetric, styles: dict[str, Style], top: float
) -> None:
    ax.set_ylim(0, top * ROOM)
    ax.set_yticks([tick for tick in range(0, 101, 20) if tick <= top * ROOM])
    count = panel.stage_count(result.methods)
    stages = [*range(1, count + 1), *([count + 1] if metric == "stages" and count else [])]
    places = {stage: stage + (APART if stage > count else 0.0) for stage in stages}
    # Both rows keep room for the backbone's classifier, so that a stage stands under itself.
    breadth = max(count, 1) + 1 + APART
    ax.set_xlim(0.5, 0.5 + breadth)
    ax.set_xticks([*places.values()], [f"stage {stage}" if stage <= count else FINAL for stage in stages])
    ax.tick_params(axis="x", length=0)
    width = GROUP / max(len(result.methods), 1)
    inches = width * compute_inner_width(result) / breadth
    for number, method in enumerate(result.methods):
        offset = (number - (len(result.methods) - 1) / 2) * width
        for stage, by_seed in _bars(result, panel, method, metric).items():
            _draw_bar(ax, places[stage] + offset, by_seed, width, styles[method], upright=inches >= NUMBER)
        if panel.cell(method).status == "failed":
            for place in places.values() or [1.0]:
                ax.plot([place + offset], [0.03 * top], linestyle="none", **make_failure_marker(styles[method]))
    if not count:
        ax.text(0.5, 0.45, "no runs yet", transform=ax.transAxes, ha="center", fontsize=NORMAL, color=GREY)


def _draw_bar(ax: Axes, x: float, by_seed: BySeed, width: float, style: Style, upright: bool) -> None:
    summary = summarise(by_seed.values())
    ax.bar(x, summary.mean, 0.92 * width, zorder=2, **style.bar_properties)
    if summary.std is not None:
        ax.errorbar(x, summary.mean, summary.std, fmt="none", ecolor="black", elinewidth=0.8, capsize=1.6, zorder=4)
    ax.annotate(
        f"{summary.mean:.1f}",
        (x, summary.mean + (summary.std or 0.0)),
        xytext=(0, 1.5),
        textcoords="offset points",
        ha="center",
        va="bottom",
        rotation=0 if upright else 90,
        fontsize=SMALL,
        zorder=5,
    )


def _bars(result: FigureResult, panel: PanelResult, method: str, metric: StageMetric) -> dict[int, BySeed]:
    """Collect the values by the place of their bar: the stages from 1 on, then the backbone's classifier."""
    count = panel.stage_count(result.methods)
    bars = panel.numbered_stages(method, metric, count)
    final = select_by_seed(panel.cell(method))
    return bars | {count + 1: final} if metric == "stages" and final and count else bars


def _ends(result: FigureResult, panel: PanelResult, metric: StageMetric) -> list[float]:
    """Compute the upper ends of all bars with their error bars."""
    summaries = [
        summarise(by_seed.values())
        for method in result.methods
        for by_seed in _bars(result, panel, method, metric).values()
    ]
    return [summary.mean + (summary.std or 0.0) for summary in summaries]
