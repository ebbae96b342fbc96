"""The one-machine SLURM: it comes up, runs jobs, takes blows, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from pathlib import Path

import pytest

from benchmark.core.errors import UserError
from tests.devcluster import Cluster, configuration, devcluster, missing, processes_of
from tests.slurm_cluster import cluster, needs_slurm, until

__all__ = ["cluster"]
ESCAPED = "trap '' TERM HUP; env -i sleep 300 & sleep 300"


def submit(cluster: Cluster, script: str, *options: str) -> str:
    """Submit a batch script whose output nobody reads; returns the job's number."""
    words = ("sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", script)
    return cluster.command(*words).strip()


def state(cluster: Cluster, job: str) -> str:
    return cluster.command("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip()


def test_all_nodes_are_idle(cluster: Cluster) -> None:
    assert cluster.states() == dict.fromkeys(["n1", "n2", "n3", "n4"], "idle")


def test_a_job_runs_on_the_processors_and_the_gpu_it_asked_for(cluster: Cluster) -> None:
    out = cluster.folder / "job.out"
    script = 'echo "$SLURM_CPUS_ON_NODE $CUDA_VISIBLE_DEVICES $(srun hostname)"'
    job = submit(cluster, script, f"--output={out}", "--cpus-per-task=2", "--gpus=1", "--mem=16G")
    until(lambda: state(cluster, job) == "COMPLETED", "the end of the job")
    assert out.read_text().split() == ["2", "0", socket.gethostname()]


def test_there_is_no_accounting(cluster: Cluster) -> None:
    with pytest.raises(UserError, match="accounting storage is disabled"):
        cluster.command("sacct")


def test_the_environment_holds_nothing_of_an_outer_job(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")
    assert submit(cluster, "true").isdigit()
    assert [name for name in cluster.environment if name.startswith(("SLURM_", "SBATCH_"))] == ["SLURM_CONF"]


@needs_slurm
def test_two_clusters_side_by_side_do_not_meet_and_down_leaves_no_process() -> None:
    with devcluster(nodes=1) as first:
        with devcluster(nodes=1, options={"KillWait": 60}) as second:
            assert first.folder != second.folder
            job = submit(second, ESCAPED)
            until(lambda: _sleeping(second) == 2, "the job's two processes")
            assert first.command("squeue", "--noheader", "--states=all") == ""
            assert state(second, job) == "RUNNING"
        assert processes_of(second.folder, second.name) == []
        assert not second.folder.exists()
        assert first.states() == {"n1": "idle"}
    assert processes_of(first.folder, first.name) == []


def _sleeping(own: Cluster) -> int:
    lines = [Path(f"/proc/{process}/cmdline") for process in processes_of(own.folder, own.name)]
    return sum(line.read_bytes() == b"sleep\x00300\x00" for line in lines if line.exists())


@needs_slurm
def test_down_ends_a_job_whose_step_daemon_was_killed() -> None:
    with devcluster(nodes=1) as own:
        submit(own, "exec sleep 300")
        until(lambda: _sleeping(own) == 1, "the start of the job")
        daemons = [
            process
            for process in processes_of(own.folder, own.name)
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"slurmstepd:")
        ]
        for process in daemons:
            os.kill(process, signal.SIGKILL)
        assert daemons
        assert _sleeping(own) == 1
    assert processes_of(own.folder, own.name) == []


@needs_slurm
def test_a_port_that_is_taken_meanwhile_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = configuration.free_ports
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        answers = [[taken.getsockname()[1], *choose(1)]]
        monkeypatch.setattr(configuration, "free_ports", lambda count: answers.pop() if answers else choose(count))
        with devcluster(nodes=1) as own:
            assert own.states() == {"n1": "idle"}


@needs_slurm
def test_a_daemon_that_does_not_come_up_is_said_in_one_line_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A folder of its own with a short name: pytest's is too long for a socket.
    with tempfile.TemporaryDirectory(prefix="kd-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with (
            pytest.raises(UserError, match=r"ended with code 1.*NoSuchOption") as refused,
            devcluster(options={"NoSuchOption": 1}),
        ):
            pass
        assert "\n" not in str(refused.value)
        assert list(Path(folder).iterdir()) == []


def test_the_reason_names_what_is_missing_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("slurmctld", "slurmd", "sinfo", "sbatch", "squeue", "scontrol", "srun", "scancel"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (missing() or "").startswith("munged is not installed")
