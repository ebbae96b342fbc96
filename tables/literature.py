"""What others published for the columns of a table: CSV files such as `published.csv`, checked when they are read.

A file has a line for each publication of a method, with a number, or nothing, for each column. Methods of one lineage
share their teachers and their baseline, whose accuracies are the lines `Teacher` and `Student`.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from benchmark.core.errors import UserError, invalid_value
from benchmark.core.models import FrozenModel
from benchmark.io.untrusted import UntrustedInputError, read_text_limited
from tables.schema import Name
from tables.tiers import Epoch, Tier

LARGEST = 2**20
"""Bytes of a file."""
STUDENT, TEACHER = "Student", "Teacher"
Kind = Literal["own", "quoted by a later paper", "reproduction", "printed"]
"""Whose number it is: of the method's authors, quoted by others, run again by others, or of the paper under audit."""
TIERS: dict[Kind, Tier] = {
    "own": "published",
    "quoted by a later paper": "published",
    "reproduction": "reproduced",
    "printed": "printed",
}


def _nothing_for_empty(value: object) -> object:
    return None if value == "" else value


class Publication(FrozenModel):
    """One publication of a method: its numbers in % by column, and how they came about.

    lineage: whose teachers and baseline it has; n: runs behind a number, None where the source does not say; epoch: of
    the numbers, likewise; source: where they were read.
    """

    method: Name
    lineage: Name
    n: Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_nothing_for_empty)] = None
    epoch: Annotated[Epoch | None, BeforeValidator(_nothing_for_empty)] = None
    kind: Kind
    source: Name
    note: str = ""
    numbers: dict[str, Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]] = Field(min_length=1)

    @property
    def tier(self) -> Tier:
        """Which tier the numbers are of."""
        return TIERS[self.kind]

    @property
    def is_method(self) -> bool:
        """Whether it is of a method, and not of a lineage's teachers or baseline."""
        return self.method not in (STUDENT, TEACHER)


class Literature(FrozenModel):
    """All publications of a file."""

    columns: tuple[str, ...]
    publications: tuple[Publication, ...]

    def find(self, method: str, tier: Tier) -> Publication | None:
        """Find the publication of a method in a tier; None if there is none."""
        return next((found for found in self.publications if (found.method, found.tier) == (method, tier)), None)

    def baseline(self, lineage: str) -> dict[str, float]:
        """Find what the student of a lineage reaches without distillation, in %, by column."""
        students = (found for found in self.publications if (found.method, found.lineage) == (STUDENT, lineage))
        return next(students).numbers

    def gains(self, publication: Publication) -> dict[str, float]:
        """Compute how far a publication is above the baseline of its own lineage, by column."""
        base = self.baseline(publication.lineage)
        return {column: number - base[column] for column, number in publication.numbers.items() if column in base}


_FIELDS = tuple(name for name in Publication.model_fields if name != "numbers")


def load_literature(path: Path) -> Literature:
    """Read and check a file.

    Raises:
        UserError: it cannot be read, a field is missing or refused, a method stands there twice in one tier, or a
            lineage has no baseline.
    """
    what = f"published numbers {path}"
    try:
        lines = csv.DictReader(read_text_limited(path, LARGEST).splitlines(), strict=True)
        fields = list(lines.fieldnames or [])
        rows = list(lines)
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror or error}; check the path") from error
    except (UntrustedInputError, ValueError, csv.Error) as error:
        raise UserError(f"{what}: {error}; tables/published.csv shows the format") from error
    columns = tuple(name for name in fields if name not in _FIELDS)
    if missing := [name for name in _FIELDS if name not in fields]:
        raise UserError(f"{what}: column {missing[0]} is missing; add it (tables/published.csv shows the format)")
    if not columns or len(set(fields)) < len(fields):
        raise UserError(f"{what}: allowed: one column or more of numbers, and no name of a column twice")
    publications = []
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise UserError(f"{what}, line {number}: allowed: {len(fields)} cells, as in the first line")
        content = {name: row[name] for name in _FIELDS} | {
            "numbers": {name: row[name] for name in columns if row[name]}
        }
        try:
            publications.append(Publication.model_validate(content))
        except ValidationError as error:
            raise invalid_value(f"{what}, line {number}", error) from None
    literature = Literature(columns=columns, publications=tuple(publications))
    _check_lineages(literature, what)
    return literature


def _check_lineages(literature: Literature, what: str) -> None:
    """Refuse a method that stands there twice in one tier, and one whose gain would have no baseline."""
    seen = set()
    for entry in literature.publications:
        key = (entry.method, entry.tier) if entry.is_method else (entry.method, entry.lineage)
        if key in seen:
            raise UserError(f"{what}: {' '.join(key)} stands there twice; allowed: once")
        seen.add(key)
    for entry in literature.publications:
        if (STUDENT, entry.lineage) not in seen:
            raise UserError(f"{what}: lineage {entry.lineage} has no line {STUDENT}; add its baseline")
        lacking = [column for column in entry.numbers if column not in literature.baseline(entry.lineage)]
        if entry.is_method and lacking:
            raise UserError(
                f"{what}: {entry.method} has a number for {lacking[0]}, and {STUDENT} of lineage {entry.lineage} has "
                "none; add it"
            )
