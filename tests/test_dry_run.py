"""A dry run: what it prints, how little it imports, and that it asks before it plans very much."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmark.backbones.shapes import network_shape
from benchmark.core.errors import UserError
from benchmark.core.protocols import PROTOCOLS, SCALES
from benchmark.core.spec import Run
from benchmark.data import load_dataset
from benchmark.data.dataset import content_hash
from benchmark.execution.local import format_hours
from benchmark.execution.progress import announce_if_slow
from benchmark.planning import checks
from benchmark.planning.checks import MANY_RUNS, MOST_RUNS, check_methods, confirm_size
from benchmark.planning.request import RunFactory, RunOptions
from benchmark.planning.tables import plan_table
from benchmark.planning.timed import ASSUMED_GPU, GpuSpeed
from benchmark.plugins.registry import method_class
from benchmark.targets import count_runs
from tables.specification import load_table
from tests.commands import ROOT, arguments, run_here, small_dataset, small_table

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dry")
    small_dataset(folder)
    return small_table(folder)


def run_of(method: str = "KD", seed: int = 0) -> Run:
    factory = RunFactory("digits", "0" * 64, PROTOCOLS["lsskd"], SCALES["demo"], CPU, precision="fp32")
    return factory.run(method, "ResNet20", "ResNet56", seed)


def test_jobs_of_one_kind_are_summed_up(table: Path, tmp_path: Path) -> None:
    ended = run_here(*arguments(table, tmp_path, "--dry-run", "--seeds", "3", "--workers", "4"))
    assert ended.returncode == 0
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("KD")]
    assert line.split()[1:7] == ["1", "pair", "x", "3", "seeds", "3"]
    assert f"on one {ASSUMED_GPU}" in ended.stdout
    assert "assumed, not measured" in ended.stdout


def test_verbose_lists_each_job(table: Path, tmp_path: Path) -> None:
    ended = run_here(*arguments(table, tmp_path, "--dry-run", "--verbose", "--seeds", "3", "--workers", "4"))
    for title in ("ResNet20>ResNet20: ", "ResNet20>ResNet20 seed 1: ", "ResNet20>ResNet20 seed 2: "):
        assert title in ended.stdout


def test_verbose_without_a_dry_run_is_refused(table: Path, tmp_path: Path) -> None:
    ended = run_here(*arguments(table, tmp_path, "--verbose"))
    assert ended.returncode == 2
    assert "--verbose only applies to --dry-run" in ended.stderr


def test_many_runs_are_refused_where_nobody_can_be_asked(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "MANY_RUNS", 2)
    command = arguments(table, tmp_path, "--dry-run")
    ended = run_here(*command)
    assert ended.returncode == 2
    assert "3 runs are more than 2; pass --yes to plan them" in ended.stderr
    assert run_here(*command, "--yes").returncode == 0


FIGURE = """name = "many"
caption = "Many points."
kind = "few-shot"
methods = ["KD", "AT", "SP"]
fractions = [0.25, 0.5, 0.75, 1.0]
panels = [{ title = "one", teacher = "ResNet20", student = "ResNet8", dataset = "digits" }]
"""


def test_a_large_figure_is_refused_where_nobody_can_be_asked(tmp_path: Path) -> None:
    (tmp_path / "figure.toml").write_text(FIGURE)
    command = ("--figure", str(tmp_path / "figure.toml"), "--dry-run", "--runs", str(tmp_path / "runs"))
    ended = run_here(*command, "--seeds", "1000")
    assert ended.returncode == 2
    assert "12,000 runs are more than 10,000; pass --yes to plan them" in ended.stderr
    # As many as are planned are counted.
    assert "12 runs asked for" in run_here(*command, "--seeds", "1").stdout
    assert not (tmp_path / "runs").exists()


def test_a_grid_of_a_million_points_is_refused_at_once() -> None:
    thousand = ",".join(f"{number / 1000}" for number in range(1000))
    grid = f"alpha={thousand},beta={thousand}"
    ended = run_here("--method", "LSSKD", "--grid", grid, "--yes", module="benchmark.tune")
    assert ended.returncode == 2
    assert ended.stderr == "error: --grid has 1,000,000 combinations; allowed: at most 1,000\n"


def test_a_large_grid_is_refused_where_nobody_can_be_asked() -> None:
    values = ",".join(f"{number / 20}" for number in range(11))
    ended = run_here("--method", "LSSKD", "--grid", f"alpha={values}", "--seeds", "1000", module="benchmark.tune")
    assert ended.returncode == 2
    assert "11,000 runs are more than 10,000; pass --yes to plan them" in ended.stderr


def test_a_terminal_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    answers = iter((True, False))
    monkeypatch.setattr("typer.confirm", lambda text: next(answers))
    confirm_size(MANY_RUNS, confirmed=False)
    confirm_size(MANY_RUNS + 1, confirmed=True)
    confirm_size(MANY_RUNS + 1, confirmed=False)
    with pytest.raises(UserError, match="nothing was planned"):
        confirm_size(MANY_RUNS + 1, confirmed=False)
    with pytest.raises(UserError, match=f"allowed: {MOST_RUNS:,}"):
        confirm_size(MOST_RUNS + 1, confirmed=True)


def test_no_more_runs_are_planned_than_are_counted() -> None:
    options = RunOptions(scale="paper", device=CPU, seeds=2)
    table = load_table("II").at("paper")
    grid = plan_table(table, options.make_factory("lsskd", load_dataset("digits")), options.seed_numbers)
    assert 0 < sum(map(len, grid.runs.values())) <= count_runs([table], options)


def test_a_slow_plan_is_announced_and_a_quick_one_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with announce_if_slow("quick"):
        pass
    monkeypatch.setattr("benchmark.execution.progress.SLOW_SECONDS", 0.01)
    with announce_if_slow("planning 7 runs ..."):
        for _ in range(500):
            time.sleep(0.01)
            if said := capsys.readouterr().err:
                break
    assert said == "planning 7 runs ...\n"


def test_a_dry_run_imports_neither_scikit_learn_nor_the_tracer_of_torch(tmp_path: Path) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['run', '--table', 'II', '--dry-run', '--runs', {str(tmp_path / 'runs')!r}]\n"
        "try: runpy.run_module('benchmark.run', run_name='__main__')\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "print([name for name in ('sklearn', 'torch._dynamo') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.stdout.splitlines()[-1:] == ["[]"], ended.stderr


def test_checking_methods_does_not_build_their_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    crd = method_class("CRD")
    build = crd.__init__

    def watched(self: Any, context: Any, options: Any) -> None:
        told.append(len(context.labels))
        build(self, context, options)

    monkeypatch.setattr(crd, "__init__", watched)
    monkeypatch.setattr(checks, "SAMPLE", 100)
    digits = load_dataset("digits")
    check_methods([run_of("CRD")], digits)
    assert told == [len(digits.train.labels[::14])]


def test_a_method_that_refuses_a_sample_is_asked_with_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_dataset("digits")
    crd = method_class("CRD")
    build = crd.__init__

    def demanding(self: Any, context: Any, options: Any) -> None:
        if len(context.labels) < len(digits.train.labels):
            raise UserError("more images, please")
        build(self, context, options)

    monkeypatch.setattr(crd, "__init__", demanding)
    monkeypatch.setattr(checks, "SAMPLE", 100)
    check_methods([run_of("CRD")], digits)


def test_the_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    table = load_dataset("digits")
    theirs = load_digits()
    assert len(table.train) + len(table.test) == len(theirs.target)
    ours = torch.cat((table.train.images, table.test.images))[..., 0].flatten(1).double().mean(1).sort().values
    levels = (theirs.images.astype(np.int64) * 255 + 8) // 16
    assert torch.equal(ours, torch.from_numpy(levels).flatten(1).double().mean(1).sort().values)


def test_a_mapped_array_has_the_hash_of_its_content(tmp_path: Path) -> None:
    array = np.arange(3 * 2**20, dtype=np.uint8).reshape(3, -1)
    np.save(tmp_path / "array.npy", array)
    mapped = np.load(tmp_path / "array.npy", mmap_mode="c")
    assert content_hash(mapped) == content_hash(array)
    assert content_hash(mapped[1:]) == content_hash(array[1:])


def test_the_shape_of_a_network_is_that_of_its_forward() -> None:
    shape = network_shape("ResNet8", 10, 16)
    assert (shape.num_classes, shape.pooled) == (10, 64)
    assert shape.stages == ((16, 16, 16), (32, 8, 8), (64, 4, 4))


def records(rows: list[dict[str, Any]]) -> pd.DataFrame:
    usual = {
        "status": "finished",
        "method": "KD",
        "student": "ResNet20",
        "teacher": "ResNet56",
        "cost_image_size": 8,
        "precision": "fp32",
        "provenance_device": "cuda",
        "provenance_device_name": "NVIDIA H200",
        "provenance_cohort": json.dumps(["one", "two"]),
        "cost_images": 1000,
        "epochs": 2,
    }
    return pd.DataFrame([usual | row for row in rows])


def test_the_speed_of_a_gpu_is_the_median_of_its_records() -> None:
    seconds = [{"provenance_seconds": 8.0}, {"provenance_seconds": 4.0}, {"provenance_seconds": 2.0}]
    elsewhere = {"provenance_seconds": 100.0, "provenance_device": "cpu"}
    failed = {"provenance_seconds": 100.0, "status": "failed"}
    speed = GpuSpeed.from_records(records([*seconds, elsewhere, failed]))
    run = run_of()
    assert speed.name == "NVIDIA H200"
    assert speed.is_measured(run, 8)
    assert not speed.is_measured(run_of("CRD"), 8)
    # Half of four seconds for 2,000 images.
    assert speed.seconds(run, 8, 500) == pytest.approx(0.001 * 500 * run.schedule.epochs)


def test_without_records_of_a_gpu_its_speed_is_assumed() -> None:
    assert GpuSpeed.from_records(records([{"provenance_device": "cpu", "provenance_seconds": 1.0}])) == GpuSpeed()
    assert GpuSpeed().seconds(run_of("LSSKD"), 8, 500) > GpuSpeed().seconds(run_of("Baseline"), 8, 500) > 0


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (720, "12 min"), (5400, "1.5 h"), (25_178_400, "6,994 h")])
def test_times_are_rough(seconds: float, text: str) -> None:
    assert format_hours(seconds) == text
