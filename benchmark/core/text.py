"""Formats times, counts, signed numbers and progress, the same on every screen and page."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol


class Position(Protocol):
    """The progress of a training: the epoch (from 1), its speed, and the last test accuracy in %."""

    @property
    def epoch(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def images_per_second(self) -> float: ...
    @property
    def seconds_left(self) -> float: ...
    @property
    def top1(self) -> float | None: ...


def duration(seconds: float) -> str:
    """Format seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe_position(at: Position, loss: float | None = None) -> str:
    """Describe the progress of a training: `epoch 3/8, 950 images/s, loss 1.200, test 41.0 %, 0:20 left`."""
    said = [f"epoch {at.epoch}/{at.epochs}", f"{at.images_per_second:.0f} images/s"]
    said += [] if loss is None else [f"loss {loss:.3f}"]
    said += [] if at.top1 is None else [f"test {at.top1:.1f} %"]
    return ", ".join([*said, f"{duration(at.seconds_left)} left"])


def counted(number: int, thing: str) -> str:
    """Write a number of things: `1 run`, `2 runs`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def format_range(numbers: Collection[int]) -> str:
    """Write the least and the greatest of some numbers: `1 to 3`, or `3` where they are equal."""
    least, greatest = min(numbers), max(numbers)
    return f"{least}" if least == greatest else f"{least} to {greatest}"


def format_minus(text: str) -> str:
    """Write the text of a number with a real minus sign."""
    return text.replace("-", "\N{MINUS SIGN}")


def format_signed(value: float, decimals: int = 2) -> str:
    """Write a number with its sign, and a real minus sign."""
    return format_minus(f"{value:+.{decimals}f}")
