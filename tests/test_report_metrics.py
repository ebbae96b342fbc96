"""What a report says of numbers: paired differences, prices, coverage, and how numbers are written."""

from __future__ import annotations

import dataclasses

import pytest

from benchmark.core.statistics import paired_difference, pooled_difference
from benchmark.report.coverage import Coverage, count_paper_cells, write_headline, write_sentences
from benchmark.report.metrics import list_costs, list_differences, list_metrics, list_prices
from benchmark.report.table import (
    ReportCell,
    format_count,
    format_number,
    format_power,
    format_spread,
    format_word,
)
from tables.result import Cell, Price, Seed, TableResult
from tables.specification import Column, Row, Table
from tests.report_records import column

PAIRS = ("WRN-40-2>WRN-16-2", "ResNet56>ResNet20")


def seed(number: int, top1: float, **price: float | None) -> Seed:
    paid = {field.name: None for field in dataclasses.fields(Price)} | {"epochs": 2} | price
    return Seed(number, f"run-{number}", {"top1": top1}, Price(**paid), "fp32")  # type: ignore[arg-type]


def result_of(values: dict[tuple[str, str], dict[int, float]], **price: float | None) -> TableResult:
    """A table of two columns that share a teacher, with these values by row and column, and then by seed."""
    columns = (Column(teacher="WRN-40-2", student="WRN-16-2"), Column(teacher="WRN-40-2", student="WRN-40-1"))
    rows = tuple(Row(method=name) for name in dict.fromkeys(row for row, _ in values))
    cells = {
        key: Cell(
            *key, tuple(by_seed.values()), "done", finished=tuple(seed(*item, **price) for item in by_seed.items())
        )
        for key, by_seed in values.items()
    }
    table = Table(name="x", caption="", dataset="cifar100", columns=columns, rows=rows)
    return TableResult(table, "paper", "240", "cifar100", cells, {}, "here", True)


def test_differences_are_those_of_the_paired_statistics() -> None:
    mine, other = {0: 75.0, 1: 76.0, 2: 75.5}, {0: 74.0, 1: 74.5, 2: 74.8}
    first, second = "WRN-40-2>WRN-16-2", "WRN-40-2>WRN-40-1"
    values = {("LSSKD", first): mine, ("KD", first): other, ("LSSKD", second): other, ("KD", second): mine}
    listing = list_differences(result_of(values), "LSSKD")
    assert listing is not None
    expected = paired_difference(mine, other)
    shown = column(listing, first)["KD"]
    assert expected.interval is not None
    assert shown.key == expected.mean
    assert shown.text == f"{expected.mean:+.2f}"
    low, high = expected.interval
    assert shown.below == f"[{low:.2f}, {high:.2f}]\np = {expected.p_value:.3f}, n=3".replace("-", "\N{MINUS SIGN}")
    pooled = pooled_difference([(mine, other), (other, mine)])
    assert column(listing, "mean of the columns")["KD"].key == pooled.mean
    assert len(listing.notes) == 1


def test_fewer_than_three_seeds_give_no_interval_and_the_reason() -> None:
    values = {("LSSKD", PAIRS[0]): {0: 75.0, 1: 76.0}, ("KD", PAIRS[0]): {0: 74.0, 1: 74.5, 2: 74.8}}
    listing = list_differences(result_of(values), "LSSKD")
    assert listing is not None
    assert column(listing, PAIRS[0])["KD"].below == "n=2"
    assert "fewer than 3 seeds" in listing.notes[-1]


def test_runs_without_a_common_seed_are_not_compared() -> None:
    values = {("LSSKD", PAIRS[0]): {0: 75.0}, ("KD", PAIRS[0]): {1: 74.0}}
    assert list_differences(result_of(values), "LSSKD") is None
    assert list_differences(result_of({("KD", PAIRS[0]): {0: 74.0}}), "LSSKD") is None


def test_columns_of_different_metrics_are_not_averaged() -> None:
    values = {(row, name): {0: 75.0} for row in ("LSSKD", "KD") for name in ("top-1", "top-5")}
    result = result_of(values)
    columns = (
        Column(teacher="WRN-40-2", student="WRN-16-2", title="top-1"),
        Column(teacher="WRN-40-2", student="WRN-16-2", title="top-5", metric="top5"),
    )
    table = result.table.model_copy(update={"columns": columns})
    listing = list_differences(dataclasses.replace(result, table=table), "LSSKD")
    assert listing is not None
    assert [heading.name for heading in listing.headings] == ["minus", "top-1", "top-5"]


def test_a_price_counts_the_teacher_and_is_a_multiple_of_baseline() -> None:
    first = "WRN-40-2>WRN-16-2"
    cheap = result_of({("Baseline", first): {0: 70.0}}, multiply_adds=100, teacher_multiply_adds=0, seconds=7200.0)
    dear = result_of(
        {("LSSKD", first): {0: 72.0}},
        **{"multiply_adds": 900, "teacher_multiply_adds": 100, "seconds": 7200.0, "teacher_seconds": 3600.0},
    )
    rows = (*cheap.table.rows, *dear.table.rows)
    both = dataclasses.replace(
        dear, table=dear.table.model_copy(update={"rows": rows}), cells={**cheap.cells, **dear.cells}
    )
    paid, per_cell = list_prices(both), list_costs(both)
    assert paid is not None
    assert per_cell is not None
    assert column(paid, "training")["LSSKD"].text == "9.00\N{MULTIPLICATION SIGN}"
    assert column(paid, "with teacher")["LSSKD"].text == "10.00\N{MULTIPLICATION SIGN}"
    assert column(paid, "gain, points")["LSSKD"].text == "+2.00"
    assert column(paid, "device hours")["LSSKD"].key == pytest.approx(3.0)
    assert column(paid, "device hours")["Baseline"].key is None  # a teacher's seconds are not known
    assert column(per_cell, "s/epoch")["LSSKD"].key == pytest.approx(3600)
    assert column(per_cell, "with teacher")["LSSKD"].key == pytest.approx(5400)


def test_stages_are_listed_only_where_a_run_has_them() -> None:
    plain = list_metrics(result_of({("KD", PAIRS[0]): {0: 70.0}}))
    assert plain is not None
    assert "stages, %" not in [heading.name for heading in plain.headings]


def covered(table: str, scale: str, done: int, comparable: bool, cells: int = 10) -> Coverage:
    return Coverage(table, scale, "cifar100", "lsskd", cells, done, 0, 0, comparable)


def test_the_headline_counts_what_may_be_compared_once_for_each_table() -> None:
    several = [
        covered("II", "paper", 7, True),
        covered("II", "paper", 9, False),
        covered("II", "demo", 10, False),
        covered("III", "paper", 0, True),
    ]
    assert count_paper_cells(several) == (7, 20)
    assert write_headline(several) == "7 of 20 cells at paper scale"


def test_what_may_be_concluded_depends_on_what_was_measured() -> None:
    assert "Nothing was run yet" in write_sentences([covered("II", "paper", 0, True)])[0]
    assert "confirms or refutes" in write_sentences([covered("II", "demo", 3, False)])[0]
    assert write_sentences([covered("II", "paper", 10, True)]) == []


@pytest.mark.parametrize(
    ("datum", "text"),
    [
        (format_number(-1.5), "\N{MINUS SIGN}1.50"),
        (format_number(None), "\N{EN DASH}"),
        (format_number(0.0), "0.00"),
        (format_power(3.64e15), "3.64\N{MULTIPLICATION SIGN}10¹⁵"),
        (format_power(9.999e5), "1.00\N{MULTIPLICATION SIGN}10⁶"),
        (format_power(0), "0"),
        (format_count(703284), "703.28 k"),
        (format_count(12.3e6), "12.30 M"),
        (format_spread([70.0, 72.0]), "71.00 ± 1.41"),
        (format_spread([70.0]), "70.00"),
        (format_word(""), "\N{EN DASH}"),
    ],
)
def test_numbers_are_written_as_people_read_them(datum: ReportCell, text: str) -> None:
    assert datum.text == text
