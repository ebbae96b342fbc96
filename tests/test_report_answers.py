"""The report's first screen: which cells have a number, what accuracy costs, and which method is best."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.report.answers import draw_map, list_best
from benchmark.report.data import TableReport, collect_report
from benchmark.report.pareto import draw_all_costs, draw_costs
from tests.report_records import fill, write

PAIR = "WRN-40-2>WRN-16-2"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> TableReport:
    """Table II with one pair of three methods, the accuracy of which is chosen."""
    root = tmp_path_factory.mktemp("answers")
    top = {"Baseline": 73.26, "KD": 76.4, "LSSKD": 75.0}
    for run in fill(root, methods=tuple(top), pairs=(PAIR,), epochs=2):
        if run.student == "WRN-16-2":
            write(root, run, 2, final={"epoch": 2, "loss": 1.0, "top1": top[run.method]})
    (table,) = collect_report(root, tables=("II",)).tables
    return table


def test_boxes_are_coloured_by_the_difference_to_the_printed_number(table: TableReport) -> None:
    drawn = draw_map(table)
    boxes = {box.address: box for box in drawn.boxes}
    # 75.23 is printed for KD, and 76.89 for LSSKD.
    assert boxes["table-ii/kd/wrn-16-2"].shade == "above2"
    assert boxes["table-ii/lsskd/wrn-16-2"].shade == "below2"
    assert "printed 76.89" in boxes["table-ii/lsskd/wrn-16-2"].title
    assert boxes["table-ii/crd/wrn-16-2"].shade == "missing"
    assert set(boxes) <= set(table.addresses.values())
    assert drawn.words == f"Table II, paper: 6 of {len(boxes)} cells measured, those of teachers included"


def test_no_row_beyond_the_front_is_better_for_less(table: TableReport) -> None:
    picture = draw_costs(table)
    assert picture is not None
    points = {point.name: point for point in picture.points}
    assert points["KD"].front
    assert not points["LSSKD"].front, "it costs more than KD and is worse"
    assert not points["Teacher"].front, "another network is no rival"
    assert points["Baseline"].cost == pytest.approx(1.0)
    assert points["Baseline"].x < points["KD"].x < points["LSSKD"].x
    assert points["KD"].y < points["LSSKD"].y, "higher is up"
    assert len(list(draw_all_costs([table, table]))) == 1, "the same runs are drawn once"


def test_the_best_method_of_a_pair_stands_with_its_lead(table: TableReport) -> None:
    (listing,) = list_best([table])
    ((pair, best, top, gain),) = listing.rows
    assert (pair.text, best.text, best.below) == (PAIR, "KD", "then LSSKD, 1.40 behind")
    assert top.key == 76.4
    assert gain.key == pytest.approx(76.4 - 73.26)


def test_nothing_is_answered_where_nothing_was_run(tmp_path: Path) -> None:
    (table,) = collect_report(tmp_path, tables=("II",)).tables
    assert draw_costs(table) is None
    assert list(list_best([table])) == []
