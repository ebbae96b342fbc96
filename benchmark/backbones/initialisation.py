"""Initial weights from names: each parameter is drawn from a stream of its own.

A network's first weights depend on the network's name, the parameter's name and the seed alone, so two methods that
train the same network start from the same bits, whatever else they build.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Streams = Callable[[str], torch.Generator]
ConvolutionRule = Literal["default", "he_fan_out"]
LinearRule = Literal["default", "zero_bias", "normal", "he_fan_in"]


def fill_parameters(
    module: nn.Module,
    streams: Streams,
    convolution: ConvolutionRule = "default",
    linear: LinearRule = "default",
) -> None:
    """Fill every parameter of `module` in place; `streams` maps a parameter's dotted name to its generator.

    `default` is PyTorch's own rule (weights and biases uniform within 1/sqrt(fan_in)). Convolutions: `he_fan_out` draws
    them from N(0, 2 / (kernel area * output channels)), with biases 0. Linear layers: `zero_bias` keeps the default
    weights, `normal` draws them from N(0, 0.01^2), `he_fan_in` from N(0, 2 / inputs), all three with biases 0. Norms
    start at weight 1, bias 0. A module with a method `fill(streams)` of its own is left to it, with names relative to
    the module.

    Raises:
        TypeError: a module holds parameters of a kind without a rule.
    """
    for prefix, part in module.named_modules():
        own = dict(part.named_parameters(prefix, recurse=False))
        if not own:
            continue
        if hasattr(part, "fill"):
            part.fill(_below(prefix, streams))
        elif isinstance(part, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
            part.reset_parameters()
        elif isinstance(part, nn.Linear):
            _fill_layer(part, own, streams, _LINEAR[linear])
        elif isinstance(part, nn.modules.conv._ConvNd):
            _fill_layer(part, own, streams, _CONVOLUTION[convolution])
        else:
            raise TypeError(f"no rule for the parameters of {prefix!r} ({type(part).__name__})")


def _below(prefix: str, streams: Streams) -> Streams:
    return lambda name: streams(f"{prefix}.{name}" if prefix else name)


def _he_fan_out(weight: Tensor) -> float:
    return math.sqrt(2.0 / (math.prod(weight.shape[2:]) * weight.shape[0]))


# Standard deviation of normal weights, or None for PyTorch's uniform ones; and whether biases are zero.
_Rule = tuple[Callable[[Tensor], float] | None, bool]
_CONVOLUTION: dict[ConvolutionRule, _Rule] = {"default": (None, False), "he_fan_out": (_he_fan_out, True)}
_LINEAR: dict[LinearRule, _Rule] = {
    "default": (None, False),
    "zero_bias": (None, True),
    "normal": (lambda weight: 0.01, True),
    "he_fan_in": (lambda weight: math.sqrt(2.0 / weight.shape[1]), True),
}


@torch.no_grad()
def _fill_layer(
    layer: nn.Linear | nn.modules.conv._ConvNd, named: dict[str, nn.Parameter], streams: Streams, rule: _Rule
) -> None:
    deviation, zero_bias = rule
    weight = layer.weight
    bound = 1.0 / math.sqrt(weight[0].numel())
    for name, parameter in named.items():
        if parameter is not weight and zero_bias:
            parameter.zero_()
        elif parameter is weight and deviation is not None:
            parameter.copy_(torch.randn(weight.shape, generator=streams(name)) * deviation(weight))
        else:
            parameter.copy_(torch.rand(parameter.shape, generator=streams(name)) * (2 * bound) - bound)
