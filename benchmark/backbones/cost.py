"""What networks and steps cost: learnable parameters, and multiply-adds."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_COUNTED = (torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm)
"""Convolutions and linear layers; norms, biases, activations and pooling are left out, as papers do."""


class _CountOperations:
    """Counts what a dispatch mode is handed.

    A base class of its own, because torch imports its compiler, which takes two seconds, for a mode that has the
    method in its body (as `FlopCounterMode` has).
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_operation: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.by_operation[func._overloadpacket] += formula(*args, **(kwargs or {}), out_val=output)
        return output


class OperationCounter(_CountOperations, TorchDispatchMode):
    """Counts the operations of everything within it: `with OperationCounter() as counter: ...`.

    by_operation: floating-point operations, two for a multiply-add, by torch's formulas, forward and backward.
    """

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of all operations."""
        return sum(self.by_operation.values()) // 2


def parameters(module: nn.Module) -> int:
    """Count the learnable values; running statistics are not among them."""
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module: nn.Module, *inputs: Any) -> int:
    """Count the multiply-adds of the convolutions and linear layers of `module` for one image.

    inputs: the arguments of a forward; of each tensor in them [batch, ...], however nested, only the first row is
    counted. A copy of the module runs on zeros, in evaluation mode, on the module's own device.
    """
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))

    def one_row(value: Any) -> Any:
        return torch.zeros_like(value[:1], device=device) if isinstance(value, Tensor) else value

    alone = copy.deepcopy(module).eval()
    rows = pytree.tree_map(one_row, inputs)
    with torch.no_grad(), OperationCounter() as counter:
        alone(*rows)
    return sum(counter.by_operation[operation] for operation in _COUNTED) // 2
