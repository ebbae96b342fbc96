"""A sweep that an earlier commit left half done is taken up on a real SLURM and comes to its end."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from benchmark.results import load
from tests.commands import ROOT, run_here
from tests.devcluster import devcluster
from tests.slurm_cluster import needs_slurm
from tests.slurm_sweeps import at_cluster
from tests.test_upgrade import unpack


@needs_slurm
def test_a_sweep_of_an_earlier_commit_is_taken_up_and_finished(tmp_path: Path) -> None:
    store = unpack("d8b8c26", tmp_path)
    module, *arguments = json.loads((store / "commands.json").read_text(encoding="utf-8"))["sweep"]
    before = set(load(store / "runs")["id"])
    # The fixture's jobs had small numbers, which this cluster must not give to others.
    with devcluster(nodes=1, cpus=1, options={"FirstJobId": 1000}) as cluster:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with at_cluster(cluster, PATH=path, PYTHONPATH=str(ROOT)):
            watched = [word for word in arguments if word != "--no-wait"]
            ended = run_here(*watched, "--reports", str(tmp_path / "new"), module=module, folder=store)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    after = load(store / "runs").set_index("id")
    assert before < set(after.index)
    new = after.loc[sorted(set(after.index) - before)]
    assert sorted(new["method"]) == ["Baseline", "KD", "LS"]
    assert set(new["status"]) == {"finished"}
