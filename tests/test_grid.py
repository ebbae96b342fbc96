"""Which runs the cells of a table are, and what a cell without runs says."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmark.analysis.cells import FindRecord, LookUp, look_up_exactly
from benchmark.analysis.notes import is_default_setting
from benchmark.analysis.tables import make_table_result
from benchmark.core.errors import UserError
from benchmark.core.protocols import get_protocol
from benchmark.core.spec import Run
from benchmark.planning.cost import training_multiply_adds
from benchmark.planning.request import SELF_TEACHER_SEED, describe_run
from benchmark.planning.tables import plan_table
from benchmark.plugins.registry import all_methods
from benchmark.results.record import Record
from benchmark.results.store import Store
from tables.render import to_csv, to_latex, to_markdown
from tables.specification import Column, Published, Row, Table, load_table
from tests import engine


def store_of(folder: Path) -> tuple[LookUp, FindRecord]:
    """How results are looked up in a store."""
    store = Store(folder)
    return look_up_exactly(store.record), store.record


def small(*rows: Row, teacher: str | None = None) -> Table:
    columns = (Column(student="ResNet20", teacher=teacher, title="narrow"), Column(student="ResNet8x4", title="wide"))
    return Table(name="small", caption="A small table.", dataset="digits", columns=columns, rows=rows)


def test_a_method_that_is_named_and_no_row_becomes_the_last_row() -> None:
    table = small(Row(method="Baseline"), Row(method="PS-KD"))
    grid = plan_table(table, engine.request(), [0], ["LSSKD", "Baseline"])
    assert [row.name for row in grid.table.rows] == ["Baseline", "PS-KD", "LSSKD"]
    assert {row for row, _ in grid.selected} == {"LSSKD", "Baseline"}
    assert set(grid.runs) == set(itertools.product(("Baseline", "PS-KD", "LSSKD"), ("narrow", "wide")))


def test_a_row_of_no_method_and_without_any_number_is_a_typing_error() -> None:
    empty = Row(method="KDD", printed=(math.nan, math.nan))
    for row in (Row(method="KDD"), empty, Row(method="SSKD-head")):
        with pytest.raises(UserError, match=rf"^unknown method of table small '{row.method}' \(did you mean '"):
            plan_table(small(Row(method="Baseline"), row), engine.request(), [0])
    elsewhere = Published(source="its authors", mean=(math.nan, 70.0))
    for row in (Row(method="KDD", printed=(70.0, math.nan)), Row(method="KDD", published=elsewhere)):
        assert plan_table(small(Row(method="Baseline"), row), engine.request(), [0]).requested_runs()


def test_a_row_that_needs_a_teacher_stays_empty_in_a_column_without_one(tmp_path: Path) -> None:
    table = small(Row(method="Baseline"), Row(method="KD"), teacher="WRN-16-2")
    grid = plan_table(table, engine.request(), [0])
    assert ("KD", "narrow") in grid.selected
    assert ("KD", "wide") not in grid.runs
    result = make_table_result(grid, engine.request(), *store_of(tmp_path))
    assert result.cell("KD", "wide").status == "no teacher"
    assert result.cell("KD", "narrow").status == "not run yet"
    page = to_markdown(result)
    assert "1 are of methods that need a teacher, in columns without one" in page
    assert "Column wide is ResNet8x4 here." in page


def test_a_method_that_no_column_has_a_teacher_for_is_refused() -> None:
    with pytest.raises(UserError, match=r"^KD needs a teacher, which no column of table small has; choose"):
        plan_table(small(Row(method="Baseline")), engine.request(), [0], ["KD"])


def test_a_method_that_teaches_itself_learns_from_a_baseline_run_of_its_own_network() -> None:
    table = small(Row(method="TF-KD-self"), teacher="WRN-16-2")
    grid = plan_table(table, engine.request(), [3])
    for column, student in (("narrow", "ResNet20"), ("wide", "ResNet8x4")):
        (run,) = grid.runs["TF-KD-self", column]
        assert isinstance(run.teacher, Run)
        assert (run.teacher.method, run.teacher.student, run.teacher.seed) == ("Baseline", student, SELF_TEACHER_SEED)
        assert (run.student, run.seed) == (student, 3)


@pytest.mark.parametrize("teacher_seeds", ["shared", "paired"])
def test_no_student_is_the_twin_of_a_teacher_of_its_own_network(teacher_seeds: Any) -> None:
    request = engine.request(teacher_seeds=teacher_seeds)
    for method, seed in itertools.product(("KD", "HSSAKD", "TF-KD-self"), range(3)):
        teacher = request.run(method, "ResNet20", "ResNet20", seed).teacher
        assert isinstance(teacher, Run)
        assert teacher.seed == SELF_TEACHER_SEED + (seed if teacher_seeds == "paired" else 0)
    other = request.run("KD", "ResNet20", "ResNet56", 2).teacher
    assert isinstance(other, Run)
    assert other.seed == (2 if teacher_seeds == "paired" else 0)


def test_the_teacher_row_shows_the_teacher_also_where_it_is_a_network_like_the_student() -> None:
    request = engine.request()
    columns = (
        Column(student="ResNet20", teacher="ResNet20", title="own"),
        Column(student="ResNet8", teacher="ResNet20"),
    )
    table = Table(name="twins", caption="Twins.", dataset="digits", columns=columns, rows=(Row(method="KD"),))
    grid = plan_table(table, request, range(2))
    asked: list[tuple[str, int]] = []

    def look_up(runs: Sequence[Run]) -> dict[Run, Record | None]:
        asked.extend((run.method, run.seed) for run in runs)
        return dict.fromkeys(runs)

    make_table_result(grid, request, look_up, lambda run: None)
    assert [seed for method, seed in asked if method == "Baseline"] == [SELF_TEACHER_SEED, 0]
    runs = [run for cell in grid.runs.values() for run in cell]
    taught = {(run.student, run.teacher.seed) for run in runs if isinstance(run.teacher, Run)}
    assert taught == {("ResNet20", SELF_TEACHER_SEED), ("ResNet8", 0)}


def test_batches_shared_by_processes_are_another_protocol_but_on_imagenet() -> None:
    shared = engine.request(protocol=get_protocol("lsskd"), processes=2)
    assert not is_default_setting(shared, "lsskd")
    assert is_default_setting(dataclasses.replace(shared, processes=1), "lsskd")
    assert is_default_setting(dataclasses.replace(shared, protocol=get_protocol("imagenet")), "imagenet")


def test_a_row_with_an_augmentation_of_its_own_has_other_runs_but_the_same_teacher() -> None:
    mixed = Row(method="KD", title="KD+COC", augment="cutout+cutmix")
    grid = plan_table(small(Row(method="KD"), mixed, teacher="WRN-16-2"), engine.request(), [0])
    (plain,), (augmented,) = grid.runs["KD", "narrow"], grid.runs["KD+COC", "narrow"]
    assert (plain.augmentation, augmented.augmentation) == ("standard", "cutout+cutmix")
    assert plain.teacher == augmented.teacher
    assert plain.id != augmented.id


def test_an_augmentation_for_all_rows_reaches_the_students_and_their_stages_but_not_the_teachers() -> None:
    request = dataclasses.replace(engine.request(), augmentation="cutmix")
    grid = plan_table(small(Row(method="AB"), teacher="WRN-16-2"), request, [0])
    (run,) = grid.runs["AB", "narrow"]
    assert run.augmentation == "cutmix"
    assert run.start is not None
    assert run.start.augmentation == "cutmix"
    assert isinstance(run.teacher, Run)
    assert run.teacher.augmentation == "standard"
    assert set(run.dependencies()) == {run.teacher, run.start}


def test_a_table_without_teachers_is_rendered_without_a_row_of_teachers(tmp_path: Path) -> None:
    grid = plan_table(load_table("III").at("demo"), engine.request(), [0])
    result = make_table_result(grid, engine.request(), *store_of(tmp_path))
    markdown, latex, lines = to_markdown(result), to_latex(result), to_csv(result).splitlines()
    assert "Teacher" not in markdown
    # One rule under the heading; the other one is for a row of teachers.
    assert latex.split(r"\begin{tabular}")[1].split(r"\end{tabular}")[0].count(r"\midrule") == 1
    columns = ("ResNet18", "ResNet101", "MobileNetV2")
    assert "\nmethod" + "".join(rf" & \multicolumn{{2}}{{c}}{{{name}}}" for name in columns) in latex
    assert "Column ResNet18 is PreActResNet18-x1/4 here." in markdown
    assert [line.split(",")[1] for line in lines[1::3]] == [row.name for row in grid.table.rows]
    assert "LSSKD+COC" in markdown


def test_what_a_method_must_have_said_of_it_stands_under_the_table(tmp_path: Path) -> None:
    grid = plan_table(load_table("II"), engine.request(), [0])
    page = to_markdown(make_table_result(grid, engine.request(), *store_of(tmp_path)))
    assert "LSSKD: the paper's formulas are lost; rebuilt in docs/ledger.md." in page


def test_an_augmentation_for_all_rows_is_refused_beside_a_row_that_has_its_own() -> None:
    request = dataclasses.replace(engine.request(), augmentation="cutmix")
    table = small(Row(method="Baseline"), Row(method="LS", title="LS+COC", augment="cutout+cutmix"))
    with pytest.raises(
        UserError, match=r"^--augment cutmix: row LS\+COC has an augmentation of its own, cutout\+cutmix;"
    ):
        plan_table(table, request, [0])
    (run,) = plan_table(table, request, [0], ["Baseline"]).requested_runs()[:1]
    assert run.augmentation == "cutmix"


def test_the_csv_names_the_column_also_where_it_is_not_called_by_its_networks(tmp_path: Path) -> None:
    grid = plan_table(load_table("II").at("demo"), engine.request(), [0], ["KD"])
    rows = list(csv.DictReader(io.StringIO(to_csv(make_table_result(grid, engine.request(), *store_of(tmp_path))))))
    narrow = [row for row in rows if row["column"] == "ResNet32x4>ResNet8x4" and row["row"] == "KD"]
    assert [(row["teacher"], row["student"]) for row in narrow] == [("ResNet14", "ResNet8-x1/2")]


def test_no_remark_of_a_method_ends_its_own_sentence() -> None:
    for name, method in all_methods().items():
        assert not method.remark.endswith("."), name
        assert method.remark[:1] == method.remark[:1].lower() or method.remark.startswith("LSSKD"), name


def test_two_columns_of_one_pair_share_their_runs_and_show_different_figures() -> None:
    pair = {"student": "ResNet20", "teacher": "WRN-16-2"}
    columns = (Column(title="top-1", **pair), Column(title="top-5", metric="top5", **pair))
    table = Table(name="t", caption="t", dataset="digits", columns=columns, rows=(Row(method="KD"),))
    grid = plan_table(table, engine.request(), [0, 1])
    assert grid.runs["KD", "top-1"] == grid.runs["KD", "top-5"]
    assert len(grid.requested_runs()) == 2
    record = made_up_record(top1=60.0, top5=90.0)
    result = make_table_result(grid, engine.request(), lambda runs: dict.fromkeys(runs, record), lambda run: record)
    assert [result.cell("KD", name).values for name in ("top-1", "top-5")] == [(60.0, 60.0), (90.0, 90.0)]
    assert [result.cell("Teacher", name).values for name in ("top-1", "top-5")] == [(60.0,), (90.0,)]
    assert result.cell("KD", "top-5").by_seed() == {0: 90.0, 1: 90.0}


def made_up_record(**figures: float) -> Record:
    """The record of a finished run that cost 100 multiply-adds and 3 + 1 seconds."""
    return {
        "status": "finished",
        "final": figures,
        "best_on_test": figures,
        "cost": {"training_multiply_adds": 100, "parameters": 5, "parameters_in_training": 7, "multiply_adds": 2},
        "provenance": {"seconds_of_its_own": 3.0, "seconds_of_its_teacher": 1.0, "peak_memory_bytes": 9},
    }


def test_the_price_of_a_row_has_all_that_it_depends_on_in_it() -> None:
    grid = plan_table(small(Row(method="SSKD"), teacher="WRN-16-2"), engine.request(), [0])
    record = made_up_record(top1=60.0)
    result = make_table_result(grid, engine.request(), lambda runs: dict.fromkeys(runs, record), lambda run: record)
    (finished,) = result.cell("SSKD", "narrow").finished
    price = finished.price
    # A teacher and a head on it.
    assert (price.multiply_adds, price.teacher_multiply_adds) == (100, 200)
    assert (price.seconds, price.teacher_seconds) == (4.0, 8.0)
    assert (price.parameters, price.parameters_in_training, price.peak_memory_bytes) == (5, 7, 9)
    lost = make_table_result(grid, engine.request(), lambda runs: dict.fromkeys(runs, record), lambda run: None)
    assert lost.cell("SSKD", "narrow").finished[0].price.teacher_seconds is None


def test_a_row_as_long_as_another_costs_as_much_and_sees_the_same_first_batches() -> None:
    table = small(Row(method="Baseline"), Row(method="Baseline", title="long", as_long_as="LSSKD"), Row(method="LSSKD"))
    grid = plan_table(table, engine.request(), [0])
    for column in ("narrow", "wide"):
        (plain,), (long,), (other,) = (grid.runs[row, column] for row in ("Baseline", "long", "LSSKD"))
        cost = {run: run.schedule.epochs * training_multiply_adds(run, 32) for run in (plain, long, other)}
        assert cost[long] == pytest.approx(cost[other], rel=0.02)
        assert long.schedule.epochs > 4 * plain.schedule.epochs
        share = [run.schedule.milestones[0] / run.schedule.epochs for run in (plain, long)]
        assert share[0] == pytest.approx(share[1], abs=0.05)
        assert long.replace(protocol=plain.protocol) == plain
        assert describe_run(long) == f"Baseline ({long.schedule.epochs} epochs)" or long.protocol.name == "short"


def test_a_row_is_there_only_at_its_scales() -> None:
    table = load_table("II")
    long = "Baseline (long)"
    assert long not in [row.name for row in table.at("demo").rows]
    assert long in [row.name for row in table.at("quick").rows]


def test_a_share_of_the_images_is_named_by_the_students_seed_and_teachers_have_all_unless_told() -> None:
    request = dataclasses.replace(engine.request(), fraction=0.25)
    run = request.run("HSSAKD", "ResNet20", "WRN-16-2", 2)
    assert (run.fraction, run.fraction_seed) == (0.25, 2)
    assert [(part.fraction, part.fraction_seed) for part in run.dependencies()] == [(1.0, 0)] * 2
    same = dataclasses.replace(request, teacher_data="same").run("HSSAKD", "ResNet20", "WRN-16-2", 2)
    assert [(part.fraction, part.fraction_seed) for part in same.dependencies()] == [(0.25, 2)] * 2
    own = request.run("TF-KD-self", "ResNet20", None, 2)
    assert isinstance(own.teacher, Run)
    assert (own.teacher.fraction, own.teacher.fraction_seed) == (0.25, 2)
    whole = engine.request().run("KD", "ResNet20", "WRN-16-2", 2)
    assert (whole.fraction, whole.fraction_seed) == (1.0, 0)
