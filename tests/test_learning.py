"""Training does what it is meant to do: the accuracy of a plain loop, a falling loss, and the rate of the schedule."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
import torch

from benchmark.core.protocols import PROTOCOLS, SCALES
from benchmark.core.spec import Run
from benchmark.data import load_dataset
from benchmark.execution.pool import run_jobs
from benchmark.execution.scheduler import JobCallback
from benchmark.planning.jobs import missing_jobs
from benchmark.planning.request import RunFactory
from benchmark.results.record import Record
from benchmark.results.store import Store
from benchmark.training.settings import TrainSettings
from tests.plain_loop import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, train_plainly

NETWORK, TEACHER = "ResNet8", "ResNet14"
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], tuple[Run, Record]]:
    """Baseline and KD on the digits at scale demo, three seeds of each, by method and seed."""
    folder: Path = tmp_path_factory.mktemp("runs")
    digits = load_dataset("digits")
    factory = RunFactory(
        dataset=digits.name,
        fingerprint=digits.fingerprint,
        protocol=PROTOCOLS["lsskd"],
        scale=SCALES["demo"],
        device=torch.device("cpu"),
    )
    runs = [factory.run(method, NETWORK, TEACHER, seed) for method in ("Baseline", "KD") for seed in SEEDS]
    store = Store(folder)
    jobs = missing_jobs(runs, store, 1, digits.image_size, len(digits.train))
    report = run_jobs(jobs, TrainSettings(runs=folder, dataset=digits.name), 1, JobCallback())
    assert not report.failures
    found = {}
    for run in runs:
        record = store.record(run)
        assert record is not None
        found[run.method, run.seed] = (run, record)
    return found


def top1(trained: dict[tuple[str, int], tuple[Run, Record]], method: str) -> list[float]:
    return [trained[method, seed][1]["final"]["top1"] for seed in SEEDS]


def test_baseline_is_as_accurate_as_a_plain_loop_with_its_recipe(
    trained: dict[tuple[str, int], tuple[Run, Record]],
) -> None:
    run, _ = trained["Baseline", 0]
    protocol = run.protocol
    # The plain loop has the recipe's numbers a second time, so a changed protocol must not pass unseen.
    assert (protocol.learning_rate, protocol.momentum, protocol.weight_decay) == (LEARNING_RATE, MOMENTUM, WEIGHT_DECAY)
    digits = load_dataset("digits")
    steps = math.ceil(len(digits.train) / run.batch_size)
    plain = [
        train_plainly(
            digits,
            NETWORK,
            run.schedule.epochs,
            run.schedule.milestones,
            seed,
            protocol.learning_rate * run.scale.learning_rate_factor,
            run.warmup_epochs * steps,
            run.batch_size,
        )[-1]
        for seed in SEEDS
    ]
    ours = top1(trained, "Baseline")
    error = math.sqrt((statistics.variance(ours) + statistics.variance(plain)) / len(SEEDS))
    assert abs(statistics.mean(ours) - statistics.mean(plain)) <= 2 * error, (ours, plain)


def test_the_mean_training_loss_falls_with_every_epoch(trained: dict[tuple[str, int], tuple[Run, Record]]) -> None:
    for method in ("Baseline", "KD"):
        losses = [[epoch["loss"] for epoch in trained[method, seed][1]["epochs"]] for seed in SEEDS]
        means = [statistics.mean(values) for values in zip(*losses, strict=True)]
        assert means == sorted(means, reverse=True), (method, means)


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_the_rate_is_divided_after_epochs_150_and_210_of_240(scale: str) -> None:
    digits = load_dataset("digits")
    factory = RunFactory(
        dataset=digits.name,
        fingerprint=digits.fingerprint,
        protocol=PROTOCOLS["lsskd"],
        scale=SCALES[scale],
        device=torch.device("cpu"),
    )
    run = factory.run("Baseline", NETWORK, None, 0)
    rates = [run.learning_rate(epoch, 0, 1, False) for epoch in range(run.schedule.epochs)]
    drops = [epoch for epoch in range(1, len(rates)) if rates[epoch] < rates[epoch - 1]]
    assert [drop / len(rates) for drop in drops] == pytest.approx([150 / 240, 210 / 240], abs=0.5 / len(rates))
    assert rates[-1] == pytest.approx(LEARNING_RATE / 100)
