"""Who holds a claim: a process, so named that another one, on any node, can tell whether it is still there."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import socket
import uuid
from pathlib import Path

import psutil

from benchmark.core.spec import Frozen

START_SLACK = 5.0
"""Seconds by which a process's starting time may differ between two readings, when the clock was set meanwhile."""


class LeaseHolder(Frozen):
    """The process that holds a claim, so that another one can tell whether it still exists."""

    token: str
    machine: str
    """The node, its boot and the processes that can be seen there."""
    node: str
    process: int
    started: float
    user: str = ""
    job: str = ""
    """Of the cluster, `12_3` where it is one of an array; empty outside of one."""
    restarts: int = 0
    """How often the cluster has started that job again."""

    @property
    def words(self) -> str:
        """For people: the job or the process, and where it is."""
        what = f"job {self.job}" if self.job else f"process {self.process}"
        return f"{what} on {self.node}"


@functools.cache
def this_machine() -> str:
    """Names what shares process numbers with this process: one boot of a node, and one container on it."""
    boot = str(round(psutil.boot_time()))
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    container = ""
    with contextlib.suppress(OSError):
        container = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot} {container}".strip()


def this_user() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@functools.lru_cache(maxsize=1)
def _owner_of(process: int) -> LeaseHolder:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return LeaseHolder(
        token=uuid.uuid4().hex,
        machine=this_machine(),
        node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        process=process,
        started=psutil.Process(process).create_time(),
        user=this_user(),
        job=f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", ""),
        restarts=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
    )


def this_owner() -> LeaseHolder:
    """The owner that this process is."""
    return _owner_of(os.getpid())


def is_running(process: int, started: float) -> bool:
    """Whether a process of this machine lives that was started at that time; one that waits to be reaped does not."""
    try:
        found = psutil.Process(process)
        return found.status() != psutil.STATUS_ZOMBIE and abs(found.create_time() - started) < START_SLACK
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
