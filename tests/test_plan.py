"""From what is asked for to runs and jobs: identities, dependencies, grouping, cost, and schedules."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.core.protocols import PROTOCOLS, SCALES, select_scale
from benchmark.core.spec import LRSchedule, Protocol, ReleasedTeacher, Run
from benchmark.planning.cost import run_seconds
from benchmark.planning.jobs import Job, missing_jobs
from benchmark.planning.request import PretrainedFile, RunFactory, collect_dependencies, describe_run
from benchmark.plugins.registry import all_methods
from benchmark.results.store import Store
from benchmark.training import checkpoint as checkpoints
from benchmark.training.checkpoint import cohort_name, resume_folders

DEFAULT = sorted(name for name, method in all_methods().items() if method.listed and method.in_default_grid)
IMAGE_SIZE, IMAGES = 8, 640
NOWHERE = Store(Path("a-folder-that-is-not-there"))


def request(**changes: Any) -> RunFactory:
    values: dict[str, Any] = {
        "dataset": "digits",
        "fingerprint": "0" * 64,
        "protocol": PROTOCOLS["lsskd"],
        "scale": SCALES["demo"],
        "device": torch.device("cpu"),
        "precision": "fp32",
    }
    return RunFactory(**values | changes)


def run_of(
    method: str, student: str = "ResNet20", teacher: str | None = "ResNet56", seed: int = 0, **changes: Any
) -> Run:
    return request(**changes).run(method, student, teacher, seed)


def planned(runs: list[Run], workers: int, store: Store = NOWHERE, retry_failed: bool = False) -> list[Job]:
    return missing_jobs(runs, store, workers, IMAGE_SIZE, IMAGES, retry_failed)


def members(jobs: list[Job]) -> list[set[str]]:
    """The methods of each job."""
    return [{run.method for run in job.runs} for job in jobs]


def test_a_teacher_free_run_is_the_same_in_every_column() -> None:
    for method in ("Baseline", "PS-KD", "LSSKD"):
        columns = [run_of(method, teacher=teacher) for teacher in ("ResNet56", "WRN-40-2", None)]
        assert columns[0].teacher is columns[0].head is columns[0].teacher_precision is None
        assert len({run.id for run in columns}) == 1
    assert run_of("KD", teacher="ResNet56").id != run_of("KD", teacher="WRN-40-2").id


def test_whatever_decides_a_run_makes_it_another_one() -> None:
    run = run_of("KD")
    others = {
        "option": run_of("KD", options={"KD": {"temperature": 3.0}}),
        "protocol": run_of("KD", protocol=PROTOCOLS["crd"]),
        "field of the protocol": run_of("KD", protocol=PROTOCOLS["lsskd"].replace(weight_decay=1e-4)),
        "scale": run_of("KD", scale=SCALES["quick"]),
        "precision": run_of("KD", precision="bf16"),
        "version": run.replace(method_version=run.method_version + 1),
        "teacher": run_of("KD", teacher="WRN-40-2"),
        "version of the teacher": run.replace(
            teacher=run_of("Baseline", "ResNet56").replace(method_version=9).model_dump()
        ),
        "teacher from a file": run_of("KD", released={"ResNet56": PretrainedFile(released("ResNet56"), False)}),
        "student": run_of("KD", "ResNet8x4"),
        "seed": run_of("KD", seed=1),
        "images": run_of("KD", fingerprint="1" * 64),
        "held-out share": run_of("KD", validation=0.1),
        "fraction": run.replace(fraction=0.5),
        "method": run_of("FitNet"),
    }
    ids = {run.id: "itself"}
    for what, other in others.items():
        assert other.id not in ids, f"{what}: {ids.get(other.id)}"
        ids[other.id] = what
    assert run_of("KD").id == run.id
    assert Run.model_validate(run.model_dump(mode="json")).id == run.id


def released(network: str) -> ReleasedTeacher:
    return ReleasedTeacher(network=network, sha256="a" * 64)


@given(st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_runs_are_equal_exactly_if_their_options_are(one: float, other: float) -> None:
    first, second = (run_of("LSSKD", options={"LSSKD": {"alpha": alpha}}) for alpha in (one, other))
    assert (first.id == second.id) == (one == other)
    assert (first == second) == (hash(first) == hash(second)) == (one == other)


def test_an_option_left_at_its_default_is_the_same_run() -> None:
    assert run_of("KD", options={"KD": {"temperature": 4.0}}).id == run_of("KD").id
    assert describe_run(run_of("KD")) == "KD"
    assert describe_run(run_of("KD", options={"KD": {"temperature": 3.0}})) == "KD (temperature=3.0)"


def test_what_a_protocol_says_of_other_methods_makes_no_run_another() -> None:
    lsskd = PROTOCOLS["lsskd"]
    wider = lsskd.replace(
        method_schedules=lsskd.model_dump()["method_schedules"] | {"SSKD-head": {"epochs": 7}},
        method_options={"KD": {"temperature": 3.0}},
    )
    for method in DEFAULT:
        same = run_of(method).id == run_of(method, protocol=wider).id
        assert same == (method not in ("SSKD", "KD")), method


def test_runs_depend_on_their_teacher_and_its_head() -> None:
    def needs(method: str, **changes: Any) -> list[tuple[str, str]]:
        return [(run.method, run.student) for run in collect_dependencies([run_of(method, **changes)])[:-1]]

    teacher = ("Baseline", "ResNet56")
    assert needs("LSSKD") == []
    assert needs("KD") == [teacher]
    assert needs("SSKD") == [teacher, ("SSKD-head", "ResNet56")]
    assert needs("HSSAKD") == [teacher, ("HSSAKD-branches", "ResNet56")]
    assert needs("HSSAKD*") == [("HSSAKD-teacher", "ResNet56")]


def test_a_teacher_from_a_file_needs_only_the_heads_that_the_file_lacks() -> None:
    for has_branches in (False, True):
        files = {"ResNet56": PretrainedFile(released("ResNet56"), has_branches)}
        assert run_of("KD", released=files).teacher == released("ResNet56")
        assert run_of("KD", released=files).dependencies() == ()
        (head,) = run_of("SSKD", released=files).dependencies()
        assert (head.method, head.teacher) == ("SSKD-head", released("ResNet56"))
        found = [run.method for run in run_of("HSSAKD", released=files).dependencies()]
        assert found == ([] if has_branches else ["HSSAKD-branches"])
        other = run_of("KD", teacher="WRN-40-2", released=files)
        assert isinstance(other.teacher, Run)


def test_seeds_share_a_teacher_or_have_one_each() -> None:
    for teacher_seeds, expected in (("shared", [0, 0, 0]), ("paired", [0, 1, 2])):
        for method in ("KD", "SSKD"):
            runs = [run_of(method, seed=seed, teacher_seeds=teacher_seeds) for seed in range(3)]
            needed = [run.dependencies() for run in runs]
            assert [{artifact.seed for artifact in artifacts} for artifacts in needed] == [{seed} for seed in expected]


@given(
    methods=st.sets(st.sampled_from(DEFAULT), min_size=1),
    pairs=st.sets(
        st.sampled_from([("ResNet56", "ResNet20"), ("ResNet56", "WRN-16-2"), ("WRN-16-2", "WRN-16-2")]), min_size=1
    ),
    seeds=st.integers(1, 2),
    workers=st.integers(1, 9),
    teacher_seeds=st.sampled_from(["shared", "paired"]),
)
@settings(max_examples=40, deadline=None)
def test_every_missing_run_is_in_one_job_that_can_be_started(methods, pairs, seeds, workers, teacher_seeds) -> None:
    asked = [
        run_of(method, student, teacher, seed, teacher_seeds=teacher_seeds)
        for method, (teacher, student), seed in itertools.product(sorted(methods), sorted(pairs), range(seeds))
    ]
    jobs = planned(asked, workers)
    digests = [run.digest for job in jobs for run in job.runs]
    assert len(digests) == len(set(digests))
    assert set(digests) == {run.digest for run in collect_dependencies(asked)}
    done: set[str] = set()
    waiting = list(jobs)
    while waiting:
        ready = [job for job in waiting if job.needs <= done]
        assert ready, "some jobs wait for each other"
        for job in ready:
            assert job.needs == {needed.digest for run in job.runs for needed in run.dependencies()}
            assert len({run.seed for run in job.runs}) == 1
            assert len({run.teacher for run in job.runs if run.teacher}) <= 1
            done |= {run.digest for run in job.runs}
            waiting.remove(job)


def test_one_worker_trains_teacher_free_runs_in_a_teachers_cohort() -> None:
    jobs = planned([run_of(method) for method in ("Baseline", "PS-KD", "LSSKD", "KD", "CRD")], workers=1)
    assert members(jobs) == [{"Baseline"}, {"Baseline", "PS-KD", "LSSKD", "KD", "CRD"}]
    assert {run.student for run in jobs[0].runs} == {"ResNet56"}


def test_several_workers_train_one_student_each_and_none_is_idle() -> None:
    runs = [run_of(method, student) for student in ("ResNet20", "ResNet8x4") for method in ("Baseline", "PS-KD")]
    assert len(planned(runs, workers=1)) == 1
    two = planned(runs, workers=2)
    assert [{run.student for run in job.runs} for job in two] == [{"ResNet20"}, {"ResNet8x4"}]
    assert sorted(len(job.runs) for job in planned(runs, workers=3)) == [1, 1, 2]
    assert [len(job.runs) for job in planned(runs, workers=8)] == [1, 1, 1, 1]


def checkpoint(store: Store, runs: list[Run], epoch: int) -> Path:
    """A checkpoint that holds nothing but whose it is."""
    folder = store.cohorts("digits") / cohort_name(runs)
    tensors = {run.id: {"losses": torch.zeros(1)} for run in runs}
    notes = {"runs": {run.id: {} for run in runs}}
    checkpoints.write_checkpoint(folder, checkpoints.Checkpoint(epoch, 0, tensors, notes))
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_another_set_of_methods_goes_on_from_what_has_a_checkpoint(tmp_path, workers) -> None:
    store = Store(tmp_path)
    crd, kd, fitnet = (run_of(method, teacher="ResNet20") for method in ("CRD", "KD", "FitNet"))
    folder = checkpoint(store, [crd, kd], epoch=2)
    assert resume_folders(store, [kd])[0] == folder
    assert not resume_folders(store, [kd, fitnet])
    jobs = planned([kd, fitnet], workers, store)
    assert members(jobs) == [{"Baseline"}, {"KD"}, {"FitNet"}]
    assert members(planned([crd, kd, fitnet], 1, store)) == [{"Baseline"}, {"CRD", "KD"}, {"FitNet"}]


def test_the_most_advanced_checkpoint_is_gone_on_from(tmp_path) -> None:
    store = Store(tmp_path)
    crd, kd = run_of("CRD"), run_of("KD")
    checkpoint(store, [crd, kd], epoch=1)
    alone = checkpoint(store, [kd], epoch=2)
    assert resume_folders(store, [kd])[0] == alone
    assert alone not in resume_folders(store, [crd, kd])


def test_at_scale_paper_a_job_holds_one_student_also_for_a_single_worker() -> None:
    def students(scale: str) -> set[int]:
        runs = [
            run_of(method, student, scale=SCALES[scale])
            for method in ("KD", "CRD")
            for student in ("ResNet20", "ResNet32")
        ]
        return {len({run.student for run in job.runs}) for job in planned(runs, 1) if job.needs}

    assert students("quick") == {2}
    assert students("paper") == {1}


def test_finished_runs_are_not_planned_and_failed_ones_only_when_asked(tmp_path) -> None:
    store = Store(tmp_path)
    baseline, teacher, kd = run_of("Baseline"), run_of("Baseline", "ResNet56"), run_of("KD")
    assert kd.dependencies() == (teacher,)
    store.finish(baseline, {"status": "finished", "final": {"top1": 50.0}, "provenance": {}}, {})
    store.finish(teacher, {"status": "failed", "reason": "loss not finite", "provenance": {}}, {})

    def students(retry_failed: bool) -> list[tuple[str, str]]:
        jobs = planned([baseline, kd], 1, store, retry_failed)
        return [(run.method, run.student) for job in jobs for run in job.runs]

    assert students(retry_failed=False) == [("KD", "ResNet20")]
    assert students(retry_failed=True) == [("Baseline", "ResNet56"), ("KD", "ResNet20")]
    for run in (baseline, teacher):
        store.forget_failure(run)
    assert store.missing([baseline], retry_failed=True) == []
    assert store.record(teacher) is None


def test_cost_grows_with_what_a_run_does() -> None:
    def seconds(*names: str, images: int = IMAGES, size: int = IMAGE_SIZE, **changes: Any) -> float:
        return run_seconds(run_of(*names, **changes), size, images)

    cost = seconds("KD")
    assert seconds("KD", images=2 * IMAGES) == pytest.approx(2 * cost, rel=1e-6)
    assert seconds("KD", scale=SCALES["paper"]) == pytest.approx(20 * seconds("KD", scale=SCALES["quick"]), rel=1e-6)
    assert seconds("KD", size=32) > cost
    assert seconds("KD", "ResNet56") > cost
    assert seconds("KD", "ResNet20", "ResNet20") < cost
    assert seconds("Baseline") < cost
    assert seconds("SSKD") > cost, "four rotations of each image"


def test_a_cohort_costs_less_than_its_runs_apart() -> None:
    runs = [run_of(method) for method in ("KD", "FitNet", "AT")]
    (together,) = (job for job in planned(runs, workers=1) if len(job.runs) == 3)
    assert together.seconds < sum(run_seconds(run, IMAGE_SIZE, IMAGES) for run in runs)
    assert together.seconds > run_seconds(runs[0], IMAGE_SIZE, IMAGES)


@given(
    epochs=st.integers(1, 400),
    milestones=st.sets(st.integers(1, 400), max_size=4),
    factor=st.floats(1e-4, 1, exclude_min=True),
)
def test_a_scaled_schedule_has_an_epoch_at_least_and_milestones_in_order(epochs, milestones, factor) -> None:
    ordered = tuple(sorted(milestone for milestone in milestones if milestone < epochs))
    schedule = LRSchedule(epochs=epochs, milestones=ordered)
    scaled = schedule.scaled(factor)
    assert 1 <= scaled.epochs <= epochs
    assert abs(scaled.epochs - max(1, epochs * factor)) <= 0.5
    assert list(scaled.milestones) == sorted(set(scaled.milestones))
    assert all(1 <= milestone < scaled.epochs for milestone in scaled.milestones)
    assert schedule.scaled(1) == schedule


def test_so_many_epochs_are_a_scale_of_their_own() -> None:
    lsskd = PROTOCOLS["lsskd"]
    assert select_scale("paper", 240, lsskd) == SCALES["paper"]
    assert select_scale("demo", None, lsskd) == SCALES["demo"]
    for epochs in (1, 7, 239):
        assert lsskd.schedule.scaled(select_scale("paper", epochs, lsskd).factor).epochs == epochs


@pytest.mark.parametrize(
    ("protocol", "scale", "mobile", "expected"),
    [
        ("lsskd", "paper", False, {(0, 0): 0.05, (149, 9): 0.05, (150, 0): 0.005, (209, 9): 0.005, (210, 0): 0.0005}),
        ("lsskd", "paper", True, {(0, 0): 0.05, (150, 0): 0.005}),
        ("crd", "paper", False, {(149, 9): 0.05, (150, 0): 0.005, (180, 0): 0.0005, (210, 0): 0.00005}),
        ("crd", "paper", True, {(0, 0): 0.01, (150, 0): 0.001, (239, 9): 0.00001}),
        ("pskd", "paper", False, {(0, 0): 0.1, (149, 9): 0.1, (150, 0): 0.01, (225, 0): 0.001, (299, 9): 0.001}),
        # One epoch of warm-up in ten steps, then divided by five.
        (
            "tfkd",
            "paper",
            False,
            {(0, 0): 0.01, (0, 4): 0.05, (0, 9): 0.1, (1, 0): 0.1, (60, 0): 0.02, (160, 0): 0.0008},
        ),
        # 4 epochs, milestone 150/60 to the nearest, 210/60 is the end; a third of them warms up to 0.4 of the rate.
        (
            "lsskd",
            "demo",
            False,
            {(0, 0): 0.002, (0, 9): 0.02, (1, 0): 0.02, (2, 9): 0.02, (3, 0): 0.002, (3, 9): 0.002},
        ),
        ("lsskd", "quick", False, {(0, 0): 0.05, (7, 9): 0.05, (8, 0): 0.005, (10, 9): 0.005, (11, 0): 0.0005}),
    ],
)
def test_learning_rates_by_hand(protocol, scale, mobile, expected) -> None:
    run = run_of("Baseline", protocol=PROTOCOLS[protocol], scale=SCALES[scale])
    for (epoch, step), rate in expected.items():
        assert run.learning_rate(epoch, step, 10, mobile) == pytest.approx(rate, rel=1e-9), (epoch, step)


def test_the_demo_halves_the_batch_and_a_number_of_epochs_does_not() -> None:
    lsskd = PROTOCOLS["lsskd"]
    assert run_of("Baseline", protocol=lsskd, scale=SCALES["demo"]).batch_size == lsskd.batch_size / 2
    assert select_scale("demo", 4, lsskd) == SCALES["demo"]
    assert run_of("Baseline", protocol=lsskd, scale=select_scale("demo", 1, lsskd)).batch_size == lsskd.batch_size
    assert run_of("Baseline", protocol=lsskd.replace(batch_size=2), scale=SCALES["demo"]).batch_size == 2


def test_heads_have_schedules_of_their_own() -> None:
    _, head, _ = collect_dependencies([run_of("SSKD", scale=SCALES["paper"])])
    assert head.schedule == LRSchedule(epochs=60, milestones=(30, 45))
    assert run_of("SSKD", scale=SCALES["paper"]).schedule == LRSchedule(epochs=240, milestones=(150, 210))


def test_a_protocol_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="learning_rat\n"):
        Protocol.model_validate(PROTOCOLS["lsskd"].model_dump() | {"learning_rat": 0.1})


def test_what_is_cached_on_a_protocol_is_no_change_of_it() -> None:
    usual, other = PROTOCOLS["lsskd"].replace(), PROTOCOLS["lsskd"].replace(weight_decay=1e-4)
    assert other.content != usual.content
    assert other.changes_from(usual) == {"weight_decay": 1e-4}
    assert usual.changes_from(PROTOCOLS["lsskd"]) == {}
