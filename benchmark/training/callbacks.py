"""What a running cohort tells, and is told: its progress, lines for people, and whether to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """What a running cohort says of itself: the epoch (from 1), the step (from 1), and how fast it goes."""

    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    loss: float
    top1: float | None
    seconds_left: float

    @property
    def share_done(self) -> float:
        """The share of the cohort's steps that is done."""
        return (self.epoch - 1 + self.step / self.steps) / self.epochs


ProgressCallback = Callable[[Progress], None]
Say = Callable[[str], None]
StopFn = Callable[[], bool]
