"""What several seeds say together."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Number, mean and sample standard deviation of some values; one value has no standard deviation."""

    n: int
    mean: float
    std: float | None


def summarise(values: Iterable[float]) -> Summary:
    """The summary of one value or more; the standard deviation is the sample's, with n - 1 in the denominator.

    Raises:
        ValueError: there are no values.
    """
    values = tuple(values)
    if not values:
        raise ValueError("no values to summarise")
    return Summary(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)
