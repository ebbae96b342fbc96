"""What is made of what SLURM says, in cases that a cluster of one machine and one user cannot bring about."""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark.core.errors import UserError
from benchmark.results.leases import this_owner
from slurm import client, submit
from slurm.client import QueuedTask
from slurm.dispatcher import reconcile
from slurm.executor import describe
from slurm.journal import Attempt, ExitReason, State, Submission
from slurm.look import DOUBT_SECONDS
from slurm.monitor import take_snapshot
from slurm.profile import Profile
from slurm.submit import QueueFull
from slurm.sweep import Sweep
from tests.slurm_sweeps import planned

ALONE = Profile(gpus=0, cpus=1, time=10, grace_seconds=20, submit_from_jobs=False)
LONG_AGO = 10_000.0


class Queue:
    """What SLURM is made to say, and what it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tasks: dict[str, QueuedTask] = {}
        self.states: dict[str, str] = {}
        self.submitted: list[tuple[int, ...]] = []
        self.refusal: Exception | None = None
        monkeypatch.setattr(client, "queue", lambda arrays: dict(self.tasks))
        monkeypatch.setattr(client, "find_by_name", lambda name: "")
        monkeypatch.setattr(client, "state_of", lambda job: self.states.get(job, client.NOT_FOUND))
        monkeypatch.setattr(client, "array_limit", lambda: 1000)
        monkeypatch.setattr(submit, "submit_array", self._submit)
        monkeypatch.setattr(submit, "submit_watchdog", self._submit_keeper)

    def _submit(self, sweep: Sweep, profile: Profile, jobs: list[int], terms: Any) -> Submission:
        if self.refusal is not None:
            raise self.refusal
        self.submitted.append(tuple(jobs))
        number = str(100 + len(self.submitted))
        submission = Submission(token=number, when=time.time(), jobs=tuple(jobs), array=number, user="me")
        sweep.journal.write_submission(submission)
        return submission

    def _submit_keeper(self, *_: Any) -> Submission:
        raise UserError("SLURM refuses the jobs: a job of this partition needs a graphics card")


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.setattr(getpass, "getuser", lambda: "me")
    return Queue(monkeypatch)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """One job."""
    return planned(tmp_path).sweep(ALONE)


def given(sweep: Sweep, user: str, array: str = "7", ago: float = 0.0) -> None:
    """The sweep's job was given to the cluster."""
    sweep.journal.write_submission(
        Submission(token=array or "lost", when=time.time() - ago, jobs=(0,), array=array, user=user)
    )


def ran(sweep: Sweep, beat_ago: float, leaving: ExitReason | None = None, task: str = "7") -> None:
    """The sweep's job began, and wrote for the last time so long ago."""
    beat = time.time() - beat_ago
    owner = this_owner().replace(job=task, token="a" * 32)
    attempt = Attempt(owner=owner, began=beat - 1, beat=beat, ended=beat if leaving else None, leaving=leaving)
    sweep.journal.write_state(State(job=0, attempts=(attempt,)))


def test_my_own_job_that_slurm_has_forgotten_is_submitted_again(queue: Queue, sweep: Sweep) -> None:
    given(sweep, "me")
    reconcile(sweep)
    assert queue.submitted == [(0,)]


@pytest.mark.parametrize("beat_ago", [None, 10.0])
def test_a_job_of_somebody_else_that_this_user_may_not_see_is_left_alone(
    queue: Queue, sweep: Sweep, beat_ago: float | None
) -> None:
    given(sweep, "you")
    if beat_ago is not None:
        ran(sweep, beat_ago)
    reconcile(sweep)
    reconcile(sweep)
    assert queue.submitted == []
    assert sweep.journal.read_endings() == {}


@pytest.mark.parametrize(("beat_ago", "leaving"), [(LONG_AGO, None), (10.0, "time limit")])
def test_what_the_file_of_somebody_elses_job_tells_counts(
    queue: Queue, sweep: Sweep, beat_ago: float, leaving: ExitReason | None
) -> None:
    given(sweep, "you")
    ran(sweep, beat_ago, leaving)
    reconcile(sweep)
    assert queue.submitted == [(0,)]


@pytest.mark.parametrize(
    ("user", "ago", "again"),
    [("me", 0.0, False), ("me", DOUBT_SECONDS + 1, True), ("you", DOUBT_SECONDS + 1, False), ("you", LONG_AGO, True)],
)
def test_a_call_whose_answer_may_still_come_is_waited_for(
    queue: Queue, sweep: Sweep, user: str, ago: float, again: bool
) -> None:
    given(sweep, user, array="", ago=ago)
    reconcile(sweep)
    assert bool(queue.submitted) == again


def test_the_status_says_why_jobs_are_held_back_until_the_cluster_takes_them(queue: Queue, sweep: Sweep) -> None:
    said = "SLURM refuses the jobs: invalid partition specified: gpus; change the profile and give the command again"
    queue.refusal = UserError(said)
    with pytest.raises(UserError, match="invalid partition"):
        reconcile(sweep)
    snapshot = take_snapshot(sweep)
    assert snapshot.counts == {"held back": 1}
    assert f"held back: {said}" in snapshot.troubles

    queue.refusal = QueueFull("Slurm temporarily unable to accept job")
    reconcile(sweep)
    (trouble,) = take_snapshot(sweep).troubles
    assert trouble.startswith("held back: no room for more: Slurm temporarily unable to accept job; the rest is")

    queue.refusal = None
    reconcile(sweep)
    assert queue.submitted == [(0,)]
    assert take_snapshot(sweep).troubles == ()
    assert sweep.journal.read_refusal() == ""


def test_a_queue_that_is_full_for_now_is_waited_for(queue: Queue, sweep: Sweep) -> None:
    queue.refusal = QueueFull("Slurm temporarily unable to accept job")
    tended = reconcile(sweep)
    assert describe(tended) == (
        "nothing to submit; 1 wait for room and will be submitted as jobs end; Slurm temporarily unable to accept job"
    )


def test_a_keeper_that_is_refused_is_told_and_the_jobs_are_submitted(queue: Queue, tmp_path: Path) -> None:
    sweep = planned(tmp_path).sweep(ALONE.replace(submit_from_jobs=True))
    said: list[str] = []
    say: Callable[[str], None] = said.append
    tended = reconcile(sweep, say)
    assert queue.submitted == [(0,)]
    assert tended is not None
    assert not tended.is_followed
    assert "set keeper_partition" in said[0]
    assert "only a command that watches it" in describe(tended)


def attempts(*ends: tuple[float, ExitReason | None], forgiven: float = 0.0) -> State:
    """A job whose attempts reached so far and ended so."""
    return State(
        job=0,
        forgiven=forgiven,
        attempts=tuple(
            Attempt(owner=this_owner(), began=float(place), beat=place + 0.5, reached=reached, leaving=leaving)
            for place, (reached, leaving) in enumerate(ends, start=1)
        ),
    )


@pytest.mark.parametrize(
    ("state", "no_progress_attempts"),
    [
        (attempts((0.0, None), (0.0, None)), 2),
        (attempts((0.3, None), (0.3, None), (0.3, "time limit")), 2),
        (attempts((0.3, "time limit"), (0.6, "time limit"), (0.9, "time limit")), 0),
        # It dies at the same step each time, wherever it began.
        (attempts((0.5, None), (0.5, None), (0.5, None), (0.5, None)), 3),
        (attempts((0.0, "preempted"), (0.0, "elsewhere"), (0.0, "waiting"), (0.0, "cancelled")), 0),
        # Its record was lost, and it is trained anew.
        (attempts((1.0, "done"), (0.2, "time limit"), (0.4, "time limit")), 0),
        (attempts((0.9, None), (0.9, None), (0.1, None), forgiven=2.5), 0),
    ],
)
def test_attempts_count_as_fruitless_unless_they_get_further_than_any_before(
    state: State, no_progress_attempts: int
) -> None:
    assert state.no_progress_attempts == no_progress_attempts
