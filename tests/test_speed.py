"""The command that times training: one short race on the smallest networks, and options that are wrong."""

from __future__ import annotations

import re

import pytest

from tests.commands import run_here


def test_methods_alone_and_as_a_cohort_are_timed_against_the_bare_step() -> None:
    arguments = ["--pairs", "ResNet20>ResNet8", "--methods", "KD,AT", "--precision", "fp32", "--rounds", "1"]
    ended = run_here(*arguments, "--threads", "1", "--image-size", "8", module="benchmark.speed")
    assert (ended.returncode, ended.stderr) == (0, "")
    speeds = dict(re.findall(r"^(\S.*?)  +([0-9]+)  +[0-9.]+ *$", ended.stdout, re.M))
    assert set(speeds) == {"bare student step", "bare teacher forward", "KD", "AT", "cohort KD+AT"}
    assert all(int(speed) > 0 for speed in speeds.values())
    assert "times cheaper than its 2 methods alone" in ended.stdout


def test_a_method_of_logits_is_timed_with_an_atlas_too() -> None:
    arguments = ["--pairs", "ResNet20>ResNet8", "--methods", "KD,AT", "--precision", "fp32", "--rounds", "1"]
    more = ["--threads", "1", "--image-size", "8", "--teacher-outputs", "atlas"]
    ended = run_here(*arguments, *more, module="benchmark.speed")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(r"^KD from an atlas  +[1-9]", ended.stdout, re.M)
    assert "AT from an atlas" not in ended.stdout
    assert re.search(r"^KD from an atlas, fp32: [0-9.]+ times as fast as with its teacher live$", ended.stdout, re.M)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--precision", "fp8"], "unknown precision 'fp8' (did you mean 'fp32'?); allowed: fp32, bf16"),
        (["--pairs", "ResNet20"], "pair 'ResNet20' is not of the form teacher>student, such as WRN-40-2>WRN-16-2"),
    ],
)
def test_options_that_are_wrong_are_one_line_and_exit_code_2(arguments: list[str], line: str) -> None:
    ended = run_here(*arguments, module="benchmark.speed")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: {line}\n"
