"""One sweep in which everything happens at once: each job is disturbed in a way of its own, on a node of its own.

All are requeued, preempted, killed or lose their daemons while they train, and all must end with the curves, figures
and weights of runs that nobody disturbed.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from benchmark.results.leases import LeaseManager
from benchmark.results.store import Store
from slurm.dispatcher import reconcile
from slurm.pace import CHECK_SECONDS
from slurm.profile import Profile
from slurm.sweep import Sweep
from tests.devcluster import Cluster, devcluster
from tests.slurm_cluster import needs_slurm, until
from tests.slurm_sweeps import (
    PACE,
    Planned,
    assert_equal_to_undisturbed,
    at_cluster,
    bring_home,
    daemon_of,
    endings,
    freeze,
    leavings,
    logs,
    planned,
    python_of,
    shown,
    task_of,
    trains,
)

REQUEUED, PREEMPTED, TIMED, KILLED, STEP, BATCH, NODE = range(7)
pytestmark = needs_slurm


@dataclass
class Storm:
    """A sweep that was disturbed and has ended."""

    cluster: Cluster
    plan: Planned
    sweep: Sweep
    said: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """From an event to the beginning of the next attempt."""

    def job(self, seed: int) -> int:
        """The job of a seed."""
        return self.plan.number(self.sweep, "Baseline", seed)


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    """Seven jobs, each disturbed once it trains, brought home."""
    plan = planned(tmp_path_factory.mktemp("storm"), seeds=7)
    # A limit of three minutes, set while a job runs, leaves it ten seconds to train: it must ask for its limit again.
    profile = Profile(gpus=0, cpus=1, time=10, grace_seconds=170)
    with devcluster(nodes=9, cpus=1) as cluster, at_cluster(cluster):
        sweep = plan.sweep(profile)
        reconcile(sweep)
        storm = Storm(cluster, plan, sweep)
        _disturb_all(storm)
        bring_home(sweep, storm.said)
        yield storm


def _disturb_all(storm: Storm) -> None:
    """Disturb each job as soon as it trains."""
    cluster, sweep = storm.cluster, storm.sweep
    left = set(range(7))
    frozen: dict[int, psutil.Process] = {}
    while left:
        for seed in left - frozen.keys():
            if trains(sweep, storm.job(seed)):
                # Held up, so that what comes finds it at work, however fast this machine is.
                frozen[seed] = freeze(sweep, storm.job(seed))
        for seed in left & frozen.keys():
            _disturb(storm, seed, frozen[seed])
            left.remove(seed)
        time.sleep(0.05)
    waking, killed = (
        time.monotonic() + PACE * CHECK_SECONDS,
        sweep.journal.read_state(storm.job(NODE)).attempts[0].owner.node,
    )
    until(lambda: time.monotonic() > waking, "the next look of the job whose step daemon was killed")
    frozen[STEP].send_signal(signal.SIGCONT)
    until(lambda: _left_in_time(sweep, storm.job(TIMED)), "the end of the job whose limit was shortened")
    cluster.command("scontrol", "update", f"JobId={task_of(sweep, storm.job(TIMED))}", "TimeLimit=10")
    number, orphan = storm.job(NODE), frozen[NODE]
    (run,) = sweep.plan.read_runs(number)
    folder, claims = sweep.store.folder(run), LeaseManager(sweep.store.root)

    def is_taken_over() -> bool:
        holder = claims.current_holder(folder)
        return holder is not None and holder.process != orphan.pid

    until(is_taken_over, "the restart on another node")
    orphan.send_signal(signal.SIGCONT)
    until(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE, "the end of the orphan")
    cluster.start(killed)


def _disturb(storm: Storm, seed: int, process: psutil.Process) -> None:
    """Do to a job what its seed stands for; its process is stopped."""
    cluster, number = storm.cluster, storm.job(seed)
    task, node = task_of(storm.sweep, number), storm.sweep.journal.read_state(number).attempts[-1].owner.node
    if seed == REQUEUED:
        cluster.command("scontrol", "requeue", task)
    elif seed == PREEMPTED:
        where = (f"--nodelist={node}", "--exclusive", "--partition=high", "--output=/dev/null")
        cluster.command("sbatch", *where, "--wrap", "sleep 1")
    elif seed == TIMED:
        # SLURM looks at limits every half minute.
        cluster.command("scontrol", "update", f"JobId={task}", "TimeLimit=3")
    elif seed == KILLED:
        process.kill()
    elif seed == STEP:
        daemon = daemon_of(cluster, task, "0")
        # Not stopped meanwhile: Linux sends SIGHUP to a stopped process that loses its parent. A daemon is a zombie
        # while some of its threads still end, so the job's parent is what tells that all have ended.
        process.send_signal(signal.SIGCONT)
        daemon.kill()
        until(lambda: process.ppid() != daemon.pid, "the death of the daemon")
        process.send_signal(signal.SIGSTOP)
    elif seed == BATCH:
        daemon_of(cluster, task, "batch").kill()
        process.send_signal(signal.SIGCONT)
    elif seed == NODE:
        cluster.kill(node)


def _left_in_time(sweep: Sweep, number: int) -> bool:
    """Whether a job that is stopped has left; it goes on once the signal of the time limit waits for it."""
    if leavings(sweep, number) != [None]:
        return True
    with contextlib.suppress(OSError, psutil.NoSuchProcess):
        process = python_of(sweep, number)
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
        if any(bits >> (signal.SIGUSR2 - 1) & 1 for bits in pending):
            process.send_signal(signal.SIGCONT)
    return False


def test_every_job_ends_well_with_the_results_of_an_undisturbed_sweep(storm: Storm) -> None:
    assert endings(storm.sweep) == ["done"] * 7, logs(storm.sweep)
    assert_equal_to_undisturbed(storm.plan)


def test_no_run_is_trained_to_its_record_twice(storm: Storm) -> None:
    for number in range(7):
        assert leavings(storm.sweep, number).count("done") == 1, leavings(storm.sweep, number)


def test_a_requeued_job_leaves_with_a_checkpoint_and_goes_on_from_it(storm: Storm) -> None:
    _went_on(storm, REQUEUED, "preempted")
    assert shown(storm.cluster, task_of(storm.sweep, storm.job(REQUEUED)), "Restarts") == "1"


def test_a_preempted_job_leaves_with_a_checkpoint_and_goes_on_from_it(storm: Storm) -> None:
    _went_on(storm, PREEMPTED, "preempted")
    assert shown(storm.cluster, task_of(storm.sweep, storm.job(PREEMPTED)), "Restarts") == "1"


def test_a_job_whose_limit_was_shortened_leaves_before_it_and_goes_on(storm: Storm) -> None:
    _went_on(storm, TIMED, "time limit")


def test_a_job_whose_python_is_killed_is_submitted_again_and_goes_on_from_its_last_checkpoint(storm: Storm) -> None:
    number = storm.job(KILLED)
    assert leavings(storm.sweep, number) == [None, "done"]
    tasks = [
        submission.tasks[number] for submission in storm.sweep.journal.read_submissions() if number in submission.tasks
    ]
    assert len(tasks) == 2
    assert any(f"job {tasks[0]}" in line and "lost" in line for line in [*storm.said, logs(storm.sweep)])


def test_a_job_whose_step_daemon_is_killed_sees_it_and_goes_on_in_a_new_start(storm: Storm) -> None:
    _went_on(storm, STEP, "interrupted")


def test_a_job_whose_batch_daemon_is_killed_ends_what_it_does(storm: Storm) -> None:
    assert leavings(storm.sweep, storm.job(BATCH))[0] == "done"


def test_a_job_of_a_lost_node_goes_on_elsewhere_and_what_was_left_there_gives_way(storm: Storm) -> None:
    first, second = storm.sweep.journal.read_state(storm.job(NODE)).attempts
    assert (first.leaving, second.leaving) == ("elsewhere", "done")
    assert first.owner.node != second.owner.node
    assert (first.owner.restarts, second.owner.restarts) == (0, 1)


def _went_on(storm: Storm, seed: int, leaving: str) -> None:
    number = storm.job(seed)
    first, second = storm.sweep.journal.read_state(number).attempts
    assert (first.leaving, second.leaving) == (leaving, "done")
    assert 0 < first.reached < second.reached
    (run,) = storm.sweep.plan.read_runs(number)
    record = Store(storm.plan.settings.runs).record(run)
    assert record is not None
    assert record["provenance"]["resumed"] == 1
