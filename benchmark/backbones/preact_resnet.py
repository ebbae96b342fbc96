"""Residual networks with pre-activation (He et al., 2016, "Identity mappings"), as PS-KD and CS-KD use them.

Names and order of the parameters are those of PS-KD's `PreActResNet18` (CS-KD's `CIFAR_ResNet18` is the same network).
Unlike the paper's, its stem has a norm and ReLU, its skips start behind the block's first ReLU also where they are
identities, and neither norm nor ReLU follows the last block.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.backbones.auxiliary import AuxiliaryBranches, repeat_stages
from benchmark.backbones.family import Architecture, divide_channels
from benchmark.backbones.network import Network, Outputs

STAGE_WIDTHS = (64, 128, 256, 512)
"""Channels of the stages; the stem has as many as the first one."""


class Block(nn.Module):
    """Norm, ReLU, 3x3 convolution, twice, added to the *activated* input or to a 1x1 convolution of it."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))

    def forward(self, maps: Tensor) -> Tensor:
        activated = F.relu(self.bn1(maps), inplace=True)
        residual = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        return residual + (activated if self.shortcut is None else self.shortcut(activated))


def stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Build two blocks; the first one changes the width and has the stride."""
    return nn.Sequential(Block(in_channels, out_channels, stride), Block(out_channels, out_channels, 1))


class PreActResNet(Network):
    """Four stages of two blocks with strides 1, 2, 2, 2, then an average over all positions and a linear layer.

    Stage maps are raw residual sums, and pre-activations are these themselves: no ReLU ends a block.
    """

    after_stages = ("linear",)

    def __init__(self, num_classes: int, divisor: int = 1) -> None:
        super().__init__()
        widths = divide_channels(STAGE_WIDTHS, divisor)
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = stage(widths[0], widths[0], stride=1)
        self.layer2 = stage(widths[0], widths[1], stride=2)
        self.layer3 = stage(widths[1], widths[2], stride=2)
        self.layer4 = stage(widths[2], widths[3], stride=2)
        self.linear = nn.Linear(widths[3], num_classes)

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        stem = F.relu(self.bn1(self.conv1(images)), inplace=True)
        first = self.layer1(stem)
        second = self.layer2(first)
        third = self.layer3(second)
        fourth = self.layer4(third)
        sums = (first, second, third, fourth)
        return self.make_outputs(stem, sums, fourth, sums if preactivations else None)


def preact_resnet18_branches(num_outputs: int, divisor: int = 1) -> AuxiliaryBranches:
    """Build the branches of PreActResNet18; like the network, they average raw residual sums.

    The public code has none; these follow HSAKD's rule (see `auxiliary`).
    """
    widths = divide_channels(STAGE_WIDTHS, divisor)
    extractors = repeat_stages(lambda index, width, stride: stage(width, widths[index], stride), widths)
    return AuxiliaryBranches(extractors, widths[-1], num_outputs)


NETWORKS = {"PreActResNet18": Architecture(PreActResNet, preact_resnet18_branches)}
