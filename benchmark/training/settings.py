"""Where and how training runs: device, threads, folders, checkpoints. Nothing here changes a result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmark.results.leases import HEARTBEAT_TIMEOUT


@dataclass(frozen=True)
class TrainSettings:
    """Where things are and how they are run; none of it decides a result on the same kind of device."""

    runs: Path
    dataset: str
    """A registered name or the path of a dataset's TOML file."""
    data_root: Path | None = None
    device: str = "cpu"
    threads: int = 1
    released: tuple[tuple[str, Path], ...] = ()
    """Files of released teachers by their sha256."""
    checkpoint_seconds: float = 60.0
    keep: bool = False
    command: str = ""
    without_host: bool = False
    """Leave what names the machine or the user out of records."""
    silent_seconds: float = HEARTBEAT_TIMEOUT
    """After so long without a sign of life, a process on another node that nobody can ask after is taken for dead."""
