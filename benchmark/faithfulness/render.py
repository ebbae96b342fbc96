"""Writes the comparisons of students with their teachers: on a terminal, as JSON, as CSV, and as a drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as ScreenTable
from rich.text import Text

from benchmark.core.text import format_range, format_signed
from benchmark.faithfulness.collecting import FaithfulnessReport, Setting, Summary, summarise_by_setting
from benchmark.faithfulness.comparing import SHOWN_CLASSES, ClassChange
from benchmark.io.files import write_text
from figures.render import import_matplotlib, make_metadata, save_drawing
from tables.escaping import format_csv
from tables.specification import OWN_METHOD

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from figures.style import Style

STEM = "faithfulness"
HEADINGS = (
    "n",
    "top-1,\n%",
    "agreement,\n%",
    "over\nBaseline",
    "KL,\nnats",
    "errors re-\npeated, %",
    "errors cor-\nrected, %",
)
LEGEND = "filled: taught by\nthis teacher; hollow:\nnever met it"
CAPTION = (
    "How often student and teacher predict the same class of a test image, over the student's accuracy. Filled: taught "
    "by this teacher; hollow: controls that never met it. A more accurate student agrees more with any teacher that is "
    "right, so compare methods of equal accuracy, or with Baseline."
)


def describe_setting(setting: Setting) -> str:
    """Describe what the runs of one list share: `ResNet56>ResNet20 on cifar100, scale quick, 12 epochs`."""
    pair, dataset, scale, _, fraction, epochs = setting
    part = "" if fraction == 1 else f", {fraction:.0%} of the images"
    return f"{pair} on {dataset}, scale {scale}, {epochs} epochs{part}"


def describe_classes(changes: Sequence[ClassChange]) -> str:
    """Name the classes that changed most: `3 +12.0, 41 +9.0`."""
    return ", ".join(f"{change.label} {format_signed(change.points, 1)}" for change in changes[:SHOWN_CLASSES])


def format_share(value: float | None) -> str:
    """Format a share in % with one decimal; empty for none."""
    return "" if value is None else f"{value:.1f}"


def write_faithfulness(report: FaithfulnessReport, folder: Path) -> list[Path]:
    """Write `faithfulness.json`, `.csv`, `.png`, `.pdf` and `.svg`; returns where they are.

    Raises:
        UserError: the folder cannot be written.
    """
    paths = [folder / f"{STEM}.{ending}" for ending in ("json", "csv")]
    write_text(paths[0], report.model_dump_json(indent=1) + "\n")
    write_text(paths[1], to_csv(report))
    summaries = summarise_by_setting(report.compared)
    return paths + save_drawing(folder, STEM, lambda: draw(summaries), make_metadata("Faithfulness", CAPTION))


def to_csv(report: FaithfulnessReport) -> str:
    """A line for each student and teacher."""
    names = ("run", "pair", "method", "taught", "dataset", "scale", "epochs", "fraction", "seed", "images")
    return format_csv([{name: getattr(each, name) for name in names} | dict(each.found) for each in report.compared])


def print_faithfulness(report: FaithfulnessReport, console: Console) -> None:
    """Print a table for each pair and setting."""
    for setting, lines in summarise_by_setting(report.compared).items():
        console.print(Text(describe_setting(setting), style="bold"), soft_wrap=True)
        screen = ScreenTable(box=None, pad_edge=False)
        screen.add_column("method", overflow="fold")
        for heading in HEADINGS:
            screen.add_column(heading, justify="right")
        for line in lines:
            found = line.found
            screen.add_row(
                Text(line.first.method if line.first.taught else f"({line.first.method})"),
                str(line.seeds),
                f"{found.top1:.2f}",
                f"{found.agreement:.1f}",
                "" if line.above_baseline is None else format_signed(line.above_baseline, 1),
                f"{found.kl:.3f}",
                format_share(found.repeated),
                format_share(found.corrected),
            )
        console.print(screen)
        for line in lines:
            if line.first.method == OWN_METHOD and line.gained:
                points = 100 * line.first.classes / line.first.images
                console.print(
                    Text(
                        f"{OWN_METHOD} against Baseline, classes that gained most: {describe_classes(line.gained)}; "
                        f"that lost most: {describe_classes(line.lost)} (points; one image is {points:.2g})"
                    ),
                    soft_wrap=True,
                )
        if any(not line.first.taught for line in lines):
            console.print(Text("(method): a control that never met this teacher"), soft_wrap=True)
    for reason in report.left_out:
        console.print(Text(f"left out: {reason}", style="yellow"), soft_wrap=True)


def draw(summaries: dict[Setting, list[Summary]]) -> Figure:
    """The drawing, a panel for each pair and setting; call it within `figures.style.settings`."""
    with import_matplotlib():
        from matplotlib.figure import Figure

        from figures.style import SMALL, choose_styles

    shown = list(summaries.items())
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    drawing = Figure(figsize=(4.8 if columns == 1 else 7.0, 2.9 * rows + 0.2), layout="constrained")
    styles = choose_styles(sorted({line.first.method for _, lines in shown for line in lines}), OWN_METHOD)
    for number, (setting, lines) in enumerate(shown):
        _draw_panel(drawing.add_subplot(rows, columns, number + 1), setting, lines, styles)
    entries: dict[str, Artist] = {}
    for ax in drawing.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    drawing.legend(
        handles=[*entries.values()],
        labels=[*entries],
        loc="outside right upper",
        frameon=False,
        fontsize=SMALL,
        title=LEGEND,
        title_fontsize=SMALL,
    )
    return drawing


def _draw_panel(ax: Axes, setting: Setting, lines: Sequence[Summary], styles: Mapping[str, Style]) -> None:
    from figures.style import NORMAL, SMALL, shorten, watermark

    for line in sorted(lines, key=lambda line: line.first.method):
        style = styles[line.first.method]
        ax.plot(
            [line.found.top1],
            [line.found.agreement],
            linestyle="none",
            marker=style.marker,
            markersize=style.line_properties["markersize"] + 1.5,
            color=style.colour,
            markerfacecolor=style.colour if line.first.taught else "white",
            label=shorten(line.first.method, 24),
            zorder=style.level,
        )
    pair, dataset, scale, _, fraction, epochs = setting
    part = "" if fraction == 1 else f"{fraction:.0%} of the images, "
    n = f"n={format_range([line.seeds for line in lines])}"
    ax.set_title(shorten(pair, 44), fontsize=NORMAL, fontweight="bold", loc="left")
    ax.set_xlabel(f"top-1, % ({dataset}, {part}{epochs} epochs, {n})", fontsize=SMALL)
    ax.set_ylabel("agreement with the teacher, %", fontsize=SMALL)
    ax.margins(0.12)
    ax.grid(True, linewidth=0.5, color="0.9", zorder=0)
    ax.spines[["top", "right"]].set_visible(False)
    if scale != "paper":
        watermark(ax, scale, f"watermark-{STEM}")
