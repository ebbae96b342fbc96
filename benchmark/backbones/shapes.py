"""Shapes and costs of networks by name, found without arithmetic; and the number of classes of some weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from benchmark.backbones import build_branches, build_network
from benchmark.backbones.network import Outputs, Shape
from benchmark.backbones.tracing import ForwardTracer

CLASSES = 100
"""Classes of the networks that are traced. No map depends on them, and a classifier costs little beside a network."""
MAX_CLASSES = 25_000
"""Of a dataset: more than ImageNet has in whole (21,841)."""


class ForwardCost(NamedTuple):
    """Multiply-adds of one forward for one image, and the number of convolutions."""

    multiply_adds: int
    convolutions: int


@functools.cache
def trace_network(name: str, image_size: int) -> tuple[Shape, ForwardCost]:
    """Find the shape of a network, and the cost of its forward."""
    tracer = ForwardTracer()
    with torch.device("meta"):
        network = build_network(name, CLASSES)
    outputs: Outputs = tracer.trace(network, torch.zeros(1, 3, image_size, image_size, device="cpu"))

    def sizes(map_: Tensor) -> tuple[int, int, int]:
        return (map_.shape[1], map_.shape[2], map_.shape[3])

    shape = Shape(
        name=name,
        num_classes=CLASSES,
        stem=sizes(outputs.stem),
        stages=tuple(sizes(stage) for stage in outputs.stages),
        pooled=outputs.pooled.shape[1],
        tapped=None if outputs.tapped is None else tuple(sizes(map_) for map_ in outputs.tapped),
    )
    return shape, ForwardCost(tracer.multiply_adds, tracer.convolutions)


@functools.cache
def trace_branches(name: str, num_outputs: int, image_size: int) -> ForwardCost:
    """Find the cost of a network's branches, without the network's own."""
    tracer = ForwardTracer()
    with torch.device("meta"):
        branches = build_branches(name, num_outputs)
    sizes = trace_network(name, image_size)[0].branch_maps
    tracer.trace(branches, tuple(torch.zeros(1, *size, device="cpu") for size in sizes))
    return ForwardCost(tracer.multiply_adds, tracer.convolutions)


def network_shape(name: str, num_classes: int, image_size: int) -> Shape:
    """Find the shape of a network by name."""
    return replace(trace_network(name, image_size)[0], num_classes=num_classes)


@functools.lru_cache(maxsize=256)
def list_tensors(name: str, num_classes: int) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """List the kind and the shape of every tensor of a network, by the tensor's name."""
    with torch.device("meta"):
        tensors = build_network(name, num_classes).state_dict()
    return {key: (tensor.dtype, tensor.shape) for key, tensor in tensors.items()}


def count_classes(name: str, weights: Mapping[str, Tensor]) -> int | None:
    """Count the classes for which a network has tensors of just these names and shapes.

    None if there is no such number from 2 to MAX_CLASSES.
    """
    two, three = list_tensors(name, 2), list_tensors(name, 3)
    # The axes whose length is the number of classes: those in which a network for two differs from one for three.
    lengths = {
        length
        for key, tensor in weights.items()
        if key in two and tensor.dim() == len(two[key][1])
        for length, small, large in zip(tensor.shape, two[key][1], three[key][1], strict=True)
        if small != large
    }
    classes = lengths.pop() if len(lengths) == 1 else 0
    if not 2 <= classes <= MAX_CLASSES:
        return None
    wanted = {key: shape for key, (_, shape) in list_tensors(name, classes).items()}
    return classes if {key: tensor.shape for key, tensor in weights.items()} == wanted else None
