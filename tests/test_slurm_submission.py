"""Giving jobs to a SLURM that is slow, flaky, full or asked by several at once; its nodes are drained."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm import client, look
from slurm.client import SchedulerError
from slurm.dispatcher import reconcile
from slurm.executor import describe
from slurm.profile import Profile
from slurm.sweep import Sweep
from tests.commands import ROOT, environment
from tests.devcluster import Cluster, devcluster
from tests.slurm_cluster import PATIENCE, needs_slurm, until
from tests.slurm_sweeps import Planned, at_cluster, clear, jobs_in, planned, wrapped

pytestmark = needs_slurm
ALONE = Profile(gpus=0, cpus=1, time=10, grace_seconds=20, submit_from_jobs=False)
"""Without the keeper's job, so that what is in the queue is the sweep's jobs."""
ONCE = 'n=$(ls "$0".* 2>/dev/null | wc -l); touch "$0.$n"; '
"""How often a script was called before, as $n."""
HOLD = """
import sys, time
from pathlib import Path
from benchmark.results.leases import LeaseManager
LeaseManager(Path(sys.argv[1])).acquire(Path(sys.argv[2]))
print("held", flush=True)
time.sleep(60)
"""
MEASURED = f"""
import sys
from pathlib import Path
from slurm.dispatcher import reconcile
from {describe.__module__} import describe
from slurm.sweep import Sweep

def memory(name):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1])

before = memory("VmRSS")
print(describe(reconcile(Sweep(Path(sys.argv[1])))))
print(memory("VmHWM") - before)
"""
"""Looks after a sweep, and says by how many kB its peak of memory is above what it had begun with.

The peak that `getrusage` tells begins, in a new process, with that of the one which started it.
"""


@pytest.fixture(scope="module")
def drained() -> Iterator[Cluster]:
    """A small cluster that starts no job and takes few."""
    with devcluster(nodes=1, cpus=2, options={"MaxArraySize": 3, "MaxJobCount": 20, "MinJobAge": 2}) as cluster:
        cluster.command("scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=test")
        yield cluster


@pytest.fixture
def cluster(drained: Cluster) -> Iterator[Cluster]:
    """The same, empty."""
    with at_cluster(drained):
        yield drained
        clear(drained)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RETRY_SECONDS", 0.05)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """Seven jobs."""
    return planned(tmp_path_factory.mktemp("plan"), seeds=7)


def fresh(plan: Planned, place: Path, profile: Profile = ALONE) -> Sweep:
    """The same plan's sweep in a folder of its own."""
    return planned(place, seeds=len(plan.jobs)).sweep(profile)


def arrays(cluster: Cluster) -> list[int]:
    """How many jobs each array in the queue has."""
    return sorted(Counter(job.partition("_")[0] for job in jobs_in(cluster)).values())


def noted(sweep: Sweep) -> list[int]:
    """The jobs that were given to the cluster, as the sweep has it."""
    return sorted(job for submission in sweep.journal.read_submissions() if submission.array for job in submission.jobs)


def test_jobs_are_given_in_arrays_of_the_size_that_the_cluster_takes(
    plan: Planned, cluster: Cluster, tmp_path: Path
) -> None:
    sweep = fresh(plan, tmp_path)
    tended = reconcile(sweep)
    assert arrays(cluster) == [1, 3, 3]
    assert noted(sweep) == list(range(7))
    assert describe(tended) == "submitted 7 jobs in 3 arrays"
    # Looked at again, nothing is submitted twice.
    assert describe(reconcile(sweep)) == "nothing to submit"
    assert arrays(cluster) == [1, 3, 3]


def test_a_cluster_that_does_not_tell_its_array_size_is_given_smaller_arrays_until_it_takes_them(
    plan: Planned, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", wrapped(tmp_path / "bin", {"scontrol": '[ "$2" = config ] && exit 1; exec $REAL "$@"'}))
    sweep = fresh(plan, tmp_path)
    reconcile(sweep)
    assert noted(sweep) == list(range(7))
    assert max(arrays(cluster)) <= 3


def test_no_more_are_with_the_cluster_than_the_profile_says(plan: Planned, cluster: Cluster, tmp_path: Path) -> None:
    sweep = fresh(plan, tmp_path, ALONE.replace(max_submitted=4, submit_from_jobs=True))
    tended = reconcile(sweep)
    assert tended is not None
    assert tended.waiting == 4
    # Three jobs, and the keeper that looks after the sweep when they have ended.
    assert len(jobs_in(cluster)) == 4
    assert len(noted(sweep)) == 3


def test_a_cluster_that_is_full_is_asked_again_later(
    plan: Planned, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SUBMIT_SECONDS", 1.0)
    held = cluster.command("sbatch", "--parsable", "--array=0-2", "--output=/dev/null", "--wrap", "true").strip()
    for _ in range(4):
        cluster.command("sbatch", "--array=0-2", "--output=/dev/null", "--wrap", "true")
    sweep = fresh(plan, tmp_path)
    tended = reconcile(sweep)
    assert tended is not None
    assert len(noted(sweep)) < 7
    assert tended.waiting == 7 - len(noted(sweep))
    before = noted(sweep)
    cluster.command("scancel", held)

    def more() -> bool:
        reconcile(sweep)
        return len(noted(sweep)) > len(before)

    until(more, "submitting what there is room for")
    assert len(set(noted(sweep))) == len(noted(sweep))


@pytest.mark.parametrize(
    "script",
    [
        '[ $n = 0 ] && { sleep 0.3; echo "Socket timed out" >&2; exit 1; }; exec $REAL "$@"',
        '$REAL "$@" >/dev/null; echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1',
        '$REAL "$@" >/dev/null; echo "Have a nice day"',
        '$REAL "$@" >/dev/null; sleep 30',
    ],
    ids=["fails once", "answer lost", "garbage", "hangs after it"],
)
def test_a_flaky_sbatch_loses_nothing_and_doubles_nothing(
    plan: Planned, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(client, "SUBMIT_SECONDS", 1.5)
    monkeypatch.setenv("PATH", wrapped(tmp_path / "bin", {"sbatch": ONCE + script}))
    sweep = fresh(plan, tmp_path, ALONE.replace(max_submitted=3))
    for _ in range(3):
        reconcile(sweep)
    assert noted(sweep) == [0, 1, 2]
    assert arrays(cluster) == [3]


@pytest.mark.parametrize(
    "script",
    ["exit 1", 'echo "slurm_load_jobs: a warning"; exit 0', "exit 0", "sleep 30"],
    ids=["fails", "garbage", "says nothing", "hangs"],
)
def test_a_squeue_that_does_not_answer_has_nothing_submitted_twice(
    plan: Planned, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    sweep = fresh(plan, tmp_path)
    reconcile(sweep)
    with monkeypatch.context() as patch:
        patch.setattr(client, "TIMEOUT_SECONDS", 0.5)
        patch.setattr(client.run_command, "__defaults__", (2, 0.5))
        patch.setenv("PATH", wrapped(tmp_path / "bin", {"squeue": script}))
        for _ in range(2):
            tended = reconcile(sweep)
            assert tended is not None
            # An empty queue is an answer, if a wrong one; each job is then asked after.
            assert tended.answers == (script == "exit 0")
    assert sweep.journal.read_endings() == {}
    assert len(jobs_in(cluster)) == 7
    assert len(sweep.journal.read_submissions()) == 3


def test_a_squeue_that_fails_every_other_time_is_asked_again(
    plan: Planned, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = ONCE + '[ $((n % 2)) = 0 ] && { echo "connect failure" >&2; exit 1; }; exec $REAL "$@"'
    sweep = fresh(plan, tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", wrapped(tmp_path / "bin", {"squeue": script}))
        reconcile(sweep)
        tended = reconcile(sweep)
    assert tended is not None
    assert tended.answers


def test_while_the_controller_is_down_nothing_is_lost_and_after_it_all_goes_on(
    plan: Planned, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.run_command, "__defaults__", (1, 2.0))
    sweep = fresh(plan, tmp_path, ALONE.replace(max_submitted=3))
    reconcile(sweep)
    cluster.stop_controller()
    try:
        assert describe(reconcile(sweep)) == "SLURM does not answer; what can be submitted will be once it does"
    finally:
        cluster.start_controller()
    assert describe(reconcile(sweep)) == "nothing to submit; 4 wait for room and will be submitted as jobs end"
    assert noted(sweep) == [0, 1, 2]


def tending(sweep: Sweep) -> Callable[[], int | None]:
    """Have another process look after a sweep; returns what waits for its exit code."""
    process = multiprocessing.get_context("fork").Process(target=reconcile, args=(Sweep(sweep.folder),))
    process.start()

    def wait() -> int | None:
        process.join(PATIENCE)
        return process.exitcode

    return wait


@pytest.mark.parametrize("is_answered", [False, True], ids=["before sbatch", "between sbatch and its note"])
def test_a_submitter_that_is_killed_loses_nothing_and_doubles_nothing(
    plan: Planned, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_answered: bool
) -> None:
    # The second call of sbatch kills the process that called it: that of its parent, which is `timeout`.
    submits = '$REAL "$@"; ' if is_answered else ""
    kills = f"[ $n = 1 ] && {{ {submits}kill -9 $(ps -o ppid= -p $PPID); exit 1; }}; "
    sweep = fresh(plan, tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", wrapped(tmp_path / "bin", {"sbatch": ONCE + kills + 'exec $REAL "$@"'}))
        assert tending(sweep)() == -signal.SIGKILL
    assert len(jobs_in(cluster)) == (6 if is_answered else 3)
    assert len(noted(sweep)) == 3
    reconcile(sweep)
    if not is_answered:
        # As long as sbatch may still be under way, its jobs are neither lost nor submitted again.
        assert len(noted(sweep)) == 4
        monkeypatch.setattr(look, "DOUBT_SECONDS", 0.0)
        reconcile(sweep)
    assert noted(sweep) == list(range(7))
    assert len(jobs_in(cluster)) == 7


def test_of_two_that_look_after_a_sweep_at_once_one_submits(plan: Planned, cluster: Cluster, tmp_path: Path) -> None:
    sweep = fresh(plan, tmp_path)
    both = [tending(sweep), tending(sweep)]
    assert [wait() for wait in both] == [0, 0]
    assert noted(sweep) == list(range(7))
    assert arrays(cluster) == [1, 3, 3]


def test_a_command_that_was_stopped_while_it_looked_after_a_sweep_holds_up_nobody(
    plan: Planned, cluster: Cluster, tmp_path: Path
) -> None:
    sweep = fresh(plan, tmp_path)
    words = [sys.executable, "-c", HOLD, str(sweep.store.root), str(sweep.folder / "dispatch")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT, env=environment()) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        # It lives, so that it must be looking after the sweep.
        with pytest.raises(SchedulerError, match=r"^process \d+ on \S+ looks after this sweep and has not ended"):
            reconcile(sweep, patience=0.5)
        assert jobs_in(cluster) == []
        holder.kill()
    reconcile(sweep)
    assert len(jobs_in(cluster)) == 7


def test_a_thousand_jobs_are_planned_and_given_with_bounded_memory(tmp_path: Path) -> None:
    with devcluster(nodes=1, options={"MaxArraySize": 101}) as own, at_cluster(own):
        own.command("scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=test")
        plan = planned(tmp_path, epochs=1, seeds=1000)
        sweep = plan.sweep(ALONE.replace(max_submitted=100))
        assert len(sweep.plan.jobs) == 1000
        words = [sys.executable, "-c", MEASURED, str(sweep.folder)]
        ended = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment(), check=True)
        said, grown = ended.stdout.splitlines()
        assert said.startswith("submitted 100 jobs in 1 array; 900 wait for room")
        assert len(jobs_in(own)) == 100
        assert int(grown) < 32 * 1024
        clear(own)
