"""MobileNetV2 as teacher-free distillation uses it on small images (Yuan et al., 2020).

Names and order of the parameters are those of Tf-KD's `mobilenetv2`: the paper's width 1 and ReLU6, a bias in every
convolution, a 1x1 stem whose padding adds a border of one pixel, and a 1x1 convolution as the last layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from benchmark.backbones.auxiliary import AuxiliaryBranches
from benchmark.backbones.family import Architecture
from benchmark.backbones.mobilenet_v2 import (
    STAGE_ENDS,
    Group,
    Unit,
    Widths,
    build_groups,
    groups_of_branches,
    run_groups,
)
from benchmark.backbones.network import Network, Outputs

WIDTHS = Widths(
    32,
    (
        Group(1, 16, 1, 1),
        Group(6, 24, 2, 2),
        Group(6, 32, 3, 2),
        Group(6, 64, 4, 2),
        Group(6, 96, 3, 1),
        Group(6, 160, 3, 1),
        Group(6, 320, 1, 1),
    ),
    1280,
)


def _relu6() -> nn.Module:
    return nn.ReLU6(inplace=True)


def _groups(in_channels: int, groups: Sequence[Group]) -> list[nn.Module]:
    """Build the groups; one of a single unit is the unit itself."""
    unit = partial(Unit, name="residual", activation=_relu6, bias=True)
    return [units[0] if len(units) == 1 else nn.Sequential(*units) for units in build_groups(unit, in_channels, groups)]


def _head(in_channels: int, head_width: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, head_width, 1), nn.BatchNorm2d(head_width), _relu6()]


class PointwiseClassifier(nn.Conv2d):
    """A 1x1 convolution in the place of a linear layer: vectors [batch, width] to logits [batch, classes]."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes, 1)

    def forward(self, pooled: Tensor) -> Tensor:
        return super().forward(pooled[:, :, None, None]).flatten(1)


class MobileNetV2TfKD(Network):
    """Seven groups of units, a 1x1 convolution, then an average over all positions and a 1x1 convolution.

    The public code reads no maps; the stage maps are at the places of the other MobileNetV2's. They are linear, so
    pre-activations are the stage maps themselves.
    """

    after_stages = ("conv1", "conv2")

    def __init__(self, num_classes: int, divisor: int = 1) -> None:
        super().__init__()
        stem_width, groups, head_width = WIDTHS.divided(divisor)
        self.pre = nn.Sequential(nn.Conv2d(3, stem_width, 1, padding=1), nn.BatchNorm2d(stem_width), _relu6())
        for number, group in enumerate(_groups(stem_width, groups), start=1):
            self.add_module(f"stage{number}", group)
        self.conv1 = nn.Sequential(*_head(groups[-1].channels, head_width))
        self.conv2 = PointwiseClassifier(head_width, num_classes)

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        stem = self.pre(images)
        groups = (self.get_submodule(f"stage{number}") for number in range(1, len(WIDTHS.groups) + 1))
        maps, stages = run_groups(groups, stem)
        return self.make_outputs(stem, stages, self.conv1(maps), stages if preactivations else None)


def mobilenet_v2_tfkd_branches(num_outputs: int, divisor: int = 1) -> AuxiliaryBranches:
    """Build the branches of Tf-KD's MobileNetV2, each with a 1x1 convolution of its own at the end.

    The public code has none; these follow HSAKD's rule (see `auxiliary`).
    """
    _, groups, head_width = WIDTHS.divided(divisor)
    inputs = [groups[end - 1].channels for end in STAGE_ENDS]
    extractors = [
        nn.Sequential(*_groups(in_channels, repeated), *_head(groups[-1].channels, head_width))
        for in_channels, repeated in zip(inputs, groups_of_branches(groups), strict=True)
    ]
    return AuxiliaryBranches(extractors, head_width, num_outputs)


NETWORKS = {"MobileNetV2-TFKD": Architecture(MobileNetV2TfKD, mobilenet_v2_tfkd_branches, grouped=True, mobile=True)}
