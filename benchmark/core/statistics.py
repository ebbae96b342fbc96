"""What several seeds say together: means and spreads, and differences between methods paired by seed.

Methods share their batches and first weights at a seed, so their difference is taken at each seed before anything else.
Whatever a difference averages over (the columns of a table) is averaged within each seed too: the n numbers that are
left are independent of each other, however much the columns share. docs/audit.md tells what that does and does not say.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95
LEAST = 3
"""Values below which no interval is shown: two leave one degree of freedom, and a t interval 9 standard deviations to
either side."""
EQUAL = 1e-9
"""Accuracies in % that differ by less are equal but for rounding in floating point."""

BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Summary:
    """Number, mean and sample standard deviation of some values; one value has no standard deviation."""

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class PairedDifference:
    """A difference as its independent values give it.

    n: of these values, which are seeds unless it is said otherwise; mean, std (of the sample; None for one value): in
    the unit of the values; interval: of the mean, two-sided, at LEVEL by Student's t; p_value: two-sided, of a mean of
    zero, by the same; remark: why these two are missing, "" where they are there.
    """

    n: int
    mean: float
    std: float | None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    remark: str = ""


def summarise(values: Iterable[float]) -> Summary:
    """The summary of one value or more; the standard deviation is the sample's, with n - 1 in the denominator.

    Raises:
        ValueError: there are no values.
    """
    values = tuple(values)
    if not values:
        raise ValueError("no values to summarise")
    return Summary(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def paired_statistics(values: Iterable[float], unit: str = "seed") -> PairedDifference:
    """What independent values of one difference say of it; `unit` is what each comes from, for the remark.

    Raises:
        ValueError: there are no values.
    """
    summary = summarise(values)
    n, mean, std = summary.n, summary.mean, summary.std
    if std is None or n < LEAST:
        units = f"{n} {unit}" if n == 1 else f"{n} {unit}s"
        return PairedDifference(n, mean, std, remark=f"no interval: {units}, and it takes {LEAST}")
    if std < EQUAL:
        # A width of zero would claim certainty; what the values do not show is how they vary.
        remark = f"no interval: the same at all {n} {unit}s, which does not tell how it varies"
        return PairedDifference(n, mean, 0.0, remark=remark)
    # Of scipy only the distribution: scipy.stats takes a second to import, and tables need none of it.
    from scipy.special import stdtr, stdtrit

    error = std / math.sqrt(n)
    reach = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * error
    p_value = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return PairedDifference(n, mean, std, (mean - reach, mean + reach), p_value)


def common_seeds(values: Iterable[BySeed]) -> list[int]:
    """The seeds that all of these have, in order; none of nothing."""
    seeds = [set(by_seed) for by_seed in values]
    return sorted(set.intersection(*seeds)) if seeds else []


def paired_difference(a: BySeed, b: BySeed) -> PairedDifference:
    """a - b over the seeds that both have: a t test of related samples.

    Raises:
        ValueError: they have no seed in common.
    """
    seeds = common_seeds((a, b))
    if not seeds:
        raise ValueError("no seed in common")
    return paired_statistics(a[seed] - b[seed] for seed in seeds)


def pooled_difference(columns: Sequence[tuple[BySeed, BySeed]]) -> PairedDifference:
    """The mean over columns of a - b, over the seeds that every entry has; n counts seeds, not seeds times columns.

    For the average over *these* columns, with the teachers that they have: runs of one seed share batches, and columns
    may share a teacher, so at each seed the columns are averaged first and count as one value.

    Raises:
        ValueError: there are no columns, or no seed that all have.
    """
    seeds = common_seeds(by_seed for pair in columns for by_seed in pair)
    if not seeds:
        raise ValueError("no seed in common")
    return paired_statistics(statistics.fmean(a[seed] - b[seed] for a, b in columns) for seed in seeds)


def clustered_difference(
    means: Mapping[str, float], clusters: Mapping[str, str], unit: str = "teacher"
) -> PairedDifference:
    """The mean over clusters (n counts these) of the columns' differences, each cluster the mean of its columns.

    For the average over *other* columns like these, of which those that share a teacher say the same thing twice. Its
    mean is not that of the columns where clusters are of unequal size. means, clusters: by column, the former over
    seeds.

    Raises:
        ValueError: there are no columns.
    """
    grouped = defaultdict(list)
    for column, mean in means.items():
        grouped[clusters[column]].append(mean)
    return paired_statistics(map(statistics.fmean, grouped.values()), unit)
