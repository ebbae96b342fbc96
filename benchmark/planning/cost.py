"""What training a run costs, roughly and before anything is trained: for ordering jobs, and for a dry run."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmark.backbones import build_branches, build_network
from benchmark.core.spec import Run
from benchmark.method.contract import ROTATIONS
from benchmark.plugins.registry import method_class

# Rough costs of one thread of a current processor: arithmetic, and what each convolution with its norm costs whatever
# its size.
MULTIPLY_ADDS_PER_SECOND = 8e10
SECONDS_PER_CONVOLUTION = 3e-4
CLASSES = 100
"""Of the networks whose costs are reckoned; a dataset's own number changes little."""


def network_cost(name: str, with_branches: bool, image_size: int) -> tuple[int, int]:
    """Multiply-adds of one forward for one image, and the number of convolutions; branches for 4 labels a class."""
    return _network_costs(name, image_size)[with_branches]


@functools.cache
def _network_costs(name: str, image_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The cost of a network, and that of the network with its branches.

    As `multiply_adds` counts them, but in a thirtieth of the time: a plan asks for two dozen networks. Nothing that is
    counted is computed, only the shapes of its outputs.
    """
    with torch.device("meta"):
        network, branches = build_network(name, CLASSES), build_branches(name, CLASSES * ROTATIONS)
    counter = _Counter()
    with torch.no_grad():
        maps = counter.attached(network)(torch.zeros(1, 3, image_size, image_size)).branch_maps
        alone = (counter.multiply_adds, counter.convolutions)
        counter.attached(branches)(maps)
    return alone, (counter.multiply_adds, counter.convolutions)


class _Counter:
    """Convolutions and linear layers, and their multiply-adds in the forwards of modules that it is attached to."""

    def __init__(self) -> None:
        self.multiply_adds = 0
        self.convolutions = 0

    def attached(self, module: nn.Module) -> Any:
        """The module, in evaluation mode, with layers that count instead of computing."""
        for layer in module.eval().modules():
            if isinstance(layer, nn.Conv2d):
                self.convolutions += 1
                # Below `forward`, which a kind of convolution may have of its own.
                layer._conv_forward = functools.partial(self._convolve, layer)  # type: ignore[method-assign]
            elif isinstance(layer, nn.Linear):
                layer.forward = functools.partial(self._connect, layer)  # type: ignore[method-assign]
            elif isinstance(layer, _BatchNorm):
                layer.forward = nn.Identity().forward  # type: ignore[method-assign]
        return module

    def _convolve(self, layer: nn.Conv2d, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        def length(place: int) -> int:
            covered = layer.dilation[place] * (layer.kernel_size[place] - 1) + 1
            return (maps.shape[place + 2] + 2 * int(layer.padding[place]) - covered) // layer.stride[place] + 1

        height, width = length(0), length(1)
        self.multiply_adds += height * width * weight.numel()
        return maps.new_zeros(1, layer.out_channels, height, width)

    def _connect(self, layer: nn.Linear, features: Tensor) -> Tensor:
        outputs = features.new_zeros(*features.shape[:-1], layer.out_features)
        self.multiply_adds += outputs.numel() * layer.in_features
        return outputs


def training_multiply_adds(run: Run, image_size: int) -> int:
    """Multiply-adds of training on one image once: three forwards' worth for what learns, one for the teacher."""
    return _training_multiply_adds(run.method, run.student, run.teacher_network, run.options.get("past"), image_size)


@functools.cache
def _training_multiply_adds(method: str, student: str, teacher: str | None, past: str | None, image_size: int) -> int:
    cls = method_class(method)
    views = ROTATIONS if cls.view == "rotated" else 1
    own, _ = network_cost(student, cls.student_branches, image_size)
    total = 0
    if cls.trains_student:
        total += round(3 * cls.student_passes * views * own)
    elif cls.student_branches:
        total += 3 * views * (own - network_cost(student, False, image_size)[0])
    if teacher:
        total += views * network_cost(teacher, _reads_branches(method), image_size)[0]
    if past == "previous_weights":
        # The student of the epoch before, asked once more.
        total += views * own
    return total


def run_seconds(run: Run, image_size: int, images: int) -> float:
    """A rough estimate of the seconds that a run takes on one thread, its teacher's forwards included."""
    names = (run.method, run.student, run.teacher_network)
    images = round(run.fraction * images)
    return run.schedule.epochs * _epoch_seconds(
        *names, run.options.get("past"), images, run.protocol.batch_size, image_size
    )


@functools.cache
def _epoch_seconds(
    method: str, student: str, teacher: str | None, past: str | None, images: int, batch_size: int, image_size: int
) -> float:
    steps = -(-images // batch_size)
    multiply_adds = _training_multiply_adds(method, student, teacher, past, image_size)
    layers = _layers(method, student, teacher, image_size)
    return images * multiply_adds / MULTIPLY_ADDS_PER_SECOND + steps * layers * SECONDS_PER_CONVOLUTION / 3


@functools.cache
def _layers(method: str, student: str, teacher: str | None, image_size: int) -> float:
    """Convolutions that a step passes, forwards and backwards counted as three forwards."""
    cls = method_class(method)
    layers = 0.0
    if cls.trains_student or cls.student_branches:
        layers += 3 * cls.student_passes * network_cost(student, cls.student_branches, image_size)[1]
    if teacher:
        layers += network_cost(teacher, _reads_branches(method), image_size)[1]
    return layers


def _reads_branches(method: str) -> bool:
    head = method_class(method).teacher_head
    return head is not None and method_class(head).student_branches


def cohort_seconds(cohort: Sequence[Run], image_size: int, images: int) -> float:
    """The runs' seconds, with each view's teacher forward counted once."""
    total = sum(run_seconds(run, image_size, images) for run in cohort)
    shared: set[str] = set()
    for run in cohort:
        if run.teacher_network:
            view = method_class(run.method).view
            views = ROTATIONS if view == "rotated" else 1
            if view in shared:
                forward = network_cost(run.teacher_network, _reads_branches(run.method), image_size)[0]
                total -= run.schedule.epochs * run.fraction * images * views * forward / MULTIPLY_ADDS_PER_SECOND
            shared.add(view)
    return total
