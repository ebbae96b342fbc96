"""Runs of every method with every family of networks, for tests of the contract.

Images are few and small, networks narrow, heads small: what is tested with them does not depend on size.
"""

from __future__ import annotations

import functools
import importlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import benchmark.backbones as backbones
from benchmark.backbones import build_network
from benchmark.backbones.four_stage_resnet import FourStageResNet, ImageNetResNet, Plan, four_stage_branches
from benchmark.backbones.shapes import trace_network
from benchmark.core.devices import placed
from benchmark.core.protocols import STAGE_SCHEDULES
from benchmark.core.spec import LRSchedule, Protocol, Run
from benchmark.data import load_dataset
from benchmark.data.augmentation import Batch, TrainingSource
from benchmark.data.dataset import Dataset, ImageSet
from benchmark.planning.request import collect_dependencies
from benchmark.plugins.registry import method_class
from benchmark.results.record import comparable_part
from benchmark.results.store import Store
from benchmark.training.cohort import Cohort
from benchmark.training.inputs import TrainingData, load_teacher, recipe_for
from benchmark.training.learner import Learner, head_key
from benchmark.training.teacher import Teacher
from tests.engine import request, settings

Pair = tuple[str, str | None]
CPU = torch.device("cpu")
IMAGES, BATCH_SIZE, CLASSES = 29, 8, 10
"""Three whole batches and one of another size."""
LARGER_IMAGES = {"ImageNet-ResNet18": 32, "ImageNet-ResNet34": 32}
"""Rows of an image for networks that halve it five times; the digits have 8."""
SHORT = Protocol(
    name="short",
    schedule=LRSchedule(epochs=2),
    learning_rate=0.01,
    batch_size=BATCH_SIZE,
    method_schedules={name: LRSchedule(epochs=2) for name in STAGE_SCHEDULES},
)
GENTLE = SHORT.replace(name="gentle", learning_rate=1e-12, weight_decay=0.0)
SMALL_OPTIONS: dict[str, dict[str, Any]] = {
    "MOKD": {
        "prototypes": 32,
        "hidden": 32,
        "bottleneck": 16,
        "blocks": 1,
        "attention_heads": 2,
        "width": 16,
        "local_crops": 2,
    },
}
STILL_OPTIONS = {"CRD": {"memory_momentum": 0.999999}, "MOKD": {"centre_momentum": 1.0}}
"""Beside them, where a loss is to fall: what else moves in a step, and the loss with it, hardly moves."""
NARROW = {
    "ResNet18": Plan((2, 2, 2, 2), base_width=8),
    "ImageNet-ResNet18": Plan((2, 2, 2, 2), base_width=8, skip_name="downsample"),
    "ImageNet-ResNet34": Plan((3, 4, 6, 3), base_width=8, skip_name="downsample"),
}
"""Networks of families that have no small one, with fewer channels; VGG and ResNeXt become so as a whole."""

PAIRS = (
    ("ResNet8", "ResNet8x4"),
    ("ShuffleNetV1", "WRN-16-2"),
    ("MobileNetV2", "VGG8"),
    ("ImageNet-ResNet18", "ImageNet-ResNet34"),
)
"""Student and teacher of one family and of two, as in the published tables: no method may refuse them."""
UNEQUAL_PAIRS = (("VGG8", "ResNet18"), ("ResNet8", "ResNet18"), ("ResNet18", "ResNet8"))
"""Pairs whose maps do not match in number or size, which a method may refuse."""
RESUMED_PAIR = ("ResNet8", "WRN-16-2")


FAMILIES = (
    "ResNet8",
    "WRN-40-1",
    "MobileNetV2-TFKD-x1/2",
    "MobileNetV2",
    "PreActResNet18-x1/4",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "ShuffleNetV2-TFKD",
    "VGG8",
    "ResNet18",
    "ImageNet-ResNet18",
    "ResNeXt29",
)
"""The network of each family that the tests use. It is written down, since finding it builds every network there is."""


@pytest.fixture(scope="module", autouse=True)
def narrow_networks() -> Iterator[None]:
    """Wide families with fewer channels, as long as these tests run."""
    with pytest.MonkeyPatch.context() as patch:
        resnext, vgg = (importlib.import_module(f"benchmark.backbones.{name}") for name in ("resnext", "vgg"))
        patch.setattr(resnext, "STEM_WIDTH", 16)
        patch.setattr(resnext, "STAGE_WIDTHS", (16, 32, 64))
        patch.setattr(vgg, "WIDTHS", (8, 16, 32, 64, 64))
        find, narrow = backbones._architecture, {}
        for name, plan in NARROW.items():
            build = ImageNetResNet if name.startswith("ImageNet") else FourStageResNet
            narrow[name] = replace(
                find(name),
                network=functools.partial(build, plan),
                branches=functools.partial(four_stage_branches, plan),
            )
        patch.setattr(backbones, "_architecture", lambda name, kind="network": narrow.get(name) or find(name, kind))
        trace_network.cache_clear()
        trained.cache_clear()
        yield
    trace_network.cache_clear()
    trained.cache_clear()


@functools.cache
def digits(size: int = 8) -> Dataset:
    """A few digits, each pixel repeated until there are `size` rows."""
    whole = load_dataset("digits", None)

    def few(images: ImageSet) -> ImageSet:
        times = size // whole.image_size
        pixels = images.images[:IMAGES].repeat_interleave(times, 1).repeat_interleave(times, 2)
        return ImageSet(pixels, images.labels[:IMAGES])

    return replace(whole, train=few(whole.train), test=few(whole.test))


def run_of(method: str, student: str, teacher: str | None, still: bool = False) -> Run:
    options = SMALL_OPTIONS.get(method, {}) | (STILL_OPTIONS.get(method, {}) if still else {})
    return request(protocol=GENTLE if still else SHORT, options={method: options}).run(method, student, teacher, 0)


def source_of(run: Run) -> TrainingSource:
    dataset = digits(LARGER_IMAGES.get(run.student, 8))
    return TrainingSource(dataset.train, recipe_for(run.protocol, dataset), BATCH_SIZE, CPU, ("contract",))


def set_up(run: Run) -> tuple[Learner, Teacher | None, TrainingSource]:
    """A learner as a cohort would make it, its teacher, and its images.

    Raises:
        UserError: the method refuses the networks.
    """
    source = source_of(run)
    first_weights = None if run.start is None else trained(run.start).student.state_dict()
    learner = Learner(run, CLASSES, source.size, source.labels, 1, CPU, first_weights)
    if run.teacher is None:
        return learner, None, source
    network = build_network(run.teacher.student, CLASSES)
    network.load_state_dict(trained(run.teacher).student.state_dict())
    heads = {head_key(run): trained(run.head).method} if isinstance(run.head, Run) else {}
    teacher = Teacher(placed(network, CPU), heads, "fp32", learner.method.needs_preactivations)
    return learner, teacher, source


def take_steps(learner: Learner, teacher: Teacher | None, batch: Batch, steps: int) -> list[float]:
    """One and the same step, with one batch and whatever is drawn for it, taken several times; gives the losses."""
    taught = teacher.on(batch) if teacher else None
    losses = []
    for _ in range(steps):
        learner.step(batch, taught, 0, 0)
        losses.append(float(learner.losses[0]))
    return losses


@functools.cache
def trained(run: Run) -> Learner:
    """What a run that others depend on has learnt from a few steps, with the statistics of the last one."""
    learner, teacher, source = set_up(run.replace(protocol=run.protocol.replace(learning_rate=SHORT.learning_rate)))
    batch = source.batch(source.epoch(0), 0)
    take_steps(learner, teacher, batch, steps=3)
    for module in (learner.student or nn.Identity(), learner.method):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 1.0
    take_steps(learner, teacher, batch, steps=1)
    return learner


class Killed(BaseException):
    """Stands for a signal that no process survives."""


def cohort_of(runs: list[Run], folder: Path) -> Cohort:
    dataset = digits()
    data = TrainingData(dataset, dataset.train, dataset.test)
    place = settings(folder, checkpoint_seconds=0.0)
    return Cohort(runs, data, load_teacher(runs, data, place, CPU), place)


def train_what_is_missing(run: Run, kept: Path) -> None:
    for needed in collect_dependencies([run]):
        if Store(kept).missing([needed], retry_failed=True):
            assert cohort_of([needed], kept).train()
            assert not Store(kept).missing([needed], retry_failed=True), f"{needed.id} failed"


def with_dependencies_of(run: Run, kept: Path, folder: Path) -> Path:
    """A folder that holds what a run depends on, and nothing else."""
    for needed in collect_dependencies([run])[:-1]:
        shutil.copytree(Store(kept).folder(needed), Store(folder).folder(needed), dirs_exist_ok=True)
    return folder


def result(run: Run, folder: Path) -> dict[str, Any]:
    record = Store(folder).record(run) or {"status": "missing"}
    assert record["status"] == "finished", record.get("reason")
    return comparable_part(record)


def assert_same_bits(run: Run, left: Path, right: Path) -> None:
    one, other = result(run, left), result(run, right)
    assert one.keys() == other.keys()
    differ = [name for name in one if one[name] != other[name]]
    assert not differ, f"{run.method}: {', '.join(differ)} differ"


def run_to_resume(method: str) -> Run:
    cls = method_class(method)
    student, teacher = RESUMED_PAIR
    return run_of(method, student if cls.trains_student else teacher, teacher)
