"""Where the numbers of claims come from: the paper's tables, the literature, and our runs at one seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from benchmark.audit.claims import ClaimSet, name_row
from benchmark.audit.expressions import Reference, format_title
from benchmark.planning.facts import load_facts
from tables.result import Cell, TableResult
from tables.specification import BASELINE, TEACHER, Table, get_number
from tables.tiers import Epoch, Tier, describe_origin

Results = Mapping[str, TableResult]
"""The results of one setting (dataset, scale, protocol), by the name of the table or of a figure's panel."""
CLOSE = 1e-9
"""Numbers that differ by less are equal but for rounding in floating point."""
Row = dict[str, float]
"""Numbers by column."""


class NoNumber(Exception):
    """A cell has no number in a source; the message names it."""


class Numbers(Protocol):
    """A source of cells."""

    def row(self, reference: Reference) -> Row:
        """The numbers of a reference's row, without the columns that have none."""
        ...

    def missing(self, reference: Reference) -> str:
        """The reason why a row or a cell has no number."""
        ...


def _by_column(table: Table, values: Sequence[float]) -> Row:
    numbers = {column.name: get_number(values, position) for position, column in enumerate(table.columns)}
    return {column: number for column, number in numbers.items() if number is not None}


class Printed:
    """The numbers that the paper prints: from the tables' files, and further ones from the claims' file."""

    def __init__(self, claims: ClaimSet) -> None:
        self.claims = claims
        self._rows: dict[tuple[str, str], Row] = {}
        for table in claims.loaded.values():
            for row in table.rows:
                self._rows[table.name, row.name] = _by_column(table, row.printed)
        for numbers in claims.numbers:
            if numbers.kind == "printed":
                more = _by_column(claims.loaded[numbers.table], numbers.values)
                self._rows[numbers.table, numbers.row] = self._rows.get((numbers.table, numbers.row), {}) | more

    def row(self, reference: Reference) -> Row:
        """The printed numbers of a row, in %, by column."""
        return {} if reference.quantity else self._rows.get((reference.table, reference.row), {})

    def missing(self, reference: Reference) -> str:
        """The reason why a row or a cell has no number."""
        if reference.table in self.claims.figures:
            return f"{format_title(reference.table)} prints no numbers"
        if reference.quantity:
            return f"the paper prints no {reference.quantity.replace('_', '-')}"
        if reference.column is None or not self.row(reference):
            return f"{format_title(reference.table)} prints no row {reference.row}"
        return f"{format_title(reference.table)} prints no {reference.row} for {reference.column}"


class Elsewhere:
    """The numbers of others, of one tier; for the paper's own method, which nobody else ran, the printed ones.

    tier: `published`, by a method's authors or as others quote them; `reproduced`, from runs of others.
    """

    def __init__(self, claims: ClaimSet, printed: Printed, tier: Tier) -> None:
        self.claims, self.printed, self.tier = claims, printed, tier
        self.all: dict[tuple[str, str], list[Row]] = {}
        """All numbers of a row; if two have a number for a cell, the first one counts."""
        self.origins: dict[tuple[str, str], list[str]] = {}
        """Where they come from, how many runs are behind them, and which epoch they are of."""
        for numbers in claims.numbers:
            if numbers.kind == tier:
                row = _by_column(claims.loaded[numbers.table], numbers.values)
                self._add(numbers.table, numbers.row, row, numbers.source, numbers.runs, numbers.epoch)
        for table in claims.loaded.values():
            in_file = [(row.name, row.from_elsewhere.get(tier)) for row in table.rows]
            teachers = [(TEACHER, table.teachers if tier == "published" else None)]
            for name, found in (*in_file, *teachers):
                if found:
                    row = _by_column(table, found.mean)
                    self._add(table.name, name, row, found.source, found.runs, found.epoch)
            columns = [column.name for column in table.columns]
            known = {name for name, found in in_file if found}
            for entry in claims.publications(table.name):
                if entry.tier == tier and entry.method != TEACHER and name_row(entry) not in known:
                    row = {column: entry.numbers[column] for column in columns if column in entry.numbers}
                    self._add(table.name, name_row(entry), row, entry.source, entry.n, entry.epoch)

    def _add(self, table: str, row: str, numbers: Row, source: str, runs: int | None, epoch: Epoch | None) -> None:
        self.all.setdefault((table, row), []).append(numbers)
        self.origins.setdefault((table, row), []).append(f"{row}: {source}; {describe_origin(runs, epoch)}")

    def known(self, reference: Reference) -> bool:
        """Whether somebody else has a number for a row or a cell."""
        rows = self.all.get((reference.table, reference.row), [])
        return any(reference.column is None or reference.column in row for row in rows)

    def row(self, reference: Reference) -> Row:
        """The numbers of a row, in %, by column."""
        if reference.quantity:
            return {}
        if reference.row in self.claims.own and (printed := self.printed.row(reference)):
            return printed
        publications = self.all.get((reference.table, reference.row), [])
        numbers = {column: number for row in reversed(publications) for column, number in row.items()}
        order = self.claims.loaded[reference.table].columns if reference.table in self.claims.loaded else ()
        return {column.name: numbers[column.name] for column in order if column.name in numbers}

    def missing(self, reference: Reference) -> str:
        """The reason why a row or a cell has no number."""
        if reference.row in self.claims.own:
            return "none is known"
        return f"no {self.tier} {reference.row}" + (f" for {reference.column}" if reference.column else "")


class Measured:
    """The numbers of our runs in one setting at one seed."""

    def __init__(self, rows: Mapping[Reference, Row]) -> None:
        """rows: the numbers of every row or cell that may be asked for."""
        self.rows = rows

    def row(self, reference: Reference) -> Row:
        """The measured numbers of a row, by column."""
        return self.rows.get(reference, {})

    def missing(self, reference: Reference) -> str:
        """The reason why a row or a cell has no number."""
        return f"{reference.name}: not run yet"


def select_cells(result: TableResult, row: str) -> dict[str, Cell]:
    """The cells of a row by column; those of the teachers for the row of that name."""
    names = [column.name for column in result.table.columns]
    return {name: result.cell(row, name) for name in names}


def select_by_seed(cell: Cell, quantity: str | None = None) -> dict[int, float]:
    """A cell's values by seed: accuracy in %, or what its student costs at inference."""
    if quantity is None:
        return cell.by_seed()
    attribute = {"parameters": "parameters", "multiply_adds": "inference_multiply_adds"}[quantity]
    costs = {run.seed: getattr(run.price, attribute) for run in cell.finished}
    return {seed: float(cost) for seed, cost in costs.items() if cost is not None}


class Paper:
    """The paper with its literature: everything that needs no run."""

    def __init__(self, claims: ClaimSet) -> None:
        self.claims = claims
        self.printed = Printed(claims)
        self.published = Elsewhere(claims, self.printed, "published")
        reproduced = Elsewhere(claims, self.printed, "reproduced")
        self.sources: dict[str, Printed | Elsewhere] = {
            "printed": self.printed,
            "published": self.published,
            "reproduced": reproduced,
        }

    def origins(self, name: str, references: Iterable[Reference]) -> list[str]:
        """Where the numbers of some rows come from, with their runs and epoch, each once."""
        source = self.sources[name]
        if isinstance(source, Printed):
            tables = [self.claims.loaded[found.table] for found in references if self._prints(found.table)]
            texts = [describe_origin(table.printed_runs, table.printed_epoch) for table in tables]
        else:
            texts = [text for found in references for text in source.origins.get((found.table, found.row), [])]
        return list(dict.fromkeys(texts))

    def _prints(self, table: str) -> bool:
        """Whether a table prints numbers of the paper's own rows, or the paper has none."""
        rows = [row for row in self.claims.own if self.printed.row(Reference(table, row, None))]
        return table in self.claims.loaded and (bool(rows) or not self.claims.own)

    def fact(self, name: str) -> float:
        """A number of the claims' file that is no accuracy of a method."""
        return next(fact.value for fact in self.claims.facts if fact.name == name)

    def rivals(self, table: str, numbers: Numbers) -> dict[str, Row]:
        """The rows of a table that have numbers and are not the paper's own, teachers left out."""
        rows = [row for row in self.claims.rows(table) if row not in (*self.claims.own, TEACHER)]
        found = {row: numbers.row(Reference(table, row, None)) for row in rows}
        return {row: values for row, values in found.items() if values}

    def mean_gains(self, table: str, numbers: Numbers) -> list[tuple[str, float]]:
        """The mean gain over the own baseline of every row with a number in all columns, the largest first.

        The baseline of printed numbers is the table's row Baseline, that of others the student of their lineage.
        """
        columns = [column.name for column in self.claims.loaded[table].columns]
        gains = {}
        own = [row for row in self.claims.own if row in self.claims.rows(table)]
        rows = own if numbers is not self.printed else self.claims.rows(table)
        base = self.printed.row(Reference(table, BASELINE, None))
        for row in rows:
            found = self.printed.row(Reference(table, row, None))
            if row not in (BASELINE, TEACHER):
                gains[row] = {column: found[column] - base[column] for column in found if column in base}
        for entry in self.claims.publications(table) if numbers is not self.printed else ():
            if entry.is_method and self.sources[entry.tier] is numbers:
                gains[entry.method] = self.claims.literature[table].gains(entry)
        complete = {row: found for row, found in gains.items() if all(column in found for column in columns)}
        means = [(row, statistics.fmean(found[column] for column in columns)) for row, found in complete.items()]
        return sorted(means, key=lambda mean: -mean[1])

    def networks(self, table: str) -> list[str]:
        """The networks in the names of a table's columns."""
        names: Iterable[str] = (column.name for column in self.claims.loaded[table].columns)
        return list(dict.fromkeys(part for name in names for part in name.split(">")))

    def copied(self, table: str) -> tuple[int, int]:
        """Count the printed cells of other methods that equal a published number, and all of their cells."""
        equal, cells = 0, 0
        for row in self.claims.rows(table):
            if row in self.claims.own:
                continue
            published = self.published.all.get((table, row), [])
            for column, number in self.printed.row(Reference(table, row, None)).items():
                cells += 1
                equal += any(abs(other.get(column, math.inf) - number) < CLOSE for other in published)
        return equal, cells

    def of_method(self, name: str, method: str) -> float:
        """`cost`: multiply-adds of a training step, its teacher's forward included, as a multiple of Baseline's;
        `extra_parameters`: the parameters that learn beside the student's."""
        facts = load_facts()
        if method not in facts:
            raise NoNumber(f"what {method} costs was not counted")
        if name == "cost":
            return float(facts[method]["multiply_adds"] / facts["Baseline"]["multiply_adds"])
        return float(facts[method]["extra_parameters"])
