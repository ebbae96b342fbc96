"""Summaries of seeds, and differences paired by seed."""

from __future__ import annotations

import math

import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmark.core.statistics import (
    EQUAL,
    LEAST,
    LEVEL,
    PairedDifference,
    Summary,
    clustered_difference,
    common_seeds,
    paired_difference,
    paired_statistics,
    pooled_difference,
    summarise,
)

accuracies = st.floats(0, 100)
by_seed = st.dictionaries(st.integers(0, 9), accuracies, min_size=1)
seed_counts = st.integers(LEAST, 8)


def drawn(data: st.DataObject, seeds: int) -> dict[int, float]:
    return dict(enumerate(data.draw(st.lists(accuracies, min_size=seeds, max_size=seeds))))


def test_the_standard_deviation_is_the_samples() -> None:
    # Squared deviations 1, 0, 1 over n - 1 = 2.
    assert summarise([70.0, 71.0, 72.0]) == Summary(n=3, mean=71.0, std=1.0)


def test_one_value_has_no_standard_deviation() -> None:
    assert summarise([70.5]) == Summary(n=1, mean=70.5, std=None)


def test_values_may_come_from_an_iterator() -> None:
    assert summarise(iter((1.0, 2.0))).n == 2


def test_no_values_have_no_summary() -> None:
    with pytest.raises(ValueError, match="no values"):
        summarise([])


def test_a_paired_difference_worked_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1, standard error 1/sqrt(3). Student's t with 2 degrees of freedom
    # has a closed form: F(t) = 1/2 + t / (2 sqrt(2 + t^2)), so the 97.5% quantile is 0.95 sqrt(2 / (1 - 0.95^2)).
    found = paired_difference({0: 71.0, 1: 73.0, 2: 70.0}, {0: 70.0, 1: 71.0, 2: 67.0})
    quantile = 0.95 * math.sqrt(2 / (1 - 0.95**2))
    t = 2 * math.sqrt(3)
    assert (found.n, found.mean, found.remark) == (3, 2.0, "")
    assert found.std == pytest.approx(1.0)
    assert found.interval == pytest.approx((2 - quantile / math.sqrt(3), 2 + quantile / math.sqrt(3)))
    assert found.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t))


@settings(max_examples=60, deadline=None)
@given(st.data(), seed_counts)
def test_a_paired_difference_is_scipys(data: st.DataObject, seeds: int) -> None:
    a, b = drawn(data, seeds), drawn(data, seeds)
    found = paired_difference(a, b)
    assume(found.std is not None and found.std > 1e-6)
    test = scipy.stats.ttest_rel(list(a.values()), list(b.values()))
    limits = test.confidence_interval(LEVEL)
    assert found.p_value == pytest.approx(test.pvalue, rel=1e-6, abs=1e-12)
    assert found.interval == pytest.approx((limits.low, limits.high), rel=1e-6, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(by_seed, by_seed)
def test_only_common_seeds_count_and_the_other_way_round_is_the_opposite(
    a: dict[int, float], b: dict[int, float]
) -> None:
    common = a.keys() & b.keys()
    if not common:
        with pytest.raises(ValueError, match="no seed in common"):
            paired_difference(a, b)
        return
    found, reverse = paired_difference(a, b), paired_difference(b, a)
    assert found == paired_difference({seed: a[seed] for seed in sorted(common, reverse=True)}, b)
    assert found.n == len(common)
    assert found.mean == pytest.approx(-reverse.mean)
    assert found.p_value == reverse.p_value
    if found.interval and reverse.interval:
        assert found.interval == pytest.approx((-reverse.interval[1], -reverse.interval[0]))


@settings(max_examples=60, deadline=None)
@given(st.data(), seed_counts)
def test_what_all_methods_share_at_a_seed_does_not_widen_the_interval(data: st.DataObject, seeds: int) -> None:
    a, b, luck = drawn(data, seeds), drawn(data, seeds), drawn(data, seeds)
    plain = paired_difference(a, b)
    shifted = paired_difference(*({seed: row[seed] + luck[seed] for seed in row} for row in (a, b)))
    assert shifted.mean == pytest.approx(plain.mean, abs=1e-9)
    assert shifted.std == pytest.approx(plain.std, abs=1e-9)


@pytest.mark.parametrize("values", [[1.0], [1.0, 3.0]])
def test_fewer_than_three_seeds_have_no_interval_and_it_says_why(values: list[float]) -> None:
    found = paired_statistics(values)
    assert (found.interval, found.p_value) == (None, None)
    assert found.remark == f"no interval: {len(values)} seed{'s' * (len(values) > 1)}, and it takes 3"
    assert found.n == len(values)


def test_equal_differences_have_no_interval_though_floating_point_differs() -> None:
    a = {0: 70.1, 1: 71.1, 2: 72.1}
    found = paired_difference(a, {seed: value - 0.3 for seed, value in a.items()})
    assert found.mean == pytest.approx(0.3)
    assert (found.std, found.interval, found.p_value) == (0.0, None, None)
    assert "does not tell how it varies" in found.remark


@settings(max_examples=60, deadline=None)
@given(st.data(), seed_counts, st.integers(1, 6))
def test_a_pooled_difference_counts_seeds_and_is_scipys_of_their_means(
    data: st.DataObject, seeds: int, columns: int
) -> None:
    pairs = [(drawn(data, seeds), drawn(data, seeds)) for _ in range(columns)]
    means = [sum(a[seed] - b[seed] for a, b in pairs) / columns for seed in range(seeds)]
    found = pooled_difference(pairs)
    assert found.n == seeds
    assert found.mean == pytest.approx(sum(means) / seeds, abs=1e-9)
    assume(found.std is not None and found.std > 1e-6)
    test = scipy.stats.ttest_1samp(means, 0.0)
    limits = test.confidence_interval(LEVEL)
    assert found.p_value == pytest.approx(test.pvalue, rel=1e-6, abs=1e-12)
    assert found.interval == pytest.approx((limits.low, limits.high), rel=1e-6, abs=1e-6)


def test_a_column_that_says_the_same_thing_again_adds_no_certainty() -> None:
    pair = ({0: 71.0, 1: 73.0, 2: 70.0}, {0: 70.0, 1: 71.0, 2: 67.0})
    assert pooled_difference([pair, pair, pair]) == paired_difference(*pair)


def test_pooling_takes_the_seeds_that_every_column_has() -> None:
    whole = ({0: 2.0, 1: 4.0, 2: 9.0}, {0: 1.0, 1: 1.0, 2: 1.0})
    lacking = ({0: 1.0, 1: 3.0}, {0: 1.0, 1: 1.0, 2: 1.0})
    found = pooled_difference([whole, lacking])
    assert (found.n, found.mean) == (2, pytest.approx((0.5 + 2.5) / 2))
    with pytest.raises(ValueError, match="no seed in common"):
        pooled_difference([whole, ({5: 1.0}, {5: 1.0})])


def test_clusters_count_as_one_value_each() -> None:
    means = {"a": 1.0, "b": 3.0, "c": 5.0, "d": 4.0, "e": 6.0}
    teachers = {"a": "A", "b": "A", "c": "B", "d": "C", "e": "C"}
    # Means of the clusters: 2, 5, 5.
    assert clustered_difference(means, teachers) == paired_statistics([2.0, 5.0, 5.0], "teacher")
    one = clustered_difference(means, dict.fromkeys(means, "A"))
    assert (one.n, one.mean, one.remark) == (1, pytest.approx(3.8), "no interval: 1 teacher, and it takes 3")


def test_seeds_in_common() -> None:
    assert common_seeds([{2: 1.0, 0: 1.0, 5: 1.0}, {5: 0.0, 2: 0.0}]) == [2, 5]
    assert common_seeds([]) == []


def test_a_difference_below_rounding_counts_as_equal() -> None:
    assert paired_statistics([1.0, 1.0 + EQUAL / 10, 1.0]).interval is None
    assert isinstance(paired_statistics([1.0, 1.001, 1.0]), PairedDifference)
    assert paired_statistics([1.0, 1.001, 1.0]).interval is not None
