"""What was measured for a table, as the renderers need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tables.schema import choose_for_scale
from tables.specification import TEACHER, Row, Table

Status = Literal[
    "done", "partial", "failed", "not run yet", "runs when named", "not in the suite", "no teacher", "no dataset"
]
ABSENT: tuple[Status, ...] = ("not in the suite", "runs when named")
"""Statuses of cells that can only show what others printed."""
NEVER: tuple[Status, ...] = (*ABSENT, "no teacher", "no dataset")
"""Statuses of cells that no run will fill, unless its method is named."""


@dataclass(frozen=True)
class Price:
    """What one run cost, or several on average; None where a record does not tell.

    multiply_adds: of training it, its teacher's forwards included; teacher_multiply_adds: of training all that it
    depends on (teacher, head, first stage), which other runs may share;
    seconds, teacher_seconds: device time of the same two; epochs: of the run;
    parameters, parameters_in_training: of the student alone, and of all that learnt;
    inference_multiply_adds: of the student for an image; peak_memory_bytes: of the process that trained it.
    """

    multiply_adds: float | None
    teacher_multiply_adds: float | None
    seconds: float | None
    teacher_seconds: float | None
    epochs: float | None
    parameters: float | None
    parameters_in_training: float | None
    inference_multiply_adds: float | None
    peak_memory_bytes: float | None

    @property
    def total_multiply_adds(self) -> float | None:
        """Of training it and all that it depends on."""
        return _add(self.multiply_adds, self.teacher_multiply_adds)

    @property
    def total_seconds(self) -> float | None:
        """Device time of the same."""
        return _add(self.seconds, self.teacher_seconds)

    @property
    def seconds_per_epoch(self) -> float | None:
        """Device time of an epoch of the run alone."""
        return self.seconds / self.epochs if self.seconds is not None and self.epochs else None


def _add(own: float | None, teacher: float | None) -> float | None:
    return None if own is None or teacher is None else own + teacher


@dataclass(frozen=True)
class Seed:
    """One finished run of a cell, with the metrics of its last epoch (`top1`, `top5`, `nll`, `ece`, `stages`, ...)."""

    seed: int
    run: str
    metrics: Mapping[str, Any]
    price: Price
    precision: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table, and what stands behind its number.

    values: accuracy in % after the last epoch, one for each finished seed;
    best: the same at the epoch that was best on the test set, shown apart, never mixed;
    notes: what a reader must know, shown as footnotes ("failed at epoch 3, step 17: loss not finite");
    seeds: how many were asked for, if known; finished: the runs behind the values, in the same order;
    metric: which of their metrics the values are.
    """

    row: str
    column: str
    values: tuple[float, ...]
    status: Status
    best: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    seeds: int | None = None
    finished: tuple[Seed, ...] = ()
    metric: str = "top1"

    def by_seed(self) -> dict[int, float]:
        """Collect the values by seed, for paired differences."""
        return {run.seed: float(run.metrics[self.metric]) for run in self.finished}


def describe_comparison(scale: str, on: str, epochs: str, reproduces: bool, printed: bool) -> str:
    """Say in one line where numbers come from, and whether they may be compared with the paper's.

    on: the dataset or datasets; epochs: how many; printed: whether the paper has numbers to compare them with.
    """
    origin = f"scale {scale}, on {on}, after {epochs} {'epoch' if epochs == '1' else 'epochs'}"
    if reproduces:
        return f"Measured at {origin}."
    against = "are not comparable with the paper's" if printed else "are no results of the full protocol"
    return f"These numbers are from {origin}, and {against}."


@dataclass(frozen=True)
class TableResult:
    """The cells of a table at one scale.

    cells: by row and column name; a missing one counts as not run yet. teachers: by column name; protocol: its name;
    epochs: of the main schedule at this scale; generated_from: the version and commit that rendered it;
    variant: a short name of what makes the runs unusual, for files, "" for nothing;
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
    protocol: str = "lsskd"
    variant: str = ""

    @property
    def reproduces(self) -> bool:
        """Whether the numbers may be set against the printed ones: the whole protocol, on the paper's dataset."""
        intended = choose_for_scale(self.table.dataset, "paper") or self.dataset
        # A dataset file says its own name only when it is read, so a path cannot be compared with it.
        same_dataset = intended.endswith(".toml") or intended == self.dataset
        return self.comparable and self.scale == "paper" and same_dataset

    @property
    def statement(self) -> str:
        """In one line: where the numbers come from, and whether they may be compared with the paper's."""
        printed = any(row.printed or row.published for row in self.table.rows)
        return describe_comparison(self.scale, f"dataset {self.dataset}", self.epochs, self.reproduces, printed)

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of the table, that of the teachers first where a column has one."""
        teachers = Row(method=TEACHER, published=self.table.teachers)
        return (*([teachers] if any(column.teacher for column in self.table.columns) else []), *self.table.rows)

    def cell(self, row: str, column: str) -> Cell:
        """Get the cell of a row, or of the teachers, in a column."""
        found = self.teachers.get(column) if row == TEACHER else self.cells.get((row, column))
        return found or Cell(row, column, (), "not run yet")

    @property
    def stem(self) -> str:
        """What its files are called, so that another scale, dataset or protocol overwrites nothing."""
        parts = ["table", self.table.name, self.scale]
        base = self.scale.partition("-")[0]
        usual = choose_for_scale(self.table.dataset, base)
        if usual != self.dataset and not (usual or "").endswith(".toml"):
            parts.append(self.dataset)
        if self.protocol != self.table.protocol_for(base):
            parts.append(self.protocol)
        return "_".join([*parts, *filter(None, [self.variant])])
