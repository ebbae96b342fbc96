"""The claims of a paper's text, read from a file such as `papers/lsskd.toml`; docs/audit.md describes the format."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from benchmark.audit.expressions import Expression, Reference, parse
from benchmark.core.errors import UserError, closest, unknown_name
from benchmark.core.models import FrozenModel
from benchmark.core.text import format_minus
from benchmark.io.toml import TomlPath, load_toml
from tables.literature import STUDENT, Literature, Publication, load_literature
from tables.specification import TEACHER, Name, Percentages, Table, load_table
from tables.tiers import Epoch, Tier

FOLDER = Path(__file__).parent / "papers"
PAPER = "lsskd"
"""The paper under audit; the files of others are those of the court."""
MOST_CLOSENESS = 1.0
"""Percentage points."""
Relation = Literal["=", ">", ">=", "<", "<="]


def _readable(text: str) -> str:
    parse(text)
    return text


def _identifier(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", text):
        raise ValueError("allowed: small letters, digits and single hyphens")
    return text


def _decimal(text: str) -> str:
    if not re.fullmatch(r"[+-]?\d+(\.\d+)?", text):
        raise ValueError('allowed: a number as it was printed, in quotes, such as "+4.50"')
    return text


Formula = Annotated[str, AfterValidator(_readable)]


class Statement(FrozenModel):
    """One of several statements of the text about the same matter, and where it stands."""

    says: Name
    where: Name


class Best(FrozenModel):
    """The claim that a row is above others in every column: above those in `than`, or else above all with numbers."""

    table: Name
    row: Name
    than: tuple[Name, ...] = ()
    columns: tuple[Name, ...] = ()


class Reading(FrozenModel):
    """Another way to read a claim; it is shown and does not change the verdict."""

    says: Name
    expression: Formula
    source: Literal["printed", "published", "reproduced"] = "printed"


class CellNumbers(FrozenModel):
    """Numbers of a row that are missing in its table's file: one for each column, nan where there is none.

    runs, epoch: how many are behind a number, and which epoch it is of; None where the source does not say.
    """

    table: Name
    row: Name
    kind: Literal["printed", "published", "reproduced"]
    source: Name
    values: Percentages
    runs: int | None = Field(None, ge=1)
    epoch: Epoch | None = None


class Fact(FrozenModel):
    """A number that is no accuracy of a method, and where it was read."""

    name: Annotated[str, AfterValidator(_identifier)]
    value: float = Field(allow_inf_nan=False)
    says: Name
    source: Name


class Claim(FrozenModel):
    """One claim.

    text: a short quotation or paraphrase; where: the sections that make it; says: its content in a few words (by
    default the number claimed); value, relation: the number claimed, as printed, and how it is claimed.
    Exactly one of these defines what is compared: expression (a number if there is a value, else a truth), best,
    statements, or unchecked (the reason why nothing can be compared).
    literature, runs: another expression for published and for measured numbers, or false for none; they may be given
    without an expression if the paper's own tables cannot decide; reproduction: the one for numbers that others
    reproduced, none unless it is given, because a rerun need not repeat a number to bear a sentence out; source: the
    page or file that the sentence was read in.
    implied: no sentence says it, the tables only take it for granted; if it is not so, that is remarkable, and no
    contradiction; matter: a name that claims share if they say the same thing and count as one.
    """

    id: Annotated[str, AfterValidator(_identifier)]
    text: Name
    where: Name
    source: str = ""
    says: str = ""
    value: Annotated[str, AfterValidator(_decimal)] | None = None
    relation: Relation = "="
    expression: Formula | None = None
    literature: Formula | Literal[False] | None = None
    reproduction: Formula | None = None
    runs: Formula | Literal[False] | None = None
    best: Best | None = None
    statements: tuple[Statement, ...] = ()
    unchecked: str = ""
    readings: tuple[Reading, ...] = ()
    implied: bool = False
    matter: str = ""
    note: str = ""

    @model_validator(mode="after")
    def _check_form(self) -> Claim:
        forms = {
            "expression": bool(self.formulas),
            "best": self.best is not None,
            "statements": bool(self.statements),
            "unchecked": bool(self.unchecked),
        }
        given = [name for name, is_given in forms.items() if is_given]
        if len(given) != 1:
            names = " and ".join(given) or "none"
            raise ValueError(f"claim {self.id}: {names} given; allowed: exactly one of {', '.join(forms)}")
        if self.value is not None and not self.formulas:
            raise ValueError(f"claim {self.id}: a value goes with an expression; add one")
        if self.formulas and self.value is None and not self.says:
            raise ValueError(f"claim {self.id}: says is missing; add it, or the value that is claimed")
        if len(self.statements) == 1:
            raise ValueError(f"claim {self.id}: one statement cannot contradict itself; allowed: two or more")
        return self

    @property
    def formulas(self) -> dict[Tier, Expression]:
        """The expressions that are computed, by the tier of their numbers."""
        texts: dict[Tier, str | Literal[False] | None] = {
            "printed": self.expression,
            "published": self.expression if self.literature is None else self.literature,
            "reproduced": self.reproduction,
            "measured": self.expression if self.runs is None else self.runs,
        }
        return {source: parse(text) for source, text in texts.items() if text}

    @property
    def in_words(self) -> str:
        """The content of the claim in a few words."""
        if self.says:
            return self.says
        if self.value is not None:
            return format_minus(self.value) if self.relation == "=" else f"{self.relation} {self.value}"
        if self.best:
            return "above all others in every column"
        return "; ".join(f"{statement.says} ({statement.where})" for statement in self.statements) or "no number"

    @property
    def tolerance(self) -> float:
        """Half a unit of the last decimal that was printed; 0 without a value."""
        if self.value is None:
            return 0.0
        return 0.5 * 10.0 ** -len(self.value.partition(".")[2])

    @property
    def closeness(self) -> float:
        """How far from the number claimed an interval may reach and still support it, in the number's unit.

        Half of the number, so that no interval supports two numbers of which one is over 1.5 times the other; at most
        MOST_CLOSENESS, by which neighbouring rows of a table often differ; at least the rounding of the printed number.
        """
        if self.value is None:
            return 0.0
        return max(min(abs(float(self.value)) / 2, MOST_CLOSENESS), self.tolerance)


class ClaimSet(FrozenModel):
    """A file of claims with the tables that they are about.

    own: the rows of the paper's own method, whose numbers nobody else published; figures: names of results that come
    from figures, which print no numbers; caveat: a remark on every verdict of our runs.
    """

    title: str = ""
    caveat: str = ""
    own: tuple[Name, ...] = ()
    tables: tuple[Name, ...] = Field(min_length=1)
    figures: tuple[Name, ...] = ()
    numbers: tuple[CellNumbers, ...] = ()
    facts: tuple[Fact, ...] = ()
    claims: tuple[Claim, ...] = Field(min_length=1)
    loaded: dict[str, Table] = Field(default={}, exclude=True)
    literature: dict[str, Literature] = Field(default={}, exclude=True)

    @model_validator(mode="after")
    def _check_ids(self) -> ClaimSet:
        names = [claim.id for claim in self.claims]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"claim {repeated[0]} stands there twice; allowed: once")
        return self

    def selected(self, names: list[str]) -> ClaimSet:
        """Only the claims of these ids, in the file's order; all for none.

        Raises:
            UserError: there is no claim of such an id.
        """
        check_ids(names, [claim.id for claim in self.claims])
        kept = tuple(claim for claim in self.claims if not names or claim.id in names)
        return self.model_copy(update={"claims": kept})

    def rows(self, table: str) -> list[str]:
        """The rows of a table, and further rows that the claims file has numbers of."""
        more = [numbers.row for numbers in self.numbers if numbers.table == table]
        others = [name_row(found) for found in self.publications(table) if found.method != TEACHER]
        return list(dict.fromkeys([*(row.name for row in self.loaded[table].rows), *more, *others, TEACHER]))

    def publications(self, table: str) -> tuple[Publication, ...]:
        """What the file of published numbers that a table names has, the table's own paper's numbers left out."""
        found = self.literature[table].publications if table in self.literature else ()
        return tuple(entry for entry in found if entry.tier != "printed")


def name_row(publication: Publication) -> str:
    """The row that claims know a publication by: its method; `Student (crd)` for the baseline of a lineage."""
    return f"{STUDENT} ({publication.lineage})" if publication.method == STUDENT else publication.method


def find_papers() -> dict[str, Path]:
    """The suite's claims files by the name of their paper, the one under audit first; others there are tables."""
    found = {path.stem: path for path in sorted(FOLDER.glob("*.toml")) if not path.stem.startswith("table_")}
    return {PAPER: found.pop(PAPER), **found}


def load_papers(only: Sequence[str] = ()) -> dict[str, ClaimSet]:
    """The suite's claims by paper; only: ids of claims, of which at least one is among a paper's, else all.

    Raises:
        UserError: there is no claim of such an id.
    """
    papers = {paper: load_claims(path) for paper, path in find_papers().items()}
    known = [claim.id for claims in papers.values() for claim in claims.claims]
    check_ids(only, known)
    wanted = {
        paper: [claim.id for claim in claims.claims if not only or claim.id in only] for paper, claims in papers.items()
    }
    return {paper: claims.selected(wanted[paper]) for paper, claims in papers.items() if wanted[paper]}


def check_ids(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse an id that no claim has.

    Raises:
        UserError: there is one.
    """
    for name in names:
        if name not in known:
            near = ", ".join(closest(name, known))
            raise UserError(f"unknown claim {name!r}; nearest: {near}; all {len(known)} stand in the claims file")


def load_claims(path: Path = FOLDER / f"{PAPER}.toml") -> ClaimSet:
    """The claims of a file, and their tables by name or from TOML files beside it; every name is checked.

    Raises:
        UserError: the file cannot be read, or something in it is missing, unknown or refused.
    """
    claims = load_toml(path, "claims file", ClaimSet, "docs/audit.md", named=_id_at)
    try:
        tables = [load_table(path.parent / name if name.endswith(".toml") else name) for name in claims.tables]
        literature = {table.name: load_literature(Path(table.literature)) for table in tables if table.literature}
        claims = claims.model_copy(update={"loaded": {table.name: table for table in tables}, "literature": literature})
        _check_numbers(claims)
        for claim in claims.claims:
            with naming(claim):
                _check_names(claim, claims)
    except UserError as error:
        raise UserError(f"claims file {path}: {error}") from None
    return claims


def _check_names(claim: Claim, claims: ClaimSet) -> None:
    """Refuse a claim that names a table, a row, a column or a fact that is not there."""
    formulas = [*claim.formulas.values(), *(parse(reading.expression) for reading in claim.readings)]
    references = [reference for formula in formulas for reference in formula.references]
    if best := claim.best:
        rows, columns = (best.row, *best.than), best.columns or (None,)
        references += [Reference(best.table, row, column) for row in rows for column in columns]
    for reference in references:
        if reference.table in claims.figures:
            continue
        _check_table(reference.table, claims)
        known_rows = claims.rows(reference.table)
        if reference.row not in known_rows:
            raise unknown_name(f"row of table {reference.table}", reference.row, known_rows)
        known_columns = [column.name for column in claims.loaded[reference.table].columns]
        if reference.column is not None and reference.column not in known_columns:
            raise unknown_name(f"column of table {reference.table}", reference.column, known_columns)
    facts = [fact.name for fact in claims.facts]
    for formula in formulas:
        for table in formula.table_arguments:
            _check_table(table, claims)
        for name in formula.facts:
            if name not in facts:
                raise unknown_name("fact", name, facts)


def _check_table(table: str, claims: ClaimSet) -> None:
    if table not in claims.loaded:
        raise unknown_name("table", table, [*claims.loaded, *claims.figures])


@contextlib.contextmanager
def naming(claim: Claim) -> Iterator[None]:
    """Put the id of a claim before the message of what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"claim {claim.id}: {error}") from None


def _check_numbers(claims: ClaimSet) -> None:
    for numbers in claims.numbers:
        if numbers.table not in claims.loaded:
            raise UserError(f"numbers of {numbers.row}: {unknown_name('table', numbers.table, claims.loaded)}")
        wanted = len(claims.loaded[numbers.table].columns)
        if len(numbers.values) != wanted:
            raise UserError(
                f"numbers of {numbers.row} in table {numbers.table}: {len(numbers.values)} given; allowed: {wanted}, "
                "one for each column, nan where there is none"
            )


def _id_at(content: dict[str, Any], place: TomlPath) -> str:
    """The claim at a place of a file, as a prefix of a message; empty if it has no id."""
    match place:
        case ("claims", int(position), _, *_):
            name = content["claims"][position].get("id")
            return f"claim {name}: " if isinstance(name, str) else ""
    return ""
