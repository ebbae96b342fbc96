"""Jobs that fail on a real SLURM, and those that need them or what they have in common with another sweep."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark.results.store import Store
from slurm import status
from slurm.dependencies import resume
from slurm.dispatcher import reconcile
from tests.commands import run_command
from tests.devcluster import Cluster, devcluster
from tests.slurm_cluster import needs_slurm, until
from tests.slurm_sweeps import (
    PROFILE,
    assert_equal_to_undisturbed,
    bring_home,
    cluster,
    commanded,
    endings,
    freeze,
    jobs_in,
    leavings,
    logs,
    planned,
    shown,
    task_of,
    trains,
    undisturbed,
    wrapped,
)

__all__ = ["cluster"]
pytestmark = needs_slurm


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    """Four nodes for all of these."""
    with devcluster(nodes=4, cpus=2) as cluster:
        yield cluster


def test_a_run_that_comes_to_nan_fails_and_all_others_go_on(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(tmp_path, ("KD",), settings=("KD.kd_weight=1e38",))
    sweep = plan.sweep()
    teacher, student = plan.number(sweep, "Baseline"), plan.number(sweep, "KD")
    reconcile(sweep)
    # It waits for its teacher by a dependency, and not by asking again and again.
    assert shown(cluster, task_of(sweep, student), "JobState") == "PENDING"
    assert shown(cluster, task_of(sweep, student), "Dependency") == f"afterany:{task_of(sweep, teacher)}(unfulfilled)"
    bring_home(sweep)
    assert (sweep.journal.read_endings()[teacher], sweep.journal.read_endings()[student]) == ("done", "failed")
    assert "loss" in sweep.journal.read_reason(student)
    (first,) = sweep.journal.read_state(student).attempts
    (before,) = sweep.journal.read_state(teacher).attempts
    assert before.ended is not None
    assert before.ended < first.began
    code, said = commanded(capsys, status.main, runs=plan.settings.runs, once=True)
    assert code == 1
    assert "1 done, 1 failed of 2 jobs" in said
    assert sweep.journal.read_reason(student)[:40] in said


def test_what_needs_a_job_that_fails_is_blocked_with_its_reason_and_retry_keeps_away_from_the_node(
    cluster: Cluster, tmp_path: Path
) -> None:
    plan = planned(tmp_path, ("KD",))
    sweep = plan.sweep()
    teacher, student = plan.number(sweep, "Baseline"), plan.number(sweep, "KD")
    # These nodes have no graphics card that works.
    sweep.write_settings(replace(plan.settings, device="cuda"), PROFILE)
    said: list[str] = []
    reconcile(sweep)
    bring_home(sweep, said)
    assert (sweep.journal.read_endings()[teacher], sweep.journal.read_endings()[student]) == ("failed", "blocked")
    reason = sweep.journal.read_reason(teacher)
    assert "cuda" in reason.lower()
    assert sweep.journal.read_reason(student) == f"Baseline of ResNet20, which it needs, has no record: {reason}"
    assert sweep.journal.read_state(student).attempts == ()
    until(lambda: not jobs_in(cluster), "the end of what was taken back", 30)
    # Once its cause is gone, what failed is tried again, elsewhere, and what was blocked with it.
    node = sweep.journal.read_state(teacher).attempts[-1].owner.node
    sweep.write_settings(plan.settings, PROFILE)
    told = run_command("--failed", "--runs", str(plan.settings.runs), module="slurm.retry")
    assert told.returncode == 0, told.stderr
    assert f"again: {sweep.plan.jobs[teacher].name} (not on {node})" in told.stdout
    assert sweep.plan.jobs[student].name in told.stdout
    assert shown(cluster, task_of(sweep, teacher), "ExcNodeList") == node
    bring_home(sweep)
    assert endings(sweep) == ["done", "done"]
    assert sweep.journal.read_state(teacher).attempts[-1].owner.node != node
    assert_equal_to_undisturbed(plan)


def test_a_failed_teacher_of_before_blocks_its_students_before_anything_is_submitted(
    cluster: Cluster, tmp_path: Path
) -> None:
    plan = planned(tmp_path, ("KD",))
    (teacher,) = (run for run in plan.runs if run.method == "Baseline")
    store = Store(plan.settings.runs)
    store.begin(teacher)
    store.finish(
        teacher,
        {
            "status": "failed",
            "reason": "loss is nan",
            "failed_at": {"epoch": 1, "step": 1},
            "epochs": [],
            "provenance": {},
        },
        {},
    )
    sweep = plan.sweep()
    reconcile(sweep)
    assert endings(sweep) == ["failed", "blocked"]
    assert sweep.journal.read_reason(1) == "Baseline of ResNet20, which it needs, has failed: loss is nan"
    assert jobs_in(cluster) == []


def test_a_teacher_whose_weights_were_damaged_is_trained_again_before_its_student(
    cluster: Cluster, tmp_path: Path
) -> None:
    plan = planned(tmp_path, ("KD",))
    reference = undisturbed(plan)
    (teacher,) = (run for run in plan.runs if run.method == "Baseline")
    folder = Store(plan.settings.runs).folder(teacher)
    shutil.copytree(reference.folder(teacher), folder)
    damaged = bytearray((folder / "student.safetensors").read_bytes())
    damaged[-1] ^= 1
    (folder / "student.safetensors").write_bytes(damaged)
    sweep = plan.sweep()
    assert sweep.journal.read_endings() == {0: "done"}
    said: list[str] = []
    bring_home(sweep, said)
    assert endings(sweep) == ["done", "done"], logs(sweep)
    assert leavings(sweep, plan.number(sweep, "KD")) == ["waiting", "done"]
    assert leavings(sweep, plan.number(sweep, "Baseline")) == ["done"]
    assert_equal_to_undisturbed(plan)


def test_a_run_that_two_sweeps_share_is_trained_once_and_the_second_waits_for_the_first(
    cluster: Cluster, tmp_path: Path
) -> None:
    first = planned(tmp_path)
    second = planned(tmp_path, seeds=2)
    early = first.sweep()
    reconcile(early)
    until(lambda: trains(early, 0), "training")
    # It is held up, so that the other one finds it at work.
    frozen = freeze(early, 0)
    late = second.sweep()
    shared = second.number(late, "Baseline", 0)
    reconcile(late)
    until(lambda: leavings(late, shared) == ["elsewhere"], "leaving the run to the other sweep")
    assert late.journal.read_state(shared).attempts[0].waits_for == task_of(early, 0)
    task = task_of(late, shared)
    until(lambda: reconcile(late) is None or task_of(late, shared) != task, "its next submission")
    assert shown(cluster, task_of(late, shared), "Dependency") == f"afterany:{task_of(early, 0)}(unfulfilled)"
    frozen.send_signal(signal.SIGCONT)
    bring_home(late)
    assert endings(late) == ["done", "done"]
    # Its own job had nothing left to train.
    assert late.journal.read_state(shared).shown is None
    bring_home(early)
    assert leavings(early, 0) == ["done"]
    assert_equal_to_undisturbed(second)


def test_a_job_whose_records_have_gone_is_open_again(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    reference = undisturbed(plan)
    store = Store(plan.settings.runs)
    (run,) = plan.runs
    shutil.copytree(reference.folder(run), store.folder(run))
    sweep = plan.sweep()
    assert sweep.journal.read_endings() == {0: "done"}
    shutil.rmtree(store.folder(run))
    assert resume(sweep) == [0]
    assert sweep.journal.read_endings() == {}


def test_a_sweep_comes_home_although_every_other_call_of_slurm_fails(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = 'if mkdir "$0.failed" 2>/dev/null; then echo "Socket timed out" >&2; exit 1; fi; rmdir "$0.failed"; '
    names = ("sbatch", "squeue", "scontrol", "scancel")
    plan = planned(tmp_path)
    with monkeypatch.context() as patch:
        # The jobs' own calls are such, too.
        patch.setenv("PATH", wrapped(tmp_path / "bin", dict.fromkeys(names, fails + 'exec $REAL "$@"')))
        sweep = plan.sweep(PROFILE.replace(submit_from_jobs=True))
        bring_home(sweep)
    assert endings(sweep) == ["done"], logs(sweep)
    assert leavings(sweep, 0) == ["done"]
    assert_equal_to_undisturbed(plan)
