"""A small real cohort for the engine's tests: handwritten digits, real networks with batch norm, a short protocol."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmark.core.protocols import STAGE_SCHEDULES
from benchmark.core.spec import LRSchedule, Precision, Protocol, Run, Scale
from benchmark.data import load_dataset
from benchmark.data.dataset import Dataset
from benchmark.planning.request import RunFactory, collect_dependencies
from benchmark.results.record import Record, comparable_part
from benchmark.results.store import Store
from benchmark.training.job import run_until_done
from benchmark.training.settings import TrainSettings

STUDENT, TEACHER = "ResNet8", "ResNet20"
METHODS = ("CRD", "SSKD", "HSSAKD", "PS-KD", "LSSKD")
SHORT = Protocol(
    name="short",
    schedule=LRSchedule(epochs=3, milestones=(2,)),
    learning_rate=0.05,
    batch_size=16,
    method_schedules={name: LRSchedule(epochs=1) for name in STAGE_SCHEDULES},
)


@functools.cache
def digits() -> Dataset:
    """The digits, read once."""
    return load_dataset("digits", None)


def request(precision: Precision = "fp32", protocol: Protocol = SHORT, **changes: Any) -> RunFactory:
    """A request for runs on a tenth of the digits."""
    return RunFactory(
        dataset=digits().name,
        fingerprint=digits().fingerprint,
        protocol=protocol,
        scale=Scale(name="test", factor=1),
        device=torch.device("cpu"),
        precision=precision,
        **changes,
    )


def run_of(method: str, precision: Precision = "fp32", seed: int = 0, **changes: Any) -> Run:
    """A run on a tenth of the digits, its teacher and head on the same tenth."""
    return shrunk(request(precision, **changes).run(method, STUDENT, TEACHER, seed))


def shrunk(run: Run) -> Run:
    """The same run and all that it depends on, on a tenth of the training images."""
    update: dict[str, Any] = {"fraction": 0.1}
    for part in ("teacher", "head", "start"):
        artifact = getattr(run, part)
        if isinstance(artifact, Run):
            update[part] = shrunk(artifact)
    return Run.model_validate(
        run.model_dump() | {key: value if key == "fraction" else value.model_dump() for key, value in update.items()}
    )


def settings(folder: Path, **changes: Any) -> TrainSettings:
    """Settings that keep everything under `folder`."""
    return TrainSettings(runs=folder, dataset="digits", **changes)


def train_dependencies(runs: Sequence[Run], place: TrainSettings) -> None:
    """Train the teachers and heads of some runs, each in a cohort of its own."""
    wanted = {run.digest for run in runs}
    for run in collect_dependencies(runs):
        if run.digest not in wanted:
            assert run_until_done([run], place)


def records(runs: Sequence[Run], place: TrainSettings) -> dict[str, Record]:
    """The records of runs, by method."""
    found = {run.method: Store(place.runs).record(run) for run in runs}
    return {method: record for method, record in found.items() if record is not None}


def assert_same_bits(runs: Sequence[Run], left: Path, right: Path) -> None:
    """Each run has a record in both stores, and the two tell of the same curves, figures and weights."""
    for run in runs:
        first, second = Store(left).record(run), Store(right).record(run)
        assert first is not None
        assert second is not None
        assert comparable_part(first) == comparable_part(second), run.method
