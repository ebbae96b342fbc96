"""Sweeps that are to decide a claim, as a command, on a cluster and in the report."""

from __future__ import annotations

import html
import json
import statistics
from pathlib import Path

import pytest

from tests.commands import arguments, records_in, run_command, run_here, small_dataset, small_table
from tests.devcluster import Cluster
from tests.slurm_cluster import cluster
from tests.slurm_sweeps import at_cluster

__all__ = ["cluster"]
"""A fixture."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("small")
    small_dataset(place)
    small_table(place, teacher="ResNet8", student="ResNet8-x1/2")
    return place


def decide(folder: Path, *more: str, claim: str = "KD > Baseline") -> list[str]:
    return arguments(folder / "small.toml", folder, "--until-decided", claim, *more, epochs=1)


def test_a_command_trains_until_it_is_decided_and_goes_on_where_it_ended(folder: Path) -> None:
    planned = run_here(*decide(folder, "--max-seeds", "4", "--dry-run"))
    assert "The next round: seeds 0 to 2 in 1 column." in planned.stdout
    assert "At most, if no column is decided before 4 seeds: seeds 0 to 3 in 1 column." in planned.stdout
    assert not (folder / "runs").exists() or not records_in(folder)
    first = run_here(*decide(folder, "--max-seeds", "3", "--executor", "debug"))
    assert first.returncode == 0, first.stderr
    assert {record["run"]["seed"] for record in records_in(folder).values()} == {0, 1, 2}
    ended = run_here(*decide(folder, "--max-seeds", "4"))
    assert "round of seed 3 in 1 column, at most 4 seeds" in ended.stdout
    assert "round of seeds 0" not in ended.stdout
    assert len(records_in(folder)) == 1 + 2 * 4
    again = run_here(*decide(folder, "--max-seeds", "4", "--dry-run"))
    assert "ResNet8>ResNet8-x1/2: KD - Baseline " in again.stdout
    assert "Nothing is to be trained" in again.stdout
    three, four = sorted(
        (json.loads(path.read_text(encoding="utf-8")) for path in (folder / "reports").glob("decision_*.json")),
        key=lambda report: report["most"],
    )
    students = [record for record in records_in(folder).values() if record["run"]["student"] == "ResNet8-x1/2"]
    values = {(record["run"]["method"], record["run"]["seed"]): record["final"]["top1"] for record in students}
    differences = [values["KD", seed] - values["Baseline", seed] for seed in range(4)]
    (decision,) = four["decisions"]
    assert decision["mean"] == pytest.approx(statistics.fmean(differences[: decision["n"]]))
    assert (three["claim"], three["target"]) == ("KD > Baseline", "table_small_demo-1-epochs")
    page = (folder / "reports" / "index.html").read_text(encoding="utf-8")
    assert "<h2>Decisions:" in page
    assert f"{four['summary']}." in html.unescape(page)


@pytest.mark.slow
def test_a_cluster_trains_a_sweep_for_each_round(folder: Path, cluster: Cluster) -> None:
    (folder / "cluster.toml").write_text("gpus = 0\ncpus = 1\ntime = 30\n")
    place = folder / "cluster"
    command = arguments(
        folder / "small.toml", place, "--until-decided", "KD > Baseline", "--max-seeds", "4", "--executor", "slurm",
        "--profile", str(folder / "cluster.toml"), epochs=1,
    )  # fmt: skip
    del command[command.index("--workers") : command.index("--workers") + 2]
    with at_cluster(cluster):
        left = run_command(*command, "--no-wait")
        assert "The sweep goes on without this command" in left.stdout
        ended = run_command(*command)
    assert ended.returncode == 0, ended.stdout
    assert "round of seed 3 in 1 column" in ended.stdout
    assert len(list((place / "runs" / "sweeps").iterdir())) == 2
    assert len(records_in(place)) == 1 + 2 * 4


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--seeds", "3"], "--seeds cannot be combined with --until-decided"),
        (["--methods", "KD,LSSKD"], "--methods names LSSKD, which --until-decided 'KD > Baseline' does not"),
        (["--max-seeds", "2"], "invalid value for '--max-seeds'"),
        (["--figure", "5"], "--until-decided only applies to a single table or figure"),
    ],
)
def test_options_that_contradict_a_claim_are_refused(folder: Path, options: list[str], complaint: str) -> None:
    ended = run_here(*decide(folder, *options))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert complaint in line


def test_a_limit_of_seeds_needs_a_claim_and_a_claim_a_figure_that_seeds_can_decide(folder: Path) -> None:
    for options, complaint in (
        (["--table", "II", "--max-seeds", "5"], "--max-seeds only applies to --until-decided"),
        (["--figure", "6", "--until-decided", "LSSKD > HSSAKD"], "shows the stages of one network"),
        (["--table", "II", "--until-decided", "KD > Baseline (lang)"], "did you mean 'Baseline (long)'"),
    ):
        ended = run_here(*options, "--scale", "quick", "--dry-run", "--runs", str(folder / "none"))
        assert ended.returncode == 2
        (line,) = ended.stderr.splitlines()
        assert complaint in line


def test_a_claim_on_a_figure_is_decided_at_every_share_of_the_images(folder: Path) -> None:
    figure = ["--figure", "5", "--scale", "demo", "--runs", str(folder / "none"), "--workers", "1", "--dry-run"]
    ended = run_here(*figure, "--until-decided", "SSKD > KD")
    assert ended.returncode == 0, ended.stderr
    assert "The next round: seeds 0 to 2 in 4 columns." in ended.stdout
