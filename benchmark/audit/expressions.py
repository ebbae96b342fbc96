"""The small language of claims: arithmetic and comparisons over the cells of tables, such as

    mean(III["LSSKD"] - III["PS-KD"])
    all(IV["LSSKD"] > IV["Baseline"])
    II["LSSKD", "ResNet56>ResNet20"] == IV["LSSKD", "ResNet20"]

`III["LSSKD"]` is a row, one number for each column that has one, and `III["LSSKD", "ResNet18"]` a cell. Arithmetic on
rows goes column by column, over the columns in which both sides have a number. Python only parses the text: what is
not listed here is refused and never computed. docs/audit.md describes the language for users.

simpleeval over pandas would be shorter, but gives only the result: the audit also shows every comparison as a sentence,
and needs the cells that a claim names before anything is computed.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmark.core.errors import UserError, unknown_name

LONGEST = 2000
DEEPEST = 30
LARGEST = 1e9
ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div)
COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
SOURCES = ("printed", "published", "reproduced")
QUANTITIES = ("parameters", "multiply_adds")
"""Attributes of a row or a cell beside its accuracy: the student's cost at inference."""
OF_TABLES = ("has_network", "copied", "best_rival", "rank_of_gain")
OF_METHODS = ("cost", "extra_parameters")
FUNCTIONS = (
    *("mean", "max", "min", "abs", "all", "any", "count", "last", "first", "nearest_subset_mean", "fact"),
    *SOURCES,
    *OF_TABLES,
    *OF_METHODS,
)


@dataclass(frozen=True)
class Reference:
    """A cell, or a row where `column` is None.

    source: that of an enclosing `printed()`, `published()` or `reproduced()`; quantity: one of QUANTITIES, or None for
    the accuracy.
    """

    table: str
    row: str
    column: str | None
    source: str | None = None
    quantity: str | None = None

    @property
    def name(self) -> str:
        """The reference in words."""
        quantity = self.quantity.replace("_", "-") if self.quantity else None
        origin = f" ({self.source})" if self.source else ""
        return ", ".join(filter(None, (format_title(self.table), self.row, self.column, quantity))) + origin


def name_panel(figure: str, title: str) -> str:
    """Name a panel of a figure as claims do: `Figure5_CIFAR100`."""
    return f"Figure{figure}_{re.sub(r'[^A-Za-z0-9]', '', title)}"


def format_title(table: str) -> str:
    """A table's or a figure's name in words: `Table II`, `Figure 5, CIFAR100`."""
    number, underscore, panel = table.removeprefix("Figure").partition("_")
    return f"Figure {number}, {panel}" if underscore and table.startswith("Figure") else f"Table {table}"


@dataclass(frozen=True)
class Expression:
    """A parsed expression; `evaluate` computes it."""

    text: str
    tree: ast.expr = field(compare=False, repr=False)

    @property
    def references(self) -> tuple[Reference, ...]:
        """The rows and cells that the expression names, in order, each once."""
        return tuple(dict.fromkeys(find_references(self.tree, None)))

    @property
    def calls(self) -> list[tuple[str, ast.expr]]:
        """The functions that the expression calls, each with its first argument."""
        nodes = [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]
        return [(node.func.id, node.args[0]) for node in nodes if isinstance(node.func, ast.Name)]

    @property
    def table_arguments(self) -> tuple[str, ...]:
        """The tables that are arguments of functions."""
        return tuple(argument.id for _, argument in self.calls if isinstance(argument, ast.Name))

    @property
    def compares_rows(self) -> bool:
        """Whether a function takes the other rows of a table that the source has."""
        return any(name in ("best_rival", "rank_of_gain") for name, _ in self.calls)

    @property
    def facts(self) -> tuple[str, ...]:
        """The facts that the expression names."""
        named = [argument for name, argument in self.calls if name == "fact"]
        return tuple(node.value for node in named if isinstance(node, ast.Constant) and isinstance(node.value, str))

    @property
    def mean_of(self) -> Expression | None:
        """The argument of `mean`, if the whole expression is one."""
        tree = self.tree
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "mean":
            return Expression(ast.unparse(tree.args[0]), tree.args[0])
        return None


def parse(text: str) -> Expression:
    """Parse an expression; nothing is computed.

    Raises:
        UserError: it is no expression, or holds something that the language does not have.
    """
    if len(text) > LONGEST:
        raise UserError(f"expression of {len(text)} characters; allowed: {LONGEST}")
    try:
        with warnings.catch_warnings():
            # Python warns of numbers that run into words, such as "1if"; what it makes of them is checked below.
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "too deeply nested"
        raise UserError(f"expression {text!r} cannot be read: {reason}; docs/audit.md shows the language") from None
    if _depth(tree) > DEEPEST:
        raise UserError(f"expression {text!r} is nested more than {DEEPEST} levels deep; split the claim")
    _check(tree, text)
    return Expression(text.strip(), tree)


def _depth(tree: ast.AST) -> int:
    level, depth = [tree], 0
    while level:
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        depth += 1
    return depth


def _check(node: ast.expr, text: str) -> None:
    """Refuse everything that is not in the language, before anything is computed."""
    match node:
        case ast.Constant(value=bool() | str()):
            return
        case ast.Constant(value=int() | float() as value) if abs(value) < LARGEST:
            return
        case ast.BinOp(left=left, op=operation, right=right) if isinstance(operation, ARITHMETIC):
            parts = [left, right]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not(), operand=operand):
            parts = [operand]
        case ast.BoolOp(values=values):
            parts = values
        case ast.Compare(left=left, ops=[operation], comparators=[right]) if isinstance(operation, COMPARISONS):
            parts = [left, right]
        case ast.Attribute(value=ast.Subscript() as cells, attr=name) if name in QUANTITIES:
            parts = [cells]
        case ast.Subscript(value=ast.Name(), slice=place) if _place(place):
            return
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            _check_call(name, args, text)
            parts = args[1:] if name in OF_TABLES else args
        case ast.Name(id=name):
            raise UserError(
                f'expression {text!r}: {name!r} alone is no number; write {name}["row"] or {name}["row", "column"]'
            )
        case _:
            raise UserError(
                f"expression {text!r}: {ast.unparse(node)!r} is not in the language; allowed: numbers, + - * /, one "
                f'comparison at a time, and, or, not, cells such as II["KD"], and {", ".join(FUNCTIONS)}'
            )
    for part in parts:
        _check(part, text)


def _check_call(name: str, args: Sequence[ast.expr], text: str) -> None:
    if name not in FUNCTIONS:
        raise UserError(f"expression {text!r}: {unknown_name('function', name, FUNCTIONS)}")
    counts = {"max": 0, "min": 0, "all": 0, "any": 0}
    counts |= dict.fromkeys(("has_network", "rank_of_gain", "nearest_subset_mean"), 2)
    wanted = counts.get(name, 1)
    if not args or (wanted and len(args) != wanted) or any(isinstance(argument, ast.Starred) for argument in args):
        raise UserError(f"expression {text!r}: {name} takes {wanted or 'one or more'} in its brackets")
    if name in OF_TABLES and not isinstance(args[0], ast.Name):
        raise UserError(f"expression {text!r}: {name} takes a table first, such as {name}(II)")


def _place(node: ast.expr) -> tuple[str, str | None] | None:
    """The row and the column in the brackets after a table."""
    match node:
        case ast.Constant(value=str() as row):
            return row, None
        case ast.Tuple(elts=[ast.Constant(value=str() as row), ast.Constant(value=str() as column)]):
            return row, column
    return None


def find_references(node: ast.AST, source: str | None, quantity: str | None = None) -> Iterator[Reference]:
    """Find the rows and cells that a checked tree names."""
    if isinstance(node, ast.Subscript):
        place = _place(node.slice)
        assert place
        assert isinstance(node.value, ast.Name)
        yield Reference(node.value.id, *place, source, quantity)
        return
    if isinstance(node, ast.Attribute):
        quantity = node.attr
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SOURCES:
        source = node.func.id
    for child in ast.iter_child_nodes(node):
        yield from find_references(child, source, quantity)
