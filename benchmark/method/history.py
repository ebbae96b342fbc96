"""Keeps what a network predicted in the epoch before: as a table of predictions, or as the past network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.backbones.network import Network, Outputs
from benchmark.method.collectives import all_gather_rows

TableType = Literal["float16", "float32", "float64"]


class PredictionHistory(nn.Module):
    """A table of the last prediction for each training image; the state dict holds it.

    images: number of training images; shape: of one image's prediction; table_dtype: precision of the table.
    """

    table: Tensor
    seen: Tensor

    def __init__(self, images: int, shape: Sequence[int], table_dtype: TableType = "float16") -> None:
        super().__init__()
        self.shape = tuple(shape)
        # Always two dimensions: moving a module to channels_last would also reorder a four-dimensional buffer and
        # scatter each image's prediction.
        # NumPy's zeros take neither time nor memory until they are written, so that planning can build a method.
        self.register_buffer("table", torch.from_numpy(np.zeros((images, math.prod(self.shape)), table_dtype)))
        self.register_buffer("seen", torch.zeros(images, dtype=torch.bool))

    @torch.no_grad()
    def look_up(self, index: Tensor, otherwise: Tensor) -> Tensor:
        """Look up the last predictions for the images `index` [batch], as the type of `otherwise`: [batch, *shape].

        otherwise: the result for images that were never stored, [batch, *shape] or a shape that broadcasts to it.
        """
        past = self.table[index].to(otherwise.dtype).view(-1, *self.shape)
        known = self.seen[index].view(-1, *(1 for _ in self.shape))
        return torch.where(known, past, otherwise)

    @torch.no_grad()
    def store(self, index: Tensor, predictions: Tensor) -> None:
        """Store `predictions` [batch, *shape] for the images `index` [batch], in which no image stands twice.

        If processes share the batch, each of them stores the predictions of all.
        """
        index, kept = all_gather_rows(index), all_gather_rows(predictions.flatten(1).to(self.table.dtype))
        self.table.index_copy_(0, index, kept)
        self.seen.index_fill_(0, index, True)


class PastNetwork(nn.Module):
    """A frozen copy of a network, and of the branches on it, as they were when `remember` was called last.

    It always runs in evaluation mode. Its weights are in the state dict, so that a resumed run has them. They have no
    gradients, so that the optimiser does not change them.
    """

    def __init__(self, network: Network, branches: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.branches = branches
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> PastNetwork:
        """Stay in evaluation mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Outputs, tuple]:
        """Compute the outputs of the past network, and of its branches if any, on `images` [rows, 3, height, width]."""
        outputs = self.network(images)
        return outputs, () if self.branches is None else self.branches(outputs.branch_maps)

    def remember(self, network: nn.Module, branches: nn.Module | None = None) -> None:
        """Copy the current weights and buffers of a network and its branches."""
        self.network.load_state_dict(network.state_dict())
        if self.branches is not None and branches is not None:
            self.branches.load_state_dict(branches.state_dict())
