"""Curves of one pair, from records to a drawing, its numbers, and the README's block."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmark.report import readme
from benchmark.report.curves import PairCurves, collect_pair_curves, to_csv, write_curves
from benchmark.report.data import collect_report
from benchmark.report.readme import BEGIN, END, collect_measured, make_block
from benchmark.results.record import Record
from benchmark.results.store import Store
from tests.documents import DOCUMENTS, README
from tests.report_records import fill

PAIR = "ResNet56>ResNet20"
METHODS = ("Baseline", "KD", "LSSKD")
MARKED = re.compile(r"(?P<number>\d[\d,.]*\d)(?: ?%)?<!-- measured (?P<run>\S+) (?P<metric>\w+) -->")
"""A number with the run and the metric that it is, in a comment that no reader sees."""


def find_wrong_numbers(text: str, records: Mapping[str, Record]) -> list[str]:
    """The numbers in a document that are marked as measured and are not what their records say.

    records: by run id.
    """
    wrong = []
    for match in MARKED.finditer(text):
        measured = records.get(match["run"], {}).get("final", {}).get(match["metric"])
        shown = match["number"].replace(",", "")
        decimals = len(shown.partition(".")[2])
        if measured is None or f"{measured:.{decimals}f}" != shown:
            wrong.append(f"{match['number']} of {match['run']}, {match['metric']}: {measured}")
    return wrong


def read_records(results: Path = readme.RESULTS) -> dict[str, dict[str, Any]]:
    """The records that come with the repository, by run id."""
    records: Iterable[Record] = Store(results).read_all()[0] if results.is_dir() else []
    return {record["id"]: record for record in records}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of three rows of one pair, two seeds each, and of one row of another pair."""
    root = tmp_path_factory.mktemp("curves")
    fill(root, scale="quick", seeds=2, methods=METHODS, pairs=(PAIR,))
    fill(root, scale="quick", seeds=2, methods=("KD",), pairs=("WRN-40-2>WRN-16-2",))
    return root


@pytest.fixture(scope="module")
def curves(results: Path) -> PairCurves:
    (table,) = (table.result for table in collect_report(results, scale="quick", tables=("II",)).tables)
    curves = collect_pair_curves(table, read_records(results))
    assert curves is not None
    return curves


def test_the_pair_with_the_most_rows_is_drawn_the_best_row_first(curves: PairCurves) -> None:
    assert curves.column == PAIR
    assert {curve.name for curve in curves.curves} == set(METHODS)
    lasts = [curve.last for curve in curves.curves]
    assert lasts == sorted(lasts, reverse=True)
    assert curves.teacher is not None
    assert curves.seeds == "n=2"
    assert "are not comparable with the paper's" in curves.caption
    assert curves.title == f"{PAIR} on cifar100"


def test_a_curve_is_the_mean_over_seeds_of_what_the_records_say(curves: PairCurves, results: Path) -> None:
    runs = [record for name, record in read_records(results).items() if name.startswith("LSSKD_ResNet20")]
    (curve,) = (curve for curve in curves.curves if curve.name == "LSSKD")
    assert len(runs) == curve.seeds == 2
    for place, epoch in enumerate(curve.values):
        expected = [run["epochs"][epoch - 1]["top1"] for run in runs]
        assert sorted(curve.values[epoch]) == sorted(expected)
        assert curve.means[place] == pytest.approx(sum(expected) / 2)


def test_the_drawing_names_every_row_and_the_scale_and_the_csv_has_its_numbers(
    curves: PairCurves, tmp_path: Path
) -> None:
    paths = write_curves(curves, tmp_path, "curves")
    assert [path.suffix for path in paths] == [".png", ".pdf", ".svg", ".csv"]
    words = " ".join("".join(part.itertext()) for part in ElementTree.parse(paths[2]).iter())
    assert all(name in words for name in (*METHODS, "Teacher", PAIR, "quick", "n=2"))
    rows = list(csv.DictReader(io.StringIO(to_csv(curves))))
    assert len(rows) == 4 * 12
    assert all(float(row["lowest"]) <= float(row["mean"]) <= float(row["highest"]) for row in rows)


def test_a_column_that_has_other_networks_at_a_scale_names_those_that_were_trained(tmp_path: Path) -> None:
    fill(tmp_path, scale="demo", seeds=1, methods=METHODS, pairs=(PAIR,))
    (table,) = (table.result for table in collect_report(tmp_path, scale="demo", tables=("II",)).tables)
    curves = collect_pair_curves(table, read_records(tmp_path))
    assert curves is not None
    assert curves.title == f"ResNet14-x1/2>ResNet8-x1/2 on cifar100 (column {PAIR})"


def test_a_table_of_which_one_row_is_measured_has_no_drawing(tmp_path: Path) -> None:
    fill(tmp_path, scale="quick", seeds=1, methods=("KD",), pairs=(PAIR,))
    (table,) = (table.result for table in collect_report(tmp_path, scale="quick", tables=("II",)).tables)
    assert collect_pair_curves(table, read_records(tmp_path)) is None


def test_the_readme_shows_what_the_records_of_the_repository_say() -> None:
    block = README.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    assert block == make_block(collect_measured()), "run python -m benchmark.report.readme"


def test_the_block_has_every_row_its_seeds_and_what_cannot_be_concluded(results: Path) -> None:
    block = make_block(collect_measured(results))
    assert all(f"| {name} " in block for name in (*METHODS, "Teacher"))
    assert f"({readme.PICTURE})" in block
    assert "12 epochs instead of 240, 2 seeds a cell" in block
    assert "They do not show which of them is better" in block


def test_every_number_that_is_marked_as_measured_is_what_its_record_says() -> None:
    records = read_records()
    texts = {document.name: document.read_text(encoding="utf-8") for document in DOCUMENTS}
    assert any(MARKED.search(text) for text in texts.values())
    for name, text in texts.items():
        assert find_wrong_numbers(text, records) == [], name


def test_a_marked_number_that_differs_from_its_record_is_found() -> None:
    records = {"KD-1": {"final": {"top1": 56.664}}}
    right = "KD reaches 56.66 %<!-- measured KD-1 top1 -->, about 56.7<!-- measured KD-1 top1 -->."
    assert find_wrong_numbers(right, records) == []
    for wrong in (
        "56.67<!-- measured KD-1 top1 -->",
        "56.66<!-- measured KD-2 top1 -->",
        "56.66<!-- measured KD-1 x -->",
    ):
        assert len(find_wrong_numbers(wrong, records)) == 1


def test_the_records_of_the_repository_are_reported_where_there_are_no_others(results: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from benchmark.report import __main__ as report; "
        f"report.RESULTS = Path({str(results)!r}); report.main(table=['II'], scale='quick')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"There is no folder runs here, so this is the report of {results}." in done.stdout
    page = (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")
    assert "They do not show which of them is better" in page
    assert 'id="curves_table_II_quick"' in page
