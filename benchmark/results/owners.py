"""Lease holders: what identifies a process so that another one, on any node, can tell whether it still runs."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import socket
import uuid
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field

from benchmark.core.spec import Frozen
from benchmark.io.untrusted import escape_control_chars

START_SLACK = 5.0
"""Seconds by which two readings of a process's start time may differ, because the clock may have been set."""
UNKNOWN_TOKEN = "0" * 32
"""Token of a holder whose lease cannot be read."""
MAX_PROCESS = 2**31 - 1
JobId = Annotated[str, Field(pattern=r"^([0-9]{1,18}(_[0-9]{1,18})?)?$")]
"""A SLURM job, such as `12_3` for a task of an array; empty outside of SLURM."""


class LeaseHolder(Frozen):
    """A process that holds a lease. It is read from files that others may have written, so every field is checked."""

    token: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Names the process, and its heartbeat file."""
    machine: str
    """The node, its boot and its process namespace."""
    node: str
    process: int
    started: float
    user: str = ""
    job: JobId = ""
    restarts: int = 0
    """How often SLURM has restarted that job."""

    @property
    def label(self) -> str:
        """The job or process and its node, for messages."""
        what = f"job {self.job}" if self.job else f"process {self.process}"
        return f"{what} on {escape_control_chars(self.node, 60)}"


@functools.cache
def this_machine() -> str:
    """Identifies what shares process numbers with this process: one boot of a node, and one container on it."""
    boot = str(round(psutil.boot_time()))
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    container = ""
    with contextlib.suppress(OSError):
        container = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot} {container}".strip()


def this_user() -> str:
    """The user who runs this process."""
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
    """This process as a lease holder."""
    return _owner_of(os.getpid())


def is_running(process: int, started: float) -> bool:
    """Whether a process of this machine that was started at that time still runs; a zombie does not."""
    if not 0 < process <= MAX_PROCESS:
        return False
    try:
        running = psutil.Process(process)
        return running.status() != psutil.STATUS_ZOMBIE and abs(running.create_time() - started) < START_SLACK
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
