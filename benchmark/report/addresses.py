"""Address what a page shows: a table, a cell and a claim each have a name that a link can end with."""

from __future__ import annotations

import re
from collections import Counter

from tables.result import TableResult
from tables.view import TEACHER


def make_slug(text: str) -> str:
    """Write any text with small letters, digits and `.+-` alone, so that it can stand in an address."""
    return re.sub(r"[^a-z0-9.+]+", "-", text.lower()).strip("-") or "unnamed"


def address_table(stem: str) -> str:
    """Make the address of a table from the stem of its files: `table-ii` at paper scale, else `table-ii-quick`."""
    return make_slug(stem).removesuffix("-paper")


def address_method(name: str) -> str:
    """Make the address of a method's card: `method/ps-kd`. A star, of which a slug has none, is written out."""
    return f"method/{make_slug(name.replace('*', '-star'))}"


def address_network(name: str) -> str:
    """Make the address of a network's card: `network/wrn-16-2`."""
    return f"network/{make_slug(name)}"


def address_cells(result: TableResult, table: str) -> dict[tuple[str, str], str]:
    """Make the address of each cell, by row and column name: `table-ii/lsskd/wrn-16-2`, the teachers' row included.

    A column is named by its student, or by the pair where the table has two pairs of one student. Names that differ in
    signs alone are numbered.
    """
    # The name, and not the networks, because these may be others at other scales.
    students = {column.name: column.name.rpartition(">")[2] for column in result.table.columns}
    counts = Counter(students.values())
    columns = {name: student if counts[student] == 1 else name for name, student in students.items()}
    used: Counter[str] = Counter()
    addresses = {}
    for row in dict.fromkeys((TEACHER, *(row.name for row in result.table.rows))):
        for column, name in columns.items():
            address = f"{table}/{make_slug(row)}/{make_slug(name)}"
            used[address] += 1
            addresses[row, column] = address if used[address] == 1 else f"{address}/{used[address]}"
    return addresses
