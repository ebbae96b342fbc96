"""The steps of training as an accelerator would see them, without one.

The device is `meta`, whose tensors have shapes and no values. Whatever would make the host wait for values of an
accelerator (a number taken out of a tensor, a branch on one, a size that depends on them) cannot be done there at all,
and every operation is watched: none may take tensors from both sides, which an accelerator refuses, and within an epoch
none may copy from the host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import benchmark.training.cohort as cohort_module
import benchmark.training.evaluation as evaluation_module
import benchmark.training.learner as learner_module
import benchmark.training.optimizer as optimizer_module
import benchmark.training.teacher as teacher_module
from benchmark.core.devices import autocast
from benchmark.core.protocols import get_protocol
from benchmark.core.rng import generator
from benchmark.core.spec import Augmentation, Run, Scale
from benchmark.data.augmentation import evaluation_batches
from benchmark.method.contract import Method, Step
from benchmark.planning.request import RunFactory
from benchmark.plugins.registry import all_methods
from benchmark.training.cohort import Cohort
from benchmark.training.dummies import dummy_teacher, random_images
from benchmark.training.evaluation import Evaluation
from benchmark.training.inputs import TrainingData
from benchmark.training.settings import TrainSettings

META = torch.device("meta")
CPU = torch.device("cpu")
CLASSES, IMAGES, BATCH_SIZE = 4, 16, 8
PAIR = ("ResNet8", "ResNet20")
OTHERS = (("ShuffleNetV1", "WRN-16-2"), ("MobileNetV2", "VGG8"), ("ShuffleNetV2", "ResNet18"))
"""Student and teacher, which together with the pair above have every kind of layer."""
CELLS = [(name, *PAIR) for name in all_methods()] + [("KD", *pair) for pair in OTHERS]
SMALL_OPTIONS = {
    "MOKD": {"prototypes": 32, "hidden": 32, "bottleneck": 16, "blocks": 1, "attention_heads": 2, "width": 16}
}
REFUSED_WHEN_DETERMINISTIC = {
    *("adaptive_max_pool2d_backward", "avg_pool3d_backward", "fractional_max_pool2d_backward", "max_unpool2d"),
    *(
        "_adaptive_avg_pool2d_backward",
        "_adaptive_avg_pool3d_backward",
        "_ctc_loss_backward",
        "_embedding_bag_backward",
    ),
    *("grid_sampler_2d_backward", "histc", "kthvalue", "nll_loss2d_forward", "nll_loss2d_backward", "put_"),
    *("reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward"),
}
"""What torch refuses on CUDA where runs must give the same bits (see `torch.use_deterministic_algorithms`)."""


class Refused(Exception):
    """What an accelerator would refuse or wait for."""


class Watched(TorchDispatchMode):
    """Raises at what an accelerator would refuse or wait for; the host's own work is let be."""

    def __init__(self, copies: bool) -> None:
        """copies: whether tensors may be copied from the host."""
        super().__init__()
        self.copies = copies
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = func._schema.name.removeprefix("aten::")
        target = (kwargs or {}).get("device")
        copied = name == "copy_" or (name == "_to_copy" and target is not None)
        # A number on the host may stand beside tensors on a device.
        sides = {tensor.device.type for tensor in tensors if tensor.dim() or tensor.device == META}
        if copied and target is not None:
            sides.add(torch.device(target).type)
        if META.type in sides:
            self.seen.add(name)
            if len(sides) > 1 and not (copied and self.copies):
                raise Refused(f"{name} of {[tuple(tensor.shape) for tensor in tensors]} is done on both sides")
            if name in REFUSED_WHEN_DETERMINISTIC or (name == "cumsum" and tensors[0].is_floating_point()):
                raise Refused(f"{name} has no deterministic form on CUDA")
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def meta_as_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `meta` does not have: generators, autocast and the fused optimiser."""

    def on_host(*names: Any, device: Any = CPU) -> torch.Generator:
        return generator(*names, device=CPU if torch.device(device) == META else device)

    def plain(device: torch.device, precision: Any) -> Any:
        return contextlib.nullcontext() if device == META else autocast(device, precision)

    def unfused(*args: Any, fused: bool, **options: Any) -> None:
        sgd(*args, **options)

    sgd = optimizer_module.sgd
    monkeypatch.setattr(learner_module, "generator", on_host)
    for module in (learner_module, teacher_module, evaluation_module):
        monkeypatch.setattr(module, "autocast", plain)
    monkeypatch.setattr(optimizer_module, "sgd", unfused)
    monkeypatch.setattr(cohort_module, "resolve_device", lambda name: META)
    # A report on the way shows the loss, for which it waits; twice a second.
    monkeypatch.setattr(cohort_module, "REPORT_SECONDS", float("inf"))


def run_of(method: str, student: str, teacher: str, augmentation: Augmentation = "standard", **protocol: Any) -> Run:
    request = RunFactory(
        "random",
        "random",
        get_protocol("lsskd").replace(batch_size=BATCH_SIZE, **protocol),
        Scale(name="test", factor=1),
        CPU,
        precision="fp32",
        augmentation=augmentation,
        options=SMALL_OPTIONS,
    )
    # Weights to start from would be read from the store; they are weights like any others.
    return request.run(method, student, teacher, 0).replace(start=None)


def cohort_of(runs: Sequence[Run]) -> Cohort:
    """A cohort on images of noise, whose teacher is not trained."""
    data = random_images(IMAGES, 32, CLASSES)
    place = TrainSettings(runs=Path("nowhere"), dataset=data.name)
    return Cohort(runs, TrainingData(data, data.train, data.test), dummy_teacher(runs, CLASSES, 32, META), place)


def take_an_epoch(cohort: Cohort, epoch: int = 0) -> set[str]:
    """All steps of an epoch; returns the operations of the device."""
    cohort.epoch, cohort.step = epoch, 0
    plan = cohort.source.epoch(epoch)
    # What is drawn for an epoch as a whole is copied when it is first asked for.
    with Watched(copies=True):
        cohort.one_step(plan)
    with Watched(copies=False) as watched:
        while cohort.learners and cohort.step < cohort.source.batches:
            cohort.one_step(plan)
    assert cohort.broken == []
    return watched.seen


@pytest.mark.parametrize(("method", "student", "teacher"), CELLS)
def test_steps_neither_wait_for_the_device_nor_mix_it_with_the_host(
    method: str, student: str, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that never asks which epoch it is takes the same steps in each, so that one epoch is enough for it."""
    asked: set[str] = set()

    class WatchedStep(Step):
        def __getattribute__(self, name: str) -> Any:
            asked.add(name)
            return super().__getattribute__(name)

    monkeypatch.setattr(learner_module, "Step", WatchedStep)
    cohort = cohort_of([run_of(method, student, teacher)])
    assert take_an_epoch(cohort) & {"convolution", "mm"}
    learner = cohort.learners[0]
    if learner.student is not None:
        with Watched(copies=False):
            learner.method.end_epoch(0, learner.student)
    assert asked
    if asked & {"epoch", "progress"} or type(learner.method).end_epoch is not Method.end_epoch:
        # Some methods have a past from the second epoch on.
        take_an_epoch(cohort, epoch=1)


@pytest.mark.parametrize(
    ("rotated_crop", "methods"),
    [
        ("shared", ("KD", "CRD", "PS-KD", "SSKD", "LSSKD", "CS-KD")),
        # Of these, the ones that see rotated images.
        ("per_rotation", ("SSKD", "LSSKD")),
    ],
)
def test_mixed_images_and_crops_of_each_rotation_are_made_on_the_device(
    rotated_crop: str, methods: Sequence[str]
) -> None:
    runs = [run_of(name, *PAIR, "cutout+cutmix", rotated_crop=rotated_crop) for name in methods]
    cohort = cohort_of(runs)
    for epoch in range(3):
        # What mixes a batch is drawn for it, on the host, and is a few numbers.
        plan = cohort.source.epoch(epoch)
        cohort.epoch, cohort.step = epoch, 0
        with Watched(copies=True):
            while cohort.step < cohort.source.batches:
                cohort.one_step(plan)
        assert not cohort.broken


def test_an_evaluation_waits_for_the_device_once_at_its_end() -> None:
    cohort = cohort_of([run_of("LSSKD", "ResNet8", "ResNet20")])
    learner = cohort.learners[0]
    assert learner.student is not None
    evaluation = Evaluation(learner.student, "fp32", learner.method, rotated=True)
    batches = evaluation_batches(cohort.evaluation, cohort.recipe, 2, META)
    evaluation.add(*next(batches))
    with Watched(copies=False):
        for images, labels in batches:
            evaluation.add(images, labels)
    with pytest.raises(NotImplementedError, match="no data"):
        _ = evaluation.figures


WRONG: dict[str, Callable[[Tensor], object]] = {
    "a number taken out": lambda values: values.sum().item(),
    "a branch on a value": lambda values: 1 if values.sum() > 0 else 2,
    "a size that depends on values": lambda values: values[values > 0],
    "the other side's values": lambda values: values + torch.ones(3),
    "the other side's index": lambda values: values[torch.tensor([0, 2])],
    "a copy from the host": lambda values: torch.ones(3).to(META),
    "a copy into the device": lambda values: values.copy_(torch.ones(3)),
    "a copy to the host": lambda values: values.cpu(),
    "no deterministic form": lambda values: values.cumsum(0),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))
def test_the_watch_sees_what_it_is_there_for(wrong: Callable[[Tensor], object]) -> None:
    with Watched(copies=False), pytest.raises((Refused, RuntimeError, NotImplementedError)):
        wrong(torch.zeros(3, device=META))


def test_the_watch_lets_through_what_an_accelerator_takes() -> None:
    values = torch.zeros(3, device=META)
    with Watched(copies=False):
        assert (values * torch.tensor(2.0) + 1).device == META
        assert (torch.ones(3) + torch.ones(3)).device == CPU
