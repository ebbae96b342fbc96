"""Sweeps on a real SLURM of small arrays and short limits, which go on when the command that began them has gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from slurm.dispatcher import reconcile
from slurm.profile import Profile
from tests.devcluster import Cluster, devcluster
from tests.slurm_cluster import needs_slurm, until
from tests.slurm_sweeps import (
    PROFILE,
    Planned,
    assert_equal_to_undisturbed,
    at_cluster,
    bring_home,
    cluster,
    endings,
    leavings,
    logs,
    planned,
    python_of,
    shown,
    task_of,
    trains,
)

__all__ = ["cluster"]
pytestmark = needs_slurm
SHORT = Profile(gpus=0, cpus=1, time=1, grace_seconds=5, submit_from_jobs=False)
"""The shortest limit that SLURM knows."""


@dataclass
class Timed:
    """A sweep of two jobs of a minute, as one array; one of them, by its task, hangs."""

    cluster: Cluster
    plan: Planned
    task: str


@pytest.fixture(scope="module", autouse=True)
def timed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Timed]:
    """Begun before all tests, since SLURM takes more than a minute to end the one that hangs."""
    plan = planned(tmp_path_factory.mktemp("timed"), seeds=2)
    hangs = f"if mkdir {plan.place}/hung; then trap '' TERM; sleep 200; fi"
    with devcluster(nodes=1, cpus=2) as cluster:
        with at_cluster(cluster):
            sweep = plan.sweep(SHORT.replace(setup=(f'if [ "$SLURM_ARRAY_TASK_ID" = 0 ]; then {hangs}; fi',)))
            reconcile(sweep)
        assert task_of(sweep, 0).partition("_")[0] == task_of(sweep, 1).partition("_")[0]
        yield Timed(cluster, plan, task_of(sweep, 0))


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    """Two nodes that take arrays of two."""
    with devcluster(nodes=2, cpus=2, options={"MaxArraySize": 2}) as cluster:
        yield cluster


def test_what_there_is_no_room_for_is_submitted_by_the_jobs_themselves_as_they_end(
    cluster: Cluster, tmp_path: Path
) -> None:
    plan = planned(tmp_path, seeds=3)
    sweep = plan.sweep(PROFILE.replace(max_submitted=3, submit_from_jobs=True))
    tended = reconcile(sweep)
    assert tended is not None
    assert tended.waiting == 1
    # From here on no command looks after it.
    bring_home(sweep, tends=False)
    assert endings(sweep) == ["done"] * 3, logs(sweep)
    sizes = [len(submission.jobs) for submission in sweep.journal.read_submissions() if not submission.keeper]
    assert max(sizes) <= 2
    assert sum(sizes) == 3
    assert_equal_to_undisturbed(plan)


def test_a_job_that_is_killed_when_nobody_watches_is_found_and_submitted_again_by_the_keeper(
    cluster: Cluster, tmp_path: Path
) -> None:
    plan = planned(tmp_path)
    sweep = plan.sweep(PROFILE.replace(submit_from_jobs=True))
    reconcile(sweep)
    for times in (1, 2):
        until(lambda times=times: len(leavings(sweep, 0)) == times and trains(sweep, 0), f"attempt {times}")  # type: ignore[misc]
        python_of(sweep, 0).kill()
    bring_home(sweep, tends=False)
    assert leavings(sweep, 0) == [None, None, "done"]
    assert_equal_to_undisturbed(plan)


def test_a_job_that_is_lost_again_and_again_is_given_up_for_that_reason(cluster: Cluster, tmp_path: Path) -> None:
    plan = planned(tmp_path)
    sweep = plan.sweep(PROFILE.replace(resubmissions=1, setup=("echo 'no such module' >&2", "exit 1")))
    said: list[str] = []
    bring_home(sweep, said)
    assert endings(sweep) == ["failed"]
    assert sweep.journal.read_reason(0).startswith("its job ended 2 times before it began: no such module (")
    assert sum("submitted again" in line for line in said) <= 1
    assert len([submission for submission in sweep.journal.read_submissions() if not submission.keeper]) == 2


def test_short_limits_are_kept_and_one_timed_out_task_of_an_array_disturbs_no_other(timed: Timed) -> None:
    sweep = timed.plan.sweep(SHORT)
    with at_cluster(timed.cluster):
        until(lambda: shown(timed.cluster, timed.task, "JobState") == "TIMEOUT", "the end of the hanging job")
        bring_home(sweep)
        assert task_of(sweep, 0) != timed.task
    assert endings(sweep) == ["done", "done"], logs(sweep)
    # Not a word of the time limit, neither about the one that was done in time nor about the second try.
    assert [leavings(sweep, number) for number in range(2)] == [["done"], ["done"]]
    assert_equal_to_undisturbed(timed.plan)
