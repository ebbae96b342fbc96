"""Forwards without arithmetic, which find sizes of outputs and count multiply-adds and convolutions."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class ForwardTracer:
    """Runs modules with layers that return zeros of the right size, and counts what the layers would have computed.

    multiply_adds: of convolutions and linear layers, for all images that were passed; convolutions: how many there
    are in the modules. A forward takes milliseconds on the CPU. On the meta device it would be twenty times slower,
    and its first one would import a second's worth of torch.
    """

    def __init__(self) -> None:
        self.multiply_adds = 0
        self.convolutions = 0

    @torch.no_grad()
    def trace(self, module: nn.Module, inputs: Any) -> Any:
        """Return a forward's output in evaluation mode. The module, on the meta device or not, is of no use after."""
        for layer in module.eval().modules():
            if isinstance(layer, nn.Conv2d):
                self.convolutions += 1
                # Below `forward`, which a kind of convolution may override.
                layer._conv_forward = functools.partial(self._convolve, layer)  # type: ignore[method-assign]
            elif isinstance(layer, nn.Linear):
                layer.forward = functools.partial(self._connect, layer)  # type: ignore[method-assign]
            elif isinstance(layer, _BatchNorm):
                layer.forward = nn.Identity().forward  # type: ignore[method-assign]
            else:
                layer.to_empty(device="cpu", recurse=False)
        return module(inputs)

    def _convolve(self, layer: nn.Conv2d, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        def length(axis: int) -> int:
            covered = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
            return (maps.shape[axis + 2] + 2 * int(layer.padding[axis]) - covered) // layer.stride[axis] + 1

        height, width = length(0), length(1)
        self.multiply_adds += len(maps) * height * width * weight.numel()
        return maps.new_zeros(len(maps), layer.out_channels, height, width)

    def _connect(self, layer: nn.Linear, features: Tensor) -> Tensor:
        outputs = features.new_zeros(*features.shape[:-1], layer.out_features)
        self.multiply_adds += outputs.numel() * layer.in_features
        return outputs
