"""Records found by what they are records of, without a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from benchmark.analysis.query import RecordQuery
from benchmark.analysis.tables import make_table_in_setting
from benchmark.core.protocols import get_protocol, get_scale
from benchmark.core.spec import ReleasedTeacher, Run
from benchmark.planning.request import PretrainedFile, RunFactory
from benchmark.results.record import Record
from tables.result import TableResult
from tables.specification import Column, Row, Table
from tests import engine

COLUMN = Column(student="ResNet20", teacher="WRN-16-2")
TABLE = Table(
    name="t", caption="t", dataset="digits", columns=(COLUMN,), rows=(Row(method="Baseline"), Row(method="KD"))
)


def request(**changes: Any) -> RunFactory:
    return dataclasses.replace(engine.request(protocol=get_protocol("lsskd")), scale=get_scale("paper"), **changes)


def record(run: Run, top1: float = 50.0, status: str = "finished") -> Record:
    figures = {"top1": top1}
    made = {"provenance": {"seconds_of_its_own": 1.0}, "run": run.model_dump(mode="json"), "status": status}
    return made | ({"reason": "no number"} if status == "failed" else {"final": figures, "best_on_test": figures})


def kd(seed: int = 0, **changes: Any) -> Run:
    return request(**changes).run("KD", "ResNet20", "WRN-16-2", seed)


def table_of(runs: Sequence[Run]) -> TableResult:
    query = RecordQuery([record(run, 50.0 + run.seed) for run in runs])
    (setting,) = query.settings()
    return make_table_in_setting(TABLE, query, setting)


def test_a_cell_holds_all_seeds_that_there_are_and_says_how_many_are_missing() -> None:
    result = table_of([kd(2), kd(0)])
    cell = result.cell("KD", COLUMN.name)
    assert cell.values == (50.0, 52.0)
    assert cell.by_seed() == {0: 50.0, 2: 52.0}
    assert (cell.status, cell.seeds) == ("partial", 3)
    assert result.cell("Baseline", COLUMN.name).status == "not run yet"
    more = table_of([kd(seed) for seed in range(5)]).cell("KD", COLUMN.name)
    assert (more.status, more.seeds, len(more.values)) == ("done", 5, 5)


def test_seeds_of_two_precisions_are_not_mixed() -> None:
    cell = table_of([kd(0, precision="bf16"), kd(1), kd(2)]).cell("KD", COLUMN.name)
    assert cell.by_seed() == {1: 51.0, 2: 52.0}
    assert {seed.precision for seed in cell.finished} == {"fp32"}


@pytest.mark.parametrize(
    "other",
    [
        kd(0, options={"KD": {"temperature": 2.0}}),
        kd(0, augmentation="cutmix"),
        kd(0, validation=0.1),
        kd(0, fraction=0.5),
    ],
)
def test_a_run_that_is_another_fills_no_cell(other: Run) -> None:
    query = RecordQuery([record(request().run("Baseline", "ResNet20", None, 0)), record(other)])
    assert make_table_in_setting(TABLE, query, query.settings()[0]).cell("KD", COLUMN.name).values == ()


def test_a_teacher_is_found_by_the_column_it_teaches_in() -> None:
    result = table_of([request().run("Baseline", "WRN-16-2", None, 0)])
    assert result.cell("Teacher", COLUMN.name).values == (50.0,)
    assert result.cell("Baseline", COLUMN.name).values == ()


def tables_of(runs: Sequence[Run], **figures: dict[str, float]) -> list[TableResult]:
    query = RecordQuery([record(run, 50.0 + run.seed) for run in runs], figures)
    return [make_table_in_setting(TABLE, query, setting) for setting in query.settings()]


def test_students_of_a_teacher_from_a_file_stand_in_a_table_of_their_own() -> None:
    sha = "0" * 64
    file = PretrainedFile(ReleasedTeacher(network="WRN-16-2", sha256=sha), has_branches=False)
    released = [kd(seed, released={"WRN-16-2": file}) for seed in range(2)]
    baseline = request().run("Baseline", "ResNet20", None, 0)
    own, of_file = tables_of([kd(0), *released, baseline], **{sha: {"top1": 76.4}})
    assert own.cell("KD", COLUMN.name).by_seed() == {0: 50.0}
    assert own.stem != of_file.stem
    assert of_file.cell("KD", COLUMN.name).by_seed() == {0: 50.0, 1: 51.0}
    assert [result.cell("Baseline", COLUMN.name).values for result in (own, of_file)] == [(50.0,)] * 2
    assert of_file.cell("Teacher", COLUMN.name).values == (76.4,)
    (price,) = {seed.price for seed in of_file.cell("KD", COLUMN.name).finished if seed.seed == 0}
    assert price.teacher_seconds is None
    assert own.cell("Baseline", COLUMN.name).finished[0].price.teacher_seconds == 0.0
    (alone,) = tables_of(released)
    assert alone.cell("KD", COLUMN.name).by_seed() == {0: 50.0, 1: 51.0}


def test_teachers_of_each_seed_make_a_table_of_their_own() -> None:
    paired = [kd(seed, teacher_seeds="paired") for seed in range(3)]
    (result,) = [table for table in tables_of(paired) if len(table.cell("KD", COLUMN.name).values) == 3]
    assert result.remarks == ("Each seed has a teacher of its own.",)
    shared, of_each = tables_of([kd(0), kd(1), *paired[1:]])
    assert shared.cell("KD", COLUMN.name).by_seed() == {0: 50.0, 1: 51.0}
    assert of_each.cell("KD", COLUMN.name).by_seed() == {0: 50.0, 1: 51.0, 2: 52.0}


def test_a_teacher_of_the_students_own_network_is_no_further_seed_of_it() -> None:
    student = request().run("Baseline", "ResNet20", None, 0)
    teacher = request().run("KD", "ResNet20", "ResNet20", 0).teacher
    assert isinstance(teacher, Run)
    query = RecordQuery([record(run) for run in (student, teacher)])
    assert list(query.replicates(student)) == [student]
    assert list(query.replicates(teacher)) == [teacher]


def test_batches_shared_by_processes_make_a_table_of_their_own() -> None:
    (result,) = tables_of([kd(seed, processes=2) for seed in range(3)])
    assert result.cell("KD", COLUMN.name).status == "done"
    assert result.remarks[0].startswith("2 processes shared each batch")


def test_runs_that_read_an_atlas_stand_in_a_table_of_their_own() -> None:
    live, read = [[kd(seed, teacher_outputs=outputs) for seed in range(3)] for outputs in ("live", "atlas")]
    first, second = tables_of([*live, *read])
    assert first.cell("KD", COLUMN.name).status == second.cell("KD", COLUMN.name).status == "done"
    assert first.stem != second.stem
    assert not any("atlas" in remark for remark in first.remarks)
    assert any("in half precision from its atlas" in remark for remark in second.remarks)
    (alone,) = tables_of(read)
    assert any("in half precision from its atlas" in remark for remark in alone.remarks)


def test_all_cells_of_a_student_are_of_one_precision() -> None:
    baselines = [request(precision="bf16").run("Baseline", "ResNet20", None, seed) for seed in range(2)]
    (result,) = tables_of([kd(0), kd(1), kd(2), *baselines])
    assert result.cell("KD", COLUMN.name).status == "done"
    assert result.cell("Baseline", COLUMN.name).values == ()


def test_each_dataset_scale_and_changed_protocol_is_a_setting_of_its_own() -> None:
    runs = [
        kd(),
        dataclasses.replace(request(), scale=get_scale("quick")).run("KD", "ResNet20", "WRN-16-2", 0),
        dataclasses.replace(request(), protocol=get_protocol("lsskd").replace(weight_decay=1e-4)).run(
            "KD", "ResNet20", "WRN-16-2", 0
        ),
        dataclasses.replace(request(), protocol=get_protocol("crd")).run("KD", "ResNet20", "WRN-16-2", 0),
    ]
    query = RecordQuery([record(run) for run in runs])
    assert len(query.settings()) == 4
    results = [make_table_in_setting(TABLE, query, setting) for setting in query.settings()]
    assert [result.cell("KD", COLUMN.name).values for result in results] == [(50.0,)] * 4
    assert len({(result.stem, result.remarks) for result in results}) == 4


def test_a_failed_run_is_told_of() -> None:
    query = RecordQuery([record(kd(0)), record(kd(1), status="failed")])
    cell = make_table_in_setting(TABLE, query, query.settings()[0]).cell("KD", COLUMN.name)
    assert cell.status == "partial"
    assert cell.notes == ("KD, WRN-16-2>ResNet20, seed 1: no number",)


def test_nothing_is_found_in_an_empty_store() -> None:
    assert RecordQuery([]).settings() == []
