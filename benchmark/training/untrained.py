"""Cohorts that stand on nothing: random images and an untrained teacher, to measure what a step costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmark.data.dataset import Dataset, ImageSet
from benchmark.registry import method_class
from benchmark.spec import Run
from benchmark.streams import generator
from benchmark.training.cohort import Cohort
from benchmark.training.devices import placed
from benchmark.training.learner import build_method, fresh_network, head_key
from benchmark.training.material import Material, Settings
from benchmark.training.teacher import Teacher

CLASSES = 100


def random_images(count: int, size: int) -> Dataset:
    """Training images of noise in CIFAR-100's form: what a step costs does not depend on what they show."""
    stream = generator("untrained", "images")
    train = ImageSet(
        torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=stream),
        torch.arange(count) % CLASSES,
    )
    test = ImageSet(train.images[:CLASSES], train.labels[:CLASSES])
    return Dataset(
        name="random",
        classes=tuple(f"{number:03}" for number in range(CLASSES)),
        train=train,
        test=test,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        padding=4,
        flip=True,
        fingerprint="random",
    )


def untrained_cohort(runs: Sequence[Run], dataset: Dataset, device: torch.device, threads: int) -> Cohort:
    """The cohort of some runs of one teacher (or none) as it would be at its first step, nothing of it trained."""
    runs = [run.changed(start=None) for run in runs]
    place = Settings(runs=Path("runs"), dataset=dataset.name, device=str(device), threads=threads)
    teacher = untrained_teacher(runs, dataset.image_size, device)
    return Cohort(runs, Material(dataset, dataset.train, dataset.test), teacher, place)


def untrained_teacher(runs: Sequence[Run], image_size: int, device: torch.device) -> Teacher | None:
    """The teacher that the runs share and its heads, as they would be before any training; None if none has one."""
    taught = [run for run in runs if run.teacher]
    if not taught:
        return None
    no_labels = torch.zeros(0, dtype=torch.int64)
    heads = {
        head_key(run): build_method(run.head, CLASSES, image_size, no_labels)
        for run in taught
        if isinstance(run.head, Run)
    }
    assert taught[0].teacher_network
    assert taught[0].teacher_precision
    return Teacher(
        placed(fresh_network(taught[0].teacher_network, CLASSES, 0), device),
        {key: placed(head, device) for key, head in heads.items()},
        taught[0].teacher_precision,
        preactivations=any(method_class(run.method).needs_preactivations for run in taught),
    )
