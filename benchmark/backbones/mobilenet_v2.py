"""MobileNetV2 for small images (Sandler et al., 2018), as the distillation literature uses it.

Names and order of the parameters are those of RepDistiller's `mobilenetv2` with expansion 6 at width 1/2, or of HSAKD's
`mobilenetV2`, which keeps the image's size in its stem and calls its last layer `classifier`. Unlike the paper, the
activation is ReLU, the first group has an expanding convolution too, and the head keeps its full width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmark.backbones.auxiliary import AuxiliaryBranches
from benchmark.backbones.initialisation import fill_parameters
from benchmark.backbones.network import Network, Outputs


class Group(NamedTuple):
    """Units in a row; the first one changes the width and has the stride.

    expansion: how many times as many channels a unit has inside as it receives; channels: of the group's map.
    """

    expansion: int
    channels: int
    units: int
    stride: int


STEM_WIDTH = 16
GROUPS = (
    Group(1, 8, 1, 1),
    Group(6, 12, 2, 1),
    Group(6, 16, 3, 2),
    Group(6, 32, 4, 2),
    Group(6, 48, 3, 1),
    Group(6, 80, 3, 2),
    Group(6, 160, 1, 1),
)
HEAD_WIDTH = 1280
STAGE_ENDS = (2, 3, 5, 7)
"""The stage maps are those behind so many groups."""


def groups_of_branches(groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    """The groups that the branch on each stage map repeats, by HSAKD's rule (see `auxiliary`)."""
    repeated = [tuple(groups[end:]) for end in STAGE_ENDS[:-1]]
    first, *rest = repeated[-1]
    return [*repeated, (first._replace(stride=1), *rest)]


def inverted_bottleneck(
    in_channels: int,
    out_channels: int,
    expansion: int,
    stride: int,
    activation: Callable[[], nn.Module],
    bias: bool = False,
) -> nn.Sequential:
    """1x1 convolution to `expansion` times the channels, depthwise 3x3, 1x1, each with a norm; the last one linear."""
    inner = expansion * in_channels
    return nn.Sequential(
        nn.Conv2d(in_channels, inner, 1, bias=bias),
        nn.BatchNorm2d(inner),
        activation(),
        nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=bias),
        nn.BatchNorm2d(inner),
        activation(),
        nn.Conv2d(inner, out_channels, 1, bias=bias),
        nn.BatchNorm2d(out_channels),
    )


def _relu() -> nn.Module:
    return nn.ReLU(inplace=True)


class Unit(nn.Module):
    """An inverted bottleneck, added to the input where that has the same size and width; no activation at its end."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        self.skips = stride == 1 and in_channels == out_channels
        self.conv = inverted_bottleneck(in_channels, out_channels, expansion, stride, _relu)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.conv(maps) if self.skips else self.conv(maps)


def _group(in_channels: int, group: Group) -> nn.Sequential:
    first = Unit(in_channels, group.channels, group.expansion, group.stride)
    rest = (Unit(group.channels, group.channels, group.expansion, 1) for _ in range(group.units - 1))
    return nn.Sequential(first, *rest)


def _groups(in_channels: int, groups: Sequence[Group]) -> nn.Sequential:
    widths = (in_channels, *(group.channels for group in groups))
    return nn.Sequential(*(_group(width, group) for width, group in zip(widths, groups, strict=False)))


def _head() -> tuple[nn.Module, nn.Module]:
    """The last 1x1 convolution and its norm, which a ReLU follows."""
    return nn.Conv2d(GROUPS[-1].channels, HEAD_WIDTH, 1, bias=False), nn.BatchNorm2d(HEAD_WIDTH)


class MobileNetV2(Network):
    """Seven groups of units, a 1x1 convolution, then an average over all positions and the classifier.

    classifier: [batch, 1280] to [batch, num_classes], given because projects differ in the key it has in checkpoints.
    Four of the groups' maps are stage maps. They are linear, so pre-activations are the stage maps themselves.
    """

    after_stages = ("conv2", "classifier")

    def __init__(self, stem_stride: int, num_classes: int, classifier: nn.Module) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, STEM_WIDTH, 3, stem_stride, padding=1, bias=False), nn.BatchNorm2d(STEM_WIDTH), _relu()
        )
        self.blocks = _groups(STEM_WIDTH, GROUPS)
        self.conv2 = nn.Sequential(*_head(), _relu())
        self.classifier = classifier

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        stem = self.conv1(images)
        maps, stages = stem, []
        for number, group in enumerate(self.blocks, start=1):
            maps = group(maps)
            if number in STAGE_ENDS:
                stages.append(maps)
        pooled = self.conv2(maps).mean((2, 3))
        linear_maps = tuple(stages)
        return Outputs(self.classifier(pooled), pooled, stem, linear_maps, linear_maps if preactivations else None)

    def initialise(self, generator: Callable[[str], torch.Generator]) -> None:
        fill_parameters(self, generator, convolution="he_fan_out", linear="normal")


def mobilenet_v2(num_classes: int) -> MobileNetV2:
    """MobileNetV2 at width 1/2 as in RepDistiller: the stem halves the image."""
    # A sequence of one, because the key in RepDistiller's checkpoints is `classifier.0`.
    return MobileNetV2(2, num_classes, nn.Sequential(nn.Linear(HEAD_WIDTH, num_classes)))


def mobilenet_v2_s1(num_classes: int) -> MobileNetV2:
    """MobileNetV2 at width 1/2 as in HSAKD: the stem has stride 1, so every map is twice as large each way."""
    return MobileNetV2(1, num_classes, nn.Linear(HEAD_WIDTH, num_classes))


def mobilenet_v2_branches(num_outputs: int) -> AuxiliaryBranches:
    """The branches of both, each with a last 1x1 convolution of its own; HSAKD has them for the stem with stride 1."""
    inputs = [GROUPS[end - 1].channels for end in STAGE_ENDS]
    extractors = [_groups(width, groups) for width, groups in zip(inputs, groups_of_branches(GROUPS), strict=True)]
    tails = [nn.Sequential(*_head()) for _ in extractors]
    return AuxiliaryBranches(
        extractors, HEAD_WIDTH, num_outputs, "he_fan_out", "normal", tail_name="conv2_", tails=tails
    )
