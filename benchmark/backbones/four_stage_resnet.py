"""Residual networks with four stages (He et al., 2016): ResNet10, 18, 34, 50 and 101 for small images, ResNet18 and 34
for ImageNet.

Names and order of the parameters are those of RepDistiller's `resnetv2` for small images, which PS-KD and Tf-KD share,
and of torchvision's `resnet` for ImageNet. The stride of a bottleneck is on its 3x3 convolution. PS-KD's
"PreAct ResNet-101" is this ResNet101: its code activates after the sum, not before the convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.backbones.auxiliary import AuxiliaryBranches, repeat_stages
from benchmark.backbones.family import Architecture
from benchmark.backbones.network import Network, Outputs
from benchmark.backbones.resnet import BasicBlock, ResidualBlock, Stage, run_stages

EXPANSION = 4
"""Channels of a bottleneck's output for each channel inside it."""


class Bottleneck(ResidualBlock):
    """A 1x1 convolution to a quarter of the channels, a 3x3 one with the stride, a 1x1 one to all channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, skip_name: str) -> None:
        super().__init__(skip_name)
        inner = out_channels // EXPANSION
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.add_projection(in_channels, out_channels, stride)

    def residual(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        inner = F.relu(self.bn2(self.conv2(inner)), inplace=True)
        return self.bn3(self.conv3(inner))


@dataclass(frozen=True)
class Plan:
    """The stages of one network.

    blocks: their number in each stage; bottleneck: whether they are bottlenecks instead of basic blocks;
    base_width: channels of the stem, and inside the blocks of the first stage; they double from stage to stage;
    skip_name: of the projections (see `ResidualBlock`).
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool = False
    base_width: int = 64
    skip_name: str = "shortcut"

    def divided(self, divisor: int) -> Plan:
        """Divide the channels of all stages."""
        return replace(self, base_width=self.base_width // divisor)

    @property
    def stage_widths(self) -> tuple[int, int, int, int]:
        """Channels of the four stage maps."""
        first = self.base_width * (EXPANSION if self.bottleneck else 1)
        return (first, 2 * first, 4 * first, 8 * first)

    def stage(self, index: int, in_channels: int, stride: int) -> Stage:
        """Build the stage of this index (0 to 3) for maps of `in_channels`; its first block has the stride."""
        kind = Bottleneck if self.bottleneck else BasicBlock
        width = self.stage_widths[index]
        first = kind(in_channels, width, stride, self.skip_name)
        return Stage(first, *(kind(width, width, 1, self.skip_name) for _ in range(self.blocks[index] - 1)))


BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Blocks in each stage, by the depth in the name."""


class FourStageResNet(Network):
    """A 3x3 stem, four stages with strides 1, 2, 2, 2, then an average over all positions and a linear layer.

    Pre-activations are the last residual sums of the stages, before their ReLU. The initial weights are RepDistiller's
    rule for this family (He's); PS-KD and Tf-KD keep PyTorch's.
    """

    after_stages = ("linear",)
    convolution_rule = "he_fan_out"

    def __init__(self, plan: Plan, num_classes: int, divisor: int = 1) -> None:
        super().__init__()
        plan = plan.divided(divisor)
        self.conv1 = self._first_convolution(plan.base_width)
        self.bn1 = nn.BatchNorm2d(plan.base_width)
        first, second, third, fourth = plan.stage_widths
        self.layer1 = plan.stage(0, plan.base_width, stride=1)
        self.layer2 = plan.stage(1, first, stride=2)
        self.layer3 = plan.stage(2, second, stride=2)
        self.layer4 = plan.stage(3, third, stride=2)
        self.add_module(self.after_stages[-1], nn.Linear(fourth, num_classes))

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        stem = self._stem(images)
        stages, before = run_stages((self.layer1, self.layer2, self.layer3, self.layer4), stem)
        return self.make_outputs(stem, stages, stages[-1], before if preactivations else None)

    @staticmethod
    def _first_convolution(width: int) -> nn.Conv2d:
        return nn.Conv2d(3, width, 3, padding=1, bias=False)

    def _stem(self, images: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(images)), inplace=True)


class ImageNetResNet(FourStageResNet):
    """The same stages behind a 7x7 stem with stride 2 and a 3x3 max pool with stride 2.

    The stem's map is taken after the pool, where the first stage reads it.
    """

    after_stages = ("fc",)

    @staticmethod
    def _first_convolution(width: int) -> nn.Conv2d:
        return nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)

    def _stem(self, images: Tensor) -> Tensor:
        return F.max_pool2d(super()._stem(images), 3, stride=2, padding=1)


def four_stage_branches(plan: Plan, num_outputs: int, divisor: int = 1) -> AuxiliaryBranches:
    """Build the branches of a network with these stages, for small images and for ImageNet alike.

    HSAKD's code has those of ResNet50 for small images and of the ImageNet networks. It has none that work for
    ResNet18 and 34 for small images, and none for ResNet10 and 101: these follow the same rule, with the network's own
    numbers of blocks.
    """
    plan = plan.divided(divisor)
    widths = plan.stage_widths
    return AuxiliaryBranches(repeat_stages(plan.stage, widths), widths[-1], num_outputs, "he_fan_out")


def _small(depth: int) -> Architecture:
    plan = Plan(BLOCKS[depth], bottleneck=depth >= 50)
    return Architecture(partial(FourStageResNet, plan), partial(four_stage_branches, plan))


def _imagenet(depth: int) -> Architecture:
    plan = Plan(BLOCKS[depth], skip_name="downsample")
    return Architecture(partial(ImageNetResNet, plan), partial(four_stage_branches, plan))


NETWORKS = {
    "ResNet10": _small(10),
    "ResNet18": _small(18),
    "ResNet34": _small(34),
    "ResNet50": _small(50),
    "ResNet101": _small(101),
    "ImageNet-ResNet18": _imagenet(18),
    "ImageNet-ResNet34": _imagenet(34),
}
