"""Where and with what a run was made. None of it decides a result, all of it helps to understand one."""

from __future__ import annotations

import contextlib
import datetime
import functools
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import benchmark
from benchmark.core.devices import device_name

PACKAGES = ("benchmark", "figures", "methods", "slurm", "tables")


@functools.cache
def commit() -> str | None:
    """The checkout's commit, with `+dirty` where it is not all there is; None outside a git checkout.

    Files that differ from the commit count, and modules of the suite's packages that it does not know, ignored or not:
    a method is found in any of them.
    """
    return commit_of(Path(__file__).parents[2])


def commit_of(checkout: Path) -> str | None:
    """See `commit`; checkout: the folder of the packages."""

    def git(*arguments: str) -> str:
        answer = subprocess.run(
            ("git", *arguments), cwd=checkout, capture_output=True, text=True, timeout=10, check=True
        )
        return answer.stdout.strip()

    try:
        modules = [f":(glob){package}/**/*.py" for package in PACKAGES]
        changed = git("status", "--porcelain", "--untracked-files=no") or git("ls-files", "--others", "--", *modules)
        return git("rev-parse", "HEAD") + ("+dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def describe_environment() -> str:
    """Who rendered something: the suite with its version and commit."""
    return f"kd-benchmark {benchmark.__version__}, commit {(commit() or 'unknown')[:12]}"


DETERMINISM_KEYS = ("device", "device_name", "threads", "torch", "cuda")
"""What two pieces of a run must agree in for the run to have the bits of one that was never interrupted."""
Segment = dict[str, str | int | None]
"""A stretch of a run between two interruptions."""


def environment(device: torch.device) -> dict[str, Any]:
    """The suite's version and commit, the libraries, and the machine."""
    return {
        "version": benchmark.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": device.type,
        "device_name": device_name(device),
        "host": platform.node(),
    }


def provenance(command: str, device: torch.device) -> dict[str, Any]:
    """Version and commit, command, libraries, device, host and time."""
    return {"command": command, **environment(device), "written": _now()}


def anonymise(provenance: dict[str, Any]) -> dict[str, Any]:
    """Provenance as it may be published: without host names, and with `PATH` for each path that leaves the folder."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: clean(part) for name, part in value.items() if name != "host"}
        if isinstance(value, list):
            return [clean(part) for part in value]
        return _FOREIGN_PATH.sub("PATH", value) if isinstance(value, str) else value

    cleaned: dict[str, Any] = clean(provenance)
    command = cleaned.pop("command", None)
    if isinstance(command, str):
        # What is no command line stays left out.
        with contextlib.suppress(ValueError):
            # Word by word, because paths with spaces are quoted.
            cleaned["command"] = shlex.join(clean(shlex.split(provenance["command"])))
    return cleaned


_FOREIGN_PATH = re.compile(r"(?:^|(?<=[=,:]))(?:[/~\\]|[^=,:]*\.\.(?:[/\\]|$)).*", re.DOTALL)
"""From the beginning of an absolute path, or of one that leads upwards, to the end of the text."""


def start_segment(device: torch.device, threads: int, epoch: int, step: int) -> Segment:
    """A piece of a run that begins now, after so many steps of an epoch, both counted from 0."""
    return {"epoch": epoch + 1, "step": step, "threads": threads, **environment(device), "started": _now()}


def changed_settings(pieces: Sequence[Segment]) -> list[str]:
    """What, of all that decides bits, the pieces of a run differ in; none if it has the bits of one piece."""
    return [name for name in DETERMINISM_KEYS if len({part.get(name) for part in pieces}) > 1]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
