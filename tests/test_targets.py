"""What a command plans and renders, also where something is missing or cannot be written."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmark.core.errors import UserError
from benchmark.data.dataset import Dataset
from benchmark.planning.request import RunOptions
from benchmark.planning.tables import plan_table
from benchmark.results.store import Store
from benchmark.targets import FigureTarget, TableTarget
from figures.specification import load_figure
from tables.specification import Column, Row, Table
from tests import engine


def test_a_table_is_printed_also_where_its_files_cannot_be_written(tmp_path: Path) -> None:
    table = Table(
        name="t",
        caption="A caption.",
        dataset="digits",
        columns=(Column(student="ResNet20"),),
        rows=(Row(method="Baseline"),),
    )
    request = engine.request()
    (tmp_path / "reports").write_text("a file where the folder should be")
    target = TableTarget(plan_table(table, request, [0]), request, groups=[])
    console = Console(file=io.StringIO(), width=80)
    with pytest.raises(UserError, match="choose another folder"):
        target.render(Store(tmp_path / "runs"), {}, tmp_path / "reports", console)
    assert "A caption." in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_figure_whose_data_is_there_for_one_panel_only_says_how_to_draw_that_one() -> None:
    def load(source: str, what: str) -> Dataset:
        if source == "tiny-imagenet":
            raise UserError("no Tiny-ImageNet in data; get it")
        return engine.digits()

    figure, wish = load_figure("5").at("quick"), RunOptions("quick", torch.device("cpu"), methods=("Baseline",))
    with pytest.raises(UserError, match=r"; get it; or leave this panel out: --pairs CIFAR-100$"):
        FigureTarget.plan(figure, wish, load)
    drawn = FigureTarget.plan(figure, dataclasses.replace(wish, pairs=("CIFAR-100",)), load)
    assert list(drawn.points) == ["CIFAR-100"]
    with pytest.raises(UserError, match=r"^no Tiny-ImageNet in data; get it$"):
        FigureTarget.plan(figure, dataclasses.replace(wish, pairs=("Tiny-ImageNet",)), load)
