"""Building blocks for tests of methods: golden cases, and a context and steps made of stub tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.backbones.auxiliary import BranchOutputs
from benchmark.backbones.initialisation import fill_parameters
from benchmark.backbones.network import Network, Outputs, Shape
from benchmark.core.rng import generator
from benchmark.method.contract import Context, Mixture, Step, View

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-10
"""Relative to max(1, largest magnitude): what two independent float64 computations of a loss must agree to."""


@cache
def _arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"losses_{name}.npz") as stored:
        return dict(stored)


@dataclass(frozen=True)
class Case:
    """One golden case: `<case>.<role>.<name>` of a file of arrays, as float64 or int64 tensors."""

    file: str
    name: str

    def get(self, role: str, name: str) -> Tensor:
        """One array."""
        array = torch.from_numpy(_arrays(self.file)[f"{self.name}.{role}.{name}"])
        return array.double() if array.is_floating_point() else array

    def input(self, name: str) -> Tensor:
        """An input; those of the `step` cases that several methods share lie in a file of their own."""
        if f"{self.name}.in.{name}" in _arrays(self.file):
            return self.get("in", name)
        array = torch.from_numpy(_arrays("step_inputs")[name])
        return array.double() if array.is_floating_point() else array

    def expected(self, name: str) -> Tensor:
        """What the public implementation gave in float64."""
        return self.get("out64", name)

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        """The learnable weights whose names start with `prefix`, without it."""
        start = f"{self.name}.w.{prefix}"
        keys = [key for key in _arrays(self.file) if key.startswith(start)]
        return {key[len(start) :]: self.get("w", key[len(f"{self.name}.w.") :]) for key in keys}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Same shape, and equal within the tolerance of golden comparisons."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype == torch.float64
    worst = (actual.detach() - expected.detach()).abs().max()
    assert worst <= TOLERANCE * max(1.0, float(expected.detach().abs().max())), f"off by {float(worst):.3g}"


def assert_gradient(case: Case, name: str, tensor: Tensor) -> None:
    """The gradient that reached `tensor` is the golden one, or none at all where the golden flag says so."""
    if bool(case.expected(f"gradnone_{name}")):
        assert tensor.grad is None, f"{name} must get no gradient"
        return
    assert tensor.grad is not None, f"{name} must get a gradient"
    expected = case.expected(f"grad_{name}")
    # Gradients of maps are stored for the first images of the batch only.
    assert_close(tensor.grad[: len(expected)], expected)


def leaf(tensor: Tensor) -> Tensor:
    """A copy that collects its gradient."""
    return tensor.clone().requires_grad_()


def outputs_of(logits: Tensor, pooled: Tensor | None = None, maps: Sequence[Tensor] = ()) -> Outputs:
    """Outputs of a network; maps: stem and stages, made up where there are none."""
    rows = len(logits)
    stem, *stages = maps or [torch.zeros(rows, 1, 1, 1, dtype=logits.dtype)] * 4
    return Outputs(logits, torch.zeros(rows, 1, dtype=logits.dtype) if pooled is None else pooled, stem, tuple(stages))


def shape_from(name: str, outputs: Outputs) -> Shape:
    """The shape of the network that gave these outputs."""

    def size(map_: Tensor) -> tuple[int, int, int]:
        return (map_.shape[1], map_.shape[2], map_.shape[3])

    stages = tuple(size(stage) for stage in outputs.stages)
    return Shape(name, outputs.logits.shape[1], size(outputs.stem), stages, outputs.pooled.shape[1])


class StubBranches(nn.Module):
    """Branches that give stored logits, whatever the maps."""

    def __init__(self, logits: Sequence[Tensor]) -> None:
        super().__init__()
        self.logits = list(logits)

    def forward(self, stages: tuple[Tensor, ...]) -> tuple[BranchOutputs, ...]:
        return branch_outputs(self.logits)


def branch_outputs(logits: Sequence[Tensor]) -> tuple[BranchOutputs, ...]:
    """Branch outputs with these logits and no features worth looking at."""
    return tuple(BranchOutputs(values, values[:, :1]) for values in logits)


class TinyBranches(nn.Module):
    """A 1x1 convolution, an average and a linear layer for each stage."""

    def __init__(self, shape: Shape, outputs: int) -> None:
        super().__init__()
        self.extractors = nn.ModuleList(nn.Conv2d(channels, shape.pooled, 1) for channels, _, _ in shape.stages)
        self.classifiers = nn.ModuleList(nn.Linear(shape.pooled, outputs) for _ in shape.stages)

    def keep_deepest(self, count: int) -> None:
        self.extractors, self.classifiers = self.extractors[-count:], self.classifiers[-count:]

    def forward(self, stages: tuple[Tensor, ...]) -> tuple[BranchOutputs, ...]:
        kept = stages[-len(self.extractors) :]
        pooled = [extractor(maps).mean((2, 3)) for extractor, maps in zip(self.extractors, kept, strict=True)]
        pairs = zip(self.classifiers, pooled, strict=True)
        return tuple(BranchOutputs(classifier(features), features) for classifier, features in pairs)


class TinyNetwork(Network):
    """Three stages on images of 4 x 4 with batch norm, so that training and evaluation mode differ."""

    after_stages = ("classifier",)
    SHAPE = Shape("Tiny", 3, (2, 4, 4), ((3, 4, 4), (4, 2, 2), (5, 2, 2)), 5)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.third = nn.Conv2d(4, 5, 1)
        self.classifier = nn.Linear(5, 3)

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        stem = self.norm(self.stem(images)).relu()
        first = self.first(stem).tanh()
        second = self.second(first).tanh()
        third = self.third(second).tanh()
        pooled = third.mean((2, 3))
        return Outputs(self.classifier(pooled), pooled, stem, (first, second, third))


def tiny_network(name: str = "student") -> TinyNetwork:
    """A tiny network in float64 with weights named by `name`."""
    network = TinyNetwork()
    network.initialise(lambda parameter: generator("test", name, parameter))
    return network.double()


def stub_context(
    student: Shape,
    teacher: Shape | None = None,
    labels: Tensor | None = None,
    branches: Callable[[Shape, int], nn.Module] | None = None,
    network: Callable[[Shape], Network] | None = None,
    batch_size: int = 8,
) -> Context:
    """A context as the engine would give it; labels: of all training images, 16 of all classes in turn by default."""
    classes = student.num_classes

    def initialise(module: nn.Module, name: str) -> nn.Module:
        fill_parameters(module, lambda parameter: generator("test", name, parameter))
        return module

    def tiny_branches(shape: Shape, outputs: int) -> nn.Module:
        return initialise(TinyBranches(shape, outputs), "branches").double()

    return Context(
        student=student,
        teacher=teacher,
        num_classes=classes,
        labels=torch.arange(16) % classes if labels is None else labels,
        generator=lambda name: generator("test", name),
        initialise=initialise,
        branches=lambda shape, outputs, stream="", /: (branches or tiny_branches)(shape, outputs),
        network=lambda shape, stream="", /: network(shape) if network else tiny_network(stream or "fresh"),
        batch_size=batch_size,
    )


def _refuse(view: Any) -> Any:
    raise AssertionError("this method must not ask for this")


def stub_step(
    labels: Tensor,
    index: Tensor | None = None,
    epoch: int = 0,
    epochs: int = 1,
    images: Callable[[View], Tensor] = _refuse,
    student: Outputs | Callable[[View | Tensor], Outputs] = _refuse,
    teacher: Outputs | Callable[[View], Outputs] = _refuse,
    teacher_head: Callable[[View], Any] = _refuse,
    mixture: Mixture | None = None,
) -> Step:
    """A step from stored outputs, or from functions of the view; whatever is left out must not be asked for."""
    return Step(
        labels=labels,
        index=torch.arange(len(labels)) if index is None else index,
        epoch=epoch,
        epochs=epochs,
        progress=epoch / epochs,
        images=images,
        student=lambda shown, /, gather=True: student if isinstance(student, Outputs) else student(shown),
        teacher=(lambda view: teacher) if isinstance(teacher, Outputs) else teacher,
        teacher_head=teacher_head,
        generator=lambda name: generator("step", epoch, name),
        mixture=mixture,
    )


def step_outputs(case: Case, network: str, differentiable: bool) -> Outputs:
    """Outputs of `student` or `teacher` in the golden `step` cases; the stem, which no loss uses, is made up."""
    kind = leaf if differentiable else (lambda tensor: tensor)
    logits = kind(case.input(f"{network}_logits"))
    stem = kind(torch.ones(len(logits), 8, 16, 16, dtype=torch.float64))
    stages = [kind(case.input(f"{network}_feat_{place}")) for place in (1, 2, 3)]
    return outputs_of(logits, kind(case.input(f"{network}_feat_4")), [stem, *stages])


def assert_step_gradients(case: Case, student: Outputs) -> None:
    """The gradient of every student tensor is the golden one, or none where the golden flag says so."""
    for place, tensor in enumerate((student.stem, *student.stages, student.pooled)):
        assert_gradient(case, f"student_feat_{place}", tensor)
    assert_gradient(case, "student_logits", student.logits)
