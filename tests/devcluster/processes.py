"""The processes of a one-machine cluster: which they are, and their end.

They are told by their environment, which nothing in them changes: a daemon carries the mark of its cluster's folder and
hands it to its step daemons; a job's process carries the folder's slurm.conf and the cluster's name, which SLURM sets.
So neither the shell that typed `export SLURM_CONF=...` nor another cluster's process is ever taken for one of them, and
what lost its parents (a job whose step daemon was killed) still is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

MARK = "KD_DEVCLUSTER"
DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sinfo", "sbatch", "squeue", "scontrol", "srun", "scancel")
INSTALL = "apt-get install --no-install-recommends slurm-wlm munge"
LOOKS = 2
"""How often in a row no process may be found before a cluster counts as ended."""


def missing() -> str | None:
    """Why no cluster can run here, as a part of a sentence; None where one can."""
    if not Path("/proc/self/environ").exists():
        return "a SLURM cluster of one machine needs Linux's /proc"
    if absent := [name for name in (*DAEMONS, *CLIENTS) if program(name) is None]:
        verb = "is" if len(absent) == 1 else "are"
        return f"{', '.join(absent)} {verb} not installed (Debian: {INSTALL})"
    return None


def program(name: str) -> str | None:
    """Where a daemon or command of SLURM is; None where it is not."""
    # An ordinary user's PATH has /usr/bin, and the daemons are in the sbin beside it.
    folders = [Path(folder) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    beside = [folder.with_name("sbin") for folder in folders if folder.name == "bin"]
    return shutil.which(name, path=os.pathsep.join(map(str, [*folders, *beside])))


def processes_of(folder: Path, cluster: str) -> list[int]:
    """The ids of all living processes of the cluster named `cluster` in `folder`, and of what these have started."""
    mark = f"{MARK}={folder}".encode()
    job = {f"SLURM_CONF={folder / 'slurm.conf'}".encode(), f"SLURM_CLUSTER_NAME={cluster}".encode()}
    parents = {}
    own = set()
    for process in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        variables = _environment(process)
        if mark in variables or job <= variables:
            own.add(process)
        parents[process] = _parent(process)
    # A job may start something with an environment of its own.
    while more := {process for process, parent in parents.items() if parent in own} - own:
        own |= more
    return sorted(own - {os.getpid()})


def _environment(process: int) -> set[bytes]:
    # Of a process that has just ended, or is somebody else's, nothing can be read; a zombie has no environment.
    try:
        return set(Path(f"/proc/{process}/environ").read_bytes().split(b"\0"))
    except OSError:
        return set()


def _parent(process: int) -> int | None:
    # The fields after the name, which is in brackets and may hold any letter: the state, then the parent.
    try:
        state, parent = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state == "Z" else int(parent)


def kill_all(folder: Path, cluster: str, patience: float = 10.0) -> list[int]:
    """SIGKILL every process of a cluster until none is left; returns those that are after `patience` seconds."""
    deadline = time.monotonic() + patience
    empty = 0
    # Again and again: a daemon may start another one while the list is read, and what is just being executed has no
    # environment for a moment, so one look at an empty list is not enough.
    while empty < LOOKS:
        living = processes_of(folder, cluster)
        if living and time.monotonic() > deadline:
            return living
        for process in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        empty = 0 if living else empty + 1
        time.sleep(0.02)
    return []
