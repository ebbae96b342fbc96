"""Profiles of clusters: what is accepted, and one clear line for all that is not."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.core.errors import UserError
from slurm.profile import EXAMPLE, Profile, load_profile, minutes
from tests.commands import run_command

WRONG = {
    "partition": ["3", "['a']", "true"],
    "account": ["3"],
    "qos": ["3"],
    "constraint": ["['a100']"],
    "reservation": ["3"],
    "exclude": ['"n1"', "[3]"],
    "time": [
        "0",
        "-5",
        '"soon"',
        '"1:2:3:4"',
        '"1:60x"',
        "1.5",
        "[]",
        "nan",
        "527041",
        '"9999-0"',
        '"٣"',
        f'"{"9" * 5000}"',
    ],
    "gpus": ["-1", '"two"', "1.5", "1025", "9" * 400],
    "gres": ["1"],
    "cpus": ["0", '"many"', "2.5", "1025"],
    "memory": [f'"{"9" * 13}G"', "16", '"16 G"', '"much"', '"-4G"', '""'],
    "array": ["0", "-1", '"all"', "1000001"],
    "max_submitted": ["0", "inf", "1000001"],
    "setup": ['"module load x"', "[1]"],
    "shared": ["1"],
    "python": ["3.11"],
    "grouping": ['"students"', "1"],
    "grace_seconds": ["4", "-1", '"a minute"', "86401", "100000"],
    "resubmissions": ["-1", '"never"', "1001"],
    "submit_from_jobs": ['"perhaps"', "3"],
    "keeper_partition": ["1"],
    "bf16": ['"some"', "2"],
    "multiply_adds_per_second": ["0", "-1.0", "inf", "nan", '"fast"', "1.1e18"],
    "options": [
        "3",
        "{ nice = 3000000000 }",
        "{ mail-type = ['FAIL'] }",
        "{ time = '1:00' }",
        "{ job-name = 'x' }",
        "{ job_name = 'x' }",
    ],
}


def written(folder: Path, content: str) -> Path:
    path = folder / "cluster.toml"
    path.write_text(content)
    return path


def test_every_field_has_a_wrong_value_here() -> None:
    assert set(WRONG) == set(Profile.model_fields)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_in_one_line_that_names_the_field(tmp_path: Path, name: str, value: str) -> None:
    path = written(tmp_path, f"{name} = {value}\n")
    with pytest.raises(UserError) as refused:
        load_profile(path)
    message = str(refused.value)
    assert "\n" not in message
    assert name in message
    assert str(path) in message


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("gpus", "1025", "less than or equal to 1024"), ("time", "'367-0'", "less than or equal to 527040")],
)
def test_the_bound_of_a_number_is_told(tmp_path: Path, name: str, value: str, allowed: str) -> None:
    with pytest.raises(UserError, match=rf"field '{name}' = .* is refused: input should be {allowed}$"):
        load_profile(written(tmp_path, f"{name} = {value}\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('partion = "x"', r"profile .*: unknown field 'partion' \(did you mean 'partition'\?\)"),
        ("time = ", "is no valid TOML"),
        ("time = 1\ntime = 2", "is no valid TOML"),
        ("time = 1\ngrace_seconds = 31", "more than half of time = 1 min"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_profile(written(tmp_path, content))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x00"])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cluster.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no valid TOML in UTF-8"):
        load_profile(path)


def test_the_reason_of_a_refusal_is_said_without_the_words_of_a_library(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        load_profile(written(tmp_path, 'time = "soon"'))
    assert str(refused.value).endswith(
        ": field 'time' = 'soon' is refused: give minutes, hours:minutes:seconds, or days-hours[:minutes[:seconds]]"
    )


def test_a_profile_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.toml cannot be read: .*example.toml shows the format"):
        load_profile(tmp_path / "nowhere.toml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_profile(tmp_path)


def test_the_command_refuses_a_bad_profile_with_exit_code_2(tmp_path: Path) -> None:
    path = written(tmp_path, "cpus = 0\n")
    ended = run_command("--table", "II", "--executor", "slurm", "--profile", str(path), "--runs", str(tmp_path / "r"))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == 1
    assert "field 'cpus' = 0 is refused" in ended.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("12:00", 12),
        ("0:10", 1),
        ("1:30:00", 90),
        ("0:00:01", 1),
        ("1:00:01", 61),
        ("2-12", 3600),
        ("2-12:30", 3630),
        ("2-12:00:00", 3600),
    ],
)
def test_times_are_read_as_slurm_writes_them(text: str, expected: int) -> None:
    assert minutes(text) == expected


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_a_time_is_never_shorter_than_what_was_asked_for(days: int, hours: int, of_hour: int, seconds: int) -> None:
    asked = days * 86400 + hours * 3600 + of_hour * 60 + seconds
    given_minutes = minutes(f"{days}-{hours:02}:{of_hour:02}:{seconds:02}")
    assert isinstance(given_minutes, int)
    assert 0 <= 60 * given_minutes - asked < 60


def test_the_example_documents_every_field_with_its_default() -> None:
    content = tomllib.loads(EXAMPLE.read_text())
    assert set(content) == set(Profile.model_fields)
    differ = {name for name in content if getattr(load_profile(EXAMPLE), name) != getattr(Profile(), name)}
    # As the example says itself.
    assert differ == {"memory"}


def test_options_of_sbatch_go_through_as_they_are() -> None:
    profile = Profile(options={"mail-type": "FAIL", "exclusive": True, "hold": False, "ntasks_per_core": 1})
    additional = profile.parameters()["additional_parameters"]
    assert additional == {"requeue": True, "mail-type": "FAIL", "exclusive": True, "ntasks-per-core": 1}
