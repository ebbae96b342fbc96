"""Stochastic gradient descent with momentum, without the wrapper that imports torch's compiler."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from benchmark.core.spec import Protocol


class MomentumSGD:
    """Take the steps of `torch.optim.SGD(..., fused=True)`, by the function that it calls itself.

    The class imports torch's compiler, which nothing here uses and which costs about two seconds in every process
    that trains.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], protocol: Protocol) -> None:
        self.parameters = parameters
        self.protocol = protocol
        # All exist from the start, because some parameters get their first gradient in a later step.
        self.momenta = [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move each parameter that has a gradient, at a learning rate."""
        moved = [
            (parameter, parameter.grad, momentum)
            for parameter, momentum in zip(self.parameters, self.momenta, strict=True)
            if parameter.grad is not None
        ]
        parameters: list[Tensor] = [parameter for parameter, _, _ in moved]
        sgd(
            parameters,
            [gradient for _, gradient, _ in moved],
            [momentum for _, _, momentum in moved],
            fused=True,
            weight_decay=self.protocol.weight_decay,
            momentum=self.protocol.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=self.protocol.nesterov,
            maximize=False,
        )

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None
