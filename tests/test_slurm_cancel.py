"""Ending a sweep on a real SLURM, wholly or in part, and going on with it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark.core.errors import UserError
from slurm import retry, status
from slurm.dependencies import resume
from slurm.dispatcher import reconcile
from slurm.monitor import take_snapshot
from slurm.sweep import Sweep
from tests.commands import run_command
from tests.devcluster import Cluster, devcluster
from tests.slurm_cluster import needs_slurm, until
from tests.slurm_sweeps import (
    EPOCHS,
    PROFILE,
    assert_equal_to_undisturbed,
    bring_home,
    cluster,
    commanded,
    endings,
    freeze,
    jobs_in,
    logs,
    planned,
    task_of,
    trains,
)

__all__ = ["cluster"]
pytestmark = needs_slurm


LONG = 3 * EPOCHS
"""So many epochs that no job ends before it is held up, on a fast machine either."""


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    """A node on which two jobs run at once."""
    with devcluster(nodes=1, cpus=2) as cluster:
        yield cluster


def test_a_cancelled_sweep_leaves_nothing_in_the_queue_and_goes_on_from_its_checkpoints(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Two run, one waits for room.
    plan = planned(tmp_path, seeds=3, epochs=LONG)
    sweep = plan.sweep()
    runs = plan.settings.runs
    reconcile(sweep)
    running = [plan.number(sweep, "Baseline", seed) for seed in range(2)]
    left = set(running)
    while left:
        for number in sorted(left):
            if trains(sweep, number) and sweep.journal.read_state(number).shown is not None:
                # It is held up where it is; SLURM wakes what it cancels.
                freeze(sweep, number)
                left.remove(number)
        time.sleep(0.02)
    _, said = commanded(capsys, status.main, runs=runs, once=True)
    assert "2 running, 1 pending of 3 jobs" in said
    assert len(re.findall(rf"running \d+_\d n1 ResNet20.*?: epoch \d+/{LONG}, \d+ images/s", said)) == 2
    assert "0 of 3 runs" in said
    assert re.search(r"0\.\d+ job hours used, about 0\.\d+ left", said)
    told = run_command("--runs", str(runs), module="slurm.cancel")
    assert told.returncode == 0, told.stderr
    assert jobs_in(cluster) == []
    assert len(list(sweep.store.cohorts("blocks").iterdir())) == 2
    assert "this sweep is cancelled" in " ".join(take_snapshot(sweep).troubles)
    # Nobody goes on with it by mistake.
    reconcile(sweep)
    assert jobs_in(cluster) == []
    with pytest.raises(UserError, match="is cancelled; give its command again"):
        retry.main(failed=True, runs=runs)
    # Its command does.
    again = Sweep(sweep.folder)
    resume(again)
    reached = [again.journal.read_state(number).attempts[0].reached for number in running]
    assert all(0 < share < 1 for share in reached)
    bring_home(again)
    assert endings(again) == ["done"] * 3, logs(again)
    for number in running:
        (run,) = again.plan.read_runs(number)
        record = again.store.record(run)
        assert record is not None
        assert record["provenance"]["resumed"] == 1
    assert_equal_to_undisturbed(plan)


def test_a_job_that_is_cancelled_by_hand_is_not_submitted_again_until_that_is_asked_for(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(tmp_path, seeds=3)
    sweep = plan.sweep(PROFILE.replace(array=2))
    reconcile(sweep)
    until(lambda: trains(sweep, 0) and trains(sweep, 1), "training")
    freeze(sweep, 0)
    # One that runs and one that waits.
    cluster.command("scancel", task_of(sweep, 0))
    cluster.command("scancel", task_of(sweep, 2))
    bring_home(sweep)
    assert sweep.journal.read_endings() == {0: "cancelled", 1: "done", 2: "cancelled"}
    assert sweep.journal.read_reason(0) == "cancelled with scancel"
    runs = plan.settings.runs
    _, said = commanded(capsys, status.main, runs=runs, once=True)
    assert "1 done, 2 cancelled of 3 jobs" in said
    assert commanded(capsys, retry.main, failed=True, runs=runs) == (0, "nothing to try again")
    assert commanded(capsys, retry.main, cancelled=True, runs=runs)[0] == 0
    bring_home(sweep)
    assert endings(sweep) == ["done"] * 3
    assert_equal_to_undisturbed(plan)
