"""What a network costs: learnable parameters, and multiply-adds of one image."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

_COUNTED = (torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm)
"""Convolutions and linear layers; norms, biases, activations and pooling are left out, as papers do."""


def parameters(module: nn.Module) -> int:
    """The number of learnable values; running statistics are not among them."""
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module: nn.Module, *inputs: Any) -> int:
    """Multiply-adds of the convolutions and linear layers of `module` for one image.

    inputs: the arguments of a forward; of each tensor in them [batch, ...], however nested, only the first row is
    counted. Nothing is computed: a copy of the module runs on the meta device, in evaluation mode.
    """

    def one_row(value: Any) -> Any:
        return torch.empty_like(value[:1], device="meta") if isinstance(value, Tensor) else value

    dry = copy.deepcopy(module).to("meta").eval()
    rows = pytree.tree_map(one_row, inputs)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        dry(*rows)
    by_operation = counter.get_flop_counts().get("Global", {})
    return sum(count for operation, count in by_operation.items() if operation in _COUNTED) // 2
