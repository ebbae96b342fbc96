"""The one-machine SLURM: it comes up, runs jobs, takes blows, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.core.errors import UserError
from tests.commands import ROOT
from tests.devcluster import Cluster, Layout, cluster_in, configuration, devcluster, missing, processes_of, up
from tests.slurm_cluster import cluster, needs_slurm, until

__all__ = ["cluster"]
ESCAPED = "trap '' TERM HUP; env -i sleep 300 & sleep 300"


def submit(cluster: Cluster, script: str, *options: str) -> str:
    """Submit a batch script whose output nobody reads; returns the job's number."""
    words = ("sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", script)
    return cluster.command(*words).strip()


def state(cluster: Cluster, job: str) -> str:
    return cluster.command("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip()


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
    )


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


def test_a_name_that_is_none_is_refused(cluster: Cluster) -> None:
    with pytest.raises(UserError, match=r"unknown node 'n9'.*n1, n2, n3, n4"):
        cluster.kill("n9")
    with pytest.raises(UserError, match="unknown daemon"):
        cluster.log("n9")


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
def test_down_cleans_up_after_an_up_that_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    program = (
        "import sys; from pathlib import Path; from tests.devcluster import Layout, up; up(Path(sys.argv[1]), Layout())"
    )
    starting = subprocess.Popen([sys.executable, "-c", program, str(folder)], cwd=ROOT)
    until(lambda: (folder / "n2.process").exists(), "the start of the second node")
    starting.kill()
    starting.wait()
    crashed = cluster_in(folder)
    assert processes_of(folder, crashed.name)
    with pytest.raises(UserError, match="has a cluster already; end it with down"):
        up(folder, Layout())
    crashed.down()
    assert processes_of(folder, crashed.name) == []
    assert not folder.exists()


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
def test_a_daemon_that_does_not_come_up_is_said_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    with pytest.raises(UserError, match=r"ended with code 1.*NoSuchOption") as refused:
        up(folder, Layout(options={"NoSuchOption": 1}))
    assert "\n" not in str(refused.value)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"nodes": 0}, "nodes = 0 cannot be; give 1 or more"),
        ({"gpus": 5}, "4 GPUs at most"),
        ({"options": {"slurmctldport": 1}}, "cluster's own choice"),
        ({"options": {"A b": 1}}, "KEY=VALUE on one line"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(options: dict[str, int], complaint: str) -> None:
    with pytest.raises(UserError, match=re.escape(complaint)):
        Layout(**options)  # type: ignore[arg-type]


@needs_slurm
def test_a_folder_that_is_not_the_clusters_own_is_neither_used_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty"):
        up(tmp_path, Layout())
    with pytest.raises(UserError, match="no cluster in"):
        cluster_in(tmp_path)
    for name in ("a" * 100, "a b"):
        with pytest.raises(UserError, match="choose one"):
            up(tmp_path / name, Layout())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@needs_slurm
def test_the_command_line_brings_a_cluster_up_and_down(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    options = ("--folder", str(folder), "--nodes", "2", "--set", "MaxArraySize=5")
    started = run("-m", "tests.devcluster", "up", *options)
    try:
        assert started.returncode == 0, started.stderr
        assert started.stdout.count("\n") == 1
        asked = subprocess.run(
            ["bash", "-c", f"{started.stdout}\nscontrol show config"], capture_output=True, text=True, check=True
        )
        assert re.search(r"MaxArraySize\s+= 5\n", asked.stdout)
    finally:
        name = cluster_in(folder).name
        ended = run("-m", "tests.devcluster", "down", "--folder", str(folder))
    assert ended.returncode == 0, ended.stderr
    assert processes_of(folder, name) == []
    assert not folder.exists()


def test_a_missing_daemon_is_said_in_one_line(tmp_path: Path) -> None:
    refused = run("-m", "tests.devcluster", "up", "--folder", str(tmp_path / "cluster"), PATH=str(tmp_path))
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "munged, slurmctld, slurmd" in refused.stderr
    assert "apt-get install --no-install-recommends slurm-wlm munge" in refused.stderr
    assert not (tmp_path / "cluster").exists()


def test_the_reason_names_what_is_missing_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("slurmctld", "slurmd", "sinfo", "sbatch", "squeue", "scontrol", "srun", "scancel"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (missing() or "").startswith("munged is not installed")
