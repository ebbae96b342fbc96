"""What a table compares: its columns, rows, caption and printed numbers, read from a TOML file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from benchmark.core.errors import UserError
from benchmark.core.models import FrozenModel
from benchmark.core.protocols import PROBES, base_scale
from benchmark.core.spec import Augmentation
from tables.literature import Literature, load_literature
from tables.schema import (
    Datasets,
    Name,
    Protocols,
    check_count,
    check_file_name,
    check_once,
    check_scales,
    choose_for_scale,
    list_names,
    load_by_name,
)
from tables.tiers import Epoch, Tier

FOLDER = Path(__file__).parent
EXAMPLE = "tables/table_II.toml"
TEACHER, BASELINE, OWN_METHOD = "Teacher", "Baseline", "LSSKD"
"""The row of the teachers, the one that gains are over, and the method of the paper that is examined."""
DEFAULT_PROTOCOL = "lsskd"


def _percentage(value: float) -> float:
    if not (math.isnan(value) or 0 <= value <= 100):
        raise ValueError("allowed: 0 to 100, or nan where there is no number")
    return value


Metric = Literal["top1", "top5"]
Percentages = tuple[Annotated[float, Field(strict=True), AfterValidator(_percentage)], ...]


class Networks(FrozenModel):
    """A pair of networks, or a student without a teacher."""

    student: Name
    teacher: Name | None = None

    @property
    def pair(self) -> str:
        """The networks as people write them."""
        return f"{self.teacher}>{self.student}" if self.teacher else self.student


class ScaledNetworks(Networks):
    """The networks of a column or a panel; `at_scale` has other networks at some scales."""

    at_scale: Annotated[dict[Name, Networks], AfterValidator(check_scales)] = Field(default={})

    def at(self, scale: str) -> Self:
        """Replace its networks by those of a scale."""
        networks = self.at_scale.get(scale, self)
        return self.model_copy(update={"student": networks.student, "teacher": networks.teacher})


class Probing(FrozenModel):
    """How the students of a column are probed: on which dataset (or one for each scale), and by which protocol."""

    dataset: Datasets
    protocol: Name = "probe-lbfgs"

    @field_validator("protocol")
    @classmethod
    def _check_protocol(cls, value: str) -> str:
        if value not in PROBES:
            raise ValueError(f"unknown protocol {value!r}; allowed: {', '.join(PROBES)}")
        return value

    def source_at(self, scale: str) -> str | None:
        """Choose the dataset at a scale or one stretched from it, by its name or file; None if there is none."""
        return choose_for_scale(self.dataset, base_scale(scale))


class Column(ScaledNetworks):
    """A column of a table.

    metric: what of its runs the column shows; two columns of one pair share their runs; probe: the column shows what a
    new classifier reaches on the features of its students, on another dataset.
    """

    title: Name | None = None
    metric: Metric = "top1"
    probe: Probing | None = None

    def tested_on(self, scale: str) -> str | None:
        """Name the dataset on which its students are probed at a scale; None where they are not probed."""
        source = self.probe.source_at(scale) if self.probe else None
        return Path(source).stem if source else None

    @property
    def name(self) -> str:
        """The title, or else the pair."""
        return self.title or self.pair

    @property
    def heading(self) -> tuple[str, str]:
        """The name in two lines, broken before the student; the upper one empty where one is enough."""
        teacher, arrow, student = self.name.partition(">")
        return (teacher, f">{student}") if arrow else ("", self.name)


class Published(FrozenModel):
    """Numbers from elsewhere than the table's own paper, one for each column (nan: none), in %.

    printed: whether the table's own paper prints them too (for teachers, which are no rows); runs, epoch: how many are
    behind a number and which epoch it is of, None where the source does not say; lineage: whose teachers they had;
    baseline: the lineage's student without distillation; note: a remark on the numbers.
    """

    source: Name
    printed: bool = False
    mean: Percentages
    std: Percentages = ()
    runs: int | None = Field(None, ge=1)
    epoch: Epoch | None = None
    lineage: str = ""
    baseline: Percentages = ()
    note: str = ""


class Row(FrozenModel):
    """A method, with what was printed for it (one number for each column, nan: none) in %, or published elsewhere.

    published: by its authors, or as others quote them; reproduced: by others, from runs of their own;
    title: what the row is called where the method's name is not enough; augment: added to the images of its runs;
    as_long_as: a method whose training multiply-adds its runs take too, by a longer schedule; scales: where the row is
    shown, empty for everywhere.
    """

    method: Name
    title: Name | None = None
    augment: Augmentation = "standard"
    as_long_as: Name | None = None
    scales: Annotated[tuple[Name, ...], AfterValidator(check_scales)] = ()
    printed: Percentages = ()
    published: Published | None = None
    reproduced: Published | None = None
    footnotes: tuple[str, ...] = ()

    @property
    def from_elsewhere(self) -> dict[Tier, Published]:
        """The numbers that the table's own paper does not print, by tier."""
        found: dict[Tier, Published | None] = {"published": self.published, "reproduced": self.reproduced}
        return {tier: numbers for tier, numbers in found.items() if numbers}

    @property
    def name(self) -> str:
        """The title, or else the method's name."""
        return self.title or self.method


class Table(FrozenModel):
    """A table as its TOML file says; the format is told at the top of `table_II.toml`.

    scale_notes: by scale, one line that is shown there with the table, also on the terminal; printed_runs,
    printed_epoch: of the printed numbers, where the paper says it; gains: whether the gain over the own baseline stands
    beside every number; literature: a CSV file, from which rows have their published and reproduced numbers; in_all:
    whether `--table all` names it.
    """

    name: Annotated[str, AfterValidator(check_file_name)]
    caption: str
    metric: str = "top-1 accuracy, %"
    dataset: Datasets
    protocol: Protocols = DEFAULT_PROTOCOL
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)
    footnotes: tuple[str, ...] = ()
    scale_notes: Annotated[dict[Name, str], AfterValidator(check_scales)] = Field(default={})
    teachers: Published | None = None
    printed_runs: int | None = Field(None, ge=1)
    printed_epoch: Epoch | None = None
    gains: bool = False
    literature: Name | None = None
    in_all: bool = True

    @field_validator("literature")
    @classmethod
    def _locate_literature(cls, value: str | None, info: ValidationInfo) -> str | None:
        return value and str((info.context or {}).get("folder", Path()) / value)

    @model_validator(mode="after")
    def _check_shape(self) -> Table:
        check_once("columns", [column.name for column in self.columns])
        check_once("rows", [row.name for row in self.rows])
        if any(row.name == TEACHER for row in self.rows):
            raise ValueError(f"rows: {TEACHER!r} is the name of the teachers' own row; give the row another title")
        for field, numbers in self._numbers():
            check_count(field, numbers, len(self.columns), "column")
        return self

    def _numbers(self) -> Iterator[tuple[str, Percentages]]:
        sources = [
            (f"{tier} numbers of row {row.name}", numbers)
            for row in self.rows
            for tier, numbers in row.from_elsewhere.items()
        ]
        for field, numbers in (*sources, *([("teachers", self.teachers)] if self.teachers else [])):
            yield f"{field}: mean", numbers.mean
            yield f"{field}: std", numbers.std
            yield f"{field}: baseline", numbers.baseline
        for row in self.rows:
            yield f"row {row.name}: printed", row.printed

    def at(self, scale: str) -> Table:
        """Replace each column's networks by those of a scale, and keep the rows that are shown there."""
        columns = tuple(column.at(scale) for column in self.columns)
        rows = tuple(row for row in self.rows if not row.scales or scale in row.scales)
        return self.model_copy(update={"columns": columns, "rows": rows})

    def protocol_for(self, scale: str) -> str:
        """Choose the protocol at a scale, by name: `lsskd` where the file names none."""
        return choose_for_scale(self.protocol, scale) or DEFAULT_PROTOCOL

    def dataset_for(self, scale: str) -> str:
        """Choose the dataset at a scale, by its name or the path of its file.

        Raises:
            UserError: the table names none for this scale.
        """
        dataset = choose_for_scale(self.dataset, scale)
        if dataset is None:
            raise UserError(
                f"table {self.name} has no dataset for scale {scale!r}; allowed: {', '.join(self.dataset)}; "
                "choose one of these or pass --dataset"
            )
        return dataset


def get_number(numbers: Sequence[float], position: int) -> float | None:
    """Get the number of a column; None where there is none."""
    if not numbers or math.isnan(numbers[position]):
        return None
    return numbers[position]


def table_names() -> list[str]:
    """List the tables that come with the suite."""
    return list_names(FOLDER, "table")


def load_table(name_or_path: str | Path) -> Table:
    """Load a table by name (`II` or `table_II`), or from the TOML file at a path.

    Raises:
        UserError: there is none of that name, the file cannot be read, or a field is missing, unknown or refused.
    """
    table = load_by_name(FOLDER, "table", name_or_path, Table, EXAMPLE)
    return table if table.literature is None else _fill_rows(table, load_literature(Path(table.literature)))


def _fill_rows(table: Table, literature: Literature) -> Table:
    """Give rows their numbers from a file, where the table's own file has none.

    Raises:
        UserError: the file has none of the table's columns.
    """
    names = [column.name for column in table.columns]
    if not set(names) & set(literature.columns):
        raise UserError(
            f"published numbers {table.literature}: none of its columns is one of table {table.name}; allowed: "
            f"{', '.join(names)}"
        )
    rows = []
    for row in table.rows:
        found = {tier: _find_numbers(literature, row.name, tier, names) for tier in ("published", "reproduced")}
        rows.append(row.model_copy(update={tier: numbers for tier, numbers in found.items() if not getattr(row, tier)}))
    return table.model_copy(update={"rows": tuple(rows)})


def _find_numbers(literature: Literature, row: str, tier: Tier, columns: Sequence[str]) -> Published | None:
    """Find the numbers of a row in one tier; None where the file has none for any of the columns."""
    entry = literature.find(row, tier)
    if entry is None or not set(columns) & entry.numbers.keys():
        return None
    quoted = "quoted by " if entry.kind == "quoted by a later paper" else ""
    baseline = literature.baseline(entry.lineage)
    return Published(
        source=f"{quoted}{entry.source}",
        note=entry.note,
        mean=tuple(entry.numbers.get(column, math.nan) for column in columns),
        runs=entry.n,
        epoch=entry.epoch,
        lineage=entry.lineage,
        baseline=tuple(baseline.get(column, math.nan) for column in columns),
    )
