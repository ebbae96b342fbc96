"""VGG with batch norm for small images (Simonyan and Zisserman, 2015), as the distillation literature uses it.

Names and order of the parameters are those of RepDistiller's `vgg`: every convolution has a bias although a norm
follows it, and a single linear layer replaces the paper's three.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.backbones.auxiliary import AuxiliaryBranches
from benchmark.backbones.family import Architecture, divide_channels
from benchmark.backbones.network import Network, Outputs

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five groups of convolutions."""
CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions in each of the five groups, by the depth in the name, which counts the paper's three linear layers."""


class HalvingPool(nn.Module):
    """A 2x2 max pool; maps of a single row or column, of which it would leave nothing, pass as they are."""

    def forward(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps, 2) if min(maps.shape[2:]) > 1 else maps


def group(in_channels: int, out_channels: int, convolutions: int) -> nn.Sequential:
    """Build a row of 3x3 convolutions with norms and a ReLU between them; the caller adds the last ReLU."""
    layers: list[nn.Module] = []
    for channels in (in_channels, *[out_channels] * (convolutions - 1)):
        if layers:
            layers.append(nn.ReLU(inplace=True))
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels)]
    return nn.Sequential(*layers)


class VGG(Network):
    """Five groups of convolutions, an average over all positions, a linear layer.

    The first group is the stem, the other four are the stages; their pre-activations are the maps before the ReLU that
    ends a group. A max pool lies behind each of the first three groups, and behind the fourth if the images have 64
    rows. The branches read the stem and the first, second and fourth stage, as HSAKD's do.
    """

    after_stages = ("classifier",)
    convolution_rule = "he_fan_out"
    linear_rule = "normal"

    def __init__(self, depth: int, num_classes: int, divisor: int = 1) -> None:
        super().__init__()
        widths = divide_channels(WIDTHS, divisor)
        for index, (channels, number) in enumerate(zip(pairwise((3, *widths)), CONVOLUTIONS[depth], strict=True)):
            self.add_module(f"block{index}", group(*channels, number))
        self.pool = HalvingPool()
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        pools_before = {1, 2, 3, 4} if images.shape[2] == 64 else {1, 2, 3}
        maps, before, after = images, [], []
        for index in range(len(WIDTHS)):
            if index in pools_before:
                maps = self.pool(maps)
            before.append(self.get_submodule(f"block{index}")(maps))
            maps = F.relu(before[-1])
            after.append(maps)
        stem, *stages = after
        tapped = (stem, stages[0], stages[1], stages[3])
        return self.make_outputs(stem, stages, maps, before[1:] if preactivations else None, tapped)


def vgg_branches(depth: int, num_outputs: int, divisor: int = 1) -> AuxiliaryBranches:
    """Build the branches of VGG: the rest of the backbone behind the stem and the first, second and fourth stage.

    The last one repeats the last two groups, without a pool. Unlike the backbone's, their weights start by PyTorch's
    rule: the public code has another for them but never calls it.
    """

    widths = divide_channels(WIDTHS, divisor)

    def groups(first: int, in_channels: int, pools_before: tuple[int, ...]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for index in range(first, len(WIDTHS)):
            if index in pools_before:
                layers.append(HalvingPool())
            layers += [group(in_channels, widths[index], CONVOLUTIONS[depth][index]), nn.ReLU(inplace=True)]
            in_channels = widths[index]
        return nn.Sequential(*layers)

    extractors = [groups(first, widths[first - 1], pools_before=(1, 2, 3)) for first in (1, 2, 3)]
    extractors.append(groups(3, widths[4], pools_before=()))
    return AuxiliaryBranches(extractors, widths[-1], num_outputs)


NETWORKS = {f"VGG{depth}": Architecture(partial(VGG, depth), partial(vgg_branches, depth)) for depth in CONVOLUTIONS}
