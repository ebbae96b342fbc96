"""`python -m benchmark.run` from outside: tables, resuming, kills, several commands at once, teachers from files."""

from __future__ import annotations

import csv
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.backbones import build_branches, build_network
from benchmark.core.spec import ReleasedTeacher, Run
from benchmark.data import load_dataset
from benchmark.planning.request import SELF_TEACHER_SEED
from benchmark.results.leases import LeaseManager
from benchmark.results.record import comparable_part
from benchmark.results.store import Store
from benchmark.training.inputs import load_teacher, select_training_data
from benchmark.training.learner import Learner
from benchmark.training.settings import TrainSettings
from tests.commands import (
    ROOT,
    TIMEOUT,
    arguments,
    environment,
    files_under,
    record_of,
    records_in,
    report_in,
    run_command,
    run_here,
    small_dataset,
    small_table,
    started_command,
    wait_until,
)

MANY_STEPS = ("--set", "protocol.batch_size=4")
LONG = (*MANY_STEPS, "--epochs", "4")
"""Enough steps for a command to be disturbed at its work."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small dataset and its table."""
    place = tmp_path_factory.mktemp("small")
    small_dataset(place)
    small_table(place)
    return place


@pytest.fixture(scope="module")
def table(folder: Path) -> Path:
    return folder / "small.toml"


@pytest.fixture(scope="module")
def trained(folder: Path, table: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The table trained to its end undisturbed, and what the command said."""
    place = folder / "trained"
    return place, run_here(*arguments(table, place, *LONG))


def assert_same_outcome(place: Path, undisturbed: Path) -> None:
    found, expected = records_in(place), records_in(undisturbed)
    assert found.keys() == expected.keys()
    for run_id, record in found.items():
        assert comparable_part(record) == comparable_part(expected[run_id]), run_id


def warnings_of(ended: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what a command wrote to stderr, without the line that a busy machine brings about while it plans."""
    return [line for line in ended.stderr.splitlines() if not line.startswith("planning ")]


def first_epoch_written(place: Path, method: str) -> bool:
    return any((place / "runs" / "blocks").glob(f"{method}_*/epochs.jsonl"))


def test_a_table_is_trained_to_its_end_and_reported(trained) -> None:
    place, ended = trained
    assert ended.returncode == 0, ended.stderr
    assert warnings_of(ended) == []
    assert "3 of 3 cells done" in ended.stdout
    assert ended.stdout.splitlines()[-1] == f"Open {place / 'reports' / 'index.html'}"
    assert "<h2>Tables:" in (place / "reports" / "index.html").read_text(encoding="utf-8")
    assert len(records_in(place)) == 4, "the teacher is another run than the row Baseline"
    markdown, latex = (report_in(place, ending) for ending in ("md", "tex"))
    for method in ("Baseline", "KD", "LSSKD"):
        top1 = record_of(place, method)["final"]["top1"]
        assert f"{top1:.2f} (n=1)" in markdown.replace("**", "")
        assert f"{top1:.2f}" in latex
        assert f"{top1:.2f}" in ended.stdout
    assert "n=1" in ended.stdout
    assert "n=1" in latex
    with io.StringIO(report_in(place, "csv")) as opened:
        rows = {row["row"]: row for row in csv.DictReader(opened)}
    assert float(rows["LSSKD"]["mean"]) == record_of(place, "LSSKD")["final"]["top1"]
    assert rows["LSSKD"]["n"] == "1"


def test_a_second_call_trains_nothing(trained, table) -> None:
    place, _ = trained
    before = {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("*") if path.is_file()}
    ended = run_here(*arguments(table, place, *LONG))
    assert ended.returncode == 0
    assert "nothing to train" in ended.stdout
    assert "started" not in ended.stdout
    assert "3 of 3 cells done" in ended.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_table_has_the_rows_that_were_asked_for_and_all_of_them_with_all_cells(trained, table) -> None:
    place, _ = trained
    some, whole = (
        run_here(*arguments(table, place, "--methods", "KD", *more, *LONG)).stdout for more in ((), ("--all-cells",))
    )
    assert "1 of 1 cells done" in some
    assert "3 of 3 cells done" in whole
    assert "LSSKD" in whole
    assert "LSSKD" not in some


def test_a_finished_table_leaves_only_records(trained) -> None:
    place, _ = trained
    names = {Path(path).name for path in files_under(place / "runs")}
    assert names == {"run.json", "epochs.jsonl", "record.json", "student.safetensors"}


def interrupt(command: list[str], place: Path) -> tuple[int, str]:
    """Press Ctrl-C after the first epoch; the exit code and what was said."""
    with started_command(*command) as process:
        wait_until(lambda: first_epoch_written(place, "LSSKD"), process)
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=TIMEOUT)
    return process.returncode, said


def checkpoints_in(place: Path) -> list[Path]:
    return list((place / "runs" / "blocks" / "cohorts").glob("*/checkpoint-*.safetensors"))


def interrupt_here(command: list[str]) -> tuple[int, str]:
    """Raise the signal of Ctrl-C in this process after the first epoch; the exit code and what was said."""
    end_epoch = Learner.end_epoch

    def end_epoch_and_interrupt(learner: Learner, epoch: int) -> dict[str, Any]:
        figures = end_epoch(learner, epoch)
        if learner.run.method == "LSSKD":
            signal.raise_signal(signal.SIGINT)
        return figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "end_epoch", end_epoch_and_interrupt)
        ended = run_here(*command)
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_table_stopped_by_ctrl_c_goes_on_from_its_checkpoint(trained, table, tmp_path, workers) -> None:
    """With workers, a group of processes gets a real Ctrl-C; without, a command in this process gets its signal."""
    command = arguments(table, tmp_path, *LONG)
    code, said = interrupt_here(command) if workers == "1" else interrupt([*command, "--workers", "2"], tmp_path)
    assert code == 130, said
    assert "stopped; finished work and checkpoints are kept" in said
    assert "Traceback" not in said
    assert checkpoints_in(tmp_path)
    assert not any(record["run"]["method"] == "LSSKD" for record in records_in(tmp_path).values())
    if workers == "2":
        shutil.copytree(tmp_path / "runs", tmp_path / "damaged")
    ended = run_here(*command)
    assert ended.returncode == 0, ended.stdout
    assert "resumed at epoch" in ended.stdout
    assert record_of(tmp_path, "LSSKD")["provenance"]["resumed"] >= 1
    assert_same_outcome(tmp_path, trained[0])
    assert not list((tmp_path / "runs").glob("*/cohorts/*"))
    if workers == "2":
        assert_a_worker_tells_of_damage([*command, "--runs", str(tmp_path / "damaged")], tmp_path / "damaged")


def assert_a_worker_tells_of_damage(command: list[str], runs: Path) -> None:
    """A warning raised in a worker process reaches the user as a line that names its job."""
    (checkpoint,) = (path for path in runs.glob("*/cohorts/*/checkpoint-*") if b"LSSKD" in path.read_bytes())
    with checkpoint.open("r+b") as file:
        file.seek(checkpoint.stat().st_size // 2)
        file.write(b"\xff" * 64)
    ended = run_command(*command, "--workers", "2", "--methods", "LSSKD")
    assert ended.returncode == 0, ended.stdout
    (line,) = (line for line in ended.stdout.splitlines() if "damaged checkpoint" in line)
    assert "LSSKD: warning:" in line
    assert str(checkpoint) in line
    assert warnings_of(ended) == []


def test_a_killed_worker_fails_its_job_only_and_the_next_call_finishes(trained, table, tmp_path) -> None:
    command = arguments(table, tmp_path, *LONG)
    with started_command(*command, "--workers", "2") as process:
        wait_until(lambda: first_epoch_written(tmp_path, "LSSKD"), process)
        os.kill(_holder_of_claim(tmp_path, "LSSKD"), signal.SIGKILL)
        said, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1, said
    assert "LSSKD: its process died (exit code -9)" in said
    assert {record["run"]["method"] for record in records_in(tmp_path).values()} == {"Baseline", "KD"}
    report = report_in(tmp_path, "md")
    assert "seed 0: its process died (exit code -9)" in report
    ended = run_here(*command)
    assert ended.returncode == 0, ended.stdout
    assert_same_outcome(tmp_path, trained[0])
    assert not [path for path in files_under(tmp_path / "runs") if path.endswith(".tmp")]


def _holder_of_claim(place: Path, method: str) -> int:
    """The process that trains a run, as its claim names it."""
    (folder,) = (place / "runs" / "blocks").glob(f"{method}_*")
    owner = LeaseManager(place / "runs").current_holder(folder)
    assert owner is not None
    return owner.process


def test_two_commands_at_once_train_each_run_once(trained, table, tmp_path) -> None:
    runs = str(tmp_path / "runs")
    first = arguments(table, tmp_path / "first", *LONG, "--runs", runs)
    second = arguments(table, tmp_path / "second", *LONG, "--runs", runs)
    written: dict[Path, set[int]] = {}

    def both_ended() -> bool:
        # The spec is written whenever a training begins, the record whenever one ends.
        for path in (*tmp_path.glob("runs/*/*/run.json"), *tmp_path.glob("runs/*/*/record.json")):
            written.setdefault(path, set()).add(path.stat().st_mtime_ns)
        return one.poll() is not None and other.poll() is not None

    with started_command(*first) as one, started_command(*second) as other:
        while not both_ended():
            time.sleep(0.02)
        said = [process.communicate(timeout=TIMEOUT)[0] for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], said
    assert len(written) == 8
    assert all(len(times) == 1 for times in written.values())
    assert any("waiting for another process" in text for text in said)
    assert all("3 of 3 cells done" in text for text in said)
    assert_same_outcome(tmp_path, trained[0])


def test_a_dry_run_writes_nothing(table, tmp_path) -> None:
    ended = run_here(*arguments(table, tmp_path, "--dry-run"))
    assert ended.returncode == 0
    assert "3 runs asked for, 0 done" in ended.stdout
    assert "To train: 4 runs" in ended.stdout
    assert "Nothing was started" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_catalogue_names_what_there_is() -> None:
    ended = run_here("--list")
    assert ended.returncode == 0
    for name in ("LSSKD", "HSSAKD*", "ShuffleNetV2", "digits", "cifar100", "II", "pskd", "quick"):
        assert name in ended.stdout.replace(",", " ").split(), name


def test_a_loss_that_is_no_number_fails_its_cell_only(table, tmp_path) -> None:
    command = arguments(table, tmp_path, *MANY_STEPS, "--set", "KD.kd_weight=1e38")
    ended = run_here(*command)
    assert ended.returncode == 0, ended.stdout
    record = record_of(tmp_path, "KD")
    assert record["status"] == "failed"
    where = record["failed_at"]
    assert record["reason"] == f"loss not finite at epoch {where['epoch']}, step {where['step']}"
    assert f"KD (kd_weight=1e+38) failed ({record['reason']})" in ended.stdout
    assert record_of(tmp_path, "LSSKD")["status"] == "finished"
    report = report_in(tmp_path, "md")
    (row,) = (line for line in report.splitlines() if line.startswith("| KD"))
    assert "failed" in row
    assert f"KD, ResNet20>ResNet20, seed 0: {record['reason']}" in report
    assert "2 of 3 cells done, 1 failed" in ended.stdout

    again = run_here(*command, "--retry-failed")
    assert "started   ResNet20>ResNet20: KD" in again.stdout
    assert "LSSKD" not in again.stdout.partition("Table small")[0]
    assert comparable_part(record_of(tmp_path, "KD")) == comparable_part(record)
    assert record_of(tmp_path, "KD")["provenance"] != record["provenance"]


def on_a_terminal(command: list[str]) -> tuple[int, str]:
    """The exit code and what a live terminal was sent."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmark.run", *command], env=environment(), cwd=ROOT, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65536):
            said += piece
    except OSError:
        pass  # A terminal whose other end was closed ends with an error on Linux.
    finally:
        os.close(ours)
        process.wait(timeout=TIMEOUT)
    return process.returncode, said.decode().replace("\r", "")


def test_a_failed_teacher_fails_what_needs_it_and_a_live_terminal_says_why(table, tmp_path) -> None:
    code, said = on_a_terminal(
        arguments(table, tmp_path, *MANY_STEPS, "--methods", "KD", "--set", "protocol.learning_rate=1e30"),
    )
    assert code == 1
    (record,) = records_in(tmp_path).values()
    assert record["run"]["method"] == "Baseline"
    assert record["reason"].startswith("loss not finite at epoch ")
    reason = f"Baseline of ResNet20, which it needs, has failed: {record['reason']}"
    (line,) = (line for line in said.splitlines() if "failed    ResNet20>ResNet20: KD: " in line)
    assert reason in line
    assert "Traceback" not in said
    assert f"seed 0: {reason}" in report_in(tmp_path, "md")


def test_a_teacher_from_a_file_is_measured_and_used(trained, table, tmp_path) -> None:
    place, _ = trained
    baseline = record_of(place, "Baseline", SELF_TEACHER_SEED)
    weights = Store(place / "runs").weights(Run.model_validate(baseline["run"]))
    file = tmp_path / "teacher.pth"
    torch.save({"model": weights, "epoch": 2}, file)
    ended = run_here(
        *arguments(table, tmp_path, *LONG, "--methods", "KD", "--teacher-checkpoint", f"ResNet20={file}"),
    )
    assert ended.returncode == 0, ended.stdout
    top1 = baseline["final"]["top1"]
    assert f"teacher ResNet20 from {file} (model): {top1:.2f} % on the test images of blocks" in ended.stdout
    assert len(records_in(tmp_path)) == 1, "no teacher is trained"
    record = record_of(tmp_path, "KD")
    assert "sha256" in record["run"]["teacher"]
    # The same teacher, from a run or from a file, gives the same student.
    assert record["final"] == record_of(place, "KD")["final"]
    assert f"{top1:.2f}" in report_in(tmp_path, "md")


def test_branches_in_a_teachers_file_are_its_head(folder, tmp_path) -> None:
    for name in ("blocks.toml", "images"):
        (tmp_path / name).symlink_to(folder / name)
    table = small_table(tmp_path, ["HSSAKD"])
    backbone, branches = build_network("ResNet20", 3), build_branches("ResNet20", 12)
    parts = {"backbone": backbone, "auxiliary_classifier": branches}
    net = {
        f"module.{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()
    }
    file = tmp_path / "teacher.pth"
    torch.save({"net": net, "acc": 12.5}, file)
    ended = run_here(*arguments(table, tmp_path, "--teacher-checkpoint", f"ResNet20={file}"))
    assert ended.returncode == 0, ended.stdout
    assert f"teacher ResNet20 from {file} (net, with branches, without the prefix module.)" in ended.stdout
    assert len(records_in(tmp_path)) == 1, "neither a teacher nor a head is trained"
    run = Run.model_validate(record_of(tmp_path, "HSSAKD")["run"])
    assert isinstance(run.head, ReleasedTeacher)
    assert run.head == run.teacher
    dataset = load_dataset(str(tmp_path / "blocks.toml"))
    settings = TrainSettings(tmp_path / "runs", "", released=((run.head.sha256, file),))
    teacher = load_teacher([run], select_training_data(run, dataset), settings, torch.device("cpu"))
    assert teacher is not None
    (head,) = teacher.heads.values()
    loaded = head.get_submodule("branches").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in branches.state_dict().items())


def test_seeds_with_a_teacher_each_on_held_out_images(table, tmp_path) -> None:
    asked = ("--methods", "KD", "--seeds", "2", "--teacher-seeds", "paired", "--validation", "0.25")
    ended = run_here(*arguments(table, tmp_path, *asked))
    assert ended.returncode == 0, ended.stdout
    assert len(records_in(tmp_path)) == 4
    for seed in (0, 1):
        record = record_of(tmp_path, "KD", seed)
        assert record["run"]["teacher"] == record_of(tmp_path, "Baseline", SELF_TEACHER_SEED + seed)["run"]
        assert record["run"]["validation"] == 0.25
        # 3 of the 12 images of each class are held out, so accuracies are ninths.
        ninths = record["final"]["top1"] * 9 / 100
        assert ninths == pytest.approx(round(ninths))
    report = report_in(tmp_path, "md")
    row = next(line for line in report.splitlines() if line.startswith("| KD"))
    assert "n=2" in row
    assert "±" in row
    said = "Evaluated on 25% of the training images, held out; not on the test set."
    assert said in ended.stdout
    assert said in report
