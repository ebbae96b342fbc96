"""How runs are put together into cohorts, and cohorts are split so that no worker is idle."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmark.core.spec import Run
from benchmark.planning.cost import cohort_seconds, run_seconds
from benchmark.plugins.registry import method_class


class CohortKey(NamedTuple):
    """What runs have in common that are trained together.

    depth: how many runs must be trained one after another before these; needed: whether others wait for them; cohort
    and teacher: their keys; folder: of the checkpoint that they go on from; student: None where it makes no difference.
    """

    depth: int
    needed: bool
    cohort: str
    folder: Path | None
    teacher: str | None
    student: str | None


@dataclass(frozen=True)
class CohortPlan:
    """Runs that are trained together, and the seconds that they take on one thread, about."""

    runs: tuple[Run, ...]
    seconds: float


def dependency_depths(runs: Iterable[Run]) -> dict[str, int]:
    """By digest, how many runs must be trained one after another before each of some runs can be."""
    depths: dict[str, int] = {}

    def depth(run: Run) -> int:
        if run.digest not in depths:
            depths[run.digest] = 1 + max((depth(dependency) for dependency in run.dependencies()), default=-1)
        return depths[run.digest]

    for run in runs:
        depth(run)
    return depths


def merge_teacher_free(groups: Mapping[CohortKey, list[Run]]) -> dict[CohortKey, list[Run]]:
    """Let teacher-free runs that nobody waits for join a cohort with a teacher that is equal in the rest."""
    hosts: dict[tuple[str, Path | None], CohortKey] = {}
    for place, runs in groups.items():
        if place.teacher is not None and not place.needed and method_class(runs[0].method).listed:
            hosts.setdefault((place.cohort, place.folder), place)
    joined = dict(groups)
    for place in groups:
        if place.teacher is None and not place.needed and (host := hosts.get((place.cohort, place.folder))):
            joined[host] = joined.pop(place) + joined[host]
    return joined


def balance_cohorts(
    cohorts: Sequence[CohortPlan], depths: Mapping[str, int], workers: int, image_size: int, images: int
) -> list[CohortPlan]:
    """Halve the dearest cohorts of a depth until every worker has one (or nothing is left to halve).

    depths: of each run, by digest.
    """
    by_depth: dict[int, list[CohortPlan]] = defaultdict(list)
    for cohort in cohorts:
        by_depth[max(depths[run.digest] for run in cohort.runs)].append(cohort)
    split: list[CohortPlan] = []
    for level in by_depth.values():
        # Those that can be halved first, then the dearest first, then the oldest first.
        waiting = [(len(cohort.runs) < 2, -cohort.seconds, number) for number, cohort in enumerate(level)]
        heapq.heapify(waiting)
        whole = dict(enumerate(level))
        while len(whole) < workers and not waiting[0][0]:
            _, _, number = heapq.heappop(waiting)
            for half in _halves(whole.pop(number).runs, image_size, images):
                number = len(level)
                level.append(CohortPlan(half, cohort_seconds(half, image_size, images)))
                whole[number] = level[number]
                heapq.heappush(waiting, (len(half) < 2, -level[number].seconds, number))
        split += whole.values()
    return split


def _halves(runs: Sequence[Run], image_size: int, images: int) -> list[tuple[Run, ...]]:
    """Two parts of a cohort that take about as long; the dearest runs are dealt out first."""
    costs = {run: run_seconds(run, image_size, images) for run in runs}
    halves: tuple[set[Run], set[Run]] = (set(), set())
    seconds = [0.0, 0.0]
    for run in sorted(runs, key=lambda run: -costs[run]):
        cheaper = min((0, 1), key=lambda half: seconds[half])
        halves[cheaper].add(run)
        seconds[cheaper] += costs[run]
    return [tuple(run for run in runs if run in half) for half in halves]
