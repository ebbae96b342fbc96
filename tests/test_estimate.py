"""What a run is reckoned to cost, against what is counted in a network's own forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmark.backbones import build_branches, build_network
from benchmark.backbones.cost import multiply_adds
from benchmark.method.contract import ROTATIONS
from benchmark.planning.cost import CLASSES, network_cost

FAMILIES = (
    "WRN-16-2",
    "ResNet8",
    "ResNet18-x1/4",
    "VGG8",
    "ShuffleNetV2",
    "MobileNetV2",
    "MobileNetV2-TFKD-x1/2",
    "PreActResNet18-x1/4",
    "ImageNet-ResNet18",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_costs_what_is_counted_in_its_forward(name: str) -> None:
    size = 64 if name.startswith("ImageNet") else 32
    images = torch.zeros(1, 3, size, size)
    network, branches = build_network(name, CLASSES).eval(), build_branches(name, CLASSES * ROTATIONS).eval()
    counted = multiply_adds(network, images)
    convolutions = [sum(isinstance(part, nn.Conv2d) for part in module.modules()) for module in (network, branches)]
    assert network_cost(name, False, size) == (counted, convolutions[0])
    counted += multiply_adds(branches, network(images).branch_maps)
    assert network_cost(name, True, size) == (counted, sum(convolutions))


def test_reckoning_moves_no_random_stream() -> None:
    torch.manual_seed(3)
    first = torch.rand(1)
    torch.manual_seed(3)
    assert network_cost("ResNet32x4", False, 16)[0] > 0
    assert torch.rand(1) == first
