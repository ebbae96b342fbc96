"""Evaluate expressions on a source of cells: printed, published or measured numbers."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import operator
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmark.audit.expressions import OF_TABLES, SOURCES, Expression, find_references, format_title
from benchmark.audit.sources import CLOSE, NoNumber, Numbers, Paper, Row
from benchmark.core.errors import UserError
from benchmark.core.text import format_minus, format_signed

MOST_COLUMNS_OF_SUBSETS = 16
"""All subsets of so many columns, 2 to this power, are few enough to try."""

Truths = dict[str, bool]
Value = float | bool | str | Row | Truths

_ARITHMETIC: dict[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: dict[type[ast.AST], tuple[str, str, Callable[[float, float], bool]]] = {
    ast.Eq: ("=", "≠", lambda a, b: abs(a - b) < CLOSE),
    ast.NotEq: ("≠", "=", lambda a, b: abs(a - b) >= CLOSE),
    ast.Lt: ("<", "≥", lambda a, b: a < b - CLOSE),
    ast.LtE: ("≤", ">", lambda a, b: a < b + CLOSE),
    ast.Gt: (">", "≤", lambda a, b: a > b + CLOSE),
    ast.GtE: ("≥", "<", lambda a, b: a > b - CLOSE),
}
"""The sign of a comparison, its opposite, and how it is computed."""


@dataclass(frozen=True)
class ReasoningStep:
    """A comparison made during evaluation, in words, and whether it is true."""

    text: str
    holds: bool


def evaluate(expression: Expression, numbers: Numbers, paper: Paper) -> tuple[Value, tuple[ReasoningStep, ...]]:
    """Evaluate an expression on a source; returns its value and the comparisons that led to it.

    paper: answers what functions ask beside the source's numbers.

    Raises:
        NoNumber: a row or cell has no number, or two rows have no column in common.
        UserError: values that do not go together, a division by zero.
    """
    evaluator = _Evaluator(expression.text, numbers, paper)
    value = evaluator.value(expression.tree)
    return value, tuple(evaluator.steps)


@dataclass
class _Evaluator:
    """Evaluates the tree of one expression; `steps` are the comparisons it made."""

    text: str
    numbers: Numbers
    paper: Paper
    steps: list[ReasoningStep] = field(default_factory=list)

    def value(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant(value=bool() | str() as value):
                return value
            case ast.Constant(value=int() | float() as value):
                return float(value)
            case ast.Subscript() | ast.Attribute():
                return self._cells(node)
            case ast.BinOp(left=left, op=operation, right=right):
                return self._arithmetic(self.value(left), self.value(right), _ARITHMETIC[type(operation)])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._truth(self.value(operand))
            case ast.UnaryOp(op=operation, operand=operand):
                sign = -1.0 if isinstance(operation, ast.USub) else 1.0
                return self._arithmetic(sign, self.value(operand), operator.mul)
            case ast.BoolOp(op=operation, values=values):
                # All are computed, so that the reader sees every comparison.
                truths = [self._truth(self.value(value)) for value in values]
                return all(truths) if isinstance(operation, ast.And) else any(truths)
            case ast.Compare(left=left, ops=[operation], comparators=[right]):
                return self._compared(left, right, operation)
            case ast.Call(func=ast.Name(id=name), args=args):
                return self._call(name, args)
        raise AssertionError(f"{ast.dump(node)} was not checked")

    def _cells(self, node: ast.expr) -> Value:
        (reference,) = find_references(node, None)
        row = self.numbers.row(reference)
        if not row or (reference.column is not None and reference.column not in row):
            raise NoNumber(self.numbers.missing(reference))
        return row if reference.column is None else row[reference.column]

    def _call(self, name: str, args: list[ast.expr]) -> Value:
        if name in SOURCES:
            return dataclasses.replace(self, numbers=self.paper.sources[name]).value(args[0])
        # A table is named, and has no value.
        table = args[0].id if name in OF_TABLES and isinstance(args[0], ast.Name) else ""
        values = [self.value(argument) for argument in (args[1:] if table else args)]
        match name, values:
            case ("mean", [dict() as row]):
                return statistics.fmean(self._numbers([row]))
            case ("max" | "min", _):
                return (max if name == "max" else min)(self._numbers(values))
            case ("all" | "any", _):
                return (all if name == "all" else any)(self._truths(values))
            case ("count", [dict() as row]):
                return float(sum(self._truths([row])))
            case ("fact", [str() as name]):
                return self.paper.fact(name)
            case ("abs", [float() as number]):
                return abs(number)
            case ("first" | "last", [dict() as row]):
                return self._numbers([row])[0 if name == "first" else -1]
            case ("nearest_subset_mean", [float() as number, dict() as row]):
                return self._nearest_subset_mean(number, self._numbers([row]))
            case ("cost" | "extra_parameters", [str() as method]):
                return self.paper.of_method(name, method)
            case ("copied", []):
                return self._copied(table)
            case ("best_rival", []):
                return self._best_rival(table)
            case ("rank_of_gain", [str() as row]):
                return self._rank_of_gain(table, row)
            case ("has_network", [str() as prefix]):
                return self._has_network(table, prefix)
        raise self._mismatch(f"{name} of {', '.join(map(_kind, values)) or 'a table alone'}")

    def _copied(self, table: str) -> float:
        equal, cells = self.paper.copied(table)
        self.steps.append(ReasoningStep(f"{format_title(table)} {equal} of {cells} cells", True))
        return float(equal)

    def _best_rival(self, table: str) -> Row:
        best: Row = {}
        for row in self.paper.rivals(table, self.numbers).values():
            best |= {column: max(number, best.get(column, number)) for column, number in row.items()}
        if not best:
            raise NoNumber(f"{format_title(table)} has no row of another method")
        return best

    def _rank_of_gain(self, table: str, row: str) -> float:
        gains = self.paper.mean_gains(table, self.numbers)
        names = [name for name, _ in gains]
        if row not in names:
            raise NoNumber(f"{format_title(table)} has no gain of {row} in every column")
        for place, (name, gain) in enumerate(gains, 1):
            self.steps.append(ReasoningStep(f"{place} {name} {format_signed(gain)}", True))
        return float(1 + sum(gain > dict(gains)[row] + CLOSE for _, gain in gains))

    def _has_network(self, table: str, prefix: str) -> bool:
        # ResNet is a family, ResNet18 one network and no part of ResNet180.
        found = any(
            network == prefix
            or (network.startswith(prefix) and not (prefix[-1:].isdigit() and network[len(prefix)].isdigit()))
            for network in self.paper.networks(table)
        )
        self.steps.append(
            ReasoningStep(f"{format_title(table)} has {'a' if found else 'no'} column of {prefix}", found)
        )
        return found

    def _arithmetic(self, left: Value, right: Value, compute: Callable[[float, float], float]) -> Value:
        def computed(a: float, b: float, column: str = "") -> float:
            try:
                return compute(a, b)
            except ZeroDivisionError:
                raise UserError(f"expression {self.text!r} divides by zero; allowed: any other number") from None

        return self._columnwise(left, right, computed)

    def _compared(self, left: ast.expr, right: ast.expr, operation: ast.cmpop) -> Value:
        sign, opposite, compare = _COMPARISONS[type(operation)]
        values = self.value(left), self.value(right)

        def compared(a: Any, b: Any, column: str = "") -> bool:
            holds = (a == b) == (sign == "=") if isinstance(a, str) else compare(a, b)
            texts = [_named(left, a, column), _named(right, b, column)]
            if not isinstance(a, str) and not (_is_plain(left) and _is_plain(right)):
                # What a formula computes has no short name; the claim says in words what it is.
                numbers = [format_minus(f"{value:.2f}") for value in (a, b)]
                texts = [f"{column}: {numbers[0]}" if column else numbers[0], numbers[1]]
            if _printed_of(right) == ast.unparse(left):
                texts[1] = f"{b:.2f} as printed"
            self.steps.append(ReasoningStep(f" {sign if holds else opposite} ".join(texts), holds))
            return holds

        if all(isinstance(value, str) for value in values) and sign in ("=", "≠"):
            return compared(*values)
        return self._columnwise(*values, compared)

    def _columnwise(self, left: Value, right: Value, compute: Callable[..., Any]) -> Any:
        """Compute on two numbers, or on the columns that two rows share; a number is combined with every column.

        compute: takes two numbers and the name of their column, which two numbers alone do not have.
        """
        if not {_kind(left), _kind(right)} <= {"a number", "a row"}:
            raise self._mismatch(f"{_kind(left)} with {_kind(right)}")
        if not isinstance(left, dict) and not isinstance(right, dict):
            return compute(left, right)
        rows = [value for value in (left, right) if isinstance(value, dict)]
        columns = [column for column in rows[0] if all(column in row for row in rows)]
        if not columns:
            raise NoNumber("no column in which both rows have a number")

        def at(value: Value, column: str) -> Value:
            return value[column] if isinstance(value, dict) else value

        return {column: compute(at(left, column), at(right, column), column) for column in columns}

    def _nearest_subset_mean(self, number: float, values: list[float]) -> float:
        if len(values) > MOST_COLUMNS_OF_SUBSETS:
            raise self._mismatch(f"nearest_subset_mean of more than {MOST_COLUMNS_OF_SUBSETS} columns")
        sizes = range(1, len(values) + 1)
        means = (statistics.fmean(part) for size in sizes for part in itertools.combinations(values, size))
        return min(means, key=lambda mean: abs(mean - number))

    def _numbers(self, values: Sequence[Value]) -> list[float]:
        numbers: list[float] = []
        for value in values:
            if isinstance(value, dict) and not _has_truths(value):
                numbers += value.values()
            elif isinstance(value, float):
                numbers.append(value)
            else:
                raise self._mismatch(f"a number wanted, {_kind(value)} given")
        return numbers

    def _truths(self, values: Sequence[Value]) -> list[bool]:
        truths: list[bool] = []
        for value in values:
            if isinstance(value, dict) and _has_truths(value):
                truths += map(bool, value.values())
            else:
                truths.append(self._truth(value))
        return truths

    def _truth(self, value: Value) -> bool:
        if not isinstance(value, bool):
            raise self._mismatch(f"true or false wanted, {_kind(value)} given; all() and any() make one of a row")
        return value

    def _mismatch(self, what: str) -> UserError:
        return UserError(f"expression {self.text!r} cannot be computed: {what}; docs/audit.md shows the language")


def _has_truths(value: Value) -> bool:
    return isinstance(value, dict) and any(isinstance(entry, bool) for entry in value.values())


def _kind(value: Value) -> str:
    if isinstance(value, dict):
        return "a row of truths" if _has_truths(value) else "a row"
    return "a truth" if isinstance(value, bool) else "a text" if isinstance(value, str) else "a number"


def _named(node: ast.expr, value: float | str, column: str) -> str:
    """One side of a comparison in words: its name and its value."""
    if isinstance(value, str):
        return value
    if isinstance(node, ast.Constant):
        return f"{value:g}"
    references = list(find_references(node, None))
    if len(references) == 1 and (isinstance(node, ast.Subscript | ast.Attribute) or _is_source(node)):
        name = dataclasses.replace(references[0], column=references[0].column or column or None).name
    else:
        name = f"{ast.unparse(node)}, {column}" if column else ast.unparse(node)
    return f"{name} {value:,.0f}" if any(reference.quantity for reference in references) else f"{name} {value:.2f}"


def _is_plain(node: ast.expr) -> bool:
    """Whether a side of a comparison is a number, a row or a cell, so that its name is short."""
    return isinstance(node, ast.Subscript | ast.Attribute | ast.Constant) or _is_source(node)


def _is_source(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SOURCES


def _printed_of(node: ast.expr) -> str | None:
    """The row or cell inside `printed(...)`, as text; None for anything else."""
    match node:
        case ast.Call(func=ast.Name(id="printed"), args=[inner]):
            return ast.unparse(inner)
    return None
