"""What a caller gives to training beside the runs: settings and callbacks. Nothing here changes a result."""

from __future__ import annotations

from collections.abc import Callable
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


@dataclass(frozen=True)
class Progress:
    """The position and speed of a running cohort; epoch and step count from 1."""

    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    loss: float | None
    """None while a teacher's atlas is made, before the first step."""
    top1: float | None
    seconds_left: float

    @property
    def share_done(self) -> float:
        """Compute the share of the steps that are done."""
        return (self.epoch - 1 + self.step / self.steps) / self.epochs


ProgressCallback = Callable[[Progress], None]
LogFn = Callable[[str], None]
StopFn = Callable[[], bool]
