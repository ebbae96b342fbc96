"""Drawings that everybody can read: in grey, in small, with nothing over anything else."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Drawing
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from benchmark.analysis.figures import empty_result
from figures import few_shot, stages
from figures.result import FigureResult
from figures.specification import load_figure
from figures.style import SMALL, choose_styles, settings
from tests import made_up_figures as made_up

MANY = ("KD", "CRD", "SSKD", "HSSAKD", "LSSKD", "HSSAKD-teacher", "PS-KD", "SemCKD", "Logits", "A")
RESULTS = {
    "two panels": made_up.few_shot(),
    "one panel": made_up.few_shot("demo", 1),
    "many methods": made_up.few_shot("quick", 2, methods=(*MANY, "a name that is much too long for a legend")),
    "stages": made_up.stages(),
    "three methods": made_up.stages("demo", 1, methods=("HSSAKD", "LSSKD", "HSSAKD-teacher")),
    "nothing": empty_result(load_figure("5")),
}


def luminance(colour: str) -> float:
    """What a grey printer makes of a colour: its luma, 0..1 (ITU-R BT.601)."""
    red, green, blue = to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def drawn(result: FigureResult) -> Drawing:
    with settings():
        drawing = (few_shot if result.figure.kind == "few-shot" else stages).draw(result)
        drawing.draw_without_rendering()
    return drawing


@pytest.fixture(scope="module")
def drawings() -> dict[str, Drawing]:
    return {name: drawn(result) for name, result in RESULTS.items()}


def test_no_two_methods_share_marker_line_or_hatch_so_grey_tells_them_apart() -> None:
    styles = choose_styles(MANY, "LSSKD")
    for look in ("marker", "line", "hatch", "colour"):
        assert len({getattr(style, look) for style in styles.values()}) == len(MANY), look
    triples = {(round(luminance(style.colour), 2), style.marker, style.line) for style in styles.values()}
    assert len(triples) == len(MANY)


def test_the_colours_of_figure_5_differ_to_every_eye() -> None:
    """Machado, Oliveira and Fernandes (2009): what is left of colours without one of the three cones."""
    cones = {
        "protanopia": (
            (0.152286, 1.052583, -0.204868),
            (0.114503, 0.786281, 0.099216),
            (-0.003882, -0.048116, 1.051998),
        ),
        "deuteranopia": (
            (0.367322, 0.860646, -0.227968),
            (0.280085, 0.672501, 0.047413),
            (-0.01182, 0.04294, 0.968881),
        ),
        "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
    }
    styles = choose_styles(load_figure("5").methods).values()
    for name, matrix in cones.items():
        light = [[linear(value) for value in to_rgb(style.colour)] for style in styles]
        seen = [
            [screen(sum(weight * value for weight, value in zip(row, one, strict=True))) for row in matrix]
            for one in light
        ]
        assert min(math.dist(*pair) for pair in itertools.combinations(seen, 2)) > 0.3, name


def linear(value: float) -> float:
    """Light of an sRGB value, both 0..1 (IEC 61966-2-1)."""
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def screen(light: float) -> float:
    """The sRGB value of light, which is clipped to 0..1."""
    light = min(1.0, max(0.0, light))
    return light * 12.92 if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


def test_a_method_looks_the_same_whatever_else_is_shown() -> None:
    alone, among = choose_styles(("KD",)), choose_styles(MANY)
    assert alone["KD"] == among["KD"]


def test_the_highlighted_method_stands_out() -> None:
    styles = choose_styles(("KD", "LSSKD"), "LSSKD")
    assert styles["LSSKD"].width > styles["KD"].width
    assert styles["LSSKD"].level > styles["KD"].level
    assert choose_styles(("KD", "LSSKD"))["LSSKD"].width == styles["KD"].width


def test_more_methods_than_shapes_still_have_a_style_each() -> None:
    names = [f"method {number}" for number in range(40)]
    assert len(choose_styles(names)) == 40


def texts(drawing: Drawing) -> Iterator[Text]:
    """What is written in a drawing and can be seen."""
    for text in drawing.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            yield text


@pytest.mark.parametrize("name", list(RESULTS))
def test_all_text_is_large_enough_and_within_the_page(drawings: dict[str, Drawing], name: str) -> None:
    drawing = drawings[name]
    page = drawing.bbox
    for text in texts(drawing):
        assert text.get_fontsize() >= SMALL >= 7, text.get_text()
        box = text.get_window_extent()
        assert page.x0 <= box.x0, text.get_text()
        assert box.x1 <= page.x1, text.get_text()
        assert page.y0 <= box.y0, text.get_text()
        assert box.y1 <= page.y1, text.get_text()


@pytest.mark.parametrize("name", list(RESULTS))
def test_nothing_is_written_over_anything_else(drawings: dict[str, Drawing], name: str) -> None:
    drawing = drawings[name]
    written = [text for text in texts(drawing) if not str(text.get_gid()).startswith("watermark")]
    boxes = [(text.get_text(), text.get_window_extent()) for text in written]
    boxes += [("an entry's line", handle.get_window_extent()) for one in drawing.legends for handle in handles(one)]
    for (first, one), (second, other) in itertools.combinations(boxes, 2):
        overlap = Bbox.intersection(one, other)
        # Bold and plain numbers over neighbouring bars may touch by a hair.
        assert overlap is None or min(overlap.width, overlap.height) < 0.6, f"{first!r} over {second!r}"


def handles(legend: object) -> list:  # type: ignore[type-arg]
    return [handle for handle in legend.legend_handles if handle.get_window_extent().width > 0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", list(RESULTS))
def test_legends_cover_no_data(drawings: dict[str, Drawing], name: str) -> None:
    drawing = drawings[name]
    for legend in drawing.legends:
        for ax in drawing.axes:
            assert Bbox.intersection(legend.get_window_extent(), ax.get_window_extent()) is None


def test_bars_start_at_zero_and_lines_span_ten_points_at_least() -> None:
    for ax in drawn(made_up.stages()).axes:
        assert ax.get_ylim()[0] == 0
    flat = made_up.few_shot("demo", 1)
    same = {key: made_up.cell_of(key[0], [{"top1": 97.3}]) for key in flat.panels[0].cells}
    panel = dataclasses.replace(flat.panels[0], cells=same)
    (ax,) = drawn(dataclasses.replace(flat, panels=(panel,))).axes
    low, high = ax.get_ylim()
    assert high - low >= 10
    assert low < 97.3 < high <= 101


def test_every_measured_point_stands_at_its_value_within_the_axes() -> None:
    result = made_up.few_shot()
    for ax, panel in zip(drawn(result).axes, result.panels, strict=True):
        low, high = ax.get_ylim()
        heights = sorted(float(y) for line in ax.lines if line.get_linewidth() > 1 for y in line.get_ydata())
        for cell in panel.cells.values():
            mean = sum(cell.values) / len(cell.values)
            assert low <= mean <= high
            assert any(abs(mean - height) < 1e-9 for height in heights)


def test_a_missing_point_breaks_the_line() -> None:
    result = made_up.with_cell(made_up.few_shot(), 0, ("LSSKD", 0.5), None)
    ax = drawn(result).axes[0]
    (line,) = (line for line in ax.lines if line.get_linewidth() == choose_styles(("LSSKD",), "LSSKD")["LSSKD"].width)
    assert [math.isnan(y) for y in line.get_ydata()] == [False, True, False, False]
