"""A probe fits a new classifier to a trained student, leaves the rest of it as it is, and is a run like any other."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmark.analysis.cells import look_up_exactly
from benchmark.analysis.tables import make_table_result
from benchmark.backbones import build_network
from benchmark.core.errors import UserError
from benchmark.core.protocols import PROBES, SCALES
from benchmark.core.spec import Run, Scale
from benchmark.data import load_dataset
from benchmark.data.augmentation import evaluation_batches
from benchmark.execution.scheduler import JobCallback, JobScheduler
from benchmark.planning.jobs import missing_jobs
from benchmark.planning.request import RunFactory, collect_dependencies, describe_run
from benchmark.planning.tables import plan_table
from benchmark.results.store import Store
from benchmark.training.inputs import recipe_for
from benchmark.training.job import run_until_done
from benchmark.training.settings import TrainSettings
from figures.specification import load_figure
from slurm.plan import Plan, SweepRequest, write_plan
from tables.render import to_csv, to_markdown
from tables.specification import load_table
from tests.commands import run_here
from tests.engine import SHORT

LEARNT, PROBED = "digits-0-4", "digits-5-9"


def factory() -> RunFactory:
    learnt, probed = load_dataset(LEARNT), load_dataset(PROBED)
    return RunFactory(
        dataset=LEARNT,
        fingerprint=learnt.fingerprint,
        protocol=SHORT,
        scale=Scale(name="test", factor=1 / 25),
        device=torch.device("cpu"),
        precision="fp32",
        probed={PROBED: (PROBED, probed.fingerprint)},
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    """Settings of a store that holds a student of the lower digits."""
    settings = TrainSettings(runs=tmp_path_factory.mktemp("runs"), dataset=LEARNT)
    assert run_until_done([student()], settings)
    return replace(settings, dataset=PROBED)


def student() -> Run:
    return factory().run("Baseline", "ResNet8", None, 0)


@pytest.fixture(scope="module", params=sorted(PROBES))
def probe(request: pytest.FixtureRequest, place: TrainSettings) -> Run:
    run = factory().probe(student(), PROBED, request.param)
    assert run_until_done([run], place)
    return run


def test_only_the_classifier_learns(probe: Run, place: TrainSettings) -> None:
    before, after = (Store(place.runs).weights(run) for run in (student(), probe))
    assert before.keys() == after.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"fc.weight", "fc.bias"}


def test_the_record_is_like_any_other(probe: Run, place: TrainSettings) -> None:
    record = Store(place.runs).record(probe)
    assert record is not None
    assert (record["status"], len(record["epochs"])) == ("finished", probe.schedule.epochs)
    assert record["best_on_test"]["top1"] >= record["final"]["top1"] > 30
    assert record["cost"]["training_multiply_adds"] > 0
    assert Run.model_validate(record["run"]) == probe
    assert collect_dependencies([probe]) == [student(), probe]


def test_the_fit_is_that_of_a_regression_on_standardised_features(place: TrainSettings) -> None:
    run = factory().probe(student(), PROBED, "probe-lbfgs")
    assert run_until_done([run], place)
    network = build_network("ResNet8", 5)
    network.load_state_dict(Store(place.runs).weights(student()))
    dataset = load_dataset(PROBED)
    splits = []
    for images in (dataset.train, dataset.test):
        batches = evaluation_batches(images, recipe_for(run.protocol, dataset), 100, "cpu")
        with torch.no_grad():
            pooled = [network.eval()(shown).pooled.numpy() for shown, _ in batches]
        splits.append((np.concatenate(pooled).astype(np.float64), images.labels.numpy()))
    scaler = StandardScaler().fit(splits[0][0])
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(splits[0][0]), splits[0][1])
    expected = 100 * model.score(scaler.transform(splits[1][0]), splits[1][1])
    record = Store(place.runs).record(run)
    assert record is not None
    assert record["final"]["top1"] == pytest.approx(expected, abs=100 / len(dataset.test) + 1e-9)


def test_the_authors_recipe_is_theirs() -> None:
    run = factory().probe(student(), PROBED, "probe-sgd")
    recipe = run.protocol
    assert (recipe.learning_rate, recipe.momentum, recipe.nesterov, recipe.weight_decay) == (0.1, 0.9, True, 0)
    assert (recipe.batch_size, recipe.schedule.epochs, recipe.schedule.milestones) == (64, 100, (30, 60, 90))
    assert (recipe.decay, run.options["solver"]) == (0.1, "sgd")
    assert describe_run(run).startswith("probe-sgd of Baseline")


def test_probes_of_other_students_are_other_runs_and_their_jobs_leave_the_students_out(tmp_path: Path) -> None:
    runs = [factory().run("Baseline", "ResNet8", None, seed) for seed in (0, 1)]
    probes = [factory().probe(run, PROBED, name, fraction) for run in runs for name in PROBES for fraction in (0.1, 1)]
    assert len({run.id for run in probes}) == 8
    jobs = missing_jobs(probes, Store(tmp_path), 1, 8, 700)
    assert {run for job in jobs for run in job.runs} == set(probes)
    assert all(len({run.protocol.name for run in job.runs}) == 1 for job in jobs)
    assert {needed for job in jobs for needed in job.needs} == {run.digest for run in runs}


def test_the_plan_of_a_sweep_of_probes_alone_holds_all_that_their_students_depend_on(tmp_path: Path) -> None:
    run = factory().probe(factory().run("HSSAKD", "ResNet8", "ResNet14", 0), PROBED, "probe-lbfgs")
    jobs = missing_jobs([run], Store(tmp_path), 1, 8, 700)
    write_plan(tmp_path / "plan.sqlite", SweepRequest("small", "a test", "student", {"": [run]}, {PROBED: jobs}))
    assert Plan(tmp_path / "plan.sqlite").read_runs(0) == [run]


def test_a_probe_without_its_student_fails_and_does_not_train_the_student_on_other_images(tmp_path: Path) -> None:
    store, run = Store(tmp_path), factory().probe(student(), PROBED, "probe-lbfgs")
    jobs = missing_jobs([run], store, 1, 8, 700)
    scheduler = JobScheduler(jobs, store, JobCallback())
    assert scheduler.next_ready() is None
    assert list(scheduler.summary.failures.values()) == [
        f"Baseline of ResNet8, which it needs, has failed: it has no record on {LEARNT}"
    ]


def test_a_probe_of_few_labels_learns_from_so_many_of_each_class(place: TrainSettings) -> None:
    command = ["Baseline_ResNet8_test", "--dataset", PROBED, "--images", "5", "--runs", str(place.runs)]
    ended = run_here(*command, module="benchmark.probe")
    assert ended.returncode == 0, ended.stderr
    records = [record for record in Store(place.runs).read_all()[0] if record["cost"]["images"] == 25]
    assert [record["run"]["start"]["method"] for record in records] == ["Baseline"]
    assert f"{records[0]['final']['top1']:.2f}" in ended.stdout


def test_the_command_takes_the_seed_of_its_run_and_refuses_a_probe(place: TrainSettings) -> None:
    run = factory().run("Baseline", "ResNet8", None, 1)
    assert run_until_done([run], replace(place, dataset=LEARNT))
    probe = factory().probe(run, PROBED, "probe-lbfgs")
    where = ["--dataset", PROBED, "--runs", str(place.runs)]
    assert run_here(run.id, *where, module="benchmark.probe").returncode == 0
    assert Store(place.runs).record(probe) is not None
    ended = run_here(probe.id, *where, module="benchmark.probe")
    assert (ended.returncode, ended.stderr) == (
        2,
        f"error: {probe.id} is a probe itself; choose the run that it probes, {run.id}\n",
    )


@pytest.mark.parametrize(("method", "probed"), [("KD", True), ("Baseline", False)])
def test_the_teacher_is_probed_if_a_student_learns_from_it(method: str, probed: bool) -> None:
    table = load_table("transfer").at("demo")
    grid = plan_table(table, replace(factory(), scale=SCALES["demo"]), [0], [method])
    teacher = table.columns[0].teacher
    probes = [run for column in grid.teachers.values() for run in column if run.method == "Probe"]
    assert [run.student for run in probes] == [teacher] * 2
    assert [run.student for run in grid.requested_runs()].count(teacher) == len(set(probes)) * probed


def test_only_the_wanted_columns_are_probed() -> None:
    table, made = load_table("transfer").at("demo"), replace(factory(), scale=SCALES["demo"])
    runs = plan_table(table, made, [0], ["KD"], ["STL-10"]).requested_runs()
    assert [(run.protocol.name, run.start.method) for run in runs if run.start] == [
        ("probe-lbfgs", "KD"),
        ("probe-lbfgs", "Baseline"),
    ]
    with pytest.raises(UserError, match=r"^Tiny-ImageNet probes on no dataset at scale demo; choose "):
        plan_table(table, made, [0], [], ["Tiny-ImageNet"])


def test_columns_that_probe_on_no_dataset_at_a_scale_stay_empty() -> None:
    made = replace(factory(), scale=SCALES["demo"])
    grid = plan_table(load_table("transfer").at("demo"), made, [0])
    result = make_table_result(grid, made, look_up_exactly(lambda run: None), lambda run: None)
    for column, status in (("STL-10", "not run yet"), ("Tiny-ImageNet", "no dataset")):
        assert {result.cell("KD", column).status, result.cell("Teacher", column).status} == {status}
    page = to_markdown(result)
    rows = list(csv.DictReader(io.StringIO(to_csv(result))))
    tested = {row["column"]: row["dataset"] for row in rows if row["row"] == "KD"}
    assert (tested["CIFAR-100"], tested["STL-10"]) == (LEARNT, PROBED)
    assert "; 26 are in columns that probe on no dataset at this scale." in page
    assert "Column STL-10 is VGG13-x1/4>MobileNetV2-s1-u1-x1/2, probed on digits-5-9, here." in page


@pytest.mark.parametrize("scale", SCALES)
def test_the_table_and_the_figure_probe_the_same_students(scale: str) -> None:
    table, figure = load_table("transfer"), load_figure("transfer")
    panel, column = figure.at(scale).panels[0], table.at(scale).columns[0]
    assert (panel.pair, panel.dataset_for(scale)) == (f"{column.teacher}>{column.student}", table.dataset_for(scale))
    assert figure.protocol_for(scale) == table.protocol_for(scale)


def test_the_table_and_the_figure_probe_on_the_upper_digits_and_leave_all_alone() -> None:
    table, figure = load_table("transfer"), load_figure("transfer")
    assert not table.in_all
    assert not figure.in_all
    probes = [column.probe for column in table.columns if column.probe] + [figure.panels[0].probe]
    assert [probe.source_at("demo") for probe in probes if probe] == [PROBED, PROBED, None, None, PROBED]
    assert [probe.protocol for probe in probes if probe] == [*["probe-lbfgs", "probe-sgd"] * 2, "probe-lbfgs"]
    rows = {row.name: row.published for row in table.rows}
    assert rows["LSSKD"] is None
    published = rows["HSSAKD"]
    assert published is not None
    assert (published.mean[2], published.mean[4]) == (74.66, 42.57)
