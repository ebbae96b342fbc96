"""The commands of the quickstart run, in their order, on a few images and for one epoch."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark import data
from benchmark.backbones import build_network
from benchmark.data.dataset import Dataset
from benchmark.training.inputs import load_run_dataset
from slurm.profile import load_profile
from tests.commands import run_command, run_here
from tests.documents import QUICKSTART, ROOT, blocks, example_method
from tests.slurm_cluster import REASON, cluster
from tests.slurm_sweeps import at_cluster

__all__ = ["cluster"]

DEMO_CELLS = ("--methods", "KD,CRD", "--pairs", "ResNet56>ResNet20")
"""What the demo is cut down to: the cells that the page asks for next."""
SMALL_PROFILE = "gpus = 0\ncpus = 1\ntime = 10\n"
WALKS = re.findall(r"^## (.+)$", QUICKSTART.read_text(encoding="utf-8"), flags=re.MULTILINE)


def lines_of(walk: str) -> list[str]:
    """The command lines of a section, those of `make demo` in its place."""
    section = QUICKSTART.read_text(encoding="utf-8").split(f"\n## {walk}\n", 1)[1].split("\n## ", 1)[0]
    lines = []
    for line in re.findall(r"^    ((?:make|source|python) .+)$", section, flags=re.MULTILINE):
        if line == "make demo":
            recipe = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
            lines += re.findall(r"python -m benchmark\..*", recipe.stdout)
        elif line != "source .venv/bin/activate":
            lines.append(line)
    return lines


def shortened(line: str) -> tuple[str, list[str]]:
    """The module and the arguments of a command line, with whatever makes it take seconds on any machine."""
    _, _, module, *arguments = shlex.split(line)
    for option in ("--device", "--executor", "--profile") if module == "benchmark.run" else ():
        if option in arguments:
            del arguments[arguments.index(option) : arguments.index(option) + 2]
    if module == "benchmark.tune":
        arguments += ["--epochs", "1", "--workers", "1"]
    elif module == "benchmark.run" and "--list" not in arguments:
        arguments += ["--epochs", "1", "--seeds", "1", "--executor", "debug"]
        if "--methods" not in arguments and "all" not in arguments:
            arguments += DEMO_CELLS
    return module, arguments


def small_digits() -> Dataset:
    """A hundred training and fifty test images of the digits."""
    digits = data.load_dataset("digits")
    # With a fingerprint of its own, so that nothing takes it for the digits.
    return replace(
        digits,
        train=digits.train.subset(torch.arange(100)),
        test=digits.test.subset(torch.arange(50)),
        fingerprint=digits.fingerprint[::-1],
    )


def write_cifar100(root: Path) -> None:
    """One training and one test image of noise for each of a hundred classes, as class folders."""
    noise = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(100):
            folder = root / "cifar100" / split / f"class_{number:02}"
            folder.mkdir(parents=True)
            Image.fromarray(noise.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(folder / "0.png")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a user who has followed the page: data, a teacher, a profile and a method of their own."""
    digits = small_digits()
    monkeypatch.setitem(data.LOADERS, "digits", lambda *_: digits)
    write_cifar100(tmp_path / "data")
    torch.save({"model": build_network("ResNet56", 100).state_dict()}, tmp_path / "teacher.pth")
    (tmp_path / "cluster.toml").write_text(SMALL_PROFILE)
    load_run_dataset.cache_clear()
    with example_method(tmp_path):
        yield tmp_path
    load_run_dataset.cache_clear()


@pytest.mark.parametrize(
    "walk", [pytest.param(walk, marks=pytest.mark.slow) if walk == "Real CIFAR-100" else walk for walk in WALKS]
)
def test_every_command_of_a_walk_runs(walk: str, home: Path) -> None:
    lines = [line for line in lines_of(walk) if not line.startswith("python -m slurm.")]
    assert lines
    outputs = {}
    for line in lines:
        module, arguments = shortened(line)
        ended = run_here(*arguments, module=module, folder=home)
        assert ended.returncode == 0, f"{line}\n{ended.stdout}{ended.stderr}"
        outputs[line] = ended.stdout
    if walk == "The demo":
        assert "nothing to train" in outputs[lines[1]]
        assert (home / "reports" / "index.html").is_file()
    if walk == "Your own teacher":
        assert "teacher ResNet56 from teacher.pth" in outputs[lines[0]]


def test_the_profile_of_the_page_is_read(tmp_path: Path) -> None:
    (profile,) = blocks(QUICKSTART, "toml")
    (tmp_path / "cluster.toml").write_text(profile)
    assert load_profile(tmp_path / "cluster.toml").gpus == 1


@pytest.mark.slow
@pytest.mark.skipif(REASON is not None, reason=f"no SLURM cluster can be made here: {REASON}")
def test_every_command_of_the_walk_to_a_cluster_runs_on_slurm(home: Path, request: pytest.FixtureRequest) -> None:
    with at_cluster(request.getfixturevalue("cluster")):
        for line in lines_of("A cluster"):
            _, _, module, *arguments = shlex.split(line)
            more = ["--epochs", "1"] if module == "benchmark.run" else []
            # Only what submits needs a process of its own: it waits as long between two looks as its environment says.
            run = run_command if module == "benchmark.run" and "--dry-run" not in arguments else run_here
            ended = run(*arguments, *more, module=module, folder=home)
            assert ended.returncode == 0, f"{line}\n{ended.stdout}{ended.stderr}"
