"""What was measured for a table, as the renderers take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tables.specification import Table

Status = Literal["done", "partial", "failed", "not run yet", "not in the suite", "no teacher"]


@dataclass(frozen=True)
class Cell:
    """What stands behind one number of a table.

    values: accuracy in % after the last epoch, one for each finished seed;
    best: the same at the epoch that was best on the test set, shown apart, never mixed;
    notes: what a reader must know, shown as footnotes ("failed at epoch 3, step 17: loss not finite");
    seeds: how many were asked for, if known.
    """

    row: str
    column: str
    values: tuple[float, ...]
    status: Status
    best: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    seeds: int | None = None


@dataclass(frozen=True)
class TableResult:
    """The cells of a table at one scale.

    cells: by row and column name; a missing one counts as not run yet. teachers: by network;
    epochs: of the main schedule at this scale; generated_from: the version and commit that rendered it;
    comparable: whether the runs follow the paper's protocol in full; remarks: what else differs from the default.
    """

    table: Table
    scale: str
    epochs: str
    dataset: str
    cells: Mapping[tuple[str, str], Cell]
    teachers: Mapping[str, Cell]
    generated_from: str
    comparable: bool
    remarks: tuple[str, ...] = ()

    @property
    def reproduces(self) -> bool:
        """Whether the numbers may be set against the printed ones: the whole protocol, on the paper's dataset."""
        datasets = self.table.dataset
        intended = datasets if isinstance(datasets, str) else datasets.get("paper", self.dataset)
        # A dataset file says its own name only when it is read, so a path cannot be compared with it.
        same_dataset = intended.endswith(".toml") or intended == self.dataset
        return self.comparable and self.scale == "paper" and same_dataset

    def cell(self, row: str, column: str) -> Cell:
        """The cell of a row and a column."""
        return self.cells.get((row, column)) or Cell(row, column, (), "not run yet")

    def teacher(self, network: str) -> Cell:
        """The cell of a teacher."""
        return self.teachers.get(network) or Cell("Teacher", network, (), "not run yet")
