"""Initial weights from names: each parameter is drawn from a stream of its own.

A network's first weights depend on the network's name, the parameter's name and the seed alone, so two methods that
train the same network start from the same bits, whatever else they build.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

Streams = Callable[[str], torch.Generator]
ConvolutionRule = Literal["default", "he_fan_out"]


def fill_parameters(
    module: nn.Module,
    streams: Streams,
    convolution: ConvolutionRule = "default",
    linear_bias: Literal["default", "zero"] = "default",
) -> None:
    """Fill every parameter of `module` in place; `streams` maps a parameter's dotted name to its generator.

    `default` is PyTorch's own rule (weights and biases uniform within 1/sqrt(fan_in)); `he_fan_out` draws
    convolutions from N(0, 2 / (kernel area * output channels)). Norms start at weight 1, bias 0.

    Raises:
        TypeError: a module holds parameters of a kind without a rule.
    """
    for prefix, part in module.named_modules():
        own = dict(part.named_parameters(prefix, recurse=False))
        if not own:
            continue
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.reset_parameters()
        elif isinstance(part, nn.Linear | nn.modules.conv._ConvNd):
            _fill_layer(part, own, streams, convolution, linear_bias)
        else:
            raise TypeError(f"no rule for the parameters of {prefix!r} ({type(part).__name__})")


@torch.no_grad()
def _fill_layer(
    layer: nn.Linear | nn.modules.conv._ConvNd,
    named: dict[str, nn.Parameter],
    streams: Streams,
    convolution: ConvolutionRule,
    linear_bias: str,
) -> None:
    weight = layer.weight
    fan_in = weight[0].numel()
    for name, parameter in named.items():
        stream = streams(name)
        is_weight = parameter is weight
        is_linear = isinstance(layer, nn.Linear)
        if is_weight and not is_linear and convolution == "he_fan_out":
            kernel_area = math.prod(weight.shape[2:])
            values = torch.randn(weight.shape, generator=stream) * math.sqrt(2.0 / (kernel_area * weight.shape[0]))
        elif not is_weight and is_linear and linear_bias == "zero":
            values = torch.zeros(parameter.shape)
        else:
            bound = 1.0 / math.sqrt(fan_in)
            values = torch.rand(parameter.shape, generator=stream) * (2 * bound) - bound
        parameter.copy_(values)
