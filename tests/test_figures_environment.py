"""Drawings are the same bytes in every environment, and what an environment breaks is known before training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.core.errors import UserError
from figures.render import check_drawing, write_figure
from tests import made_up_figures as made_up

NOTEBOOK_BACKEND = "module://a_notebook_that_is_not_installed.backend_inline"
MATPLOTLIBRC = """
backend: module://nowhere.at_all
text.usetex: True
font.family: No Such Font
font.size: 30
savefig.bbox: tight
savefig.dpi: 33
figure.dpi: 33
path.sketch: 1, 100, 2
lines.dash_capstyle: projecting
svg.fonttype: path
"""
WRITE_FIGURES = """
import sys
from pathlib import Path
from figures.render import check_drawing, write_figure
from tests import made_up_figures as made_up
check_drawing()
for result in (made_up.few_shot("demo", 1), made_up.stages("demo", 1)):
    write_figure(result, Path(sys.argv[1]))
"""
# Notebooks have imported and configured matplotlib before they import anything of the suite.
WITH_MATPLOTLIB_IN_USE = "import matplotlib, os; matplotlib.rc_file(os.environ['MATPLOTLIBRC'])\n"


@pytest.fixture(scope="module")
def drawn_here(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of two figures, drawn in this process."""
    folder = tmp_path_factory.mktemp("here")
    results = (made_up.few_shot("demo", 1), made_up.stages("demo", 1))
    return [path for result in results for path in write_figure(result, folder)]


@pytest.mark.parametrize("already_in_use", [False, True], ids=["fresh process", "matplotlib in use"])
def test_no_setting_of_the_environment_changes_a_byte(
    tmp_path: Path, drawn_here: list[Path], already_in_use: bool
) -> None:
    (tmp_path / "matplotlibrc").write_text(MATPLOTLIBRC)
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "LC_ALL": "C"}
    environment |= {"SOURCE_DATE_EPOCH": "12345"}
    if not already_in_use:
        environment["MPLBACKEND"] = NOTEBOOK_BACKEND
    code = (WITH_MATPLOTLIB_IN_USE if already_in_use else "") + WRITE_FIGURES
    done = subprocess.run(
        [sys.executable, "-c", code, "there"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for path in drawn_here:
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes(), path.name


def test_importing_the_drawing_library_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", NOTEBOOK_BACKEND)
    monkeypatch.delenv("MATPLOTLIBRC", raising=False)
    check_drawing()
    assert os.environ["MPLBACKEND"] == NOTEBOOK_BACKEND
    assert "MATPLOTLIBRC" not in os.environ


def test_a_drawing_library_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no writable\nfolder for fonts")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(UserError, match=r"^figures cannot be drawn here \(OSError: no writable folder for fonts\); "):
        check_drawing()


def test_a_figure_tries_the_drawing_library_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from benchmark import run, targets

    def fail() -> None:
        raise UserError("figures cannot be drawn here")

    monkeypatch.setattr(run, "check_drawing", fail)
    monkeypatch.setattr(run.Store, "__init__", lambda *_: pytest.fail("training began"))
    target = targets.FigureTarget(made_up.few_shot("demo", 1).figure, {}, ())
    with pytest.raises(UserError, match="cannot be drawn"):
        run.train_and_render(None, [target], None, None, tmp_path, None)  # type: ignore[arg-type]
