"""Probes on a real SLURM: they wait for the students that they probe, which are trained on other images."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from benchmark.results.store import Store
from slurm.sweep import list_sweeps
from tests.commands import arguments, report_in, run_command, small_dataset
from tests.devcluster import Cluster
from tests.slurm_cluster import cluster, needs_slurm
from tests.slurm_sweeps import at_cluster

__all__ = ["cluster"]

pytestmark = needs_slurm
PROFILE = "gpus = 0\ncpus = 1\ntime = 30\nsubmit_from_jobs = false\n"
PAIR = '[[columns]]\nstudent = "ResNet8"\nteacher = "ResNet14"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of KD whose second column probes the students of the first on images of another dataset."""
    place = tmp_path_factory.mktemp("probes")
    small_dataset(place)
    other = small_dataset(place / "elsewhere")
    (place / "elsewhere" / "other.toml").write_text(other.read_text().replace('"blocks"', '"other"'))
    (place / "small.toml").write_text(
        'name = "small"\ncaption = "Probes."\ndataset = "blocks.toml"\n'
        f'{PAIR}{PAIR}title = "probed"\nprobe = {{ dataset = "elsewhere/other.toml" }}\n[[rows]]\nmethod = "KD"\n'
    )
    (place / "cluster.toml").write_text(PROFILE)
    return place


def called(folder: Path) -> subprocess.CompletedProcess[str]:
    command = arguments(folder / "small.toml", folder, "--set", "protocol.batch_size=12")
    del command[command.index("--workers") : command.index("--workers") + 2]
    return run_command(*command, "--executor", "slurm", "--profile", str(folder / "cluster.toml"))


def test_probes_wait_for_students_of_another_dataset_and_are_made_anew_without_them(
    cluster: Cluster, folder: Path
) -> None:
    with at_cluster(cluster):
        ended = called(folder)
        store = Store(folder / "runs")
        records = store.read_all()[0]
        found = {(record["run"]["dataset"], record["run"]["method"], record["run"]["student"]) for record in records}
        networks = {"KD": "ResNet8", "Baseline": "ResNet14"}
        assert found == {("blocks", *pair) for pair in networks.items()} | {
            ("other", "Probe", network) for network in networks.values()
        }, ended.stdout + ended.stderr
        assert {record["status"] for record in records} == {"finished"}
        (sweep,) = list_sweeps(folder / "runs")
        probing = {job.number for job in sweep.plan.jobs if job.source.endswith("other.toml")}
        assert len(probing) == len(sweep.plan.jobs) - 2
        assert all(sweep.plan.needs[number] - probing for number in probing)
        before = report_in(folder, "csv")
        shutil.rmtree(folder / "runs" / "other")
        ended = called(folder)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert report_in(folder, "csv") == before
