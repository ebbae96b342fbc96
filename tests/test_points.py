"""Which runs the points of a figure are, and which figures come out of a store."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch

from benchmark.analysis.cells import look_up_exactly
from benchmark.analysis.figures import collect_figure_runs, empty_result, make_figure_result
from benchmark.analysis.query import RecordQuery
from benchmark.core.errors import UserError
from benchmark.core.protocols import get_protocol, select_scale
from benchmark.core.spec import Run
from benchmark.data import load_dataset
from benchmark.planning.figures import Points, plan_panel
from benchmark.planning.request import RunFactory, collect_dependencies
from benchmark.planning.tables import plan_table
from benchmark.results.record import Record
from benchmark.results.store import Store
from benchmark.training.job import run_until_done
from benchmark.training.settings import TrainSettings
from figures.result import select_by_seed
from figures.specification import Figure, load_figure
from tables.specification import load_table
from tests import commands

FIVE, SIX = load_figure("5"), load_figure("6")
PAIR = "ResNet56>ResNet20"


def request(scale: str = "demo", dataset: str = "digits", **changes: Any) -> RunFactory:
    protocol = changes.pop("protocol", get_protocol("lsskd"))
    amount = select_scale(scale, None, protocol)
    place = (dataset, f"fingerprint of {dataset}", protocol, amount, torch.device("cpu"))
    return RunFactory(*place, precision="fp32", **changes)


def points(figure: Figure = FIVE, scale: str = "demo", seeds: Sequence[int] = (0, 1), **changes: Any) -> Points:
    methods = changes.pop("methods", ())
    figure = figure.at(scale)
    dataset = figure.panels[0].dataset_for(scale)
    assert dataset is not None
    return plan_panel(figure, figure.panels[0], request(scale, dataset, **changes), seeds, methods)


def record_of(run: Run, top1: float = 50.0, status: str = "finished") -> Record:
    """The record of a run that nobody trained."""
    final = {"top1": top1, "top5": 90.0, "stages": [top1 - 20, top1 - 10], "stages_joint": [top1 - 30, top1 - 25]}
    told = {"final": final, "best_on_test": final} if status == "finished" else {"reason": "loss not finite"}
    return {"run": run.model_dump(mode="json"), "status": status, "provenance": {}, **told}


def query_of(runs: Iterable[Run]) -> RecordQuery:
    return RecordQuery([record_of(run) for run in dict.fromkeys(runs)])


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_points_at_fraction_1_are_the_very_runs_of_table_II(scale: str) -> None:
    found = points(scale=scale)
    table = load_table("II").at(scale)
    rows = tuple(row for row in table.rows if row.name in FIVE.methods)
    assert len(rows) == len(FIVE.methods)
    grid = plan_table(table.model_copy(update={"rows": rows}), found.factory, (0, 1))
    for method in FIVE.methods:
        assert found.runs[method, 1.0] == grid.runs[method, PAIR]
        assert [run.id for run in found.runs[method, 1.0]] == [run.id for run in grid.runs[method, PAIR]]


def test_lsskd_in_figure_6_is_the_very_run_of_table_IV() -> None:
    found = points(SIX)
    columns = load_table("IV").at("demo").columns
    place = next(column.name for column in columns if column.student == found.panel.student)
    grid = plan_table(load_table("IV").at("demo"), found.factory, (0, 1))
    assert found.runs["LSSKD", 1.0] == grid.runs["LSSKD", place]


def test_all_methods_learn_from_the_same_images_at_a_seed() -> None:
    found = points(seeds=(0, 1, 2))
    for fraction, seed in itertools.product(FIVE.fractions, (0, 1, 2)):
        parts = {
            (run.fraction, run.fraction_seed)
            for method in FIVE.methods
            for run in found.runs[method, fraction]
            if run.seed == seed
        }
        assert parts == {(fraction, seed if fraction < 1 else 0)}


def test_teachers_and_their_heads_learn_from_all_images_unless_it_is_said_otherwise() -> None:
    for (method, fraction), runs in points(seeds=(0, 3)).runs.items():
        for run in runs:
            assert all(other.fraction == 1 for other in run.dependencies()), (method, fraction)
    same = points(seeds=(0, 3), teacher_data="same")
    for (_, fraction), runs in same.runs.items():
        for run in runs:
            for other in collect_dependencies([run]):
                assert (other.fraction, other.fraction_seed) == (fraction, run.seed if fraction < 1 else 0)
    assert same.runs["KD", 1.0] == points(seeds=(0, 3)).runs["KD", 1.0]
    assert same.runs["KD", 0.5] != points(seeds=(0, 3)).runs["KD", 0.5]
    assert same.runs["LSSKD", 0.5] == points(seeds=(0, 3)).runs["LSSKD", 0.5]


def test_every_run_of_figure_6_has_a_classifier_after_each_stage_and_learns_from_all_images() -> None:
    found = points(SIX)
    assert set(found.runs) == {(method, 1.0) for method in ("HSSAKD", "LSSKD", "HSSAKD-teacher")}
    assert {run.fraction for runs in found.runs.values() for run in runs} == {1.0}
    (hssakd, _) = found.runs["HSSAKD", 1.0]
    assert (hssakd.teacher_network, hssakd.student) == ("ResNet18-x1/4", "ResNet10-x1/4")
    assert isinstance(hssakd.head, Run)
    assert hssakd.head.method == "HSSAKD-branches"
    assert {run.teacher for method in ("LSSKD", "HSSAKD-teacher") for run in found.runs[method, 1.0]} == {None}


def test_an_optional_method_is_trained_only_when_it_is_named() -> None:
    assert {run.method for run in points(SIX).requested_runs()} == {"HSSAKD", "LSSKD"}
    assert {run.method for run in points(SIX, methods=("HSSAKD-teacher",)).requested_runs()} == {"HSSAKD-teacher"}


def test_a_method_that_is_named_and_not_in_the_figure_comes_last() -> None:
    found = points(methods=("PS-KD", "KD"))
    assert found.methods == (*FIVE.methods, "PS-KD")
    assert {run.method for run in found.requested_runs()} == {"PS-KD", "KD"}
    result = make_figure_result(FIVE.at("demo"), {"CIFAR-100": found}, RecordQuery([]).look_up([]), lambda run: None)
    assert result.methods == (*FIVE.methods, "PS-KD")


@pytest.mark.parametrize(
    ("figure", "methods", "message"),
    [
        (FIVE, ["LSKD"], r"^unknown method 'LSKD' \(did you mean 'LSSKD'\?\); allowed: KD, CRD, SSKD"),
        (FIVE, ["AB-init"], r"^unknown method 'AB-init'"),
        (SIX, ["KD"], r"^KD has no classifier after each stage, which figure 6 is about; allowed: HSSAKD, LSSKD"),
        (SIX, ["nothing"], r"^unknown method 'nothing'"),
    ],
)
def test_a_method_that_a_figure_cannot_show_is_refused(figure: Figure, methods: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        points(figure, methods=methods)


def test_a_method_that_a_figure_names_and_the_suite_does_not_have_is_refused() -> None:
    figure = FIVE.model_copy(update={"methods": ("KD", "KDD")})
    with pytest.raises(UserError, match=r"^unknown method of figure 5 'KDD' \(did you mean 'KD'\?\); allowed: AB, AT"):
        points(figure)


def test_a_network_or_a_teacher_that_is_not_there_is_refused() -> None:
    panel = SIX.panels[0]
    with pytest.raises(UserError, match=r"^unknown network of figure 6 'ResNet19'"):
        plan_panel(SIX, panel.model_copy(update={"student": "ResNet19"}), request(), (0,))
    alone = panel.model_copy(update={"teacher": None})
    assert set(plan_panel(SIX, alone, request(), (0,)).runs) == {("LSSKD", 1.0), ("HSSAKD-teacher", 1.0)}
    with pytest.raises(UserError, match=r"^HSSAKD needs a teacher, which panel ResNet18 of figure 6 does not have;"):
        plan_panel(SIX, alone, request(), (0,), ["HSSAKD"])


def look_up_in(records: Mapping[Run, Record]) -> Any:
    return lambda runs: {run: records.get(run) for run in runs}


def test_a_result_says_what_is_done_partial_failed_and_missing() -> None:
    found = points(seeds=(0, 1))
    records = {run: record_of(run, 60.0 + run.seed) for runs in found.runs.values() for run in runs}
    kd, crd, sskd = (found.runs[method, 0.25] for method in ("KD", "CRD", "SSKD"))
    del records[kd[1]], records[crd[0]], records[crd[1]]
    records[sskd[0]] = records[sskd[1]] = record_of(sskd[0], status="failed")
    lost = {crd[0].id: "its process ended by signal 9"}
    figure = FIVE.at("demo")
    result = make_figure_result(figure, {"CIFAR-100": found}, look_up_in(records), records.get, ["A remark."], lost)
    (panel,) = result.panels
    statuses = [panel.cell(method, 0.25).status for method in result.methods]
    assert statuses == ["partial", "failed", "failed", "done", "done"]
    assert select_by_seed(panel.cell("LSSKD", 0.25)) == {0: 60.0, 1: 61.0}
    assert select_by_seed(panel.cell("KD", 0.25)) == {0: 60.0}
    assert result.remarks == ("A remark.",)
    assert "CRD, CIFAR-100, 25% of the images, seed 0: its process ended by signal 9" in result.notes
    assert result.counts == "17 of 20 points done, 2 failed, 1 partial."
    assert result.seeds == (1, 2)
    assert not result.reproduces


def test_only_the_whole_protocol_on_the_papers_dataset_reproduces() -> None:
    def result(scale: str = "paper", dataset: str = "cifar100", **changes: Any) -> bool:
        figure = FIVE.at(scale)
        panels = {
            panel.title: plan_panel(
                figure, panel, request(scale, dataset if number == 0 else "tiny-imagenet", **changes), (0,)
            )
            for number, panel in enumerate(figure.panels)
        }
        return make_figure_result(figure, panels, RecordQuery([]).look_up([]), lambda run: None).reproduces

    assert result()
    assert not result(scale="quick")
    assert not result(dataset="leaves")
    assert not result(validation=0.1)
    assert not result(augmentation="cutmix")
    assert not result(options={"LSSKD": {"alpha": 0.3}})
    assert not result(protocol=get_protocol("lsskd").replace(weight_decay=1e-4))
    assert not result(protocol=get_protocol("hsakd"))


def test_a_figure_with_no_images_for_any_panel_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^figure 5: no panel of it has images here; pass the folder"):
        make_figure_result(FIVE, {}, look_up_in({}), lambda run: None)


def test_an_empty_store_gives_an_empty_figure_at_scale_paper() -> None:
    for figure in (FIVE, SIX):
        (result,) = collect_figure_runs(figure, RecordQuery([]))
        assert (result.scale, result.has_values(), len(result.panels)) == ("paper", False, 2)
        assert result == empty_result(figure)
        assert "No runs yet" in result.statement
    assert collect_figure_runs(FIVE, RecordQuery([]), "demo") == []


def test_the_figures_of_a_store_are_those_of_its_scales() -> None:
    demo, paper = points(seeds=(0,)), points(scale="paper", seeds=(0, 1, 2))
    collection = query_of([*demo.requested_runs(), *paper.requested_runs()])
    by_stem = {result.stem: result for result in collect_figure_runs(FIVE, collection)}
    assert set(by_stem) == {"figure_5_demo", "figure_5_paper"}
    assert by_stem["figure_5_paper"].seeds == (3,)
    assert [panel.has_values() for panel in by_stem["figure_5_paper"].panels] == [True, False]
    assert by_stem["figure_5_paper"].reproduces
    assert not by_stem["figure_5_demo"].reproduces
    assert [result.stem for result in collect_figure_runs(FIVE, collection, "demo")] == ["figure_5_demo"]


def test_seeds_and_precision_that_nobody_asked_for_are_found_too() -> None:
    found = points(scale="paper", seeds=(7, 8, 9, 10))
    runs = [run.replace(precision="bf16") for run in found.runs["LSSKD", 0.5]]
    (result,) = collect_figure_runs(FIVE, query_of(runs))
    assert set(select_by_seed(result.panels[0].cell("LSSKD", 0.5))) == {7, 8, 9, 10}
    assert result.remarks == ("Precision bf16.",)


def test_runs_of_a_table_give_the_figure_its_points_at_fraction_1() -> None:
    found = points(seeds=(0,))
    (demo, _) = collect_figure_runs(FIVE, query_of(run for method in FIVE.methods for run in found.runs[method, 1.0]))
    assert demo.scale == "demo"
    assert {fraction for (_, fraction), cell in demo.panels[0].cells.items() if cell.values} == {1.0}


def test_runs_on_another_dataset_make_a_figure_only_if_they_are_its_own() -> None:
    table, own = (
        plan_panel(FIVE, FIVE.panels[0], request("paper", "leaves"), (0,)).runs[method, fraction]
        for method, fraction in (("KD", 1.0), ("KD", 0.5))
    )
    assert [result.stem for result in collect_figure_runs(FIVE, query_of(table))] == ["figure_5_paper"]
    stems = {result.stem: result for result in collect_figure_runs(FIVE, query_of([*table, *own]))}
    assert set(stems) == {"figure_5_paper_leaves", "figure_5_paper"}
    (panel,) = stems["figure_5_paper_leaves"].panels
    assert panel.heading == "In place of CIFAR-100"
    assert panel.published == ()
    assert not stems["figure_5_paper_leaves"].reproduces


def test_teachers_of_the_same_images_make_a_figure_of_their_own() -> None:
    usual, same = points(seeds=(0,)), points(seeds=(0,), teacher_data="same")
    both = {
        result.stem
        for result in collect_figure_runs(FIVE, query_of([*usual.requested_runs(), *same.requested_runs()]), "demo")
    }
    assert both == {"figure_5_demo", "figure_5_demo_teacher-on-same"}
    alone = [result.stem for result in collect_figure_runs(FIVE, query_of(usual.requested_runs()), "demo")]
    assert alone == ["figure_5_demo"], "LSSKD has no teacher, so its runs are those of both"
    (result,) = collect_figure_runs(FIVE, query_of(same.runs["KD", 0.5]), "demo")
    assert result.teacher_data == "same"
    assert "Teachers, and what is trained on them, learn from the same part" in " ".join(result.notes)


def test_a_changed_protocol_is_said_and_does_not_overwrite_the_usual_figure() -> None:
    changed = get_protocol("lsskd").replace(weight_decay=1e-4)
    runs = points(scale="paper", seeds=(0,), protocol=changed).requested_runs()
    usual, other = sorted(collect_figure_runs(FIVE, query_of(runs)), key=lambda result: len(result.stem))
    assert usual.stem == "figure_5_paper"
    assert other.stem.startswith("figure_5_paper_")
    assert other.remarks == ("Protocol lsskd with weight_decay = 0.0001.",)
    assert not other.reproduces


def test_hard_labels_are_shown_in_figure_6_where_there_are_runs_of_them() -> None:
    found = points(SIX, seeds=(0,))
    (result, _) = collect_figure_runs(SIX, query_of(run for runs in found.runs.values() for run in runs))
    assert result.methods == ("HSSAKD", "LSSKD", "HSSAKD-teacher")
    (without, _) = collect_figure_runs(SIX, query_of(found.requested_runs()))
    assert without.methods == ("HSSAKD", "LSSKD")
    assert without.panels[0].stages("LSSKD", "stages") == ({0: 30.0}, {0: 40.0})
    assert without.panels[0].stages("LSSKD", "stages_joint") == ({0: 20.0}, {0: 25.0})
    assert select_by_seed(without.panels[0].cell("LSSKD")) == {0: 50.0}


def test_runs_on_held_out_images_are_in_no_figure() -> None:
    runs = points(seeds=(0,), validation=0.1).requested_runs()
    assert collect_figure_runs(FIVE, query_of(runs), "demo") == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Figure, Points, Store]:
    """Baseline and LSSKD on half of 36 small images and on all of them, two seeds each."""
    folder = tmp_path_factory.mktemp("trained")
    toml = commands.small_dataset(folder)
    (folder / "own.toml").write_text(
        'name = "own"\ncaption = "A small figure."\nkind = "few-shot"\nmethods = ["Baseline", "LSSKD"]\n'
        'fractions = [0.5, 1.0]\n[[panels]]\ntitle = "Blocks"\nstudent = "ResNet8"\ndataset = "blocks.toml"\n'
    )
    figure = load_figure(folder / "own.toml").at("demo")
    images = load_dataset(figure.panels[0].dataset_for("demo") or "", None)
    protocol = get_protocol("lsskd")
    place = (images.name, images.fingerprint, protocol, select_scale("demo", 1, protocol), torch.device("cpu"))
    found = plan_panel(figure, figure.panels[0], RunFactory(*place, precision="fp32"), (0, 1))
    settings = TrainSettings(runs=folder / "runs", dataset=str(toml))
    for _, runs in itertools.groupby(found.requested_runs(), key=lambda run: (run.fraction, run.seed)):
        assert run_until_done(list(runs), settings)
    return figure, found, Store(folder / "runs")


def test_trained_points_come_back_from_the_store(trained: tuple[Figure, Points, Store]) -> None:
    figure, found, store = trained
    result = make_figure_result(figure, {"Blocks": found}, look_up_exactly(store.record), store.record)
    assert result.stem == "figure_own_demo-1-epochs"
    assert result.counts == "4 of 4 points done."
    for (method, fraction), runs in found.runs.items():
        records = [store.record(run) for run in runs]
        expected = {run.seed: record["final"]["top1"] for run, record in zip(runs, records, strict=True) if record}
        assert select_by_seed(result.panels[0].cell(method, fraction)) == expected
        assert {record["cost"]["images"] for record in records if record} == {36 * fraction}


def test_a_report_finds_what_the_command_has_shown(trained: tuple[Figure, Points, Store]) -> None:
    figure, found, store = trained
    shown = make_figure_result(figure, {"Blocks": found}, look_up_exactly(store.record), store.record)
    (result,) = collect_figure_runs(figure, RecordQuery(store.read_all()[0]), "demo")
    assert result.stem == shown.stem
    assert {key: cell.values for key, cell in result.panels[0].cells.items()} == {
        key: cell.values for key, cell in shown.panels[0].cells.items()
    }
    assert dataclasses.replace(result, panels=()) == dataclasses.replace(shown, panels=())
