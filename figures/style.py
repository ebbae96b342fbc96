"""What the drawings share: colours and shapes, the page with its panels, legends, caption and watermark.

A page is laid out in inches, because panels are of one size in every figure and the page is as high as its legend and
caption need. (matplotlib's constrained layout does the reverse: it fits the panels into a page of a given height.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import seaborn
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from benchmark.core.text import format_range
from figures.result import FigureResult, PanelResult
from tables.escaping import plain
from tables.result import NEVER

LineStyle = tuple[int, tuple[float, ...]]

SMALL, NORMAL, LARGE = 7.0, 8.0, 9.0
"""Sizes of text in points, at the width of the drawing."""
WIDTHS = {1: 4.8, 2: 7.0}
"""Inches, by panels in a row: a report's text is 7 inches wide."""
LEFT, RIGHT, BETWEEN, HEADING = 0.52, 0.1, 0.5, 0.46
"""Inches: margins, between panels, over a panel for its heading."""
CHARACTER = 0.05
"""Inches of a character in small print; more than most of them need."""
LINE, LEGEND_LINE = 0.135, 0.2
"""Inches from a line of the caption, or of the legend, to the next."""
EDGE, INDENT = 0.22, 0.72
"""Inches to the left of legend and caption, and from there to the legend's entries."""
LONGEST = 24
"""Characters of a name in the legend."""
GREY = "0.35"

_DASHES: tuple[LineStyle, ...] = (
    (0, ()),
    (0, (5, 1.6)),
    (0, (1, 1.2)),
    (0, (4, 1.4, 1, 1.4)),
    (0, (7, 1.4, 1, 1.4, 1, 1.4)),
)
_MORE_DASHES: tuple[LineStyle, ...] = ((0, (2.5, 1.2)), (0, (1, 2.4)), (0, (9, 2)), (0, (3, 3)), (0, (2, 1, 6, 1)))
_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "----", "||||", "oooo", "++++", "****")
# Without its pale ones, which white paper swallows.
_BLUE, _ORANGE, _GREEN, _VERMILION, _PINK, _BROWN, _, _, _, _SKY = seaborn.color_palette("colorblind").as_hex()
_COLOURS = (_BLUE, _ORANGE, _GREEN, _VERMILION, _PINK, _BROWN, _SKY)


@dataclass(frozen=True)
class Style:
    """How one method is drawn. No two methods of a figure share marker, line or hatch, so they differ in grey too."""

    colour: str
    marker: str
    line: LineStyle
    hatch: str
    highlighted: bool = False

    @property
    def width(self) -> float:
        """The width of its line, in points."""
        return 2.2 if self.highlighted else 1.2

    @property
    def level(self) -> int:
        """Its place in the drawing order."""
        return 5 if self.highlighted else 3

    @property
    def line_properties(self) -> dict[str, Any]:
        """How its line and markers are drawn, for matplotlib."""
        return {
            "color": self.colour,
            "linestyle": self.line,
            "linewidth": self.width,
            "marker": self.marker,
            "markersize": 6.0 if self.highlighted else 4.8,
            "markeredgecolor": "white",
            "markeredgewidth": 0.5,
        }

    @property
    def open_marker_properties(self) -> dict[str, Any]:
        """How the mark of a published number is drawn."""
        return {
            "linestyle": "none",
            "marker": self.marker,
            "markersize": 4.6,
            "markerfacecolor": "white",
            "markeredgecolor": self.colour,
            "markeredgewidth": 1.0,
        }

    @property
    def bar_properties(self) -> dict[str, Any]:
        """How its bars are drawn."""
        face, edge = (self.colour, "white") if self.highlighted else ("white", self.colour)
        return {"facecolor": face, "edgecolor": edge, "hatch": self.hatch, "linewidth": 0.8}


_KNOWN = {
    "LSSKD": Style(_VERMILION, "o", _DASHES[0], _HATCHES[0]),
    "HSSAKD": Style(_BLUE, "v", _DASHES[1], _HATCHES[1]),
    "KD": Style("#4d4d4d", "^", _DASHES[2], _HATCHES[2]),
    "CRD": Style(_SKY, "s", _DASHES[3], _HATCHES[3]),
    "SSKD": Style(_BROWN, "D", _DASHES[4], _HATCHES[4]),
    "HSSAKD-teacher": Style(_PINK, "X", _MORE_DASHES[0], _HATCHES[5]),
}
_OTHERS = tuple(
    Style(colour, marker, line, hatch)
    for colour, marker, line, hatch in zip(
        (_ORANGE, _GREEN, "#222255", "#6b6b1f"), ("P", "p", "<", ">"), _MORE_DASHES[1:], _HATCHES[6:], strict=True
    )
)


def choose_styles(methods: Sequence[str], highlight: str | None = None) -> dict[str, Style]:
    """Choose a style for each method: its own where it has one, else the next of the others.

    Where there are more methods than others, these are used again in another colour.
    """
    others = [method for method in methods if method not in _KNOWN]
    styles = {}
    for method in methods:
        style = _KNOWN.get(method)
        if style is None:
            turn, place = divmod(others.index(method), len(_OTHERS))
            style = _OTHERS[place]
            if turn:
                style = dataclasses.replace(style, colour=_COLOURS[(place + 3 * turn) % len(_COLOURS)])
        styles[method] = dataclasses.replace(style, highlighted=method == highlight)
    return styles


@contextlib.contextmanager
def settings(name: str = "kd-benchmark") -> Iterator[None]:
    """Set matplotlib up for drawing and saving, whatever the user's settings are; these come back afterwards.

    name: of the drawing, from which the ids in its SVG file are derived, so that a page may hold several.
    """
    chosen = {
        # The backend is the caller's: it does not matter for a drawing that is saved and never shown.
        **{key: value for key, value in mpl.rcParamsDefault.items() if key != "backend"},
        **seaborn.axes_style("ticks"),
        "font.family": ["sans-serif"],
        # The first comes with matplotlib, so every machine draws the same; a browser takes the next that it has.
        "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
        "font.size": NORMAL,
        "axes.labelsize": NORMAL,
        "axes.linewidth": 0.7,
        "xtick.labelsize": NORMAL,
        "ytick.labelsize": NORMAL,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        "xtick.major.size": 3.0,
        "ytick.major.size": 3.0,
        "hatch.linewidth": 0.6,
        "text.parse_math": False,
        "text.usetex": False,
        "path.simplify": False,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "pdf.fonttype": 42,
        "savefig.bbox": None,
        "savefig.facecolor": "white",
    }
    with mpl.rc_context(chosen), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the Markdown file has it in full.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        yield


def shorten(text: str, limit: int = 200) -> str:
    """Reduce text to one line that is no longer than the limit."""
    line = plain(text)
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True)
class Page:
    """A drawing with empty axes by row and panel, the caption, and room for the lines of the legend."""

    drawing: Drawing
    axes: tuple[tuple[Axes, ...], ...]
    bottom: float
    """Inches from the lower edge up to where the legend begins."""

    def legend(self, line: int, name: str, entries: Sequence[tuple[Artist, str]]) -> None:
        """Draw one line of the legend, counted from 0: a name for the line, and its entries."""
        width, height = self.drawing.get_size_inches()
        y = (self.bottom - (line + 0.5) * LEGEND_LINE) / height
        indent = INDENT if name else 0.0
        if name:
            self.drawing.text(EDGE / width, y, name, fontsize=SMALL, color=GREY, va="center")
        self.drawing.legend(
            [handle for handle, _ in entries],
            # matplotlib leaves out labels that begin with an underscore.
            [
                f" {shorten(label, LONGEST)}" if label.startswith("_") else shorten(label, LONGEST)
                for _, label in entries
            ],
            loc="center left",
            bbox_to_anchor=((EDGE + indent) / width, y),
            ncols=len(entries),
            frameon=False,
            fontsize=7.5,
            handlelength=2.6,
            handletextpad=0.5,
            columnspacing=1.3,
            borderpad=0,
            borderaxespad=0,
        )


def split_legend(entries: Sequence[tuple[Artist, str]], panels: int, named: bool) -> list[list[tuple[Artist, str]]]:
    """Split the entries of a legend into lines that fit the page."""
    room = WIDTHS[min(panels, 2)] - EDGE - RIGHT - (INDENT if named else 0.0)
    lines: list[list[tuple[Artist, str]]] = [[]]
    used = 0.0
    for entry in entries:
        width = 0.48 + 0.066 * len(shorten(entry[1], LONGEST))
        if lines[-1] and used + width > room:
            lines.append([])
            used = 0.0
        lines[-1].append(entry)
        used += width
    return [line for line in lines if line]


def make_page(
    result: FigureResult, heights: Sequence[tuple[float, float]], legend_lines: int, sentences: Sequence[str]
) -> Page:
    """Make a page with the panels, two in a row, and a caption under the legend.

    heights: of the axes of a panel, which stand over one another, and of what is written under each, in inches;
    sentences: of the caption, after those on the origin of the numbers, on seeds and on gaps.
    """
    panels = len(result.panels)
    columns = min(panels, 2)
    width = WIDTHS[columns]
    told = filter(None, [result.statement, describe_seeds(result), describe_gaps(result), *sentences])
    caption = _wrap(shorten(" ".join(told), 2000), width - 2 * EDGE)
    under = legend_lines * LEGEND_LINE + 0.08 + len(caption) * LINE + 0.08
    bands = -(-panels // columns)
    band = HEADING + sum(map(sum, heights))
    whole = bands * band + under
    drawing = Drawing(figsize=(width, whole))
    breadth = compute_inner_width(result)
    axes = []
    for row, (height, _) in enumerate(heights):
        line, above = [], HEADING + sum(map(sum, heights[:row]))
        for number, panel in enumerate(result.panels):
            x = LEFT + (number % columns) * (breadth + BETWEEN)
            top = whole - (number // columns) * band - above
            ax = drawing.add_axes((x / width, (top - height) / whole, breadth / width, height / whole))
            seaborn.despine(ax=ax)
            ax.yaxis.grid(True, linewidth=0.5, color="0.9", zorder=0)
            ax.set_axisbelow(True)
            if not panel.reproduces:
                scale = result.scale if result.scale != "paper" else "no reproduction"
                watermark(ax, scale, f"watermark-{row + 1}-{number + 1}")
            if row == 0:
                _head(ax, panel, height)
            line.append(ax)
        axes.append(tuple(line))
    for place, text in enumerate(caption):
        y = under - legend_lines * LEGEND_LINE - 0.08 - (place + 0.5) * LINE
        drawing.text(EDGE / width, y / whole, text, fontsize=SMALL, color=GREY, va="center")
    return Page(drawing, tuple(axes), under)


def compute_inner_width(result: FigureResult) -> float:
    """Compute the width of the axes of one panel, in inches."""
    columns = min(len(result.panels), 2)
    return (WIDTHS[columns] - LEFT - RIGHT - (columns - 1) * BETWEEN) / columns


def _head(ax: Axes, panel: PanelResult, height: float) -> None:
    place: dict[str, Any] = {"transform": ax.transAxes, "ha": "left", "va": "baseline"}
    ax.text(0, 1 + 0.24 / height, shorten(panel.heading, 44), fontsize=LARGE, fontweight="bold", **place)
    ax.text(0, 1 + 0.1 / height, shorten(panel.subject, 58), fontsize=SMALL, color=GREY, **place)


def _wrap(text: str, inches: float) -> list[str]:
    """Break text in small print into as few lines as fit, the last not much shorter than the others."""
    most = int(inches / CHARACTER)
    least = len(textwrap.wrap(text, most))
    widths = (most * share // 20 for share in range(14, 21))
    return next(lines for width in widths if len(lines := textwrap.wrap(text, width)) == least)


def watermark(ax: Axes, text: str, gid: str) -> None:
    """Write a scale across axes that reproduce nothing, in front of bars and behind all that is written."""
    ax.text(
        *(0.5, 0.5, shorten(text, LONGEST)),
        transform=ax.transAxes,
        fontsize=30 if len(text) < 8 else 18,
        fontweight="bold",
        color="black",
        alpha=0.13,
        rotation=20,
        ha="center",
        va="center",
        zorder=2.2,
        gid=gid,
    )


def describe_seeds(result: FigureResult) -> str:
    """Say how many seeds stand behind the values; "" if there are none."""
    counts = result.seeds
    if not counts:
        return ""
    if counts == (1,):
        return "n=1 seed, so no error bars."
    alone = "; none where n=1" if counts[0] == 1 else ""
    return f"Mean over n={format_range(counts)} seeds; error bars: standard deviation over seeds{alone}."


def describe_gaps(result: FigureResult) -> str:
    """Say how many points are missing; "" if none is."""
    missing = any(cell.status not in ("done", *NEVER) for cell in result.cells)
    failed = any(cell.status == "failed" for cell in result.cells)
    text = result.counts[:1].upper() + result.counts[1:] if missing and result.has_values() else ""
    return f"{text} \N{MULTIPLICATION SIGN}: failed." if failed else text


def make_failure_marker(style: Style) -> dict[str, Any]:
    """Make the marker of a point that failed, which stands on the axis."""
    return {"marker": "x", "color": style.colour, "markersize": 6, "markeredgewidth": 1.6, "zorder": 6}
