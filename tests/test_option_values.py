"""Options that are empty, contradict each other or change nothing: one line and exit code 2, never a silent default."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.cli.app import refuse_unusable, split_names
from benchmark.core.errors import UserError
from benchmark.io.files import check_writable
from tests.commands import arguments, files_under, run_here, small_dataset, small_table


@pytest.fixture
def table(tmp_path: Path) -> Path:
    small_dataset(tmp_path)
    return small_table(tmp_path)


def refusal(*command: str, module: str = "benchmark.run") -> str:
    """The line that a command is refused with."""
    ended = run_here(*command, module=module)
    assert ended.returncode == 2, ended.stdout
    assert "started" not in ended.stdout
    (line,) = ended.stderr.splitlines()
    return line


@pytest.mark.parametrize("value", ["", " ", ","])
@pytest.mark.parametrize("option", ["--methods", "--pairs", "--table", "--figure"])
def test_an_empty_list_is_refused_and_does_not_mean_everything(table, tmp_path, option, value) -> None:
    said = refusal(*arguments(table, tmp_path, option, value))
    assert said == (f"error: {option} is given and empty; give it a value (--help says which), or leave {option} out")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("module", "command", "option"),
    [
        ("benchmark.audit", ["--only", ""], "--only"),
        ("benchmark.audit", ["--only", ","], "--only"),
        ("benchmark.speed", ["--methods", ""], "--methods"),
        ("benchmark.speed", ["--pairs", ","], "--pairs"),
        ("benchmark.speed", ["--precision", ","], "--precision"),
        ("benchmark.run", ["--table", "II", "--dataset="], "--dataset"),
        ("benchmark.run", ["--table", "II", "--runs", ""], "--runs"),
        ("benchmark.report", ["--scale", ""], "--scale"),
        ("benchmark.tune", ["--method", "KD", "--grid", ""], "--grid"),
        ("slurm.status", ["--sweep", ""], "--sweep"),
    ],
)
def test_no_command_takes_an_empty_value_for_its_default(module, command, option) -> None:
    assert f"{option} is given and empty" in refusal(*command, module=module)


def test_values_that_only_end_in_an_equals_sign_are_none_of_that_kind() -> None:
    refuse_unusable(["--set=KD.temperature=", "--set", "KD.temperature=", "RUN", "--onnx"])
    assert split_names(None, "--methods") == []
    assert split_names(" KD, ,LSSKD", "--methods") == ["KD", "LSSKD"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--set", "CRD.temperature=0.1"], "--set CRD.temperature=0.1 changes nothing: no run of this command is"),
        (["--methods", "LSSKD", "--set", "KD.temperature=3"], "no run of this command is of KD, only of LSSKD; choose"),
        (["--set", "KD.temperature=3", "--set", "KD.temperature=5"], "--set gives KD.temperature twice, as 3 and as 5"),
        (["--set", "protocol.momentum=0.5", "--set", "protocol.momentum=0.8"], "--set gives protocol.momentum twice"),
        (["--set", "KD.temperature=true"], "KD: temperature = true is refused: a value other than true or false"),
        (["--set", "protocol.batch_size=true"], "protocol lsskd: batch_size = true is refused: a value other than"),
        (["--train-teachers"], "--train-teachers only applies to ImageNet tables"),
        (["--teacher-data", "same"], "--teacher-data same only applies to few-shot figures, such as 5"),
        (["--list"], "--list cannot be combined with --table"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_would_change_nothing_or_contradicts_is_refused(table, tmp_path, given, said) -> None:
    assert said in refusal(*arguments(table, tmp_path, *given))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "given",
    [
        ["--set", "KD.temperature=4", "--set", "KD.temperature=4.0"],
        ["--set", "LSSKD.soften_joint=false"],
        ["--set", "protocol.nesterov=true"],
        # Options of what a run depends on count too.
        ["--methods", "AB", "--set", "AB-init.margin=0.5"],
    ],
    ids=" ".join,
)
def test_an_option_that_is_heard_is_taken(table, tmp_path, given) -> None:
    ended = run_here(*arguments(table, tmp_path, "--dry-run", *given))
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_is_tuned_is_not_set_beside_the_grid(tmp_path) -> None:
    toml = small_dataset(tmp_path)
    where = ["--dataset", str(toml), "--runs", str(tmp_path / "runs"), "--reports", str(tmp_path / "reports")]
    grid = ["--method", "KD", "--grid", "temperature=4", "--pair", "ResNet20>ResNet20", *where]
    said = refusal(*grid, "--set", "KD.temperature=5", module="benchmark.tune")
    assert "--grid and --set both set KD.temperature; remove one of them" in said
    said = refusal(*grid, "--set", "CRD.temperature=0.1", module="benchmark.tune")
    assert "no run of this command is of CRD, only of Baseline, KD" in said
    assert not (tmp_path / "runs").exists()


def test_a_part_of_the_audit_leaves_the_whole_one_as_it_is(tmp_path) -> None:
    reports = tmp_path / "reports"
    command = ["--reports", str(reports)]
    assert run_here(*command, module="benchmark.audit", folder=tmp_path).returncode == 0
    whole = {name: (reports / name).read_bytes() for name in files_under(reports)}
    assert {"audit.md", "audit.csv", "audit.json"} < set(whole)
    ended = run_here(*command, "--only", "ps-kd-average", module="benchmark.audit", folder=tmp_path)
    assert ended.returncode == 0
    assert {name: (reports / name).read_bytes() for name in whole} == whole
    assert files_under(reports) == sorted([*whole, "audit_part.csv", "audit_part.json", "audit_part.md"])
    assert len((reports / "audit_part.csv").read_text().splitlines()) < len(whole["audit.csv"].splitlines())


def test_an_unknown_claim_is_told_with_the_nearest_only(tmp_path) -> None:
    said = refusal("--only", "ps-kd-averge", "--reports", str(tmp_path), module="benchmark.audit")
    assert said.startswith("error: unknown claim 'ps-kd-averge'; nearest: ps-kd-average, ")
    assert len(said) < 250


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a file system where even an administrator makes nothing")
def test_reports_that_the_file_system_refuses_are_refused_before_anything_starts(table, tmp_path) -> None:
    said = refusal(*arguments(table, tmp_path, "--reports", "/proc/reports"))
    assert said.startswith("error: cannot write /proc/reports: ")
    assert said.endswith("choose another folder with --reports")
    assert not (tmp_path / "runs").exists()


def test_a_name_that_is_too_long_for_a_folder_is_refused_at_once(tmp_path) -> None:
    with pytest.raises(UserError, match=r"File name too long.*choose another folder with --reports"):
        check_writable(tmp_path / ("a" * 300) / "deeper", "--reports")
    assert list(tmp_path.iterdir()) == []
