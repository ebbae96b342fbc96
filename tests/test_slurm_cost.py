"""What a sweep is said to cost: by what was timed on such a device, else by arithmetic; and what grouping saves."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console

from benchmark.core.spec import Run
from benchmark.execution.executor import ExecutionPlan, Executor
from benchmark.execution.local import Local
from benchmark.planning.cost import run_seconds, training_multiply_adds
from benchmark.planning.jobs import Grouping, Job, all_jobs
from benchmark.planning.timed import GpuSpeed
from benchmark.results.store import Store
from slurm import client
from slurm.cost import OVERHEAD_SECONDS, Rates, estimate_price, price_jobs
from slurm.executor import Slurm
from slurm.plan import pending_jobs, topological_order
from slurm.profile import Profile
from tests.engine import STUDENT, TEACHER, request
from tests.slurm_sweeps import planned

SIZE, IMAGES = 32, 1000
CPU, GPU = Profile(gpus=0), Profile(gpus=1)
METHODS = ("Baseline", "KD", "FitNet", "CRD", "SSKD", "LSSKD")


def runs(seeds: int = 1, students: tuple[str, ...] = (STUDENT, "ResNet32")) -> list[Run]:
    asked = request()
    return [
        asked.run(method, student, TEACHER, seed) for seed in range(seeds) for student in students for method in METHODS
    ]


def row(run: Run, seconds: float, **changes: Any) -> dict[str, Any]:
    """A record's row as `benchmark.results.load` has it, of a run that took so long on its own."""
    return {
        "status": "finished",
        "method": run.method,
        "student": run.student,
        "teacher": run.teacher_network,
        "precision": run.precision,
        "epochs": run.schedule.epochs,
        "cost_images": IMAGES,
        "cost_image_size": SIZE,
        "cost_training_multiply_adds": training_multiply_adds(run, SIZE) * IMAGES * run.schedule.epochs,
        "provenance_device": "cpu",
        "provenance_seconds": 2 * seconds,
        "provenance_seconds_of_its_own": 0.75 * seconds,
        "provenance_seconds_of_its_teacher": 0.25 * seconds,
        "provenance_cohort": json.dumps(["one", "two"]),
    } | changes


KD = request().run("KD", STUDENT, TEACHER, 0)
CRD = request().run("CRD", STUDENT, TEACHER, 0)


def test_what_was_never_timed_is_reckoned_from_its_arithmetic() -> None:
    nothing = pd.DataFrame()
    assert Rates.of(CPU, nothing).run_seconds(KD, SIZE, IMAGES) == run_seconds(KD, SIZE, IMAGES)
    shown = IMAGES * KD.schedule.epochs
    expected = shown * training_multiply_adds(KD, SIZE) / GPU.multiply_adds_per_second
    assert Rates.of(GPU, nothing).run_seconds(KD, SIZE, IMAGES) == pytest.approx(expected)
    assert not Rates.of(CPU, nothing).is_measured(KD, SIZE)


def test_what_was_timed_takes_as_long_again_and_in_proportion_to_its_images() -> None:
    rates = Rates.of(CPU, pd.DataFrame([row(KD, 30.0), row(KD, 50.0), row(KD, 40.0)]))
    assert rates.is_measured(KD, SIZE)
    assert not rates.is_measured(KD, 64)
    assert rates.run_seconds(KD, SIZE, IMAGES) == pytest.approx(40.0)
    assert rates.run_seconds(KD, SIZE, 5 * IMAGES) == pytest.approx(200.0)


def test_what_was_not_timed_goes_at_the_speed_of_what_was() -> None:
    rates = Rates.of(CPU, pd.DataFrame([row(KD, 40.0)]))
    ratio = training_multiply_adds(CRD, SIZE) / training_multiply_adds(KD, SIZE)
    assert rates.run_seconds(CRD, SIZE, IMAGES) == pytest.approx(40.0 * ratio)


def test_times_of_another_kind_of_device_and_of_failed_runs_do_not_count() -> None:
    rows = [row(KD, 1.0, provenance_device="cuda"), row(KD, 1.0, status="failed", cost_images=None)]
    assert Rates.of(CPU, pd.DataFrame(rows)) == Rates(CPU, {})


HOSTILE = ("text", "", None, True, -1.0, float("nan"), float("inf"), 10**4000, 1e300, [1], {"a": 1}, "[[", "{}", "[]")
READ_COLUMNS = tuple(name for name in row(KD, 1.0) if name != "status")


@pytest.mark.parametrize("name", READ_COLUMNS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_columns_of_other_types_change_no_estimate_and_stop_none(name: str, device: str) -> None:
    profile = GPU if device == "cuda" else CPU
    sound = row(KD, 40.0, provenance_device=device, provenance_device_name="card")
    hostile = [sound | {name: value} for value in HOSTILE]
    records = pd.DataFrame([sound, *hostile, *hostile])
    rates = Rates.of(profile, records)
    assert rates.run_seconds(KD, SIZE, IMAGES) == pytest.approx(40.0)
    assert rates.run_seconds(CRD, SIZE, IMAGES) > 0
    if device == "cuda":
        assert GpuSpeed.from_records(records).seconds(KD, SIZE, IMAGES) == pytest.approx(40.0)


def test_on_a_graphics_card_the_runs_of_a_cohort_share_its_time() -> None:
    rates = Rates.of(GPU, pd.DataFrame([row(KD, 40.0, provenance_device="cuda")]))
    assert rates.run_seconds(KD, SIZE, IMAGES) == pytest.approx(40.0)


def grouped(tmp_path, grouping: Grouping, seeds: int = 1) -> list[Job]:
    jobs = all_jobs(runs(seeds), Store(tmp_path), grouping, SIZE, IMAGES)
    return price_jobs(jobs, Rates(CPU, {}), SIZE, IMAGES)


def test_every_grouping_trains_the_same_runs_once(tmp_path) -> None:
    trained = {}
    for grouping in ("run", "student", "cohort"):
        jobs = grouped(tmp_path, grouping, seeds=2)  # type: ignore[arg-type]
        digests = [run.digest for job in jobs for run in job.runs]
        assert len(digests) == len(set(digests))
        trained[grouping] = set(digests)
        assert all(len(job.runs) == 1 for job in jobs) == (grouping == "run")
        if grouping == "student":
            assert all(len({run.student for run in job.runs}) == 1 for job in jobs)
    assert trained["run"] == trained["student"] == trained["cohort"]


def test_larger_groups_are_cheaper_and_take_longer(tmp_path) -> None:
    run, student, cohort = (estimate_price(name, grouped(tmp_path, name), CPU) for name in ("run", "student", "cohort"))
    assert run.jobs > student.jobs > cohort.jobs
    assert run.hours > student.hours > cohort.hours
    # Beside what fewer jobs save in starting, the teacher's outputs are computed less often.
    assert run.hours - student.hours > (run.jobs - student.jobs) * OVERHEAD_SECONDS / 3600
    assert cohort.longest_chain > run.longest_chain


def test_no_job_comes_before_what_it_needs(tmp_path) -> None:
    for grouping in ("run", "student", "cohort"):
        made: set[str] = set()
        for _, job in topological_order({"digits": grouped(tmp_path, grouping)[::-1]}):  # type: ignore[arg-type]
            assert job.needs <= made | {run.digest for run in job.runs}
            made |= {run.digest for run in job.runs}


def test_the_plan_of_a_sweep_holds_what_is_done_too(tmp_path) -> None:
    """Whoever gives the command again finds the same sweep, however far it is."""
    store, before = Store(tmp_path), grouped(tmp_path, "student")
    for done in before[0].runs:
        fail(store, done)
    after = grouped(tmp_path, "student")
    assert [job.runs for job in after] == [job.runs for job in before]
    assert len(pending_jobs(after, store)) == len(before) - 1
    assert pending_jobs(after, store, retry_failed=True) == after


def fail(store: Store, run: Run) -> None:
    store.begin(run)
    store.finish(run, {"status": "failed", "reason": "test", "epochs": [], "provenance": {}}, {})


@pytest.mark.parametrize("executor", [Local(torch.device("cpu"), 1), Slurm(CPU)], ids=["local", "slurm"])
def test_a_dry_run_prices_a_failed_run_where_it_is_to_be_trained_again(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No cluster is waited for that could be asked how long its arrays may be.
    monkeypatch.setattr(client, "missing_command", lambda: "sbatch")
    plan = planned(tmp_path, ("Baseline", "KD"))
    store = Store(plan.settings.runs)
    for run in plan.runs:
        fail(store, run)

    def dry_run(retry_failed: bool) -> str:
        parts = list(plan.target.groups)
        order = ExecutionPlan("small", parts, executor.plan_jobs(parts, store, retry_failed), retry_failed)
        said = io.StringIO()
        executor.print_plan(order, store, Console(file=said, width=200))
        return said.getvalue()

    nothing = "every run has its record"
    assert nothing in dry_run(retry_failed=False)
    again = dry_run(retry_failed=True)
    assert nothing not in again
    assert "Nothing was started" in again
