"""Makes jobs of runs, with their dependencies and cost, and splits jobs so that no worker is idle."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmark.core.protocols import base_scale
from benchmark.core.spec import Run
from benchmark.planning.cohorts import dependency_depths, group_runs, split_in_halves
from benchmark.planning.cost import cohort_seconds
from benchmark.planning.request import collect_dependencies, describe_run
from benchmark.results.store import Store

Grouping = Literal["run", "student", "cohort"]
"""What one job of a cluster trains: one run; all runs of one student that can share a pass over the data; or all runs
that can, of any student."""


@dataclass(frozen=True)
class Job:
    """Runs to be trained as one cohort."""

    runs: tuple[Run, ...]
    seconds: float
    """Estimated on one thread, or on the device of a cluster."""

    @property
    def needs(self) -> frozenset[str]:
        """The digests of the runs that must be finished before."""
        return frozenset(needed.digest for run in self.runs for needed in run.dependencies())

    def with_runs(self, runs: Sequence[Run]) -> Job:
        """Make a job of some of the runs."""
        return Job(tuple(runs), self.seconds * len(runs) / len(self.runs))

    @property
    def name(self) -> str:
        """The pair, the seed and the methods: `ResNet56>ResNet20 seed 1: KD, CRD`."""
        return f"{self.title}: {self.methods}"

    @property
    def title(self) -> str:
        """The pair and the seed."""
        return f"{self.networks} seed {self.runs[0].seed}" if self.runs[0].seed else self.networks

    @property
    def networks(self) -> str:
        """The pair, or the student alone where nothing teaches it."""
        students = ", ".join(dict.fromkeys(run.student for run in self.runs))
        teachers = ", ".join(dict.fromkeys(run.teacher_network for run in self.runs if run.teacher_network))
        return f"{teachers}>{students}" if teachers else students

    @property
    def methods(self) -> str:
        """The methods, each once, with their changed options."""
        return ", ".join(dict.fromkeys(describe_run(run) for run in self.runs))


def find_needed(jobs: Sequence[Job]) -> list[set[int]]:
    """Find, for each job, the positions of the other jobs that must have ended before it starts."""
    makers = {run.digest: position for position, job in enumerate(jobs) for run in job.runs}
    return [
        {makers[digest] for digest in job.needs if digest in makers} - {position} for position, job in enumerate(jobs)
    ]


def critical_path_lengths(jobs: Sequence[Job]) -> list[float]:
    """Add to the seconds of each job those of the longest chain of jobs that waits for it."""
    followers: dict[int, set[int]] = defaultdict(set)
    for position, needed in enumerate(find_needed(jobs)):
        for other in needed:
            followers[other].add(position)

    @functools.cache
    def length(position: int) -> float:
        return jobs[position].seconds + max(map(length, followers[position]), default=0.0)

    return [length(position) for position in range(len(jobs))]


def missing_jobs(
    runs: Sequence[Run], store: Store, workers: int, image_size: int, images: int, retry_failed: bool = False
) -> list[Job]:
    """Group the runs that have no record yet (or, with `retry_failed`, no record of success) into jobs.

    Runs share a cohort if they can. With several workers a cohort holds one student network only, and is split further
    if workers would be idle. At scale `paper` it always holds one: a job of all students would have no record before
    the last epoch of all of them, and gigabytes in each checkpoint (six tables of LSSKD's). Runs with different
    checkpoints are kept apart.
    """
    missing = store.missing(_of_their_dataset(runs), retry_failed)
    depths = dependency_depths(missing)
    long = any(base_scale(run.scale.name) == "paper" for run in missing)
    groups = group_runs(missing, store, depths, across_students=workers == 1 and not long)
    jobs = [_make_job(group, image_size, images) for group in groups]
    return balance_jobs(jobs, depths, workers, image_size, images)


def all_jobs(runs: Iterable[Run], store: Store, grouping: Grouping, image_size: int, images: int) -> list[Job]:
    """Group runs and what they depend on into jobs, also those that have records: the plan of a sweep on a cluster.

    It does not depend on what is done already, except that runs with different checkpoints are kept apart.
    """
    everything = _of_their_dataset(runs)
    groups = [[run] for run in everything]
    if grouping != "run":
        groups = group_runs(everything, store, dependency_depths(everything), across_students=grouping == "cohort")
    return [_make_job(group, image_size, images) for group in groups]


def _of_their_dataset(runs: Iterable[Run]) -> list[Run]:
    """Collect the runs and what they depend on, less the runs on other datasets, which have jobs of their own."""
    runs = list(runs)
    datasets = {run.dataset for run in runs}
    return [run for run in collect_dependencies(runs) if run.dataset in datasets]


def _make_job(runs: Sequence[Run], image_size: int, images: int) -> Job:
    return Job(tuple(runs), cohort_seconds(runs, image_size, images))


def balance_jobs(
    jobs: Iterable[Job], depths: Mapping[str, int], workers: int, image_size: int, images: int
) -> list[Job]:
    """Halve the most expensive jobs of a depth until every worker has one, or all are of one run.

    depths: see `dependency_depths`.
    """
    by_depth: dict[int, list[Job]] = defaultdict(list)
    for job in jobs:
        by_depth[max(depths[run.digest] for run in job.runs)].append(job)
    for level in by_depth.values():
        while len(level) < workers and (divisible := [job for job in level if len(job.runs) > 1]):
            largest = max(divisible, key=lambda job: job.seconds)
            level.remove(largest)
            level += [_make_job(half, image_size, images) for half in split_in_halves(largest.runs, image_size, images)]
    return [job for level in by_depth.values() for job in level]
