"""One plan, three executors: processes of this machine, this process alone, and a real SLURM give the same records."""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark.results.record import comparable_part
from tests.commands import (
    arguments,
    record_of,
    records_in,
    report_in,
    run_command,
    run_here,
    small_dataset,
    small_table,
)
from tests.slurm_cluster import REASON, cluster
from tests.slurm_sweeps import at_cluster

__all__ = ["cluster"]

EXECUTORS = ("local", "debug", "slurm")
SHORT = ("--set", "protocol.batch_size=12")
PROFILE = "gpus = 0\ncpus = 1\ntime = 30\n"
SILENT = "KD.kd_weight=1e38"
"""Makes the loss of KD no number."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("executors")
    small_dataset(place)
    small_table(place, ["Baseline", "KD", "SSKD"])
    (place / "cluster.toml").write_text(PROFILE)
    return place


def options_of(executor: str, folder: Path) -> list[str]:
    profile = ["--profile", str(folder / "cluster.toml")] if executor == "slurm" else []
    return ["--executor", executor, *profile]


def called(executor: str, folder: Path, place: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = arguments(folder / "small.toml", place, *SHORT, *more)
    if executor != "local":
        # How many processes there are is for this machine only.
        del command[command.index("--workers") : command.index("--workers") + 2]
    # Only what submits needs a process of its own: it waits as long between two looks as its environment says.
    run = run_command if executor == "slurm" and "--dry-run" not in more else run_here
    return run(*command, *options_of(executor, folder))


@pytest.fixture(scope="module", params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Iterator[str]:
    """An executor; a cluster's commands find it by the environment."""
    if request.param == "slurm":
        if REASON is not None:
            pytest.skip(f"no SLURM cluster can be made here: {REASON}")
        with at_cluster(request.getfixturevalue("cluster")):
            yield "slurm"
    else:
        yield str(request.param)


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """What the table gives in one process."""
    place = folder / "debug"
    ended = called("debug", folder, place, "--set", SILENT)
    assert ended.returncode == 0, ended.stderr
    return place, ended


@pytest.fixture(scope="module")
def trained(executor: str, folder: Path, undisturbed) -> tuple[Path, subprocess.CompletedProcess[str]]:
    place = folder / executor
    return undisturbed if executor == "debug" else (place, called(executor, folder, place, "--set", SILENT))


def test_every_executor_leaves_the_same_records_and_report(executor, trained, undisturbed) -> None:
    (place, ended), (reference, _) = trained, undisturbed
    found, expected = records_in(place), records_in(reference)
    assert found.keys() == expected.keys(), ended.stdout
    assert len(found) == 5
    for run_id, record in found.items():
        assert comparable_part(record) == comparable_part(expected[run_id]), run_id
    tables = [list(csv.DictReader(io.StringIO(report_in(at, "csv")))) for at in (place, reference)]
    assert tables[0] == tables[1]


def test_a_run_without_a_finite_loss_fails_its_cell_only(executor, trained) -> None:
    place, ended = trained
    reason = record_of(place, "KD")["reason"]
    assert reason.startswith("loss not finite at epoch ")
    assert record_of(place, "SSKD")["status"] == "finished"
    assert "2 of 3 cells done, 1 failed" in ended.stdout
    assert f"seed 0: {reason}" in report_in(place, "md")
    assert reason in ended.stdout


def test_a_second_call_trains_nothing(executor, trained, folder) -> None:
    place, _ = trained
    before = {path: path.stat().st_mtime_ns for path in place.rglob("record.json")}
    ended = called(executor, folder, place, "--set", SILENT)
    assert ended.returncode == 0, ended.stderr
    assert "nothing to train" in ended.stdout
    assert "2 of 3 cells done, 1 failed" in ended.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_a_failed_teacher_was_to_teach_fails_with_its_reason(executor, folder, tmp_path) -> None:
    ended = called(executor, folder, tmp_path, "--methods", "KD", "--set", "protocol.learning_rate=1e30")
    (record,) = records_in(tmp_path).values()
    assert record["run"]["method"] == "Baseline"
    reason = f"Baseline of ResNet20, which it needs, has failed: {record['reason']}"
    assert reason in ended.stdout
    assert f"seed 0: {reason}" in report_in(tmp_path, "md")
    assert ended.returncode == 1


def test_a_dry_run_on_a_cluster_shows_arrays_dependencies_and_what_groupings_cost(folder, tmp_path) -> None:
    ended = called("slurm", folder, tmp_path, "--dry-run")
    assert ended.returncode == 0, ended.stderr
    rows = [line.split() for line in ended.stdout.splitlines()]
    # The teacher and Baseline; KD and SSKD's head, which wait for the teacher; SSKD, which waits for both.
    arrays = [(row[1], " ".join(row[2:])) for row in rows if row and row[0].isdigit()]
    assert [jobs for jobs, _ in arrays] == ["2", "2", "1"]
    assert [waits.split("ResNet20")[0].strip() for _, waits in arrays] == ["nothing", "1", "1, 2"]
    for grouping in ("run:", "student:", "cohort:"):
        assert any(row and row[0] == grouping for row in rows), grouping
    assert "nothing was timed yet" in ended.stdout
    assert list(tmp_path.iterdir()) == []
