"""ShuffleNet v2 for small images (Ma et al., 2018), as the distillation literature uses it.

Names and order of the parameters are those of RepDistiller's `ShuffleV2` at width 1: a 1x1 stem without pooling.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.backbones.auxiliary import AuxiliaryBranches, repeat_stages
from benchmark.backbones.family import Architecture
from benchmark.backbones.network import Network, Outputs
from benchmark.backbones.shufflenet_v1 import shuffle_channels

STEM_WIDTH = 24
WIDTHS = {1: (116, 232, 464, 1024), 2: (48, 96, 192, 1024), 4: (24, 48, 96, 512)}
"""Channels of the three stages and of the head, by the divisor in the name: the paper's at its widths 1 and 0.5, and
half of the latter. A quarter of 116 would not divide into two halves."""
STAGE_UNITS = (4, 8, 4)


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


def _pointwise(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)


class Unit(nn.Module):
    """Two halves of the channels, joined and shuffled."""

    def halves(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the first half and the second one, the second before its last ReLU."""
        raise NotImplementedError

    def forward(self, maps: Tensor) -> Tensor:
        return join(*self.halves(maps))


class DownUnit(Unit):
    """Two branches over the whole input, each with half of the output's channels, joined and shuffled."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = _depthwise(in_channels, stride)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = _pointwise(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _pointwise(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = _depthwise(half, stride)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = _pointwise(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def halves(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        left = self.bn1(self.conv1(maps))
        left = F.relu(self.bn2(self.conv2(left)), inplace=True)
        right = F.relu(self.bn3(self.conv3(maps)), inplace=True)
        right = self.bn4(self.conv4(right))
        return left, self.bn5(self.conv5(right))


class BasicUnit(Unit):
    """The first half of the channels passes, the second is transformed; joined and shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = _pointwise(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = _depthwise(half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _pointwise(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def halves(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        passed, transformed = maps.chunk(2, dim=1)
        transformed = F.relu(self.bn1(self.conv1(transformed)), inplace=True)
        transformed = self.bn2(self.conv2(transformed))
        return passed, self.bn3(self.conv3(transformed))


def join(passed: Tensor, transformed: Tensor) -> Tensor:
    """Join the two halves of a unit to its map."""
    return shuffle_channels(torch.cat([passed, F.relu(transformed)], dim=1), 2)


def stage(in_channels: int, out_channels: int, units: int, stride: int) -> nn.Sequential:
    """Build a down unit with the stride, and basic units, `units` in all."""
    first = DownUnit(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicUnit(out_channels) for _ in range(units - 1)))


class ShuffleNetV2(Network):
    """Three stages with stride 2 each, a 1x1 convolution, then an average over all positions and a linear layer.

    Stage maps are taken after the last shuffle. Pre-activations are what the last unit joins, before its ReLU and
    *before* the shuffle, as in the public code; their channels are therefore in another order than the stage map's.
    """

    after_stages = ("conv2", "bn2", "linear")

    def __init__(self, num_classes: int, divisor: int = 1, units: int | None = None) -> None:
        super().__init__()
        first, second, third, head = WIDTHS[divisor]
        first_units, second_units, third_units = 3 * (units,) if units else STAGE_UNITS
        self.conv1 = _pointwise(3, STEM_WIDTH)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        self.layer1 = stage(STEM_WIDTH, first, first_units, stride=2)
        self.layer2 = stage(first, second, second_units, stride=2)
        self.layer3 = stage(second, third, third_units, stride=2)
        self.conv2 = _pointwise(third, head)
        self.bn2 = nn.BatchNorm2d(head)
        self.linear = nn.Linear(head, num_classes)

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        stem = F.relu(self.bn1(self.conv1(images)), inplace=True)
        maps, stages, before = stem, [], []
        for part in (self.layer1, self.layer2, self.layer3):
            *earlier, last = part
            for unit in earlier:
                maps = unit(maps)
            passed, transformed = cast(Unit, last).halves(maps)
            maps = join(passed, transformed)
            stages.append(maps)
            if preactivations:
                before.append(torch.cat([passed, transformed], dim=1))
        averaged = F.relu(self.bn2(self.conv2(maps)), inplace=True)
        return self.make_outputs(stem, stages, averaged, before if preactivations else None)


def shufflenet_v2_branches(num_outputs: int, divisor: int = 1, units: int | None = None) -> AuxiliaryBranches:
    """Build the branches of ShuffleNet v2, each with a last 1x1 convolution of its own."""
    *widths, head = WIDTHS[divisor]
    rows = 3 * (units,) if units else STAGE_UNITS
    repeated = repeat_stages(lambda index, width, stride: stage(width, widths[index], rows[index], stride), widths)
    extractors = [
        nn.Sequential(*stages, _pointwise(widths[-1], head), nn.BatchNorm2d(head), nn.ReLU()) for stages in repeated
    ]
    return AuxiliaryBranches(extractors, head, num_outputs)


NETWORKS = {"ShuffleNetV2": Architecture(ShuffleNetV2, shufflenet_v2_branches, grouped=True, mobile=True)}
