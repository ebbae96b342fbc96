"""Where and with what a run was made. Nothing here changes a result, but it helps to explain one."""

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
    """The checkout's commit, with `+dirty` where the code differs from it; None outside a git checkout.

    Code differs if a tracked file was changed, or if one of the suite's packages has a module that is not tracked, even
    an ignored one: methods are found in all of them.
    """
    return commit_of(Path(__file__).parents[2])


def commit_of(checkout: Path) -> str | None:
    """The commit of any checkout, see `commit`; checkout: the folder of the packages."""

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
    """The suite's version and commit, for what it renders."""
    return f"kd-benchmark {benchmark.__version__}, commit {(commit() or 'unknown')[:12]}"


DETERMINISM_KEYS = ("device", "device_name", "threads", "torch", "cuda")
"""What must be equal in all segments of a run for it to have the bits of a run that was never interrupted."""
Segment = dict[str, str | int | None]
"""The part of a run between two interruptions."""


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
    """The command, the environment and the time of now."""
    return {"command": command, **environment(device), "written": _now()}


def anonymise(provenance: dict[str, Any]) -> dict[str, Any]:
    """Provenance that may be published: no host names, and `PATH` for each path that is absolute or leads upwards."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: clean(part) for name, part in value.items() if name != "host"}
        if isinstance(value, list):
            return [clean(part) for part in value]
        return _FOREIGN_PATH.sub("PATH", value) if isinstance(value, str) else value

    cleaned: dict[str, Any] = clean(provenance)
    command = cleaned.pop("command", None)
    if isinstance(command, str):
        # A text that is no command line is left out.
        with contextlib.suppress(ValueError):
            # Word by word, because paths with spaces are quoted.
            cleaned["command"] = shlex.join(clean(shlex.split(provenance["command"])))
    return cleaned


_FOREIGN_PATH = re.compile(r"(?:^|(?<=[=,:]))(?:[/~\\]|[^=,:]*\.\.(?:[/\\]|$)).*", re.DOTALL)
"""From the beginning of an absolute path, or of one that leads upwards, to the end of the text."""


def start_segment(device: torch.device, threads: int, epoch: int, step: int) -> Segment:
    """A segment of a run that begins now, after so many steps of an epoch, both counted from 0."""
    return {"epoch": epoch + 1, "step": step, "threads": threads, **environment(device), "started": _now()}


def changed_settings(segments: Sequence[Segment]) -> list[str]:
    """The settings that decide bits and that differ between the segments of a run."""
    return [name for name in DETERMINISM_KEYS if len({segment.get(name) for segment in segments}) > 1]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
