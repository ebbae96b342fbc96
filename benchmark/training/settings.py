"""Where and how training runs: device, threads, folders, checkpoints. Nothing here changes a result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmark.results.leases import HEARTBEAT_TIMEOUT


@dataclass(frozen=True)
class TrainSettings:
    """Folders, device and pace of a training; none of it decides a result on the same kind of device."""

    runs: Path
    dataset: str
    """The name of a dataset or the path of its TOML file."""
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
    """How long a process on another node may send no heartbeat before it counts as dead."""
