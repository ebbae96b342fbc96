"""Which runs the cells of a table are, and what a cell without runs says."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
from pathlib import Path

import pytest

from benchmark.errors import UserError
from benchmark.grid import grid_of, results_of
from benchmark.plan import SELF_TEACHER_SEED
from benchmark.registry import all_methods
from benchmark.results import Store
from benchmark.spec import Run
from tables.render import to_csv, to_latex, to_markdown
from tables.specification import Column, Row, Table, load_table
from tests import engine


def small(*rows: Row, teacher: str | None = None) -> Table:
    columns = (Column(student="ResNet20", teacher=teacher, title="narrow"), Column(student="ResNet8x4", title="wide"))
    return Table(name="small", caption="A small table.", dataset="digits", columns=columns, rows=rows)


def test_a_method_that_is_named_and_no_row_becomes_the_last_row() -> None:
    table = small(Row(method="Baseline"), Row(method="PS-KD"))
    grid = grid_of(table, engine.request(), [0], ["LSSKD", "Baseline"])
    assert [row.name for row in grid.table.rows] == ["Baseline", "PS-KD", "LSSKD"]
    assert {row for row, _ in grid.chosen} == {"LSSKD", "Baseline"}
    assert set(grid.runs) == set(itertools.product(("Baseline", "PS-KD", "LSSKD"), ("narrow", "wide")))


def test_a_row_that_needs_a_teacher_stays_empty_in_a_column_without_one(tmp_path: Path) -> None:
    table = small(Row(method="Baseline"), Row(method="KD"), teacher="WRN-16-2")
    grid = grid_of(table, engine.request(), [0])
    assert ("KD", "narrow") in grid.chosen
    assert ("KD", "wide") not in grid.runs
    result = results_of(grid, Store(tmp_path), engine.request(), {})
    assert result.cell("KD", "wide").status == "no teacher"
    assert result.cell("KD", "narrow").status == "not run yet"
    page = to_markdown(result)
    assert "1 are of methods that need a teacher, in columns without one" in page
    assert "Column wide is ResNet8x4 here." in page


def test_a_method_that_no_column_has_a_teacher_for_is_refused() -> None:
    with pytest.raises(UserError, match=r"^KD needs a teacher, which no column of table small has; choose"):
        grid_of(small(Row(method="Baseline")), engine.request(), [0], ["KD"])


def test_a_method_that_teaches_itself_learns_from_a_baseline_run_of_its_own_network() -> None:
    table = small(Row(method="TF-KD-self"), teacher="WRN-16-2")
    grid = grid_of(table, engine.request(), [3])
    for column, student in (("narrow", "ResNet20"), ("wide", "ResNet8x4")):
        (run,) = grid.runs["TF-KD-self", column]
        assert isinstance(run.teacher, Run)
        assert (run.teacher.method, run.teacher.student, run.teacher.seed) == ("Baseline", student, SELF_TEACHER_SEED)
        assert (run.student, run.seed) == (student, 3)


def test_a_row_with_an_augmentation_of_its_own_has_other_runs_but_the_same_teacher() -> None:
    mixed = Row(method="KD", title="KD+COC", augment="cutout+cutmix")
    grid = grid_of(small(Row(method="KD"), mixed, teacher="WRN-16-2"), engine.request(), [0])
    (plain,), (augmented,) = grid.runs["KD", "narrow"], grid.runs["KD+COC", "narrow"]
    assert (plain.augmentation, augmented.augmentation) == ("standard", "cutout+cutmix")
    assert plain.teacher == augmented.teacher
    assert plain.id != augmented.id


def test_an_augmentation_for_all_rows_reaches_the_students_and_their_stages_but_not_the_teachers() -> None:
    request = dataclasses.replace(engine.request(), augmentation="cutmix")
    grid = grid_of(small(Row(method="AB"), teacher="WRN-16-2"), request, [0])
    (run,) = grid.runs["AB", "narrow"]
    assert run.augmentation == "cutmix"
    assert run.start is not None
    assert run.start.augmentation == "cutmix"
    assert isinstance(run.teacher, Run)
    assert run.teacher.augmentation == "standard"
    assert set(run.dependencies()) == {run.teacher, run.start}


def test_a_table_without_teachers_is_rendered_without_a_row_of_teachers(tmp_path: Path) -> None:
    grid = grid_of(load_table("III").at("demo"), engine.request(), [0])
    result = results_of(grid, Store(tmp_path), engine.request(), {})
    markdown, latex, lines = to_markdown(result), to_latex(result), to_csv(result).splitlines()
    assert "Teacher" not in markdown
    # One rule under the heading; the other one is for a row of teachers.
    assert latex.split(r"\begin{tabular}")[1].split(r"\end{tabular}")[0].count(r"\midrule") == 1
    assert "\nmethod & ResNet18 & ResNet101 & MobileNetV2" in latex
    assert "Column ResNet18 is PreActResNet18-x1/4 here." in markdown
    assert [line.split(",")[1] for line in lines[1::3]] == [row.name for row in grid.table.rows]
    assert "LSSKD+COC" in markdown


def test_what_a_method_must_have_said_of_it_stands_under_the_table(tmp_path: Path) -> None:
    grid = grid_of(load_table("II"), engine.request(), [0])
    page = to_markdown(results_of(grid, Store(tmp_path), engine.request(), {}))
    assert "LSSKD: the paper's formulas are lost; rebuilt in docs/ledger.md." in page


def test_an_augmentation_for_all_rows_is_refused_beside_a_row_that_has_its_own() -> None:
    request = dataclasses.replace(engine.request(), augmentation="cutmix")
    table = small(Row(method="Baseline"), Row(method="LS", title="LS+COC", augment="cutout+cutmix"))
    with pytest.raises(
        UserError, match=r"^--augment cutmix: row LS\+COC has an augmentation of its own, cutout\+cutmix;"
    ):
        grid_of(table, request, [0])
    (run,) = grid_of(table, request, [0], ["Baseline"]).to_train()[:1]
    assert run.augmentation == "cutmix"


def test_the_csv_names_the_column_also_where_it_is_not_called_by_its_networks(tmp_path: Path) -> None:
    grid = grid_of(load_table("II").at("demo"), engine.request(), [0], ["KD"])
    rows = list(csv.DictReader(io.StringIO(to_csv(results_of(grid, Store(tmp_path), engine.request(), {})))))
    narrow = [row for row in rows if row["column"] == "ResNet32x4>ResNet8x4" and row["row"] == "KD"]
    assert [(row["teacher"], row["student"]) for row in narrow] == [("ResNet32", "ResNet8")]


def test_no_remark_of_a_method_ends_its_own_sentence() -> None:
    for name, method in all_methods().items():
        assert not method.remark.endswith("."), name
        assert method.remark[:1] == method.remark[:1].lower() or method.remark.startswith("LSSKD"), name
