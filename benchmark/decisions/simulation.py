"""Simulate sweeps that stop when they are decided, from differences whose mean is known: how often they are wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmark.core.sequences import FIRST, compute_reach
from benchmark.core.statistics import EQUAL, LEVEL

Differences = NDArray[np.float64]
"""[sweeps, seeds], in standard deviations, of mean 0."""
Draw = Callable[[np.random.Generator, tuple[int, int]], Differences]

DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda stream, shape: stream.standard_normal(shape),
    "normal, rounded to a standard deviation": lambda stream, shape: np.round(stream.standard_normal(shape)),
    "uniform": lambda stream, shape: stream.uniform(-math.sqrt(3), math.sqrt(3), shape),
    "Student's t, 3 degrees of freedom": lambda stream, shape: stream.standard_t(3, shape) / math.sqrt(3),
    "exponential": lambda stream, shape: stream.exponential(1, shape) - 1,
}
"""Differences as assumed, and others: as coarse as a small test set makes them, light and heavy tails, skewed."""


@dataclass(frozen=True)
class Outcome:
    """How simulated sweeps ended.

    missed: share of the sweeps with an interval that leaves the true mean out; right, wrong: shares of the sweeps that
    are decided with the true sign, and with another one (any, where the mean is 0); seeds: the mean number of a sweep.
    """

    missed: float
    right: float
    wrong: float
    seeds: float


def draw_differences(name: str, effect: float, sweeps: int, most: int, seed: int = 0) -> Differences:
    """Differences [sweeps, most] of a distribution by its name, in standard deviations; effect: their mean."""
    return DISTRIBUTIONS[name](np.random.default_rng(seed), (sweeps, most)) + effect


def simulate(differences: Differences, effect: float, error: float = 1 - LEVEL) -> Outcome:
    """Let every sweep go on, seed by seed, until its interval leaves 0 out or its seeds are spent.

    differences: [sweeps, seeds] of mean `effect`.
    """
    return _count(*_run(differences, effect, error), effect)


def _run(
    differences: Differences, effect: float, error: float
) -> tuple[NDArray[np.bool_], Differences, NDArray[np.int64]]:
    """Of each sweep whether it missed the mean, the sign that it decided on (0 for none), and its seeds."""
    sweeps, most = differences.shape
    low, high = np.full(sweeps, -np.inf), np.full(sweeps, np.inf)
    missed = np.zeros(sweeps, bool)
    sign, seeds = np.zeros(sweeps), np.full(sweeps, most)
    for count in range(FIRST, most + 1):
        mean, std = _summarise(differences[:, :count])
        own = std >= EQUAL
        reach = np.where(own, compute_reach(count, error) * std, np.inf)
        both_low, both_high = np.maximum(low, mean - reach), np.minimum(high, mean + reach)
        alone = both_low > both_high
        low, high = np.where(alone, mean - reach, both_low), np.where(alone, mean + reach, both_high)
        missed |= own & ((mean - reach > effect) | (mean + reach < effect))
        decided = (sign == 0) & ((low > 0) | (high < 0))
        sign = np.where(decided, np.where(low > 0, 1.0, -1.0), sign)
        seeds = np.where(decided, count, seeds)
    return missed, sign, seeds


def simulate_students(differences: Differences, effect: float, fixed: bool) -> Outcome:
    """The same with Student's intervals, looked at after each seed, or once after all (`fixed`)."""
    from scipy.special import stdtrit

    sweeps, most = differences.shape
    missed, sign, seeds = np.zeros(sweeps, bool), np.zeros(sweeps), np.full(sweeps, most)
    for count in [most] if fixed else range(FIRST, most + 1):
        mean, std = _summarise(differences[:, :count])
        reach = np.where(std < EQUAL, np.inf, float(stdtrit(count - 1, (1 + LEVEL) / 2)) / math.sqrt(count) * std)
        missed |= np.abs(mean - effect) > reach
        decided = (sign == 0) & (np.abs(mean) > reach)
        sign = np.where(decided, np.sign(mean), sign)
        seeds = np.where(decided, count, seeds)
    return _count(missed, sign, seeds, effect)


def count_any_wrong(columns: int, sweeps: int, most: int, error: float) -> float:
    """The share of sweeps of so many independent columns without any difference that decide one or more of them."""
    differences = draw_differences("normal", 0.0, sweeps * columns, most, seed=1)
    wrong = _run(differences, 0.0, error)[1] != 0
    return float(wrong.reshape(sweeps, columns).any(axis=1).mean())


def _summarise(differences: Differences) -> tuple[Differences, Differences]:
    return differences.mean(axis=1), differences.std(axis=1, ddof=1)


def _count(missed: NDArray[np.bool_], sign: Differences, seeds: NDArray[np.int64], effect: float) -> Outcome:
    right = sign == np.sign(effect) if effect else np.zeros(len(sign), bool)
    return Outcome(float(missed.mean()), float(right.mean()), float(((sign != 0) & ~right).mean()), float(seeds.mean()))
