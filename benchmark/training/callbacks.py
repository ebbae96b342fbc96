"""Callbacks of a running cohort: its progress, its log lines, and whether to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


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
