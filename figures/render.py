"""A figure's files: PNG, PDF and SVG of the drawing, and its numbers as CSV and Markdown."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.core.errors import UserError
from benchmark.io.files import replacing, write_text
from figures.result import FigureResult
from figures.text import to_csv, to_markdown
from tables.escaping import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["DPI", "check_drawing", "make_metadata", "save_drawing", "to_csv", "to_markdown", "write_figure"]

DPI = 200
FORMATS = ("png", "pdf", "svg")


def write_figure(result: FigureResult, folder: Path) -> list[Path]:
    """Write `figure_<name>_<scale>` as `.png`, `.pdf`, `.svg`, `.csv` and `.md`, each whole or not at all.

    The same result gives the same bytes. Returns where the files are, in this order.

    Raises:
        UserError: the folder cannot be written.
    """
    with import_matplotlib():
        from figures import few_shot, stages

    draw = few_shot.draw if result.figure.kind == "few-shot" else stages.draw
    title = f"Figure {result.figure.name}, scale {result.scale}"
    metadata = make_metadata(title, f"{result.figure.caption} {result.statement}")
    paths = save_drawing(folder, result.stem, lambda: draw(result), metadata)
    for ending, text in (("csv", to_csv(result)), ("md", to_markdown(result))):
        paths.append(folder / f"{result.stem}.{ending}")
        write_text(paths[-1], text)
    return paths


def save_drawing(
    folder: Path, stem: str, draw: Callable[[], Drawing], metadata: Mapping[str, dict[str, Any]]
) -> list[Path]:
    """Draw with the suite's own settings and write the drawing in every format that `metadata` has an entry for.

    Raises:
        UserError: the folder cannot be written.
    """
    with import_matplotlib():
        from figures.style import settings

    paths = []
    with settings(stem):
        drawing = draw()
        for ending, entries in metadata.items():
            paths.append(folder / f"{stem}.{ending}")
            with replacing(paths[-1]) as file:
                drawing.savefig(file.temporary, format=ending, dpi=DPI, metadata=entries)
    return paths


def check_drawing() -> None:
    """Import the drawing library and draw something small in every format, to find out before hours of training.

    Raises:
        UserError: that fails.
    """
    try:
        with import_matplotlib():
            from matplotlib.figure import Figure as Drawing

            from figures.style import settings

        with settings():
            drawing = Drawing(figsize=(1, 1))
            drawing.text(0.5, 0.5, "0.5")
            for ending in FORMATS:
                drawing.savefig(io.BytesIO(), format=ending)
    except Exception as error:  # whatever matplotlib, a font or the system's folders may raise
        reason = plain(f"{type(error).__name__}: {error}")[:300]
        raise UserError(
            f"figures cannot be drawn here ({reason}); check the installation of matplotlib and its folder MPLCONFIGDIR"
        ) from error


@contextlib.contextmanager
def import_matplotlib() -> Iterator[None]:
    """Import matplotlib within this, so that neither MPLBACKEND nor the user's matplotlibrc has a say.

    A notebook's shell exports a backend that other environments lack, and importing matplotlib fails for that.
    (Seaborn takes seconds to import, so everything here that draws is imported only when something is drawn.)
    """
    changed = {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def make_metadata(title: str, caption: str) -> dict[str, dict[str, Any]]:
    """Make what each file says of itself, by ending: title and caption, and no date, so that bytes do not change."""
    caption = plain(caption)
    return {
        "png": {"Title": title, "Description": caption, "Software": None},
        "pdf": {"Title": title, "Subject": caption, "CreationDate": None, "Creator": None, "Producer": None},
        "svg": {"Title": title, "Description": caption, "Date": None, "Creator": None},
    }
