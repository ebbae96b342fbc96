"""Summaries of seeds."""

from __future__ import annotations

import pytest

from benchmark.statistics import Summary, summarise


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
