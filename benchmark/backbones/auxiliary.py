"""Auxiliary branches on the stage maps of a backbone (HSAKD: Yang et al., 2021).

A branch repeats the stages that its map has not passed yet, with weights of its own; the last branch repeats the last
stage once more without down-sampling. Each ends in an average over all positions and a linear layer. Names and order
of the parameters are those of the public `auxiliary_classifier`, without that prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.backbones import resnet, shufflenet_v1, shufflenet_v2, wrn
from benchmark.backbones.initialisation import ConvolutionRule, fill_parameters


@dataclass(frozen=True)
class BranchOutputs:
    """What one branch gives: logits [batch, outputs], and pooled [batch, width], the vector entering its classifier."""

    logits: Tensor
    pooled: Tensor


class AuxiliaryBranches(nn.Module):
    """One branch for each stage map; nothing is shared between them, nor with the backbone.

    extractors: the part of each branch that works on maps, ending in ReLU unless it has a tail;
    tails: a last module of each branch, before a ReLU, registered as `tail_name` and the branch's number from 1;
    width: channels entering the classifiers; num_outputs: outputs of each classifier;
    convolution, linear_bias: the initialisation rules (see `fill_parameters`).
    """

    def __init__(
        self,
        extractors: Sequence[nn.Module],
        width: int,
        num_outputs: int,
        convolution: ConvolutionRule = "default",
        linear_bias: Literal["default", "zero"] = "default",
        tail_name: str = "",
        tails: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.count = len(extractors)
        self.num_outputs = num_outputs
        self._convolution = convolution
        self._linear_bias = linear_bias
        self._tail_name = tail_name if tails else ""
        for number, extractor in enumerate(extractors, start=1):
            self.add_module(f"block_extractor{number}", extractor)
        for number, tail in enumerate(tails, start=1):
            self.add_module(f"{tail_name}{number}", tail)
        for number in range(1, self.count + 1):
            self.add_module(f"fc{number}", nn.Linear(width, num_outputs))

    def forward(self, stages: tuple[Tensor, ...]) -> tuple[BranchOutputs, ...]:
        """The stage maps of a backbone, first to last, to the outputs of the branch on each.

        Raises:
            ValueError: there are not as many maps as branches.
        """
        if len(stages) != self.count:
            raise ValueError(f"{self.count} branches need as many stage maps, not {len(stages)}")
        return tuple(self._branch(number, maps) for number, maps in enumerate(stages, start=1))

    def _branch(self, number: int, maps: Tensor) -> BranchOutputs:
        maps = self.get_submodule(f"block_extractor{number}")(maps)
        if self._tail_name:
            maps = F.relu(self.get_submodule(f"{self._tail_name}{number}")(maps))
        pooled = maps.mean((2, 3))
        return BranchOutputs(self.get_submodule(f"fc{number}")(pooled), pooled)

    def initialise(self, generator: Callable[[str], torch.Generator]) -> None:
        """Fill every parameter by the rule of this family, each from the stream of its own name."""
        fill_parameters(self, generator, convolution=self._convolution, linear_bias=self._linear_bias)


def wide_resnet_branches(depth: int, widen_factor: int, num_outputs: int) -> AuxiliaryBranches:
    """The branches of WRN-depth-widen_factor; the maps are raw sums, so each branch has a norm before its ReLU."""
    blocks = wrn.blocks_per_stage(depth)
    first, second, third = wrn.stage_widths(widen_factor)
    extractors = (
        nn.Sequential(wrn.Stage(first, second, blocks, stride=2), wrn.Stage(second, third, blocks, stride=2)),
        nn.Sequential(wrn.Stage(second, third, blocks, stride=2)),
        nn.Sequential(wrn.Stage(third, third, blocks, stride=1)),
    )
    norms = [nn.BatchNorm2d(third) for _ in extractors]
    return AuxiliaryBranches(extractors, third, num_outputs, "he_fan_out", "zero", tail_name="bn", tails=norms)


def resnet_branches(depth: int, widths: tuple[int, int, int, int], num_outputs: int) -> AuxiliaryBranches:
    """The branches of a ResNet with these channels of stem and stages.

    The branches' linear biases start at zero, though the backbone's do not: so does the public code.
    """
    blocks = resnet.blocks_per_stage(depth)
    _, first, second, third = widths
    extractors = (
        nn.Sequential(resnet.stage(first, second, blocks, stride=2), resnet.stage(second, third, blocks, stride=2)),
        nn.Sequential(resnet.stage(second, third, blocks, stride=2)),
        nn.Sequential(resnet.stage(third, third, blocks, stride=1)),
    )
    return AuxiliaryBranches(extractors, third, num_outputs, "he_fan_out", "zero")


def shufflenet_v1_branches(num_outputs: int) -> AuxiliaryBranches:
    """The branches of ShuffleNet v1, initialised as HSAKD does: unlike the backbone, by He's rule and zero biases."""
    first, second, third = shufflenet_v1.STAGE_WIDTHS
    _, second_units, third_units = shufflenet_v1.STAGE_UNITS
    extractors = (
        nn.Sequential(
            shufflenet_v1.stage(first, second, second_units, stride=2),
            shufflenet_v1.stage(second, third, third_units, stride=2),
        ),
        nn.Sequential(shufflenet_v1.stage(second, third, third_units, stride=2)),
        nn.Sequential(shufflenet_v1.stage(third, third, third_units, stride=1)),
    )
    return AuxiliaryBranches(extractors, third, num_outputs, "he_fan_out", "zero")


def shufflenet_v2_branches(num_outputs: int) -> AuxiliaryBranches:
    """The branches of ShuffleNet v2, each with a last 1x1 convolution of its own."""
    first, second, third = shufflenet_v2.STAGE_WIDTHS
    _, second_units, third_units = shufflenet_v2.STAGE_UNITS
    width = shufflenet_v2.LAST_WIDTH

    def extractor(*stages: nn.Module) -> nn.Sequential:
        return nn.Sequential(*stages, nn.Conv2d(third, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())

    extractors = (
        extractor(
            shufflenet_v2.stage(first, second, second_units, stride=2),
            shufflenet_v2.stage(second, third, third_units, stride=2),
        ),
        extractor(shufflenet_v2.stage(second, third, third_units, stride=2)),
        extractor(shufflenet_v2.stage(third, third, third_units, stride=1)),
    )
    return AuxiliaryBranches(extractors, width, num_outputs)
