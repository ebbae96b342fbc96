"""Shares each batch of a run among several processes, each of which computes its own rows.

The processes start from the same weights and average their gradients in every step (torch's DistributedDataParallel),
so their weights stay equal. What a method stores for single images must pass through `gathered`, and what it stores of
a batch's mean through `averaged`. docs/data-parallel.md lists what differs between processes nevertheless.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmark.method.collectives import ProcessGroup, norms_in

if TYPE_CHECKING:
    from benchmark.method.contract import Method, Step

TIMEOUT = datetime.timedelta(hours=6)
"""How long processes wait for another one, such as the first while it evaluates. The launcher notices deaths sooner."""
LOOPBACK = ("lo", "lo0")

LossOfStep = Callable[["Step"], tuple[Tensor, dict[str, Tensor]]]


class _Loss(nn.Module):
    """Joins a method and its student to one module that computes a step's loss, as DistributedDataParallel needs."""

    def __init__(self, method: Method, student: nn.Module | None) -> None:
        super().__init__()
        self.method = method
        self.student = student

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = self.method.loss(step)
        return loss, {name: term.detach() for name, term in terms.items()}


def make_loss(group: ProcessGroup, method: Method, student: nn.Module | None) -> LossOfStep:
    """Make the function that computes a step's loss; its backward averages the gradients over the processes."""
    if group.size == 1:
        # `method.loss` is looked up in each step, because code that watches a method replaces it.
        return lambda step: method.loss(step)
    with warnings.catch_warnings():
        # The option that replaces it means something else, and older versions of torch lack that.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        # Some methods use no parameters of their own in some steps (SemCKD in the last one of an epoch). The option
        # also keeps gradients in the same buckets after a resume, so that they are added in the same order.
        return DistributedDataParallel(_Loss(method, student), broadcast_buffers=False, find_unused_parameters=True)


def describe_sharing(group: ProcessGroup, method: Method, student: nn.Module | None, draws: bool) -> str | None:
    """Describe, for readers of a record, how processes shared the batches of a run; None for a single process.

    draws: whether the method drew random numbers in its steps.
    """
    if group.size == 1:
        return None
    own = []
    if norms_in(student, method):
        own.append("batch norms take the statistics of each process's own rows and keep those of the first process")
    if method.compares_images:
        own.append("losses that compare images compare those of one process")
    if draws:
        own.append("each process draws the method's random numbers for its own rows")
    shared = f"{group.size} processes share each batch"
    return f"{shared}; {'; '.join(own)}" if own else f"{shared}, as if one had all of it"


@contextlib.contextmanager
def init_process_group(rank: int, size: int, device: torch.device, meeting: Path) -> Iterator[ProcessGroup]:
    """Make this process a member of a group; no process leaves the block before the first one does.

    device: the one that this process computes on; meeting: a new file that only this group uses.
    After an error the connections stay open until the process ends, so that the others wait instead of failing too.
    """
    for name in LOOPBACK:
        if name in (interface for _, interface in socket.if_nameindex()):
            # The address of a machine's own name may be wrong or lie behind a firewall.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # Tensors on GPUs go through NCCL; decisions are on the CPU and wait for no GPU.
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend, store=dist.FileStore(str(meeting), size), rank=rank, world_size=size, timeout=TIMEOUT
    )
    group = ProcessGroup(rank, size)
    yield group
    group.broadcast_int(0)
    dist.destroy_process_group()
