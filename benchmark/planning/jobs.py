"""Groups runs into cohorts and makes jobs of them, with their cost, so that no worker is idle."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from benchmark.core.protocols import base_scale
from benchmark.core.spec import Run, cohort_key, teacher_key
from benchmark.planning.cost import cohort_seconds, run_seconds
from benchmark.planning.request import collect_dependencies, describe_run
from benchmark.plugins.registry import method_class
from benchmark.results.store import Store
from benchmark.training import checkpoint as checkpoints

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


def dependency_depths(runs: Iterable[Run]) -> dict[str, int]:
    """Count, by digest, how many runs must be trained one after another before each run can start."""
    depths: dict[str, int] = {}
    for run in collect_dependencies(runs):
        depths[run.digest] = 1 + max((depths[needed.digest] for needed in run.dependencies()), default=-1)
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


def group_runs(runs: Sequence[Run], store: Store, depths: Mapping[str, int], across_students: bool) -> list[list[Run]]:
    """Group the runs that are trained together. depths: see `dependency_depths`.

    Runs with dependents are trained apart, so that their dependents wait for nothing else. Unless a group may have
    several students, runs that can start do not wait for those that need a head first.
    """
    needed = {dependency.digest for run in runs for dependency in run.dependencies()}
    folders = {dataset: _folders_to_resume(store, dataset) for dataset in {run.dataset for run in runs}}
    groups: dict[CohortKey, list[Run]] = defaultdict(list)
    for run in runs:
        folder = folders[run.dataset].get(run.id) if folders[run.dataset] else None
        depth, student = (0, None) if across_students else (depths[run.digest], run.student)
        key = CohortKey(depth, run.digest in needed, cohort_key(run), folder, teacher_key(run), student)
        groups[key].append(run)
    return list((merge_teacher_free(groups) if across_students else groups).values())


def _folders_to_resume(store: Store, dataset: str) -> dict[str, Path]:
    """Find, by run id, the folder of the most advanced checkpoint that holds the run."""
    folders = checkpoints.folders_by_progress(store, dataset)
    return {run_id: folder for folder in folders for run_id in checkpoints.members(folder)}


def split_in_halves(runs: Sequence[Run], image_size: int, images: int) -> list[tuple[Run, ...]]:
    """Split a cohort into two parts of about equal cost; the most expensive runs are assigned first."""
    costs = {run: run_seconds(run, image_size, images) for run in runs}
    halves: tuple[set[Run], set[Run]] = (set(), set())
    seconds = [0.0, 0.0]
    for run in sorted(runs, key=lambda run: -costs[run]):
        cheaper = min((0, 1), key=lambda half: seconds[half])
        halves[cheaper].add(run)
        seconds[cheaper] += costs[run]
    return [tuple(run for run in runs if run in half) for half in halves]


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
