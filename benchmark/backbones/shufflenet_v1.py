"""ShuffleNet v1 for small images (Zhang et al., 2018), as the distillation literature uses it.

Names and order of the parameters are those of RepDistiller's `ShuffleV1`: a 1x1 stem without pooling, three groups,
and, unlike the paper, a ReLU after each depthwise convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.backbones.auxiliary import AuxiliaryBranches, repeat_stages
from benchmark.backbones.family import Architecture, divide_channels
from benchmark.backbones.network import Network, Outputs
from benchmark.backbones.resnet import ActivatedBlock, Stage, run_stages

GROUPS = 3
STEM_WIDTH = 24
"""Of narrower networks too, as in the paper: their groups of channels must stay whole."""
STAGE_WIDTHS = (240, 480, 960)
STAGE_UNITS = (4, 8, 4)


def shuffle_channels(maps: Tensor, groups: int) -> Tensor:
    """Interleave the channels of `groups` equal groups: channel j of group i moves to place j * groups + i."""
    if maps.is_contiguous(memory_format=torch.channels_last):
        # Shuffled in their own layout: the plain way would hand every following convolution channels-first maps.
        pixels = maps.permute(0, 2, 3, 1)
        return pixels.unflatten(3, (groups, -1)).transpose(3, 4).flatten(3).permute(0, 3, 1, 2)
    return maps.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class Unit(ActivatedBlock):
    """Grouped 1x1 convolution, shuffle, depthwise 3x3, grouped 1x1; added to the input, then ReLU.

    With stride 2 the result is joined to the average-pooled input instead, so it has only the channels still missing.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, first_groups: int = GROUPS) -> None:
        super().__init__()
        self.stride = stride
        self.first_groups = first_groups
        branch = out_channels - in_channels if stride == 2 else out_channels
        middle = branch // 4
        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, branch, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)

    def before_activation(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        if self.first_groups > 1:
            inner = shuffle_channels(inner, self.first_groups)
        inner = F.relu(self.bn2(self.conv2(inner)), inplace=True)
        inner = self.bn3(self.conv3(inner))
        if self.stride == 2:
            return torch.cat([inner, F.avg_pool2d(maps, 3, stride=2, padding=1)], dim=1)
        return inner + maps


def stage(in_channels: int, out_channels: int, units: int, stride: int, first_groups: int = GROUPS) -> Stage:
    """Build a row of units; the first one has the stride, and `first_groups` in its first convolution."""
    first = Unit(in_channels, out_channels, stride, first_groups)
    return Stage(first, *(Unit(out_channels, out_channels, 1) for _ in range(units - 1)))


class ShuffleNetV1(Network):
    """Three stages with stride 2 each, then an average over all positions and a linear layer.

    Pre-activations are the stage maps before their last ReLU.
    """

    after_stages = ("linear",)

    def __init__(self, num_classes: int, divisor: int = 1, units: int | None = None) -> None:
        super().__init__()
        first, second, third = divide_channels(STAGE_WIDTHS, divisor)
        first_units, second_units, third_units = 3 * (units,) if units else STAGE_UNITS
        self.conv1 = nn.Conv2d(3, STEM_WIDTH, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        # The stem is too narrow to be worth dividing: the paper's first 1x1 convolution is not grouped either.
        self.layer1 = stage(STEM_WIDTH, first, first_units, stride=2, first_groups=1)
        self.layer2 = stage(first, second, second_units, stride=2)
        self.layer3 = stage(second, third, third_units, stride=2)
        self.linear = nn.Linear(third, num_classes)

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        stem = F.relu(self.bn1(self.conv1(images)), inplace=True)
        stages, before = run_stages((self.layer1, self.layer2, self.layer3), stem)
        return self.make_outputs(stem, stages, stages[-1], before if preactivations else None)


def shufflenet_v1_branches(num_outputs: int, divisor: int = 1, units: int | None = None) -> AuxiliaryBranches:
    """Build the branches of ShuffleNet v1, initialised as in HSAKD: unlike the backbone by He's rule, biases zero."""
    widths = divide_channels(STAGE_WIDTHS, divisor)
    rows = 3 * (units,) if units else STAGE_UNITS
    extractors = repeat_stages(lambda index, width, stride: stage(width, widths[index], rows[index], stride), widths)
    return AuxiliaryBranches(extractors, widths[-1], num_outputs, "he_fan_out", "zero_bias")


NETWORKS = {"ShuffleNetV1": Architecture(ShuffleNetV1, shufflenet_v1_branches, grouped=True, mobile=True)}
