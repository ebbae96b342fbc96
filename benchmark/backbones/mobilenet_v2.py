"""MobileNetV2 for small images (Sandler et al., 2018), as the distillation literature uses it.

Names and order of the parameters are those of RepDistiller's `mobilenetv2` with expansion 6 at width 1/2, or of HSAKD's
`mobilenetV2`, which keeps the image's size in its stem and calls its last layer `classifier`. Unlike the paper, the
activation is ReLU, the first group has an expanding convolution too, and the head keeps its full width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from benchmark.backbones.auxiliary import AuxiliaryBranches
from benchmark.backbones.family import Architecture
from benchmark.backbones.network import Network, Outputs


class Group(NamedTuple):
    """Units in a row; the first one changes the width and has the stride.

    expansion: how many times as many channels a unit has inside as it receives; channels: of the group's map.
    """

    expansion: int
    channels: int
    units: int
    stride: int


class Widths(NamedTuple):
    """Channels of the stem, the groups, and channels of the last 1x1 convolution."""

    stem: int
    groups: tuple[Group, ...]
    head: int

    def divided(self, divisor: int, units: int | None = None) -> Widths:
        """Divide all channels, and give every group as many units as `units` says."""
        groups = tuple(
            group._replace(channels=group.channels // divisor, units=units or group.units) for group in self.groups
        )
        return Widths(self.stem // divisor, groups, self.head // divisor)


WIDTHS = Widths(
    16,
    (
        Group(1, 8, 1, 1),
        Group(6, 12, 2, 1),
        Group(6, 16, 3, 2),
        Group(6, 32, 4, 2),
        Group(6, 48, 3, 1),
        Group(6, 80, 3, 2),
        Group(6, 160, 1, 1),
    ),
    1280,
)
STAGE_ENDS = (2, 3, 5, 7)
"""The stage maps are those behind so many groups."""


def groups_of_branches(groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    """List the groups that the branch on each stage map repeats, by HSAKD's rule (see `auxiliary`)."""
    repeated = [tuple(groups[end:]) for end in STAGE_ENDS[:-1]]
    first, *rest = repeated[-1]
    return [*repeated, (first._replace(stride=1), *rest)]


def _relu() -> nn.Module:
    return nn.ReLU(inplace=True)


class Unit(nn.Module):
    """An inverted bottleneck, added to the input where that has the same size and width; no activation at its end.

    The bottleneck is a 1x1 convolution to `expansion` times the channels, a depthwise 3x3 and a 1x1, each with a norm.
    name: of the bottleneck's sub-module, which the public networks call differently.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: int,
        stride: int,
        name: str = "conv",
        activation: Callable[[], nn.Module] = _relu,
        bias: bool = False,
    ) -> None:
        super().__init__()
        inner = expansion * in_channels
        self.skips = stride == 1 and in_channels == out_channels
        self.name = name
        bottleneck = nn.Sequential(
            nn.Conv2d(in_channels, inner, 1, bias=bias),
            nn.BatchNorm2d(inner),
            activation(),
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=bias),
            nn.BatchNorm2d(inner),
            activation(),
            nn.Conv2d(inner, out_channels, 1, bias=bias),
            nn.BatchNorm2d(out_channels),
        )
        self.add_module(name, bottleneck)

    def forward(self, maps: Tensor) -> Tensor:
        residual = self.get_submodule(self.name)(maps)
        return maps + residual if self.skips else residual


def build_groups(unit: Callable[..., Unit], in_channels: int, groups: Sequence[Group]) -> list[list[Unit]]:
    """Build the units of each group; the first group reads `in_channels`. unit: takes the first arguments of `Unit`."""
    built = []
    for group in groups:
        first = unit(in_channels, group.channels, group.expansion, group.stride)
        rest = (unit(group.channels, group.channels, group.expansion, 1) for _ in range(group.units - 1))
        built.append([first, *rest])
        in_channels = group.channels
    return built


def run_groups(groups: Iterable[nn.Module], stem: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Compute the map of the last group, and the stage maps."""
    maps, stages = stem, []
    for number, group in enumerate(groups, start=1):
        maps = group(maps)
        if number in STAGE_ENDS:
            stages.append(maps)
    return maps, tuple(stages)


def _groups(in_channels: int, groups: Sequence[Group]) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(*units) for units in build_groups(Unit, in_channels, groups)))


def _head(widths: Widths) -> tuple[nn.Module, nn.Module]:
    """Build the last 1x1 convolution and its norm, which a ReLU follows."""
    return nn.Conv2d(widths.groups[-1].channels, widths.head, 1, bias=False), nn.BatchNorm2d(widths.head)


class MobileNetV2(Network):
    """Seven groups of units, a 1x1 convolution, then an average over all positions and the classifier.

    In RepDistiller's network the stem halves the image; in HSAKD's it has stride 1, so every map is twice as large each
    way. Four of the groups' maps are stage maps. They are linear, so pre-activations are the stage maps themselves.
    """

    after_stages = ("conv2", "classifier")
    convolution_rule = "he_fan_out"
    linear_rule = "normal"

    def __init__(self, stem_stride: int, num_classes: int, divisor: int = 1, units: int | None = None) -> None:
        super().__init__()
        widths = WIDTHS.divided(divisor, units)
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, widths.stem, 3, stem_stride, padding=1, bias=False), nn.BatchNorm2d(widths.stem), _relu()
        )
        self.blocks = _groups(widths.stem, widths.groups)
        self.conv2 = nn.Sequential(*_head(widths), _relu())
        classifier = nn.Linear(widths.head, num_classes)
        # A sequence of one in RepDistiller's network, because the key in its checkpoints is `classifier.0`.
        self.classifier = nn.Sequential(classifier) if stem_stride == 2 else classifier

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        stem = self.conv1(images)
        maps, stages = run_groups(self.blocks, stem)
        return self.make_outputs(stem, stages, self.conv2(maps), stages if preactivations else None)


def mobilenet_v2_branches(num_outputs: int, divisor: int = 1, units: int | None = None) -> AuxiliaryBranches:
    """Build the branches of both, each with a last 1x1 convolution of its own.

    HSAKD has them for the stem with stride 1.
    """
    widths = WIDTHS.divided(divisor, units)
    inputs = [widths.groups[end - 1].channels for end in STAGE_ENDS]
    repeated = groups_of_branches(widths.groups)
    extractors = [_groups(width, groups) for width, groups in zip(inputs, repeated, strict=True)]
    tails = [nn.Sequential(*_head(widths)) for _ in extractors]
    return AuxiliaryBranches(
        extractors, widths.head, num_outputs, "he_fan_out", "normal", tail_name="conv2_", tails=tails
    )


NETWORKS = {
    "MobileNetV2": Architecture(partial(MobileNetV2, 2), mobilenet_v2_branches, grouped=True, mobile=True),
    "MobileNetV2-s1": Architecture(partial(MobileNetV2, 1), mobilenet_v2_branches, grouped=True, mobile=True),
}
