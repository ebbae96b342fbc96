"""The small networks of golden cases with whole steps of an optimiser, and the comparison after the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.backbones.network import Network, Outputs
from benchmark.method.contract import Method
from tests.support import Case, assert_close, shape_from, stub_context, stub_step


class Block(nn.Module):
    """A 3x3 convolution and a norm; the ReLU comes behind it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps before the ReLU."""
        normalised: Tensor = self.bn(self.conv(maps))
        return normalised


class StagedNetwork(Network):
    """Stem and stages of a block each, a mean over the map and a linear layer, in float64.

    widths: channels of the stem and of each stage; strides: of each stage.
    """

    after_stages = ("fc",)

    def __init__(self, widths: Sequence[int], strides: Sequence[int] = (1, 2, 2), num_classes: int = 10) -> None:
        super().__init__()
        self.names = [f"stage{number}" for number in range(1, len(widths))]
        self.stem = Block(3, widths[0], 1)
        for name, inputs, outputs, stride in zip(self.names, widths[:-1], widths[1:], strides, strict=True):
            self.add_module(name, Block(inputs, outputs, stride))
        self.fc = nn.Linear(widths[-1], num_classes)
        self.double()

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        stem = maps = F.relu(self.stem(images))
        before, after = [], []
        for name in self.names:
            before.append(self.get_submodule(name)(maps))
            maps = F.relu(before[-1])
            after.append(maps)
        pooled = maps.mean((2, 3))
        return Outputs(
            self.fc(pooled),
            pooled,
            stem,
            tuple(after),
            tuple(before) if preactivations else None,
            averaged=maps,
            classifier=self.fc,
        )


def optimiser_of(case: Case, *modules: nn.Module) -> torch.optim.SGD:
    """The optimiser of a case for all that learns in some modules."""
    learning = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    settings = {name: float(case.get("hp", name)) for name in ("lr", "momentum", "weight_decay")}
    return torch.optim.SGD(learning, **settings, nesterov=bool(case.get("hp", "nesterov")))


def assert_state(case: Case, modules: Mapping[str, nn.Module], when: str = "after_step2_") -> None:
    """Every weight and running statistic is the golden one; modules: by the prefix of their names in the case."""
    for prefix, module in modules.items():
        for name, tensor in module.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                assert_close(tensor, case.expected(f"{when}{prefix}{name}"))


def assert_staged_steps_equal(case: Case, cls: type[Method], epoch: int = 0, **options: Any) -> None:
    """Two steps of a case's staged networks leave the public losses, weights and statistics.

    Where the method cuts the gradient's length, the length before that is the public one too. epoch: of 240, from 0.
    """
    networks = {"student": StagedNetwork((3, 4, 5, 6)), "teacher": StagedNetwork((4, 5, 6, 8))}
    for name, network in networks.items():
        network.load_state_dict(case.weights(f"{name}."), strict=False)
    student, teacher = networks["student"].train(), networks["teacher"].eval()
    optimizer = optimiser_of(case, student)
    for number in (1, 2):
        images, labels = case.input(f"images_batch{number}"), case.input(f"labels_batch{number}")
        with torch.no_grad():
            taught = teacher(images)
        own = student(images)
        context = stub_context(shape_from("student", own), shape_from("teacher", taught))
        method = cls(context, cls.Options(**options))
        loss, _ = method.loss(stub_step(labels, None, epoch, 240, student=own, teacher=taught))
        assert_close(loss, case.expected(f"step{number}_total_loss"))
        optimizer.zero_grad()
        loss.backward()
        if method.longest_gradient is not None:
            length = nn.utils.clip_grad_norm_(student.parameters(), method.longest_gradient)
            assert_close(length, case.expected(f"step{number}_gradient_norm_before_clipping"))
        optimizer.step()
    assert_state(case, {"student.": student})
