"""What a command renders, also where it cannot write."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmark.errors import UserError
from benchmark.grid import grid_of
from benchmark.results import Store
from benchmark.targets import TableTarget
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
    target = TableTarget(grid_of(table, request, [0]), request, part=None)  # type: ignore[arg-type]
    console = Console(file=io.StringIO(), width=80)
    with pytest.raises(UserError, match="choose another folder"):
        target.render(Store(tmp_path / "runs"), {}, tmp_path / "reports", console)
    assert "A caption." in console.file.getvalue()  # type: ignore[attr-defined]
