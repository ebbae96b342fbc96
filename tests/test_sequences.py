"""Intervals that hold at all numbers of seeds at once."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from benchmark.core.sequences import FIRST, compute_reach, count_until, make_intervals
from benchmark.core.statistics import LEVEL, paired_statistics

ERROR = 1 - LEVEL
samples = st.lists(st.floats(-10, 10), min_size=FIRST, max_size=9).filter(
    lambda values: statistics.stdev(values[:FIRST]) > 0.01
)


def integrate_mixture(values: list[float], mu: float) -> float:
    """The likelihood of the values, up to scale: all means (in standard deviations) mixed, against the mean mu.

    Two numeric integrations, over the logarithm of the standard deviation and over the mean.
    """
    shifted = np.asarray(values) - mu

    def log_likelihood(log_std: float, mean: float) -> float:
        return float(-len(shifted) * log_std - ((shifted / math.exp(log_std) - mean) ** 2).sum() / 2)

    def over_means(log_std: float) -> float:
        centre, width = float((shifted / math.exp(log_std)).mean()), 12 / math.sqrt(len(shifted))
        found, _ = scipy.integrate.quad(
            lambda mean: math.exp(log_likelihood(log_std, mean)), centre - width, centre + width, epsabs=0
        )
        return float(found)

    centre = math.log(math.sqrt(float((shifted**2).mean())))
    ends = centre - 6, centre + 12
    mixed, _ = scipy.integrate.quad(over_means, *ends, epsabs=0, limit=200)
    plain, _ = scipy.integrate.quad(lambda at: math.exp(log_likelihood(at, 0.0)), *ends, epsabs=0, limit=200)
    return float(mixed / plain)


@pytest.mark.parametrize("values", [[0.3, 1.1, 0.2], [0.3, 1.1, 0.2, 0.9, 1.4], [-2.0, 5.0, 1.0, 0.5, 3.0, 2.5, -1.0]])
def test_an_interval_ends_where_the_mixture_integrated_numerically_reaches_its_limit(values: list[float]) -> None:
    a = compute_reach(FIRST) * math.sqrt(FIRST)
    limit = (1 + a * a / (FIRST - 1)) ** (FIRST / 2) / math.sqrt(FIRST) * math.sqrt(2 * math.pi)
    reach = compute_reach(len(values)) * statistics.stdev(values)
    for end in (statistics.fmean(values) - reach, statistics.fmean(values) + reach):
        assert integrate_mixture(values, end) == pytest.approx(limit, rel=1e-6)


@pytest.mark.parametrize("error", [0.5, 0.05, 0.05 / 6, 0.001])
def test_the_limit_leaves_the_error_that_is_asked_for(error: float) -> None:
    # P(L_3 >= L) + E[L_3; L_3 < L] / L, both integrated under Student's distribution.
    a = compute_reach(FIRST, error) * math.sqrt(FIRST)

    def ratio(t: float) -> float:
        return ((2 + t * t) / (2 + a * a)) ** (FIRST / 2) * float(scipy.stats.t.pdf(t, FIRST - 1))

    below, _ = scipy.integrate.quad(ratio, -a, a)
    assert 2 * scipy.stats.t.sf(a, FIRST - 1) + below == pytest.approx(error, rel=1e-9)


@given(samples, st.floats(-5, 5), st.floats(0.1, 10))
def test_intervals_move_and_stretch_with_the_values(values: list[float], shift: float, scale: float) -> None:
    moved = make_intervals([scale * value + shift for value in values])
    for own, other in zip(make_intervals(values), moved, strict=True):
        assert (own is None) == (other is None)
        if own and other:
            assert other == pytest.approx([scale * end + shift for end in own], rel=1e-6, abs=1e-6)


@given(samples)
def test_an_interval_lies_within_those_before_it_unless_they_have_nothing_in_common(values: list[float]) -> None:
    intervals = [interval for interval in make_intervals(values) if interval]
    assert len(intervals) == len(values) - FIRST + 1
    for before, after in itertools.pairwise(intervals):
        assume(after[0] <= before[1] and before[0] <= after[1])
        assert before[0] <= after[0] <= after[1] <= before[1]


def test_an_interval_that_no_earlier_one_allows_counts_alone() -> None:
    values = [0.0, 0.001, -0.001, *[1.0 + 0.01 * (-1) ** n for n in range(400)]]
    last = make_intervals(values)[-1]
    assert last is not None
    reach = compute_reach(len(values)) * statistics.stdev(values)
    assert last[0] > 0.5
    assert last[1] == pytest.approx(statistics.fmean(values) + reach)


@pytest.mark.parametrize("count", range(FIRST, 11))
def test_looking_after_each_seed_costs_a_wider_interval_than_a_number_fixed_before(count: int) -> None:
    values = [float(value) for value in np.random.default_rng(count).normal(size=count)]
    fixed = paired_statistics(values).interval
    assert fixed is not None
    ratio = 2 * compute_reach(count) * statistics.stdev(values) / (fixed[1] - fixed[0])
    assert 1.7 < ratio < 2.0
    assert compute_reach(count, ERROR / 6) > compute_reach(count)


def test_fewer_than_three_values_or_equal_ones_give_no_interval() -> None:
    assert make_intervals([1.0, 2.0]) == [None, None]
    assert make_intervals([0.1] * 5) == [None] * 5
    assert count_until([0.1] * 5, 0.0) is None
    # The equal ones count as soon as others show how the values vary.
    assert make_intervals([0.1, 0.1, 0.1, 0.3])[-1] is not None


def test_a_margin_is_left_out_from_some_value_on() -> None:
    values = [1.0, 1.1, 0.9, 1.05, 0.95]
    assert count_until(values, 0.0) == 3
    assert count_until(values, 0.8) == 5
    assert count_until(values, 1.0) is None
