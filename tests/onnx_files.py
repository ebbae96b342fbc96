"""Untrained networks to be exported, what they cost counted by hooks, and files that are not quite theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from benchmark.backbones.network import Network
from benchmark.core.rng import generator
from benchmark.training.learner import fresh_network

SEEN = 12
"""Images whose statistics the norms of an untrained network take on."""


def settled(name: str, size: int, classes: int = 10) -> Network:
    """A network with first weights and with norms that have seen images, so that its logits are of ordinary size."""
    network = fresh_network(name, classes, 0)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        network.train()(noise(SEEN, size))
    return network.eval()


def noise(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=generator("noise", count, size))


def by_hand(network: nn.Module, size: int) -> int:
    """Multiply-adds of the convolutions and linear layers of one image, from the maps that hooks see."""
    counts = []

    def count(layer: nn.Module, inputs: Any, made: Tensor) -> None:
        assert isinstance(layer.weight, Tensor)
        counts.append(made[0].numel() * layer.weight[0].numel())

    layers = [part for part in network.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        network(noise(1, size))
    for hook in hooks:
        hook.remove()
    return sum(counts)


def changed(model: onnx.ModelProto, how: str) -> onnx.ModelProto:
    """A file that is not quite the network."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    norm = next(node for node in wrong.graph.node if node.op_type == "BatchNormalization")
    first = next(tensor for tensor in wrong.graph.initializer if len(tensor.dims) == 4)
    if how == "epsilon":
        (epsilon,) = (attribute for attribute in norm.attribute if attribute.name == "epsilon")
        epsilon.f = 1e-4
    elif how == "one weight":
        values = onnx.numpy_helper.to_array(first).copy()
        values.flat[0] += 1e-3
        first.CopyFrom(onnx.numpy_helper.from_array(values, first.name))
    elif how == "not a number":
        first.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(first.dims), np.nan, np.float32), first.name))
    elif how == "a branch":
        wrong.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((10, 64), np.float32), "branch"))
    else:
        # A convolution whose result nobody reads: the same logits for more arithmetic.
        wrong.graph.node.append(onnx.helper.make_node("Conv", ["images", first.name], ["unused"], pads=[1, 1, 1, 1]))
    return wrong
