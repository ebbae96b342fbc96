"""Summarises several seeds: means, standard deviations, and differences between methods paired by seed.

Methods share batches and first weights at a seed, so their difference is computed for each seed first. An average over
the columns of a table is computed within each seed too. The n numbers that are left are independent of each other, even
if the columns are not. docs/audit.md explains what these intervals do and do not cover.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmark.core.text import counted

LEVEL = 0.95
LEAST = 3
"""The fewest values that get an interval. Two have one degree of freedom, and a t interval of 9 standard
deviations to either side."""
EQUAL = 1e-9
"""Accuracies in % that differ by less differ only by floating-point rounding."""

BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Summary:
    """Number, mean and sample standard deviation of some values; one value has no standard deviation."""

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class PairedDifference:
    """A difference, computed from independent values.

    n: the number of values, which are seeds unless something else is said; mean, std (of the sample; None for one
    value): in the unit of the values; interval: of the mean, two-sided, at LEVEL by Student's t; p_value: two-sided, of
    a mean of zero, by the same test; remark: why these two are missing, "" if they are not.
    """

    n: int
    mean: float
    std: float | None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    remark: str = ""


def summarise(values: Iterable[float]) -> Summary:
    """Summarise one value or more; the standard deviation is the sample's, with n - 1 in the denominator.

    Raises:
        ValueError: there are no values.
    """
    values = tuple(values)
    if not values:
        raise ValueError("no values to summarise")
    return Summary(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def paired_statistics(values: Iterable[float], unit: str = "seed") -> PairedDifference:
    """Summarise independent values of one difference; unit: what each value is of, for the remark.

    Raises:
        ValueError: there are no values.
    """
    summary = summarise(values)
    n, mean, std = summary.n, summary.mean, summary.std
    if std is None or n < LEAST:
        return PairedDifference(n, mean, std, remark=f"no interval: {counted(n, unit)}, and it takes {LEAST}")
    if std < EQUAL:
        # An interval of width zero would claim certainty.
        remark = f"no interval: the same at all {n} {unit}s, which does not tell how it varies"
        return PairedDifference(n, mean, 0.0, remark=remark)
    # Not scipy.stats, which takes a second to import.
    from scipy.special import stdtr, stdtrit

    error = std / math.sqrt(n)
    reach = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * error
    p_value = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return PairedDifference(n, mean, std, (mean - reach, mean + reach), p_value)


def common_seeds(values: Iterable[BySeed]) -> list[int]:
    """List the seeds that all of these have, in order."""
    seeds = [set(by_seed) for by_seed in values]
    return sorted(set.intersection(*seeds)) if seeds else []


def paired_difference(a: BySeed, b: BySeed) -> PairedDifference:
    """Compute a - b over the seeds that both have: a t test of related samples.

    Raises:
        ValueError: they have no seed in common.
    """
    return pooled_difference([(a, b)])


def pooled_difference(columns: Sequence[tuple[BySeed, BySeed]]) -> PairedDifference:
    """Compute the mean over columns of a - b, over the seeds that all entries have; n counts seeds.

    It is about the average over *these* columns with their teachers. Runs of one seed share batches, and columns may
    share a teacher, so the columns are averaged at each seed and count as one value.

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
    """Compute the mean over clusters of the columns' differences; n counts clusters, each the mean of its columns.

    It is about the average over *other* columns like these; columns that share a teacher are not independent. If
    clusters differ in size, its mean differs from that over the columns. means, clusters: by column; the means are over
    seeds.

    Raises:
        ValueError: there are no columns.
    """
    grouped = defaultdict(list)
    for column, mean in means.items():
        grouped[clusters[column]].append(mean)
    return paired_statistics(map(statistics.fmean, grouped.values()), unit)
