"""Groups runs into cohorts, and splits cohorts so that no worker is idle."""

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
    """What runs of one cohort have in common.

    depth: how many runs must be trained one after another before these; has_dependents: whether others wait for them;
    cohort, teacher: their keys; folder: of the checkpoint to resume; student: None if students may differ.
    """

    depth: int
    has_dependents: bool
    cohort: str
    folder: Path | None
    teacher: str | None
    student: str | None


@dataclass(frozen=True)
class CohortPlan:
    """Runs that are trained together, and an estimate of their seconds on one thread."""

    runs: tuple[Run, ...]
    seconds: float


def dependency_depths(runs: Iterable[Run]) -> dict[str, int]:
    """Count, by digest, how many runs must be trained one after another before each run can start."""
    depths: dict[str, int] = {}

    def depth(run: Run) -> int:
        if run.digest not in depths:
            depths[run.digest] = 1 + max((depth(dependency) for dependency in run.dependencies()), default=-1)
        return depths[run.digest]

    for run in runs:
        depth(run)
    return depths


def merge_teacher_free(groups: Mapping[CohortKey, list[Run]]) -> dict[CohortKey, list[Run]]:
    """Merge teacher-free runs without dependents into a cohort that has a teacher and is otherwise equal."""
    hosts: dict[tuple[str, Path | None], CohortKey] = {}
    for key, runs in groups.items():
        if key.teacher is not None and not key.has_dependents and method_class(runs[0].method).listed:
            hosts.setdefault((key.cohort, key.folder), key)
    merged = dict(groups)
    for key in groups:
        if key.teacher is None and not key.has_dependents and (host := hosts.get((key.cohort, key.folder))):
            merged[host] = merged.pop(key) + merged[host]
    return merged


def balance_cohorts(
    cohorts: Sequence[CohortPlan], depths: Mapping[str, int], workers: int, image_size: int, images: int
) -> list[CohortPlan]:
    """Halve the most expensive cohorts of a depth until every worker has one, or all are of one run.

    depths: see `dependency_depths`.
    """
    by_depth: dict[int, list[CohortPlan]] = defaultdict(list)
    for cohort in cohorts:
        by_depth[max(depths[run.digest] for run in cohort.runs)].append(cohort)
    split: list[CohortPlan] = []
    for level in by_depth.values():
        # Cohorts that can be halved come first, then the most expensive, then the oldest.
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
    """Split a cohort into two parts of about equal cost; the most expensive runs are assigned first."""
    costs = {run: run_seconds(run, image_size, images) for run in runs}
    halves: tuple[set[Run], set[Run]] = (set(), set())
    seconds = [0.0, 0.0]
    for run in sorted(runs, key=lambda run: -costs[run]):
        cheaper = min((0, 1), key=lambda half: seconds[half])
        halves[cheaper].add(run)
        seconds[cheaper] += costs[run]
    return [tuple(run for run in runs if run in half) for half in halves]
