"""The contract of a backbone: one forward gives everything a distillation method may ask for."""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from benchmark.backbones.tracing import ForwardTracer


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

        def cut(maps: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
            return None if maps is None else tuple(map_.detach() for map_ in maps)

        return replace(
            self,
            logits=self.logits.detach(),
            pooled=self.pooled.detach(),
            stem=self.stem.detach(),
            stages=tuple(stage.detach() for stage in self.stages),
            preactivations=cut(self.preactivations),
            tapped=cut(self.tapped),
            averaged=None if self.averaged is None else self.averaged.detach(),
        )


class Network(nn.Module, ABC):
    """A backbone. Keys and order of its state dict are those of the public implementations."""

    num_classes: int
    after_stages: ClassVar[tuple[str, ...]]
    """Names of the direct sub-modules behind the last stage map, a norm of its own up to the classifier."""

    @property
    def classifier_module(self) -> nn.Module:
        """The module that makes logits of the pooled vector, whatever a family calls it."""
        return self.get_submodule(self.after_stages[-1])

    @abstractmethod
    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        """Images [batch, 3, height, width] to `Outputs`."""

    @abstractmethod
    def initialise(self, generator: Callable[[str], torch.Generator]) -> None:
        """Fill every parameter by the rule of this family, each from the stream of its own name."""


def without_classifier(network: Network) -> Network:
    """A network of the same modules up to the last stage map; what lies behind it passes on what it is given.

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


def shape_of(name: str, network: Network, image_size: int, tracer: ForwardTracer | None = None) -> Shape:
    """Find the shape of `network` for square images, without arithmetic.

    tracer: counts what a forward costs, and makes the network useless; without one, the network stays as it is.
    """
    if tracer is None:
        tracer, network = ForwardTracer(), copy.deepcopy(network)
    outputs: Outputs = tracer.trace(network, torch.zeros(1, 3, image_size, image_size, device="cpu"))

    def sizes(map_: Tensor) -> tuple[int, int, int]:
        return (map_.shape[1], map_.shape[2], map_.shape[3])

    return Shape(
        name=name,
        num_classes=network.num_classes,
        stem=sizes(outputs.stem),
        stages=tuple(sizes(stage) for stage in outputs.stages),
        pooled=outputs.pooled.shape[1],
        tapped=None if outputs.tapped is None else tuple(sizes(map_) for map_ in outputs.tapped),
    )


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
