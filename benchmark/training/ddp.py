"""A batch shared by several processes: each works on its rows, and gradients, losses and tables are those of all.

The processes start from the same weights, average their gradients in every step (torch's DistributedDataParallel), and
so stay equal. What a method keeps of single images must pass through `gathered`, and what it keeps of a batch's mean
through `averaged`; see docs/data-parallel.md for what is a process's own all the same.
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
"""How long the others wait for one process, such as the first while it evaluates. Deaths are noticed otherwise."""
LOOPBACK = ("lo", "lo0")

LossOfStep = Callable[["Step"], tuple[Tensor, dict[str, Tensor]]]


class _Loss(nn.Module):
    """A method beside its student as one module whose forward is a step's loss, which is what torch can share."""

    def __init__(self, method: Method, student: nn.Module | None) -> None:
        super().__init__()
        self.method = method
        self.student = student

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = self.method.loss(step)
        return loss, {name: term.detach() for name, term in terms.items()}


def loss_of(group: ProcessGroup, method: Method, student: nn.Module | None) -> LossOfStep:
    """The method's loss of a step, on whose way back the gradients are averaged over the processes."""
    if group.size == 1:
        # Looked up at each step: who watches a method replaces its loss.
        return lambda step: method.loss(step)
    with warnings.catch_warnings():
        # Its newer name means something else, and older versions of torch have not got it.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        # Some methods leave parameters out of some steps (SemCKD in the last one of an epoch). It also keeps the
        # gradients in the same buckets after a resume, and with them the order in which they are added up.
        return DistributedDataParallel(_Loss(method, student), broadcast_buffers=False, find_unused_parameters=True)


def remark(group: ProcessGroup, method: Method, student: nn.Module | None, draws: bool) -> str | None:
    """What a reader of a record must know of a run whose batches were shared, in a sentence; None if they were not.

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
    """Within it, this process is one of a group; nobody leaves it before the first process does.

    device: the one that this process computes on; meeting: a file that only this group knows, not there before.
    After an error the connections stay open until the process ends, so that the others wait instead of failing too.
    """
    for name in LOOPBACK:
        if name in (interface for _, interface in socket.if_nameindex()):
            # A machine's name may lead nowhere, or past a firewall.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # What is on the GPU goes from GPU to GPU; decisions never wait for one.
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend, store=dist.FileStore(str(meeting), size), rank=rank, world_size=size, timeout=TIMEOUT
    )
    group = ProcessGroup(rank, size)
    yield group
    group.broadcast_int(0)
    dist.destroy_process_group()
