"""Read the claim that a sweep is to decide: two rows, `LSSKD > SSKD`, or a comparison in the language of the audit.

    LSSKD > SSKD                            short for II["LSSKD"] > II["SSKD"], where --table II is asked for
    LSSKD > SSKD + 0.5                      by more than half a percentage point
    II["LSSKD", "ResNet56>ResNet20"] > II["SSKD", "ResNet56>ResNet20"]
    mean(II["LSSKD"] - II["SSKD"]) > 1

A comparison of rows is decided column by column, one of cells or of a mean once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from benchmark.audit.expressions import LONGEST, Expression, Reference, parse
from benchmark.audit.sources import Measured, Paper
from benchmark.audit.values import evaluate
from benchmark.core.errors import UserError, unknown_name
from benchmark.plugins.registry import method_names

OPTION = "--until-decided"
EXAMPLE = '"LSSKD > SSKD"'
SIGNS: dict[type[ast.cmpop], str] = {ast.Gt: ">", ast.GtE: ">=", ast.Lt: "<", ast.LtE: "<="}
_SHORT = re.compile(
    r"(?P<left>[^<>=]+?)\s*(?P<sign>[<>]=?)\s*(?P<right>[^<>=]+?)(?:\s+(?P<plus>[+-])\s*(?P<margin>\d+\.?\d*|\.\d+))?"
)
CellName = tuple[str, str]
"""A row and a column."""


@dataclass(frozen=True)
class Subject:
    """A table or a panel of a figure that a claim may be about.

    name: in the language (`II`, `Figure5_CIFAR100`); title: for messages; rows: the methods of each, by the row's name.
    """

    name: str
    title: str
    rows: Mapping[str, str]


@dataclass(frozen=True)
class Claim:
    """That a difference is above (or below) a margin.

    text: as it was typed; table: the subject's name; difference: what is compared with the margin; sides: the two terms
    of the difference, if it is one of two terms; margin: in the difference's unit; by_column: whether each column has a
    difference of its own, or all columns have one together.
    """

    text: str
    table: str
    difference: Expression
    sides: tuple[Expression, Expression] | None
    is_above: bool
    margin: float
    by_column: bool

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows that it names, each once."""
        return tuple(dict.fromkeys(reference.row for reference in self.difference.references))

    @property
    def compared(self) -> str:
        """What is compared, in words: `LSSKD - SSKD`."""
        text = self.difference.text
        for reference in self.difference.references:
            inside = repr(reference.row) if reference.column is None else f"({reference.row!r}, {reference.column!r})"
            place = reference.row if reference.column is None else f"{reference.row} ({reference.column})"
            for form in (inside, inside.strip("()")):
                text = text.replace(f"{self.table}[{form}]", place)
        return text

    def list_cells(self, columns: Sequence[str]) -> list[CellName]:
        """The cells that its difference needs over these columns, each once."""
        places = _list_columns(self.difference, columns)
        return list(dict.fromkeys((reference.row, name) for reference, names in places.items() for name in names))

    def compute(self, cells: Mapping[CellName, float], columns: Sequence[str]) -> tuple[float, tuple[float, ...]]:
        """The difference, and its two sides if it has them, from the cells' values of one seed.

        columns: one, or all of a claim that is one number.

        Raises:
            UserError: a division by zero.
        """
        numbers = _select_numbers(self.difference, cells, columns)
        parts = (self.difference, *(self.sides or ()))
        difference, *sides = (_as_number(evaluate(part, numbers, _NO_PAPER)[0]) for part in parts)
        return difference, tuple(sides)


def _list_columns(difference: Expression, columns: Sequence[str]) -> dict[Reference, list[str]]:
    """The columns that each row or cell of a difference is read in, over these columns."""
    return {found: [found.column] if found.column else [*columns] for found in difference.references}


def _select_numbers(difference: Expression, cells: Mapping[CellName, float], columns: Sequence[str]) -> Measured:
    """The numbers of a difference's rows at one seed, from the values of cells."""
    places = _list_columns(difference, columns)
    return Measured({found: {name: cells[found.row, name] for name in names} for found, names in places.items()})


_NO_PAPER = cast(Paper, None)
"""Only functions ask a paper, and claims with such functions are refused as they are read."""


def _as_number(value: object) -> float:
    """A number, or the only number of a row of one column."""
    (number,) = value.values() if isinstance(value, dict) else (value,)
    return float(cast(float, number))


def parse_claims(text: str, subjects: Sequence[Subject]) -> list[Claim]:
    """Read a claim about some tables or panels: the short form is about all of them, the language's about one.

    Raises:
        UserError: it cannot be read, compares nothing, or names what is not there.
    """
    if len(text) > LONGEST:
        raise UserError(f"{OPTION}: a claim of {len(text)} characters; allowed: {LONGEST}")
    short = None if '["' in text or "['" in text else _SHORT.fullmatch(text.strip())
    if short:
        return [_parse_short(text, short, subject) for subject in subjects]
    if "[" not in text:
        raise UserError(f'{OPTION} {text!r} compares no two rows; write it like {EXAMPLE}, or {EXAMPLE[:-1]} + 0.5"')
    expression = parse(text)
    names = {reference.table for reference in expression.references} | set(expression.table_arguments)
    known = {subject.name: subject for subject in subjects}
    if len(names) > 1:
        raise UserError(f"{OPTION} {text!r} names several tables; allowed: one, {', '.join(known)}")
    for name in names - known.keys():
        raise unknown_name(f"table of {OPTION}", name, known)
    return [_parse_comparison(text, expression, known[name]) for name in names] or [_refuse(text)]


def _parse_short(text: str, short: re.Match[str], subject: Subject) -> Claim:
    sides = [f"{subject.name}[{short[side]!r}]" for side in ("left", "right")]
    margin = f" {short['plus']} {short['margin']}" if short["margin"] else ""
    return _parse_comparison(text, parse(f"{sides[0]} {short['sign']} {sides[1]}{margin}"), subject)


def _parse_comparison(text: str, expression: Expression, subject: Subject) -> Claim:
    match expression.tree:
        case ast.Compare(left=left, ops=[operation], comparators=[right]) if type(operation) in SIGNS:
            sign = SIGNS[type(operation)]
        case _:
            _refuse(text)
    _check_references(text, expression, subject)
    tree, margin = _split_margin(left, right)
    difference = Expression(ast.unparse(tree), tree)
    rows = {reference.row for reference in difference.references}
    cells = {(reference.row, reference.column) for reference in difference.references}
    if len(cells) < 2:
        raise UserError(
            f"{OPTION} {text!r} has no rival: it names only {', '.join(sorted(rows))}; name two rows, as in {EXAMPLE}"
        )
    return Claim(
        text, subject.name, difference, _find_sides(tree), sign[0] == ">", margin, _is_by_column(text, difference)
    )


def _refuse(text: str) -> Claim:
    raise UserError(
        f"{OPTION} {text!r} is no comparison; allowed: one of {', '.join(SIGNS.values())} between two rows, as in "
        f"{EXAMPLE}, or between their cells or means (docs/deciding.md)"
    )


def _check_references(text: str, expression: Expression, subject: Subject) -> None:
    """Refuse what no run of the table can decide."""
    for reference in expression.references:
        if reference.source or reference.quantity:
            raise UserError(
                f"{OPTION} {text!r}: {reference.name} does not vary with the seed; compare the accuracies of rows"
            )
        if reference.row not in subject.rows:
            if reference.row in method_names():
                raise UserError(
                    f"{OPTION} {text!r}: {reference.row} is no row of {subject.title}; add it with --methods (naming "
                    "all rows of the claim), or choose another --table"
                )
            raise unknown_name(f"row of {subject.title}", reference.row, subject.rows)
        if subject.rows[reference.row] not in method_names():
            raise UserError(
                f"{OPTION} {text!r}: {subject.title} has only numbers of others for {reference.row}, whose method the "
                "suite does not have; choose a row that can be run"
            )
    for node in ast.walk(expression.tree):
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id == "mean"):
            raise UserError(
                f"{OPTION} {text!r}: {ast.unparse(node.func)}() cannot be decided by seeds; allowed: mean()"
            )


def _split_margin(left: ast.expr, right: ast.expr) -> tuple[ast.expr, float]:
    """What a comparison compares with a number: of `A > B + 0.5` it is A - B and 0.5, of `A - B > 0.5` too."""
    if (number := _read_number(right)) is not None:
        return left, number
    if isinstance(right, ast.BinOp) and isinstance(right.op, ast.Add | ast.Sub):
        number = _read_number(right.right)
        if number is not None:
            return ast.BinOp(left, ast.Sub(), right.left), number if isinstance(right.op, ast.Add) else -number
    return ast.BinOp(left, ast.Sub(), right), 0.0


def _read_number(node: ast.expr) -> float | None:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -float(value)
        case ast.Constant(value=int() | float() as value):
            return float(value)
    return None


def _find_sides(tree: ast.expr) -> tuple[Expression, Expression] | None:
    """The two things that are subtracted, each a mean if their difference is averaged."""

    def make(node: ast.expr) -> Expression:
        return Expression(ast.unparse(node), node)

    match tree:
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return make(left), make(right)
        case ast.Call(func=ast.Name(id="mean") as mean, args=[ast.BinOp(left=left, op=ast.Sub(), right=right)]):
            return make(ast.Call(mean, [left], [])), make(ast.Call(mean, [right], []))
    return None


def _is_by_column(text: str, difference: Expression) -> bool:
    """Whether the difference is a number for each column, by computing it once from made-up cells."""
    rows = dict.fromkeys(reference.row for reference in difference.references)
    columns = ["first", "second", *(reference.column for reference in difference.references if reference.column)]
    cells = {(row, name): 50.0 + 7 * i + i * j for i, row in enumerate(rows) for j, name in enumerate(columns)}
    value, _ = evaluate(difference, _select_numbers(difference, cells, columns[:2]), _NO_PAPER)
    if isinstance(value, dict):
        if any(isinstance(node, ast.Call) for node in ast.walk(difference.tree)):
            raise UserError(f"{OPTION} {text!r} compares the columns of a row with a mean; compare rows, or two means")
        return True
    if not isinstance(value, float):
        raise UserError(f"{OPTION} {text!r} compares no numbers; write it like {EXAMPLE}")
    return False
