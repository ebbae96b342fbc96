"""What a link to a table or a cell ends with."""

from __future__ import annotations

import re

import pytest

from benchmark.analysis.tables import empty_result
from benchmark.report.addresses import address_cells, address_table, make_slug
from tables.specification import load_table, table_names


@pytest.mark.parametrize("name", table_names())
def test_every_cell_has_an_address_of_its_own(name: str) -> None:
    result = empty_result(load_table(name))
    addresses = address_cells(result, address_table(result.stem))
    assert {(row.name, column.name) for row in result.table.rows for column in result.table.columns} <= set(addresses)
    assert len(set(addresses.values())) == len(addresses)
    assert all(re.fullmatch(r"[a-z0-9.+/-]+", address) for address in addresses.values())


def test_an_address_says_table_method_and_student() -> None:
    result = empty_result(load_table("II"))
    addresses = address_cells(result, address_table(result.stem))
    assert addresses["LSSKD", "WRN-40-2>WRN-16-2"] == "table-ii/lsskd/wrn-16-2"
    assert address_table("table_II_quick") == "table-ii-quick"


def test_no_name_breaks_an_address() -> None:
    assert make_slug("</script>\"' x") == "script-x"
    assert make_slug("\N{GREEK SMALL LETTER ALPHA}") == "unnamed"
