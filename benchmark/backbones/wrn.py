"""Wide residual networks for small images (Zagoruyko and Komodakis, 2016), as the distillation literature uses them.

Names and order of the parameters are those of RepDistiller's `wrn`; the stage maps are raw residual sums, so the
norm and ReLU that follow them belong to the next stage (or, for the last stage, to the network).
"""

from __future__ import annotations

import re
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.backbones.auxiliary import AuxiliaryBranches, repeat_stages
from benchmark.backbones.family import DIVISOR, NUMBER, Architecture, Family, blocks_per_stage, divide_channels
from benchmark.backbones.network import Network, Outputs

STEM_WIDTH = 16
LAYERS_OUTSIDE = 4
"""Layers of the depth that are in no block."""
LARGEST_WIDEN_FACTOR = 20
"""Of the widest network in the paper's tables of results."""


def stage_widths(widen_factor: int, divisor: int = 1) -> tuple[int, ...]:
    """Compute the channels of the three stage maps."""
    return divide_channels((16 * widen_factor, 32 * widen_factor, 64 * widen_factor), divisor)


class Block(nn.Module):
    """Norm, ReLU, 3x3 convolution, twice, added to the input.

    Where the width changes, the skip is a 1x1 convolution of the *normalised* input; otherwise it is the raw input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        # The name is the public checkpoints'; a block without projection has no entry in the state dict.
        self.convShortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            self.convShortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        activated = F.relu(self.bn1(maps), inplace=True)
        residual = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        skip = maps if self.convShortcut is None else self.convShortcut(activated)
        return residual + skip


class Stage(nn.Module):
    """Blocks in a row; the first one changes the width and has the stride."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = Block(in_channels, out_channels, stride)
        self.layer = nn.Sequential(first, *(Block(out_channels, out_channels, 1) for _ in range(blocks - 1)))

    @property
    def first_norm(self) -> nn.BatchNorm2d:
        """The norm that this stage's input meets first."""
        first = self.layer[0]
        assert isinstance(first, Block)
        return first.bn1

    def forward(self, maps: Tensor) -> Tensor:
        return self.layer(maps)


def _normalise(norm: nn.BatchNorm2d, maps: Tensor) -> Tensor:
    """Apply `norm` in its present mode to `maps`, without changing its running statistics."""
    if norm.training:
        return F.batch_norm(maps, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    return F.batch_norm(maps, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


class WideResNet(Network):
    """WRN-depth-widen_factor: three stages with strides 1, 2, 2, then norm, ReLU, average over all positions, linear.

    Pre-activations are the stage maps after the norm that comes next, before its ReLU (Heo et al., 2019).
    """

    after_stages = ("bn1", "fc")
    convolution_rule = "he_fan_out"
    linear_rule = "zero_bias"

    def __init__(self, depth: int, widen_factor: int, num_classes: int, divisor: int = 1) -> None:
        super().__init__()
        blocks = blocks_per_stage(depth, LAYERS_OUTSIDE)
        widths = stage_widths(widen_factor, divisor)
        stem_width = STEM_WIDTH // divisor
        self.conv1 = nn.Conv2d(3, stem_width, 3, padding=1, bias=False)
        self.block1 = Stage(stem_width, widths[0], blocks, stride=1)
        self.block2 = Stage(widths[0], widths[1], blocks, stride=2)
        self.block3 = Stage(widths[1], widths[2], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        stem = self.conv1(images)
        first = self.block1(stem)
        second = self.block2(first)
        third = self.block3(second)
        normalised = self.bn1(third)
        averaged = F.relu(normalised)
        before = None
        if preactivations:
            # The stages have already passed these maps through the same norms once. Calling the modules again would
            # count the batch twice in their running statistics, so asking would change the network.
            before = (
                _normalise(self.block2.first_norm, first),
                _normalise(self.block3.first_norm, second),
                normalised,
            )
        return self.make_outputs(stem, (first, second, third), averaged, before)


def wide_resnet_branches(depth: int, widen_factor: int, num_outputs: int, divisor: int = 1) -> AuxiliaryBranches:
    """Build the branches of WRN-depth-widen_factor; maps are raw sums, so each branch has a norm before its ReLU."""
    blocks = blocks_per_stage(depth, LAYERS_OUTSIDE)
    widths = stage_widths(widen_factor, divisor)
    extractors = repeat_stages(lambda index, width, stride: Stage(width, widths[index], blocks, stride), widths)
    norms = [nn.BatchNorm2d(widths[-1]) for _ in extractors]
    return AuxiliaryBranches(
        extractors, widths[-1], num_outputs, "he_fan_out", "zero_bias", tail_name="bn", tails=norms
    )


def _architecture(match: re.Match[str]) -> Architecture:
    depth, widen_factor, divisor = int(match[1]), int(match[2]), int(match[3] or 1)
    blocks_per_stage(depth, LAYERS_OUTSIDE)
    if widen_factor > LARGEST_WIDEN_FACTOR:
        raise ValueError(f"its width must be at most {LARGEST_WIDEN_FACTOR}, not {widen_factor}")
    return Architecture(
        partial(WideResNet, depth, widen_factor, divisor=divisor),
        partial(wide_resnet_branches, depth, widen_factor, divisor=divisor),
    )


FAMILY = Family(
    "WRN-<depth>-<width> (depth 6n + 4), also with -x1/2 or -x1/4",
    re.compile(f"WRN-{NUMBER}-{NUMBER}{DIVISOR}"),
    _architecture,
)
