"""A figure's files: PNG, PDF and SVG of the drawing, and its numbers as CSV and Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmark.io.files import replacing, write_text
from figures.result import FigureResult
from figures.text import to_csv, to_markdown
from tables.escaping import plain

__all__ = ["DPI", "to_csv", "to_markdown", "write_figure"]

DPI = 200


def write_figure(result: FigureResult, folder: Path) -> list[Path]:
    """Write `figure_<name>_<scale>` as `.png`, `.pdf`, `.svg`, `.csv` and `.md`, each whole or not at all.

    The same result gives the same bytes. Returns where the files are, in this order.

    Raises:
        UserError: the folder cannot be written.
    """
    # seaborn takes seconds to import; most commands of the suite, and all of its workers, draw nothing.
    from figures import few_shot, stages
    from figures.style import settings

    paths = []
    with settings(result.stem):
        drawing = (few_shot if result.figure.kind == "few-shot" else stages).draw(result)
        for ending, metadata in _metadata(result).items():
            paths.append(folder / f"{result.stem}.{ending}")
            with replacing(paths[-1]) as file:
                drawing.savefig(file.temporary, format=ending, dpi=DPI, metadata=metadata)
    for ending, text in (("csv", to_csv(result)), ("md", to_markdown(result))):
        paths.append(folder / f"{result.stem}.{ending}")
        write_text(paths[-1], text)
    return paths


def _metadata(result: FigureResult) -> dict[str, dict[str, Any]]:
    """By ending, what a file says of itself: its title and caption, and no date, which would make each time another."""
    title = f"Figure {result.figure.name}, scale {result.scale}"
    said = plain(f"{result.figure.caption} {result.statement}")
    return {
        "png": {"Title": title, "Description": said, "Software": None},
        "pdf": {"Title": title, "Subject": said, "CreationDate": None, "Creator": None, "Producer": None},
        "svg": {"Title": title, "Description": said, "Date": None, "Creator": None},
    }
