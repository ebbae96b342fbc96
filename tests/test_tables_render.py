"""What a rendered table says: seeds behind every number, statuses, footnotes, comparability, width."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from benchmark.core.errors import UserError
from tables.render import Cell, TableResult, to_csv, to_latex, to_markdown, to_terminal, write_reports
from tables.result import Status
from tables.specification import Column, Published, Row, Table, load_table

FIRST, SECOND = "WRN-40-2>WRN-16-2", "ResNet56>ResNet20"
TABLE = Table(
    name="II",
    caption="A small table.",
    dataset={"demo": "digits", "paper": "cifar100"},
    columns=(Column(teacher="WRN-40-2", student="WRN-16-2"), Column(teacher="ResNet56", student="ResNet20")),
    rows=(
        Row(method="Baseline", printed=(73.57, 69.62)),
        Row(method="VID", printed=(75.31, 71.35)),
        Row(method="HSSAKD", published=Published(source="its authors", mean=(77.2, 72.58), std=(0.17, 0.33), runs=3)),
        Row(method="LSSKD", printed=(76.89, 72.67), footnotes=("Trails at short schedules.",)),
    ),
    footnotes=("Printed on CIFAR-100.",),
)
FAILURE = "LSSKD, ResNet56>ResNet20, seed 1: failed at epoch 3, step 17: loss not finite"


def cell(row: str, column: str, *values: float, status: Status = "done", **others: object) -> Cell:
    return dataclasses.replace(Cell(row, column, values, status), **others)  # type: ignore[arg-type]


def result(scale: str = "demo", **changes: object) -> TableResult:
    cells = [
        cell("Baseline", FIRST, 70.0, 71.0, 72.0, best=(71.0, 72.0, 73.0)),
        cell("Baseline", SECOND, 68.004),
        cell("VID", FIRST, status="not in the suite"),
        cell("VID", SECOND, status="not in the suite"),
        cell("HSSAKD", FIRST, 74.25),
        cell("HSSAKD", SECOND, status="failed", notes=("HSSAKD, ResNet56>ResNet20, seed 0: loss not finite",)),
        cell("LSSKD", FIRST, 73.0, 75.0),
        cell("LSSKD", SECOND, 69.5, status="partial", notes=(FAILURE,), seeds=3),
    ]
    whole = TableResult(
        table=TABLE,
        scale=scale,
        epochs="4" if scale == "demo" else "240",
        dataset="digits" if scale == "demo" else "cifar100",
        cells={(one.row, one.column): one for one in cells},
        teachers={FIRST: cell("Teacher", FIRST, 76.4, notes=("from a file",))},
        generated_from="kd-benchmark 0.1.0, commit 0123456789ab",
        comparable=scale == "paper",
    )
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


FILES = [Path(f"reports/table_II_demo.{ending}") for ending in ("md", "tex", "csv")]


def terminal(
    shown: TableResult, width: int, selected: set[tuple[str, str]] | None = None, written: Sequence[Path] = ()
) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(to_terminal(shown, width, written, selected))
    return console.export_text()


def notes_below(text: str) -> list[str]:
    """The lines of notes under the table, up to the one that counts cells."""
    lines = text.rstrip("\n").splitlines()
    begin = max(place for place, line in enumerate(lines) if not line.strip()) + 1
    return lines[begin : next(place for place, line in enumerate(lines) if "cells done" in line)]


def markdown_row(text: str, method: str) -> list[str]:
    line = next(line for line in text.splitlines() if re.match(rf"\| {re.escape(method)}[^A-Za-z*]", line))
    return [part.strip() for part in line.strip("|").split("|")]


def latex_row(text: str, method: str) -> list[str]:
    """The cells of a method in the table's body."""
    line = next(line for line in text.splitlines() if re.match(rf"{re.escape(method)}(\\text| &)", line))
    return [part.strip() for part in line.removesuffix(r" \\").split("&")]


def test_every_markdown_number_stands_with_its_seeds_beside_the_printed_one() -> None:
    text = to_markdown(result())
    assert markdown_row(text, "Baseline") == ["Baseline", "71.00 ± 1.00 (n=3) · *73.57*", "68.00 (n=1) · *69.62*"]
    assert "the standard deviation over the n runs (seeds)" in text


def test_the_teachers_come_first() -> None:
    text = to_markdown(result())
    assert markdown_row(text, "Teacher")[1:] == ["76.40 (n=1)¹", "not run yet"]
    assert text.index("| Teacher") < text.index("| Baseline")


def test_a_method_that_the_suite_lacks_shows_its_printed_numbers() -> None:
    assert markdown_row(to_markdown(result()), "VID")[1:] == ["– · *75.31*", "– · *71.35*"]  # noqa: RUF001
    assert latex_row(to_latex(result()), "VID") == ["VID", "75.31", "--", "71.35", "--"]


def test_a_failed_cell_has_a_footnote() -> None:
    text = to_markdown(result())
    failed = markdown_row(text, "HSSAKD")[2]
    number = re.match(r"failed([⁰¹²³⁴⁵⁶⁷⁸⁹]+) · ", failed)
    assert number is not None
    assert f"- {number[1]} HSSAKD, ResNet56>ResNet20, seed 0: loss not finite" in text


def test_a_partial_cell_says_how_many_of_how_many() -> None:
    assert markdown_row(to_markdown(result()), "LSSKD")[2].startswith("**69.50** (n=1 of 3)")
    unknown = result(cells={("LSSKD", FIRST): cell("LSSKD", FIRST, 70.0, status="partial")})
    assert "70.00 (n=1, partial)" in to_markdown(unknown)


def test_published_numbers_are_marked_with_their_source() -> None:
    text = to_markdown(result())
    mark = re.search(r"\*77\.20 ± 0\.17\*†([¹²³⁴⁵⁶⁷⁸⁹])", markdown_row(text, "HSSAKD")[1])
    assert mark is not None
    assert f"- {mark[1]} Published: its authors; n=3, epoch not stated." in text
    assert "its authors" not in to_markdown(result(table=TABLE.model_copy(update={"rows": TABLE.rows[:2]})))


@pytest.mark.parametrize("render", [to_markdown, to_latex, lambda shown: terminal(shown, 200)])
def test_numbers_of_another_scale_are_said_not_to_be_comparable(render) -> None:  # type: ignore[no-untyped-def]
    plain = (
        "These numbers are from scale demo, on dataset digits, after 4 epochs, and are not comparable with the paper's."
    )
    assert plain in render(result("demo"))
    assert "not comparable" not in render(result("paper"))
    assert "scale paper, on dataset cifar100, after 240 epochs" in render(result("paper"))


@pytest.mark.parametrize(
    "changes", [{"scale": "demo"}, {"scale": "paper", "comparable": False}, {"scale": "paper", "dataset": "digits"}]
)
def test_no_difference_is_shown_where_the_numbers_are_not_comparable(changes: dict[str, object]) -> None:
    shown = result(**changes)  # type: ignore[arg-type]
    assert not shown.reproduces
    assert "not comparable" in to_markdown(shown)
    assert markdown_row(to_markdown(shown), "Baseline")[1] == "71.00 ± 1.00 (n=3) · *73.57*"
    assert {line["difference"] for line in csv.DictReader(io.StringIO(to_csv(shown)))} == {""}


def test_a_reproduction_shows_how_far_it_is_from_the_printed_number() -> None:
    cells = markdown_row(to_markdown(result("paper")), "Baseline")
    assert cells[1:] == ["71.00 ± 1.00 (n=3) · *73.57* (−2.57)", "68.00 (n=1) · *69.62* (−1.62)"]  # noqa: RUF001
    # A published number has another protocol, so no difference to it.
    assert "(" not in markdown_row(to_markdown(result("paper")), "HSSAKD")[1].split("·")[1]


def test_a_table_without_printed_numbers_says_nothing_about_them() -> None:
    bare = TABLE.model_copy(update={"rows": (Row(method="Baseline"), Row(method="LSSKD")), "footnotes": ()})
    for text in (to_markdown(result(table=bare)), to_latex(result(table=bare)), terminal(result(table=bare), 100)):
        assert "printed" not in text
        assert "paper's" not in text


def test_latex_has_the_best_in_bold_and_the_second_underlined() -> None:
    text = to_latex(result())
    assert latex_row(text, "HSSAKD")[2] == r"\textbf{74.25}"
    assert latex_row(text, "LSSKD")[2] == r"\underline{74.00} $\pm$ 1.41 {\tiny n=2}"


def test_latex_has_printed_and_measured_numbers_side_by_side() -> None:
    text = to_latex(result())
    assert latex_row(text, "Baseline") == [
        *("Baseline", "73.57", r"71.00 $\pm$ 1.00 {\tiny n=3}", "69.62", r"\underline{68.00}"),
    ]
    assert r"method & \multicolumn{2}{c}{WRN-40-2} & \multicolumn{2}{c}{ResNet56} \\" in text
    assert r" & printed & measured & printed & measured \\" in text
    bare = TABLE.model_copy(update={"rows": (Row(method="Baseline"), Row(method="LSSKD"))})
    alone = to_latex(result(table=bare))
    assert "printed & measured" not in alone
    assert latex_row(alone, "Baseline")[1:] == [r"\underline{71.00} $\pm$ 1.00 {\tiny n=3}", r"\underline{68.00}"]


def test_latex_says_the_usual_number_of_seeds_once_and_others_in_their_cells() -> None:
    assert "Seeds: n=1, unless a cell says otherwise." in to_latex(result())
    alike = {
        ("LSSKD", FIRST): cell("LSSKD", FIRST, 70.0, 71.0),
        ("Baseline", FIRST): cell("Baseline", FIRST, 69.0, 68.0),
    }
    text = to_latex(result(cells=alike, teachers={}))
    assert "Seeds: n=2." in text
    assert r"\tiny" not in text


def test_numbers_that_look_equal_rank_equal_and_a_single_one_has_no_rank() -> None:
    equal = {
        ("Baseline", FIRST): cell("Baseline", FIRST, 70.001),
        ("LSSKD", FIRST): cell("LSSKD", FIRST, 70.004),
        ("LSSKD", SECOND): cell("LSSKD", SECOND, 60.0),
    }
    text = to_markdown(result(cells=equal))
    assert "**70.00**" in markdown_row(text, "Baseline")[1]
    assert "**70.00**" in markdown_row(text, "LSSKD")[1]
    assert "**" not in markdown_row(text, "LSSKD")[2]


def test_best_on_test_values_stand_in_a_table_of_their_own() -> None:
    text = to_markdown(result())
    main, best = text.split("## Best epoch on the test set")
    assert "72.00 ± 1.00 (n=3)" in best
    assert "72.00 ± 1.00" not in main
    assert "chosen by looking at the test set" in best
    assert to_latex(result()).count(r"\begin{table*}") == 2
    without = {("LSSKD", FIRST): cell("LSSKD", FIRST, 70.0)}
    assert "Best epoch" not in to_markdown(result(cells=without))
    assert to_latex(result(cells=without)).count(r"\begin{table*}") == 1


def test_csv_has_a_line_for_each_cell_in_full_precision() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(result("paper")))))
    assert len(lines) == (1 + len(TABLE.rows)) * len(TABLE.columns)
    by_place = {(line["row"], line["student"]): line for line in lines}
    baseline = by_place["Baseline", "WRN-16-2"]
    assert baseline["values"] == "70.0 71.0 72.0"
    assert (baseline["n"], baseline["mean"], baseline["std"]) == ("3", "71.0", "1.0")
    assert (baseline["best_on_test_mean"], baseline["printed"]) == ("72.0", "73.57")
    assert float(baseline["difference"]) == pytest.approx(-2.57)
    partial = by_place["LSSKD", "ResNet20"]
    assert (partial["status"], partial["n"], partial["std"], partial["notes"]) == ("partial", "1", "", FAILURE)
    hssakd = by_place["HSSAKD", "ResNet20"]
    assert (hssakd["printed"], hssakd["published"], hssakd["published_std"]) == ("", "72.58", "0.33")
    assert by_place["Teacher", "WRN-16-2"]["mean"] == "76.4"


def test_the_terminal_says_how_many_cells_are_missing() -> None:
    text = terminal(result(), 100)
    assert "4 of 6 cells done, 1 partial, 1 failed; 2 are of methods that are not in the suite." in text
    missing = result(cells={})
    assert "0 of 8 cells done, 8 not run yet." in terminal(missing, 100)


def test_the_terminal_says_where_the_files_are() -> None:
    text = terminal(result(), 120, written=FILES)
    assert "All cells and notes: reports/table_II_demo.md (also .tex, .csv)" in " ".join(text.split())


def test_the_terminal_shows_the_rows_and_columns_that_were_asked_for() -> None:
    text = terminal(result(), 100, {("LSSKD", FIRST), ("Baseline", FIRST)})
    assert [line.split()[0] for line in text.splitlines() if re.match(r"[A-Z]\S+ +\d", line)] == [
        *("Teacher", "Baseline", "LSSKD"),
    ]
    assert ">WRN-16-2" in text
    assert ">ResNet20" not in text
    assert "2 of 2 cells done." in text
    assert "loss not finite" not in text, "a note on a cell that is not shown"
    assert "VID" in terminal(result(), 100)


def test_ranks_and_footnotes_on_the_terminal_are_those_of_the_whole_table() -> None:
    number = re.search(r"- ([⁰¹²³⁴⁵⁶⁷⁸⁹]+) HSSAKD, ResNet56>ResNet20", to_markdown(result()))
    assert number is not None
    text = terminal(result(), 100, {("HSSAKD", SECOND)})
    assert f"failed{number[1]}" in text
    assert f"{number[1]} HSSAKD, ResNet56>ResNet20, seed 0: loss not finite" in text


@pytest.mark.parametrize("width", [80, 100, 120])
def test_notes_on_the_terminal_are_three_lines_and_more_only_for_what_went_wrong(width: int) -> None:
    usual = dataclasses.replace(whole_table(1), teachers={}, table=load_table("II").at("demo"))
    assert len(notes_below(terminal(usual, width))) <= 3
    many = notes_below(terminal(dataclasses.replace(table_full_of_signs(1), teachers={}), width))
    assert len(many) == 5
    assert "Remark 0." in " ".join(many)
    assert all(text in to_markdown(table_full_of_signs(1)) for text in ("Remark 0.", "Remark 17.", "its own past"))


def test_a_long_note_on_what_went_wrong_has_one_line() -> None:
    long = dataclasses.replace(result().cells["HSSAKD", SECOND], notes=(f"failed {'because ' * 50}",))
    lines = notes_below(terminal(result(cells=dict(result().cells) | {("HSSAKD", SECOND): long}), 80))
    assert sum("because" in line for line in lines) == 1
    assert max(map(cell_len, lines)) <= 80


def whole_table(seeds: int) -> TableResult:
    table = load_table("II")
    cells = {
        (row.method, column.name): cell(row.method, column.name, *(75.0 + seed for seed in range(seeds)))
        for row in table.rows
        for column in table.columns
    }
    return result(table=table, cells=cells)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("width", [80, 100])
def test_table_II_fits_a_terminal_in_one_panel(width: int, seeds: int) -> None:
    lines = terminal(whole_table(seeds), width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert sum(">WRN-16-2" in line and ">ShuffleNetV2" in line for line in lines) == 1
    assert sum(line.startswith("LSSKD") for line in lines) == 1


def table_full_of_signs(seeds: int) -> TableResult:
    """Table II with a footnote at every cell of some rows, more than nine in all, and with what is partly there."""
    whole = whole_table(seeds)
    cells = dict(whole.cells)
    for number, (row, column) in enumerate(key for key in cells if key[0] in ("CRD", "HSSAKD", "HSSAKD*")):
        cells[row, column] = dataclasses.replace(cells[row, column], notes=(f"Remark {number}.",))
    partial = cell("SSKD", SECOND, 70.0, status="partial", seeds=3)
    missing = cell("LSSKD", SECOND, status="not run yet")
    cells |= {("SSKD", SECOND): partial, ("LSSKD", SECOND): missing}
    return dataclasses.replace(whole, table=load_table("II").at("demo"), cells=cells)


@pytest.mark.parametrize(("seeds", "panels"), [(1, 1), (3, 2)])
def test_at_80_columns_every_cell_has_two_lines_at_most_and_no_sign_stands_alone(seeds: int, panels: int) -> None:
    lines = terminal(table_full_of_signs(seeds), 80).splitlines()
    assert max(map(cell_len, lines)) <= 80
    names = ["Teacher", *(row.name for row in load_table("II").at("demo").rows)]
    starts = [
        next(place for place, line in enumerate(lines) if re.match(rf"{re.escape(name)}[⁰¹²³⁴⁵⁶⁷⁸⁹ ]", line))
        for name in names
    ]
    heights = {after - before for before, after in itertools.pairwise(starts)}
    assert heights == {1, 2}, "PS-KD has one line, because nothing was printed for it"
    body = [line for line in lines[starts[0] : starts[-1] + 2] if line.startswith(" ")]
    assert not [line for line in body if re.search(r"(^| )[⁰¹²³⁴⁵⁶⁷⁸⁹]", line)]
    assert sum(line.startswith("HSSAKD* ") for line in lines) == panels


@pytest.mark.parametrize("width", [80, 120])
def test_the_usual_number_of_seeds_is_said_once_and_others_in_their_cells(width: int) -> None:
    text = " ".join(terminal(table_full_of_signs(1), width).split())
    assert text.count("n=1") == 2
    assert "n=1 unless a cell says otherwise, over printed and published†." in text
    assert "n=1/3 70.80" in text
    alike = dataclasses.replace(whole_table(3), teachers={})
    assert "n=3, over printed and published†." in " ".join(terminal(alike, width).split())


@pytest.mark.parametrize("width", [24, 40, 60])
def test_a_narrow_terminal_gets_several_panels_with_every_column(width: int) -> None:
    lines = terminal(whole_table(3), width).splitlines()
    assert max(map(cell_len, lines)) <= width
    headings = " ".join(line for line in lines if line.lstrip().startswith(">"))
    assert re.findall(r">\S+", headings) == [f">{column.student}" for column in load_table("II").columns]


def test_reports_are_written_whole_and_replace_older_ones(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "reports"
    first = write_reports(result("demo"), folder)
    assert [path.name for path in first] == ["table_II_demo.md", "table_II_demo.tex", "table_II_demo.csv"]
    assert write_reports(result("demo", epochs="7"), folder) == first
    assert "7 epochs" in first[0].read_text(encoding="utf-8")
    assert sorted(folder.iterdir()) == sorted(first)


@pytest.mark.parametrize(
    ("changes", "stem"),
    [
        ({}, "table_II_paper"),
        ({"scale": "paper-3-epochs"}, "table_II_paper-3-epochs"),
        ({"protocol": "crd"}, "table_II_paper_crd"),
        ({"dataset": "leaves", "protocol": "crd"}, "table_II_paper_leaves_crd"),
    ],
)
def test_tables_that_are_not_comparable_do_not_overwrite_each_other(changes: dict[str, Any], stem: str) -> None:
    assert dataclasses.replace(result("paper"), **changes).stem == stem


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("a file")
    with pytest.raises(UserError, match="choose another folder"):
        write_reports(result(), tmp_path / "reports")
