"""The sweep that is disturbed: a few images, a few short runs, and every kind of file that a store can hold."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmark.core.protocols import STAGE_SCHEDULES
from benchmark.core.spec import LRSchedule, Protocol, Run, Scale
from benchmark.data import load_dataset
from benchmark.data.dataset import Dataset
from benchmark.execution.pool import run_jobs
from benchmark.execution.scheduler import ExecutionSummary, JobCallback, JobOutcome
from benchmark.planning.checks import check_methods
from benchmark.planning.jobs import Job, missing_jobs
from benchmark.planning.request import RunFactory, collect_dependencies
from benchmark.results.record import CorruptRun
from benchmark.results.store import Store
from benchmark.training import cohort as cohorts
from benchmark.training import cost as costs
from benchmark.training import job as jobs
from benchmark.training.cost import StepCost
from benchmark.training.settings import TrainSettings

METHODS = ("Baseline", "KD", "CRD", "SSKD", "LSSKD", "AB")
"""A teacher and a student of it, a memory of every image, a head, past predictions, and weights to start from."""
NETWORK = "ResNet8"
SIZE = 8
COMMAND = "python -m tests.chaos"
CLASSES = ("blue", "green", "red")
SHORT = Protocol(
    name="chaos",
    schedule=LRSchedule(epochs=3, milestones=(2,)),
    learning_rate=0.05,
    batch_size=12,
    method_schedules={name: LRSchedule(epochs=2) for name in STAGE_SCHEDULES},
)
SILENT_SECONDS = 1.0
"""How long a claim that cannot be read is respected: damaged ones are to cost no minutes."""


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, dependencies first, with the TOML file of their images."""

    toml: Path
    images: Dataset
    runs: tuple[Run, ...]

    def settings(self, runs: Path) -> TrainSettings:
        """Settings under which a checkpoint is written after every step."""
        return TrainSettings(
            runs, str(self.toml), checkpoint_seconds=0.0, silent_seconds=SILENT_SECONDS, command=COMMAND
        )


def make_sweep(folder: Path) -> Sweep:
    """The sweep, with its images written to a folder."""
    toml = write_images(folder)
    images = load_dataset(str(toml))
    request = RunFactory(
        dataset=images.name,
        fingerprint=images.fingerprint,
        protocol=SHORT,
        scale=Scale(name="chaos", factor=1),
        device=torch.device("cpu"),
        precision="fp32",
    )
    runs = collect_dependencies(request.run(method, NETWORK, NETWORK, seed=0) for method in METHODS)
    return Sweep(toml, images, tuple(runs))


def write_images(folder: Path) -> Path:
    """Three classes of 12 training and 4 test images of 8x8, told apart by their colour; returns their TOML file."""
    stream = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(CLASSES):
            place = folder / "images" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = stream.integers(0, 120, (SIZE, SIZE, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(place / f"{number}.png")
    toml = folder / "chaos.toml"
    toml.write_text('name = "chaos"\nfolder = "images"\nimage_size = 8\npadding = 1\nflip = true\n', encoding="utf-8")
    return toml


def hurry() -> None:
    """Have this process write a checkpoint after every step, look often whether others have ended, and do no more.

    To count a run's multiply-adds takes as long as to train it here, and no fault can reach them. What was written is
    safe from the death of a process, though not from that of a machine, before it is flushed to the disk.
    """
    os.fsync = _leave_to_the_system
    cohorts.COST_OF_A_CHECKPOINT = 0
    costs.step_cost = lambda *_: StepCost(1, 1, 1, 1)
    jobs.WAIT_SECONDS = 0.05


def _leave_to_the_system(fd: Any) -> None:
    """Flush nothing."""


def train(sweep: Sweep, runs: Sequence[Run], folder: Path) -> ExecutionSummary:
    """Bring some runs and what they depend on to their records, as `benchmark.run` does."""
    store, wanted = Store(folder), collect_dependencies(runs)
    for line in store.quarantine_damaged(wanted)[0]:
        print(line, flush=True)
    planned = missing_jobs(wanted, store, 1, SIZE, len(sweep.images.train.labels))
    return run_jobs(planned, sweep.settings(folder), 1, Printing()) if planned else ExecutionSummary()


def finish(sweep: Sweep, folder: Path) -> ExecutionSummary:
    """Train all that is missing; then use every run's weights, and train those again that turn out to be damaged."""
    store = Store(folder)
    while True:
        report = train(sweep, sweep.runs, folder)
        if report.failures or report.stopped:
            return report
        damaged = [line for run in sweep.runs if is_damaged(store, run) for line in store.quarantine(run)]
        if not damaged:
            return report
        print("\n".join(damaged), flush=True)


def is_damaged(store: Store, run: Run) -> bool:
    """Whether somebody who uses what a run left is told that it is damaged."""
    try:
        record = store.record(run)
        for part in record["weights"] if record else ():
            store.weights(run, part)
    except CorruptRun:
        return True
    return False


class Printing(JobCallback):
    """Prints what jobs say, for whoever looks into what went wrong."""

    def on_message(self, job: Job, line: str) -> None:
        print(f"{job.name}: {line}", flush=True)

    def on_end(self, job: Job, outcome: JobOutcome) -> None:
        print(f"ended {job.name}: {outcome}", flush=True)


def warm_up(sweep: Sweep) -> None:
    """Do in this process, once, what every forked worker would otherwise do again: imports, and shapes of networks."""
    torch.set_num_threads(1)
    check_methods(sweep.runs, sweep.images)
    missing_jobs(sweep.runs, Store(sweep.toml.parent / "nowhere"), 1, SIZE, len(sweep.images.train.labels))
    # A worker that collects garbage would touch, and so copy, every page of what it was forked from.
    gc.freeze()
