"""Rank methods over all pairs of a table: average ranks with critical differences, and probabilities of improvement.

Friedman's test and Nemenyi's critical difference as Demsar (JMLR 2006, section 3.2.2) uses them for classifiers over
datasets; here the pairs of a table take the place of the datasets. The probability of improvement and its stratified
bootstrap are those of Agarwal et al. (NeurIPS 2021, section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmark.core.rng import seed_of
from benchmark.core.text import format_range
from benchmark.report.data import TableReport
from benchmark.report.table import ReportCell, ReportColumn, ReportTable, format_word, make_word_columns

FEWEST_METHODS, FEWEST_PAIRS, FEWEST_SEEDS = 3, 5, 3
"""Below these nothing is ranked: Friedman's chi-squared and the bootstrap mean nothing there."""
LEVEL = 0.05
RESAMPLES = 2000
ASSUMES = (
    "Ranks use the order of the means alone, and take the pairs as independent draws. They are not: pairs share "
    "teachers and all share one dataset, so p is too small and the critical difference too short. Friedman's "
    "chi-squared is an approximation that is rough for fewer than ten pairs."
)
IMPROVES = (
    "The probability that a run of the method beats a run of the other one on a pair, both drawn at random, averaged "
    "over pairs; ties count half. 0.5 is no difference. In brackets the 95 % interval of a bootstrap that draws seeds "
    "anew within each pair and method: it takes seeds as independent draws, tells nothing of other pairs, and with few "
    "seeds is too narrow; there is none where every run of one beats every run of the other. It does not say how large "
    "an improvement is."
)


@dataclass(frozen=True)
class Rank:
    """A method with its mean rank, 1 for the best."""

    name: str
    mean: float


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of the methods that all have a number for each of some pairs, the best first.

    statistic, p_value: of Friedman's test; critical: the difference of mean ranks that Nemenyi's test asks for.
    """

    title: str
    columns: tuple[str, ...]
    ranks: tuple[Rank, ...]
    statistic: float
    p_value: float
    critical: float

    @property
    def groups(self) -> list[tuple[int, int]]:
        """The methods, by first and last place from 0, that are closer than the critical difference."""
        return _find_groups([rank.mean for rank in self.ranks], self.critical)

    @property
    def words(self) -> str:
        """What is to be seen, for those who do not see it."""
        listed = "; ".join(f"{rank.name} {rank.mean:.2f}" for rank in self.ranks)
        return f"{self.title}, mean ranks over {len(self.columns)} pairs, best first: {listed}."

    @property
    def test(self) -> str:
        """The test in a sentence."""
        p = f"{self.p_value:.2g}" if self.p_value >= 1e-4 else "< 0.0001"
        decided = "differ" if self.p_value < LEVEL else "are not told apart, and neither are any two"
        return (
            f"Friedman's chi-squared {self.statistic:.1f} for {len(self.ranks)} methods on {len(self.columns)} pairs, "
            f"p {p if p.startswith('<') else f'= {p}'}: at {LEVEL:.0%} the methods {decided}. Nemenyi's critical "
            f"difference is {self.critical:.2f} ranks; a bar joins methods that are closer."
        )


def compute_critical_difference(methods: int, pairs: int) -> float:
    """Compute Nemenyi's critical difference of mean ranks at `LEVEL` (Demsar 2006, section 3.2.2)."""
    # Here and below: scipy.stats takes a second to import, and most reports have nothing to rank.
    from scipy import stats

    quantile = float(stats.studentized_range.ppf(1 - LEVEL, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * pairs))


def list_rankings(tables: Iterable[TableReport], method: str) -> list[tuple[Ranking | None, ReportTable | None]]:
    """List the mean ranks and the probabilities of improvement of each table that has enough runs for either."""
    found = [(rank_rows(table), list_improvements(table, method)) for table in tables if table.measured]
    return [pair for pair in found if any(pair)]


def rank_rows(table: TableReport) -> Ranking | None:
    """Rank the rows that have every column which most of them have; None where methods or pairs are too few."""
    result = table.result
    if len({column.metric for column in result.table.columns}) > 1:
        return None
    names = [column.name for column in result.table.columns]
    found = {row.name: {name for name in names if result.cell(row.name, name).values} for row in result.table.rows}
    wide = max(map(len, found.values()), default=0)
    columns = next((tuple(name for name in names if name in has) for has in found.values() if len(has) == wide), ())
    rows = [row for row, has in found.items() if columns and set(columns) <= has]
    if len(rows) < FEWEST_METHODS or len(columns) < FEWEST_PAIRS:
        return None
    from scipy import stats

    means = np.array([[np.mean(result.cell(row, name).values) for name in columns] for row in rows])
    ranks = stats.rankdata(-means, axis=0).mean(axis=1)
    statistic, p_value = stats.friedmanchisquare(*means)
    critical = compute_critical_difference(len(rows), len(columns))
    order = sorted(map(Rank, rows, map(float, ranks)), key=lambda rank: rank.mean)
    return Ranking(table.title, columns, tuple(order), float(statistic), float(p_value), critical)


def _find_groups(means: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """Find the longest runs of methods, by first and last place, that are closer than the critical difference."""
    found: list[tuple[int, int]] = []
    for first, start in enumerate(means):
        last = max(place for place, mean in enumerate(means) if mean - start < critical)
        if last > first and not any(last <= other for _, other in found):
            found.append((first, last))
    return found


def list_improvements(table: TableReport, method: str) -> ReportTable | None:
    """List how probably a method's run beats another row's; None where no pair has enough seeds of both."""
    result = table.result
    if len({column.metric for column in result.table.columns}) > 1:
        return None
    lines = []
    for row in result.table.rows:
        pairs = [
            (np.array(ours), np.array(theirs))
            for column in result.table.columns
            if len(ours := result.cell(method, column.name).values) >= FEWEST_SEEDS
            and len(theirs := result.cell(row.name, column.name).values) >= FEWEST_SEEDS
        ]
        if row.name == method or not pairs:
            continue
        probability, interval = compute_improvement(pairs)
        seeds = format_range([len(values) for pair in pairs for values in pair])
        text = f"{probability:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else f"{probability:.2f}"
        lines.append(
            (
                format_word(row.name),
                ReportCell(text, probability),
                ReportCell(str(len(pairs)), float(len(pairs)), f"n={seeds}"),
            )
        )
    if not lines:
        return None
    headings = (*make_word_columns("better than"), ReportColumn("probability"), ReportColumn("pairs"))
    title = f"How probably is a run of {method} better? {table.title}"
    return ReportTable(title, headings, tuple(sorted(lines, key=lambda line: line[1].key or 0)), (IMPROVES,))


def compute_improvement(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[float, tuple[float, float] | None]:
    """Compute the probability of improvement over pairs of samples, and its stratified bootstrap interval at 95 %.

    No interval where every resample gives the same, which is so where all runs of one beat all of the other.
    """
    samples = [values for pair in pairs for values in pair]

    def probability(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        wins = [
            ((ours[..., :, None] > theirs[..., None, :]) + 0.5 * (ours[..., :, None] == theirs[..., None, :])).mean(
                axis=(-2, -1)
            )
            for ours, theirs in zip(drawn[::2], drawn[1::2], strict=True)
        ]
        return np.mean(wins, axis=0)

    found = float(probability(*samples))
    if found in (0.0, 1.0):
        return found, None
    from scipy import stats

    interval = stats.bootstrap(
        samples,
        probability,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed_of("probability of improvement")),
    ).confidence_interval
    return found, (float(interval.low), float(interval.high))
