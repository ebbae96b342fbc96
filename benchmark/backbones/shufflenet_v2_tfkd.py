"""ShuffleNet v2 as teacher-free distillation uses it on small images (Yuan et al., 2020).

Names and order of the parameters are those of Tf-KD's `shufflenetv2` at width 1: a 3x3 stem whose norm no ReLU follows,
a bias in every convolution, and a down unit that widens only in its last convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmark.backbones.auxiliary import AuxiliaryBranches, repeat_stages
from benchmark.backbones.family import Architecture
from benchmark.backbones.network import Network, Outputs
from benchmark.backbones.resnet import ActivatedBlock, Stage, run_stages
from benchmark.backbones.shufflenet_v1 import shuffle_channels
from benchmark.backbones.shufflenet_v2 import STAGE_UNITS, STEM_WIDTH, WIDTHS


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels)


def _residual(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Build a 1x1, a depthwise 3x3 and a 1x1 convolution that changes the width, with norms, without the last ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 1),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        _depthwise(in_channels, stride),
        nn.BatchNorm2d(in_channels),
        nn.Conv2d(in_channels, out_channels, 1),
        nn.BatchNorm2d(out_channels),
    )


class DownUnit(ActivatedBlock):
    """Two branches over the whole input, each with half of the output's channels, joined, shuffled, then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.residual = _residual(in_channels, half, stride)
        self.shortcut = nn.Sequential(
            _depthwise(in_channels, stride),
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, half, 1),
            nn.BatchNorm2d(half),
        )

    def before_activation(self, maps: Tensor) -> Tensor:
        return shuffle_channels(torch.cat([self.shortcut(maps), self.residual(maps)], dim=1), 2)


class BasicUnit(ActivatedBlock):
    """The first half of the channels passes, the second is transformed; joined, shuffled, then ReLU.

    The public unit has its ReLU on the second half alone. The first comes out of an earlier unit's ReLU, which another
    one leaves as it is.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = _residual(channels // 2, channels // 2, 1)

    def before_activation(self, maps: Tensor) -> Tensor:
        passed, transformed = maps.chunk(2, dim=1)
        return shuffle_channels(torch.cat([passed, self.residual(transformed)], dim=1), 2)


def stage(in_channels: int, out_channels: int, units: int, stride: int) -> Stage:
    """Build a down unit with the stride, and basic units, `units` in all."""
    return Stage(DownUnit(in_channels, out_channels, stride), *(BasicUnit(out_channels) for _ in range(units - 1)))


def _head(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


class ShuffleNetV2TfKD(Network):
    """Three stages with stride 2 each, a 1x1 convolution, then an average over all positions and a linear layer.

    Pre-activations are the stage maps before their last ReLU, in the same order of channels.
    """

    after_stages = ("conv5", "fc")

    def __init__(self, num_classes: int, divisor: int = 1) -> None:
        super().__init__()
        first, second, third, head = WIDTHS[divisor]
        self.pre = nn.Sequential(nn.Conv2d(3, STEM_WIDTH, 3, padding=1), nn.BatchNorm2d(STEM_WIDTH))
        self.stage2 = stage(STEM_WIDTH, first, STAGE_UNITS[0], stride=2)
        self.stage3 = stage(first, second, STAGE_UNITS[1], stride=2)
        self.stage4 = stage(second, third, STAGE_UNITS[2], stride=2)
        self.conv5 = nn.Sequential(*_head(third, head))
        self.fc = nn.Linear(head, num_classes)

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        stem = self.pre(images)
        stages, before = run_stages((self.stage2, self.stage3, self.stage4), stem)
        averaged = self.conv5(stages[-1])
        return self.make_outputs(stem, stages, averaged, before if preactivations else None)


def shufflenet_v2_tfkd_branches(num_outputs: int, divisor: int = 1) -> AuxiliaryBranches:
    """Build the branches of Tf-KD's ShuffleNet v2, each with a last 1x1 convolution of its own.

    The public code has none; these follow HSAKD's for the other ShuffleNet v2.
    """
    *widths, head = WIDTHS[divisor]
    repeated = repeat_stages(
        lambda index, width, stride: stage(width, widths[index], STAGE_UNITS[index], stride), widths
    )
    extractors = [nn.Sequential(*stages, *_head(widths[-1], head)) for stages in repeated]
    return AuxiliaryBranches(extractors, head, num_outputs)


NETWORKS = {"ShuffleNetV2-TFKD": Architecture(ShuffleNetV2TfKD, shufflenet_v2_tfkd_branches, grouped=True, mobile=True)}
