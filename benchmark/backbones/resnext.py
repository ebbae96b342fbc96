"""ResNeXt for small images (Xie et al., 2017), as PS-KD and Tf-KD use it.

Names and order of the parameters are those of both projects' ResNeXt29-8x64d: 29 layers, 8 groups of 64 channels in the
first stage's 3x3 convolutions.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.backbones.auxiliary import AuxiliaryBranches, repeat_stages
from benchmark.backbones.family import Architecture, divide_channels
from benchmark.backbones.network import Network, Outputs
from benchmark.backbones.resnet import ActivatedBlock, Stage, run_stages

GROUPS = 8
STEM_WIDTH = 64
STAGE_WIDTHS = (256, 512, 1024)
BLOCKS = 3


class Bottleneck(ActivatedBlock):
    """1x1, grouped 3x3 and 1x1 convolution, each with a norm, added to the input or to its projection, then ReLU.

    Inside it is twice as wide as its output.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        inner = 2 * out_channels
        self.conv_reduce = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(inner)
        self.conv_conv = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=GROUPS, bias=False)
        self.bn = nn.BatchNorm2d(inner)
        self.conv_expand = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Sequential | None = None
        if in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            named = OrderedDict[str, nn.Module](shortcut_conv=projection, shortcut_bn=nn.BatchNorm2d(out_channels))
            self.shortcut = nn.Sequential(named)

    def before_activation(self, maps: Tensor) -> Tensor:
        residual = F.relu(self.bn_reduce(self.conv_reduce(maps)), inplace=True)
        residual = F.relu(self.bn(self.conv_conv(residual)), inplace=True)
        residual = self.bn_expand(self.conv_expand(residual))
        return residual + (maps if self.shortcut is None else self.shortcut(maps))


def stage(number: int, in_channels: int, out_channels: int, stride: int) -> Stage:
    """Build a row of bottlenecks, named after the stage's number; the first changes the width and has the stride."""
    blocks = OrderedDict[str, nn.Module]()
    for index in range(BLOCKS):
        first = index == 0
        block = Bottleneck(in_channels if first else out_channels, out_channels, stride if first else 1)
        blocks[f"stage_{number}_bottleneck_{index}"] = block
    return Stage(blocks)


class ResNeXt(Network):
    """Three stages of bottlenecks with strides 1, 2, 2, then an average over all positions and a linear layer.

    Pre-activations are the last residual sums of the stages, before their ReLU.
    """

    after_stages = ("classifier",)
    convolution_rule = "he_fan_out"
    linear_rule = "he_fan_in"

    def __init__(self, num_classes: int, divisor: int = 1) -> None:
        super().__init__()
        stem, first, second, third = divide_channels((STEM_WIDTH, *STAGE_WIDTHS), divisor)
        self.conv_1_3x3 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn_1 = nn.BatchNorm2d(stem)
        self.stage_1 = stage(1, stem, first, stride=1)
        self.stage_2 = stage(2, first, second, stride=2)
        self.stage_3 = stage(3, second, third, stride=2)
        self.classifier = nn.Linear(third, num_classes)

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        stem = F.relu(self.bn_1(self.conv_1_3x3(images)), inplace=True)
        stages, before = run_stages((self.stage_1, self.stage_2, self.stage_3), stem)
        return self.make_outputs(stem, stages, stages[-1], before if preactivations else None)


def resnext29_8x64d_branches(num_outputs: int, divisor: int = 1) -> AuxiliaryBranches:
    """Build the branches of ResNeXt29-8x64d, which are initialised as the network.

    The public code has none; these follow HSAKD's rule (see `auxiliary`).
    """
    widths = divide_channels(STAGE_WIDTHS, divisor)
    extractors = repeat_stages(lambda index, width, stride: stage(index + 1, width, widths[index], stride), widths)
    return AuxiliaryBranches(extractors, widths[-1], num_outputs, "he_fan_out", "he_fan_in")


NETWORKS = {"ResNeXt29": Architecture(ResNeXt, resnext29_8x64d_branches, grouped=True)}
