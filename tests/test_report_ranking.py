"""Mean ranks with critical differences, and probabilities of improvement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmark.report.data import TableReport, collect_report
from benchmark.report.ranking import (
    _find_groups,
    compute_critical_difference,
    compute_improvement,
    list_improvements,
    list_rankings,
    rank_rows,
)
from tests.report_records import fill, write

TOP = {"Baseline": 70.0, "KD": 72.0, "AT": 71.0, "LSSKD": 74.0}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> TableReport:
    """Four methods on all six pairs of Table II, of which each is better than the one before by a point."""
    root = tmp_path_factory.mktemp("ranking")
    for run in fill(root, methods=tuple(TOP), epochs=1, seeds=3):
        if run.method in TOP:
            write(root, run, 1, final={"epoch": 1, "loss": 1.0, "top1": TOP[run.method] + 0.1 * run.seed})
    (found,) = collect_report(root, tables=("II",)).tables
    return found


@pytest.mark.parametrize(("methods", "pairs", "expected"), [(4, 14, 1.25), (5, 30, 1.11), (10, 10, 4.28)])
def test_the_critical_difference_is_that_of_the_published_table(methods: int, pairs: int, expected: float) -> None:
    # Demsar (JMLR 2006), Table 5a: q is 2.569, 2.728 and 3.164; the first is the example of section 3.2.4.
    assert compute_critical_difference(methods, pairs) == pytest.approx(expected, abs=0.005)


def test_methods_are_ranked_over_the_pairs_that_all_have(table: TableReport) -> None:
    ranking = rank_rows(table)
    assert ranking is not None
    assert [(rank.name, rank.mean) for rank in ranking.ranks] == [("LSSKD", 1), ("KD", 2), ("AT", 3), ("Baseline", 4)]
    assert len(ranking.columns) == 6
    # All pairs order all methods alike, so the statistic is at its largest, N (k - 1).
    assert ranking.statistic == pytest.approx(18)
    assert ranking.p_value == pytest.approx(float(stats.chi2.sf(18, 3)))
    assert "differ" in ranking.test
    # The critical difference is 1.91 ranks: neighbours are joined, and those two ranks apart are not.
    assert ranking.critical == pytest.approx(1.915, abs=0.005)
    assert len(ranking.groups) == 3


def test_only_the_longest_groups_are_drawn() -> None:
    assert _find_groups([1.0, 1.5, 2.0, 4.0], 1.2) == [(0, 2)]
    assert _find_groups([1.0, 2.0, 3.0], 0.5) == []


def test_too_few_methods_pairs_or_seeds_are_not_ranked(tmp_path: Path) -> None:
    fill(tmp_path, methods=("Baseline", "KD"), pairs=("WRN-40-2>WRN-16-2",), epochs=1, seeds=2)
    (few,) = collect_report(tmp_path, tables=("II",)).tables
    assert rank_rows(few) is None
    assert list_improvements(few, "KD") is None
    assert list_rankings([few], "KD") == []


def test_the_probability_of_improvement_is_the_mean_of_the_mann_whitney_statistics() -> None:
    stream = np.random.default_rng(0)
    pairs = [(stream.normal(0.5, 1, 5), stream.normal(0, 1, 4)) for _ in range(3)]
    found, interval = compute_improvement(pairs)
    expected = [stats.mannwhitneyu(ours, theirs).statistic / (len(ours) * len(theirs)) for ours, theirs in pairs]
    assert found == pytest.approx(np.mean(expected))
    assert interval is not None
    assert interval[0] < found < interval[1]
    assert compute_improvement(pairs) == (found, interval), "the same every time"
    ties = [(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0]))]
    assert compute_improvement(ties)[0] == pytest.approx(0.5)


def test_a_row_that_is_always_better_has_no_interval(table: TableReport) -> None:
    listing = list_improvements(table, "KD")
    assert listing is not None
    cells = {row[0].text: row[1].text for row in listing.rows}
    assert cells == {"LSSKD": "0.00", "AT": "1.00", "Baseline": "1.00"}
    assert listing.rows[0][2].below == "n=3"
