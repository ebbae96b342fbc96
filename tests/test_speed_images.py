"""Timing images on disk: what is made, what is said of it, and that nothing is left behind."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from benchmark.data.decoding import WORKERS
from benchmark.data.streamed import ImageFiles
from benchmark.speed import images
from benchmark.training import cohort
from tests.commands import run_here

FP8 = "unknown precision 'fp8' (did you mean 'fp32'?); allowed: fp32, bf16"


def test_the_images_are_of_imagenets_size_and_all_different(tmp_path: Path) -> None:
    dataset = images.made_images(tmp_path, 5, 224)
    assert isinstance(dataset.train, ImageFiles)
    paths = [Path(path) for path in dataset.train.paths(torch.arange(5))]
    contents = {path.read_bytes() for path in paths}
    assert len(contents) == 5
    # The mean of ImageNet's training files is 110 kB.
    assert all(80_000 < len(content) < 160_000 for content in contents)
    for path in paths:
        with Image.open(path) as opened:
            assert (opened.size, opened.mode, opened.format) == ((500, 375), "RGB", "JPEG")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("workers", [None, "0"])
def test_decoding_and_learning_are_timed_apart_and_together(
    workers: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if workers is None:
        monkeypatch.delenv(WORKERS, raising=False)
    else:
        monkeypatch.setenv(WORKERS, workers)
    text = io.StringIO()
    console = Console(file=text, width=80)
    pairs = [("ResNet20", "ResNet8")]
    images.measure(console, pairs, ["Baseline", "KD"], torch.device("cpu"), 1, ["fp32"], 32, 1, 6, 4)
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("6 JPEGs of 500x375 (1")
    speeds = {name.strip(): float(value) for name, value in re.findall(r"^(.*?)  +([0-9.]+) *$", text.getvalue(), re.M)}
    decoding = [name for name in speeds if name.startswith("decoding")]
    assert decoding[0] == "decoding in the process that asks"
    assert len(decoding) == (1 if workers == "0" or len(os.sched_getaffinity(0)) == 1 else 2)
    for method in ("Baseline", "KD"):
        assert f"{method}, ResNet8, fp32: one batch over and over" in speeds
        assert f"{method}, ResNet8, fp32: decoding as it goes" in speeds
    assert all(speed > 0 for speed in speeds.values())
    assert os.environ.get(WORKERS) == workers
    assert not list(tmp_path.glob("tmp*"))


def test_passes_are_timed_however_often_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "REPORT_SECONDS", 0.0)
    console = Console(file=io.StringIO(), width=80)
    images.measure(console, [("ResNet20", "ResNet8")], ["KD"], torch.device("cpu"), 1, ["fp32"], 32, 2, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--what", "training", "--count", "5"], "--count says nothing with --what training; leave it out"),
        (["--what", "planning", "--pairs", "a>b"], "--pairs says nothing with --what planning; leave it out"),
        (["--what", "planning", "--image-size", "64"], "--image-size says nothing with --what planning; leave it out"),
        (
            ["--what", "images", "--precision", "fp8"],
            "unknown precision 'fp8' (did you mean 'fp32'?); allowed: fp32, bf16",
        ),
        (["--pairs", "ResNet20"], "pair 'ResNet20' is not of the form teacher>student, such as WRN-40-2>WRN-16-2"),
    ],
)
def test_options_that_say_nothing_or_are_wrong_are_one_line_and_exit_code_2(arguments: list[str], line: str) -> None:
    ended = run_here(*arguments, module="benchmark.speed")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: {line}\n"
