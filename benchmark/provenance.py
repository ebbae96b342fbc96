"""Where and with what a run was made. None of it decides a result, all of it helps to understand one."""

from __future__ import annotations

import datetime
import functools
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import benchmark
from benchmark.training.devices import device_name


@functools.cache
def commit() -> str | None:
    """The checkout's commit, with `+dirty` where files differ from it; None outside a git checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        answer = subprocess.run(("git", *arguments), cwd=folder, capture_output=True, text=True, timeout=10, check=True)
        return answer.stdout.strip()

    try:
        dirty = "+dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        return None


def made_by() -> str:
    """Who rendered something: the suite with its version and commit."""
    return f"kd-benchmark {benchmark.__version__}, commit {(commit() or 'unknown')[:12]}"


def provenance(command: str, device: torch.device) -> dict[str, Any]:
    """Version and commit, command, libraries, device, host and time."""
    return {
        "version": benchmark.__version__,
        "commit": commit(),
        "command": command,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": device.type,
        "device_name": device_name(device),
        "host": platform.node(),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
