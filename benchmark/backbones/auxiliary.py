"""Auxiliary branches on the stage maps of a backbone (HSAKD: Yang et al., 2021).

A branch repeats the stages that its map has not passed yet, with weights of its own; the last branch repeats the last
stage once more without down-sampling. Each ends in an average over all positions and a linear layer. Names and order
of the parameters are those of the public `auxiliary_classifier`, without that prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.backbones.initialisation import ConvolutionRule, LinearRule, fill_parameters


def repeat_stages(stage: Callable[[int, int, int], nn.Module], widths: Sequence[int]) -> list[nn.Sequential]:
    """Build, for each stage map, the stages that its branch repeats, in a row.

    stage: builds the stage of an index from its input's channels and its stride; widths: channels of the stage maps.
    """
    last = len(widths) - 1
    branches = [
        nn.Sequential(*(stage(index, widths[index - 1], 2) for index in range(start, len(widths))))
        for start in range(1, len(widths))
    ]
    return [*branches, nn.Sequential(stage(last, widths[last], 1))]


@dataclass(frozen=True)
class BranchOutputs:
    """Outputs of a branch: logits [batch, outputs], and pooled [batch, width], the vector entering its classifier."""

    logits: Tensor
    pooled: Tensor


class AuxiliaryBranches(nn.Module):
    """One branch for each stage map; nothing is shared between them, nor with the backbone.

    extractors: the part of each branch that works on maps, ending in ReLU unless it has a tail;
    tails: a last module of each branch, before a ReLU, registered as `tail_name` and the branch's number from 1;
    first: number of the first branch, above 1 where shallower ones were removed;
    width: channels entering the classifiers; num_outputs: outputs of each classifier;
    convolution, linear: the initialisation rules (see `fill_parameters`).
    """

    def __init__(
        self,
        extractors: Sequence[nn.Module],
        width: int,
        num_outputs: int,
        convolution: ConvolutionRule = "default",
        linear: LinearRule = "default",
        tail_name: str = "",
        tails: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.count = len(extractors)
        self.first = 1
        self.num_outputs = num_outputs
        self._convolution = convolution
        self._linear = linear
        self._tail_name = tail_name if tails else ""
        for number, extractor in enumerate(extractors, start=1):
            self.add_module(f"block_extractor{number}", extractor)
        for number, tail in enumerate(tails, start=1):
            self.add_module(f"{tail_name}{number}", tail)
        for number in range(1, self.count + 1):
            self.add_module(f"fc{number}", nn.Linear(width, num_outputs))

    def keep_deepest(self, count: int) -> None:
        """Remove all branches but those on the last `count` maps; the names of the others stay.

        Raises:
            ValueError: there are fewer branches than that.
        """
        if not 1 <= count <= self.count + 1 - self.first:
            raise ValueError(f"of {self.count + 1 - self.first} branches {count} cannot be kept")
        kept = self.count + 1 - count
        for number in range(self.first, kept):
            for name in ("block_extractor", "fc", *filter(None, [self._tail_name])):
                delattr(self, f"{name}{number}")
        self.first = kept

    def forward(self, stages: tuple[Tensor, ...]) -> tuple[BranchOutputs, ...]:
        """Compute the outputs of the remaining branches from the backbone's branch maps (see `Outputs`), in order.

        Raises:
            ValueError: the number of maps is not the number of branches before any was removed.
        """
        if len(stages) != self.count:
            raise ValueError(f"{self.count} branches need as many stage maps, not {len(stages)}")
        return tuple(self._branch(number, stages[number - 1]) for number in range(self.first, self.count + 1))

    def _branch(self, number: int, maps: Tensor) -> BranchOutputs:
        maps = self.get_submodule(f"block_extractor{number}")(maps)
        if self._tail_name:
            maps = F.relu(self.get_submodule(f"{self._tail_name}{number}")(maps))
        pooled = maps.mean((2, 3))
        return BranchOutputs(self.get_submodule(f"fc{number}")(pooled), pooled)

    def initialise(self, generator: Callable[[str], torch.Generator]) -> None:
        """Fill every parameter by the rule of this family, each from the stream of its own name."""
        fill_parameters(self, generator, convolution=self._convolution, linear=self._linear)
