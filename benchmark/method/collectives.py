"""Collective operations of the processes that share a batch: gather rows, average means, broadcast decisions.

Outside a shared batch every operation returns its argument. docs/data-parallel.md lists what a method must pass
through them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

FEWEST_ROWS = 2
"""The fewest rows of a batch that a process can work on: batch norm cannot be trained on one."""


BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their width in bytes."""


Value = TypeVar("Value")


def rows_of(rank: int, size: int, images: int) -> slice:
    """Find the rows that process `rank` of `size` works on, of a batch of so many images.

    They are contiguous. If the batch has no equal parts, the first processes have one row more. A batch with fewer than
    two rows for each process is not shared: every process works on all of it.
    """
    if size == 1 or images < FEWEST_ROWS * size:
        return slice(images)
    each, more = divmod(images, size)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))


def fewest_rows(size: int, images: int) -> int:
    """Count the rows that each of `size` processes has at least, of a batch of so many images."""
    rows = rows_of(size - 1, size, images)
    return len(range(images)[rows])


@dataclass(frozen=True)
class BatchShard:
    """How the current batch is shared. counts: rows of each process, or None if all have the whole batch."""

    group: ProcessGroup
    counts: tuple[int, ...] | None

    @property
    def weight(self) -> float:
        """The weight of this process's mean in the mean over all processes: its rows over their average number."""
        if self.counts is None:
            return 1.0
        return self.counts[self.group.rank] * self.group.size / sum(self.counts)


@dataclass(frozen=True)
class ProcessGroup:
    """The `size` processes that share the batches of a cohort, seen from the one with number `rank`, from 0."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that evaluates, writes and decides."""
        return self.rank == 0

    def rows(self, images: int) -> slice:
        """Find this process's rows of a batch of so many images."""
        return rows_of(self.rank, self.size, images)

    @contextlib.contextmanager
    def shared_batch(self, images: int) -> Iterator[None]:
        """Share a batch of so many images among the processes within the block."""
        global _share
        if self.size == 1:
            yield
            return
        counts = None
        if self.rows(images) != slice(images):
            slices = (rows_of(rank, self.size, images) for rank in range(self.size))
            counts = tuple(rows.stop - rows.start for rows in slices)
        _share = BatchShard(self, counts)
        try:
            yield
        finally:
            _share = None

    def broadcast_int(self, number: int) -> int:
        """Return the number of the first process on all processes."""
        if self.size == 1:
            return number
        told = torch.tensor([number])
        dist.broadcast(told, 0)
        return int(told)

    def broadcast_object(self, value: Value) -> Value:
        """Return the value of the first process on all processes."""
        if self.size == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told, 0, device=torch.device("cpu"))
        return told[0]

    def sync_batchnorm_stats(self, *modules: nn.Module | None) -> None:
        """Copy the running statistics of the first process's norms to all processes."""
        if self.size > 1:
            for norm in norms_in(*modules):
                for statistic in norm.buffers(recurse=False):
                    dist.broadcast(statistic, 0)

    def mismatched(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """List the names of the tensors that differ between processes."""
        if self.size == 1 or not tensors:
            return []
        own = torch.stack([_checksum(tensor) for tensor in tensors.values()]).cpu()
        of_all = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(of_all, own)
        same = torch.stack([other == of_all[0] for other in of_all]).all(0).tolist()
        return [name for name, alike in zip(tensors, same, strict=True) if not alike]


SINGLE_PROCESS = ProcessGroup()

_share: BatchShard | None = None
"""The share of the current step; None if no batch is shared."""


def current_shard() -> BatchShard | None:
    """Return how the current batch is shared; None if it is not."""
    return _share


def weight_mean(mean: Tensor) -> Tensor:
    """Multiply a mean over this process's rows by its weight in the mean over the processes; keeps the graph."""
    return mean if _share is None or _share.weight == 1 else mean * _share.weight


@torch.no_grad()
def all_gather_rows(values: Tensor) -> Tensor:
    """Gather values of all processes' rows, [rows, ...] each, to those of the whole batch, [batch, ...].

    The result is the same on all processes and has no graph. If no batch is shared it is the values themselves.

    Raises:
        ValueError: it is not one value for each of this process's images.
    """
    if _share is None or _share.counts is None:
        return values.detach()
    counts, rank = _share.counts, _share.group.rank
    if len(values) != counts[rank]:
        raise ValueError(f"{len(values)} values of {counts[rank]} images cannot be gathered")
    # As bytes, so that all types work, and padded to one length, because all_gather needs that.
    own = values.detach().reshape(len(values), -1).contiguous().view(torch.uint8)
    padded = own.new_zeros(max(counts), own.shape[1])
    padded[: len(own)] = own
    of_all = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(of_all, padded)
    rows = torch.cat([part[:count] for part, count in zip(of_all, counts, strict=True)])
    return rows.view(values.dtype).view(-1, *values.shape[1:])


def select_own_rows(values: Tensor) -> Tensor:
    """Select this process's rows of values of a whole batch, maybe an earlier one, [batch, ...].

    If no batch is shared these are all values.
    """
    if _share is None or _share.counts is None:
        return values
    return values[_share.group.rows(len(values))]


@torch.no_grad()
def all_reduce_mean(mean: Tensor) -> Tensor:
    """Average means over the processes' rows, of any shape, to the mean over the whole batch.

    The result is the same on all processes and has no graph. If no batch is shared it is the mean itself.
    """
    if _share is None:
        return mean.detach()
    total = mean.detach() * (_share.weight / _share.group.size)
    dist.all_reduce(total)
    return total


def norms_in(*modules: nn.Module | None) -> list[nn.Module]:
    """List the norms in some modules that normalise by the statistics of a batch."""
    return [
        part for module in modules if module is not None for part in module.modules() if isinstance(part, _NormBase)
    ]


def _checksum(tensor: Tensor) -> Tensor:
    """Compute a number, int64, from every bit of a tensor, independent of its layout."""
    bits = tensor.detach().view(BITS[tensor.element_size()])
    return bits.sum(dtype=torch.int64)
