"""The contract of a backbone: one forward gives everything a distillation method may ask for."""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmark.backbones.initialisation import ConvolutionRule, LinearRule, fill_parameters


@dataclass(frozen=True)
class Outputs:
    """What one forward of a backbone gives.

    logits: [batch, classes]; pooled: [batch, width], the vector entering the classifier;
    stem: [batch, channels, height, width], before the first stage; stages: one such map a stage;
    preactivations: the stage maps before their last activation, only when they were asked for;
    tapped: the maps that auxiliary branches read, where those are not the stages (see `branch_maps`);
    averaged: [batch, width, height, width], the map whose mean over its places is `pooled`;
    classifier: makes logits [rows, classes] of vectors like `pooled`, [rows, width].
    """

    logits: Tensor
    pooled: Tensor
    stem: Tensor
    stages: tuple[Tensor, ...]
    preactivations: tuple[Tensor, ...] | None = None
    tapped: tuple[Tensor, ...] | None = None
    averaged: Tensor | None = None
    classifier: Callable[[Tensor], Tensor] | None = None

    @property
    def branch_maps(self) -> tuple[Tensor, ...]:
        """The maps that auxiliary branches read, first to last."""
        return self.stages if self.tapped is None else self.tapped

    def detach(self) -> Outputs:
        """The same values without a graph."""

        def cut(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map_.detach() for map_ in value)
            return value.detach() if isinstance(value, Tensor) else value

        return Outputs(**{part.name: cut(getattr(self, part.name)) for part in fields(self)})


class Network(nn.Module, ABC):
    """A backbone. Keys and order of its state dict are those of the public implementations."""

    after_stages: ClassVar[tuple[str, ...]]
    """Names of the direct sub-modules behind the last stage map; the last of them is the classifier."""
    convolution_rule: ClassVar[ConvolutionRule] = "default"
    linear_rule: ClassVar[LinearRule] = "default"
    """How `initialise` fills convolutions and linear layers (see `fill_parameters`)."""

    @property
    def classifier_module(self) -> nn.Module:
        """The module that makes logits of the pooled vector, whatever a family calls it."""
        return self.get_submodule(self.after_stages[-1])

    @abstractmethod
    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        """Run the network on images [batch, 3, height, width]."""

    def make_outputs(
        self,
        stem: Tensor,
        stages: Sequence[Tensor],
        averaged: Tensor,
        preactivations: Sequence[Tensor] | None = None,
        tapped: tuple[Tensor, ...] | None = None,
    ) -> Outputs:
        """Average the map `averaged` over its places, classify the mean, and collect what a forward gives."""
        pooled = averaged.mean((2, 3))
        classifier = self.classifier_module
        before = None if preactivations is None else tuple(preactivations)
        return Outputs(classifier(pooled), pooled, stem, tuple(stages), before, tapped, averaged, classifier)

    def initialise(self, generator: Callable[[str], torch.Generator]) -> None:
        """Fill every parameter by the rules of this family, each from the stream of its own name."""
        fill_parameters(self, generator, self.convolution_rule, self.linear_rule)


def without_classifier(network: Network) -> Network:
    """Make a network of the same modules up to the last stage map; what lies behind it passes on what it is given.

    Only the maps of its outputs mean something, and it has no parameters but those that make them.
    """
    view = copy.copy(network)
    view._modules = {**network._modules, **{name: nn.Identity() for name in network.after_stages}}
    return view


@dataclass(frozen=True)
class Shape:
    """What a method may know of a network before it exists: its name and the sizes of its maps.

    stem, stages and branch_maps (of which there are as many as auxiliary branches) hold (channels, height, width);
    pooled is the width of the vector entering the classifier.
    """

    name: str
    num_classes: int
    stem: tuple[int, int, int]
    stages: tuple[tuple[int, int, int], ...]
    pooled: int
    tapped: tuple[tuple[int, int, int], ...] | None = None

    @property
    def branch_maps(self) -> tuple[tuple[int, int, int], ...]:
        """Sizes of the maps that auxiliary branches read."""
        return self.stages if self.tapped is None else self.tapped


@contextlib.contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Within it, batch norms in training mode use a batch's statistics but leave their running ones alone."""
    norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    tracking = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracked in zip(norms, tracking, strict=True):
            norm.track_running_stats = tracked
