"""Residual networks for small images (He et al., 2016, section 4.2), as the distillation literature uses them.

Names and order of the parameters are those of RepDistiller's `resnet`. Unlike the paper's networks, these project
the skip by a 1x1 convolution and a norm wherever the stride or the width changes.
"""

from __future__ import annotations

import re
from functools import partial
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.backbones.auxiliary import AuxiliaryBranches, repeat_stages
from benchmark.backbones.family import DIVISOR, NUMBER, Architecture, Family, blocks_per_stage, divide_channels
from benchmark.backbones.network import Network, Outputs

NARROW = (16, 16, 32, 64)
"""Channels of the stem and the three stages of the networks without `x4`."""
FOURFOLD = (32, 64, 128, 256)
"""Channels of the `x4` networks; only the stages are four times as wide, the stem is twice."""
LAYERS_OUTSIDE = 2
"""Layers of the depth that are in no block."""


class ActivatedBlock(nn.Module):
    """A block whose last operation is a ReLU, and which also gives its map before that ReLU."""

    def before_activation(self, maps: Tensor) -> Tensor:
        """Compute the block's map [batch, channels, height, width] before its last ReLU."""
        raise NotImplementedError

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.before_activation(maps))


class Stage(nn.Sequential):
    """`ActivatedBlock`s in a row."""

    def before_activation(self, maps: Tensor) -> Tensor:
        """Compute the stage's map before the last ReLU of its last block."""
        *earlier, last = self
        for block in earlier:
            maps = block(maps)
        return cast(ActivatedBlock, last).before_activation(maps)


class ResidualBlock(ActivatedBlock):
    """Convolutions whose result is added to the input, then ReLU.

    Where the stride or the width changes, a 1x1 convolution and a norm project the input first; public networks
    differ in the name of that sub-module, `skip_name`.
    """

    def __init__(self, skip_name: str) -> None:
        super().__init__()
        self.skip_name = skip_name

    def residual(self, maps: Tensor) -> Tensor:
        """Compute what is added to the input or its projection."""
        raise NotImplementedError

    def add_projection(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Register the projection, or None where there is nothing to change; call it after all other sub-modules."""
        projection = None
        if stride != 1 or in_channels != out_channels:
            projection = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.add_module(self.skip_name, projection)

    def before_activation(self, maps: Tensor) -> Tensor:
        projection = getattr(self, self.skip_name)
        return self.residual(maps) + (maps if projection is None else projection(maps))


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions, each with a norm; a ReLU between them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, skip_name: str = "downsample") -> None:
        super().__init__(skip_name)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.add_projection(in_channels, out_channels, stride)

    def residual(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        return self.bn2(self.conv2(inner))


def stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> Stage:
    """Build a row of basic blocks; the first one changes the width and has the stride."""
    first = BasicBlock(in_channels, out_channels, stride)
    return Stage(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


class ResNet(Network):
    """Three stages of basic blocks with strides 1, 2, 2, then an average over all positions and a linear layer.

    Pre-activations are the last residual sums of the stages, before their ReLU.
    """

    after_stages = ("fc",)
    convolution_rule = "he_fan_out"

    def __init__(self, depth: int, widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        blocks = blocks_per_stage(depth, LAYERS_OUTSIDE)
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        stem = F.relu(self.bn1(self.conv1(images)), inplace=True)
        stages, before = run_stages((self.layer1, self.layer2, self.layer3), stem)
        return self.make_outputs(stem, stages, stages[-1], before if preactivations else None)


def run_stages(stages: tuple[Stage, ...], maps: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Compute the maps of each stage in turn, after and before their last ReLU."""
    after, before = [], []
    for part in stages:
        summed = part.before_activation(maps)
        maps = F.relu(summed)
        before.append(summed)
        after.append(maps)
    return tuple(after), tuple(before)


def resnet_branches(depth: int, widths: tuple[int, ...], num_outputs: int) -> AuxiliaryBranches:
    """Build the branches of a ResNet with these channels of stem and stages.

    HSAKD's code has those of ResNet20, 56, 8x4 and 32x4; for other depths they follow the same rule. The branches'
    linear biases start at zero, though the backbone's do not: so does the public code.
    """
    blocks = blocks_per_stage(depth, LAYERS_OUTSIDE)
    outputs = widths[1:]
    extractors = repeat_stages(lambda index, width, stride: stage(width, outputs[index], blocks, stride), outputs)
    return AuxiliaryBranches(extractors, outputs[-1], num_outputs, "he_fan_out", "zero_bias")


def _architecture(match: re.Match[str]) -> Architecture:
    depth, divisor = int(match[1]), int(match[3] or 1)
    widths = divide_channels(FOURFOLD if match[2] else NARROW, divisor)
    blocks_per_stage(depth, LAYERS_OUTSIDE)
    return Architecture(partial(ResNet, depth, widths), partial(resnet_branches, depth, widths))


FAMILY = Family(
    "ResNet<depth> and ResNet<depth>x4 (depth 6n + 2), also with -x1/2 or -x1/4",
    re.compile(f"ResNet{NUMBER}(x4)?{DIVISOR}"),
    _architecture,
)
