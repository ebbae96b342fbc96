"""A confidence sequence for the mean of normal values: intervals that hold at all numbers of seeds at once.

An interval of Student's t holds at a number of seeds that was fixed before. Whoever looks after each seed and stops as
soon as it leaves out 0 is wrong far more often than 5% of the time. The intervals here may be looked at after each
seed: with probability 1 - error or more, the mean lies in all of them.

They are those of T. L. Lai, "On confidence sequences", The Annals of Statistics 4 (1976) 265-280: sequential t-tests
with a flat prior on the mean in standard deviations and Haar's prior on the standard deviation. H. Wang and A. Ramdas,
"Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance" (arXiv 2310.03722, 2023),
show why they hold (a martingale that is not integrable, and an extension of Ville's inequality to it) and compare them
with others. Assumed: the values are independent and normal, of one unknown mean and one unknown variance.

With n values, t = sqrt(n) (mean - mu) / std, the mixture of the likelihood ratios of all means against mu is, but for a
constant,

    L_n = n^(-1/2) (1 + t^2 / (n - 1))^(n / 2)

and an interval is the mu with L_n < L. From the m-th value on,

    P(L_n >= L for some n >= m) <= P(L_m >= L) + E[L_m; L_m < L] / L = P(|t| >= a) + 2 a f(a)

where t has Student's distribution with m - 1 degrees of freedom and density f, and a is the t at which L_m = L. For
m = 3 the right side is 1 - x^3 with x = a / sqrt(2 + a^2), so that no equation is left to solve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmark.core.statistics import EQUAL, LEAST, LEVEL

Interval = tuple[float, float]
FIRST = 3
"""The number of values of the first interval, m above. Starting at 2 would make all later intervals a quarter to a half
wider, and starting at 4 would take a fourth seed where three are enough."""
assert FIRST == LEAST


def compute_reach(count: int, error: float = 1 - LEVEL) -> float:
    """How far the interval of so many values, FIRST or more, reaches to either side, in their standard deviations."""
    x = (1 - error) ** (1 / FIRST)
    # L_m at its limit without its m^(-1/2), to the power 2: (1 + a^2 / 2)^3.
    limit = (1 - x * x) ** -FIRST
    squared_t = (count - 1) * ((count / FIRST * limit) ** (1 / count) - 1)
    return math.sqrt(squared_t / count)


def make_intervals(values: Sequence[float], error: float = 1 - LEVEL) -> list[Interval | None]:
    """The interval of the mean after each of the values, the first to the last; None where there is none yet.

    Each is what it has in common with those before it, since the mean lies in all of them. Where it has nothing in
    common with them, which the true mean allows with probability `error` at most, the latest counts alone. Values that
    are all equal (within EQUAL) do not tell how they vary, and give no interval.
    """
    intervals: list[Interval | None] = []
    common: Interval | None = None
    mean = squares = 0.0
    for count, value in enumerate(values, 1):
        # Welford's updates of the mean and of the sum of squared deviations from it.
        before, mean = mean, mean + (value - mean) / count
        squares += (value - before) * (value - mean)
        if count >= FIRST and (std := math.sqrt(squares / (count - 1))) >= EQUAL:
            reach = compute_reach(count, error) * std
            own = mean - reach, mean + reach
            both = (max(own[0], common[0]), min(own[1], common[1])) if common else own
            common = both if both[0] <= both[1] else own
        intervals.append(common)
    return intervals


def count_until(values: Sequence[float], margin: float, error: float = 1 - LEVEL) -> int | None:
    """After how many of the values their interval leaves the margin out; None where it never does."""
    for count, interval in enumerate(make_intervals(values, error), 1):
        if interval is not None and not interval[0] <= margin <= interval[1]:
            return count
    return None
