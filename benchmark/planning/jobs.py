"""Groups runs into jobs with their dependencies and cost."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmark.core.protocols import base_scale
from benchmark.core.spec import (
    Run,
    cohort_key,
    teacher_key,
)
from benchmark.planning.cohorts import CohortKey, CohortPlan, balance_cohorts, dependency_depths, merge_teacher_free
from benchmark.planning.cost import cohort_seconds
from benchmark.planning.request import collect_dependencies, describe_run
from benchmark.results.store import Store
from benchmark.training import checkpoint as checkpoints

Grouping = Literal["run", "student", "cohort"]
"""What one job of a cluster trains: one run; all runs of one student that can share a pass over the data; or all runs
that can, of any student."""


@dataclass(frozen=True)
class Job:
    """Runs to be trained as one cohort, and the digests of the runs that must be finished before."""

    runs: tuple[Run, ...]
    needs: frozenset[str]
    seconds: float
    """Estimated on one thread, or on the device of a cluster."""

    def with_runs(self, runs: Sequence[Run]) -> Job:
        """Make a job of some of the runs."""
        needs = frozenset(needed.digest for run in runs for needed in run.dependencies())
        return Job(tuple(runs), needs, self.seconds * len(runs) / len(self.runs))

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


def critical_path_lengths(jobs: Sequence[Job]) -> list[float]:
    """Add to the seconds of each job those of the longest chain of jobs that waits for it."""
    position_of = {run.digest: position for position, job in enumerate(jobs) for run in job.runs}
    followers: dict[int, set[int]] = defaultdict(set)
    for position, job in enumerate(jobs):
        for needed in {position_of.get(digest, position) for digest in job.needs} - {position}:
            followers[needed].add(position)

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
    groups = _groups(missing, store, depths, "student" if workers > 1 or long else "cohort")
    cohorts = [CohortPlan(tuple(group), cohort_seconds(group, image_size, images)) for group in groups]
    return [_job(cohort) for cohort in balance_cohorts(cohorts, depths, workers, image_size, images)]


def all_jobs(runs: Iterable[Run], store: Store, grouping: Grouping, image_size: int, images: int) -> list[Job]:
    """Group runs and what they depend on into jobs, also those that have records: the plan of a sweep on a cluster.

    It does not depend on what is done already, except that runs with different checkpoints are kept apart.
    """
    everything = _of_their_dataset(runs)
    groups = [[run] for run in everything]
    if grouping != "run":
        groups = _groups(everything, store, dependency_depths(everything), grouping)
    return [_job(CohortPlan(tuple(group), cohort_seconds(group, image_size, images))) for group in groups]


def _of_their_dataset(runs: Iterable[Run]) -> list[Run]:
    """Collect the runs and what they depend on, less the runs on other datasets, which have jobs of their own."""
    runs = list(runs)
    datasets = {run.dataset for run in runs}
    return [run for run in collect_dependencies(runs) if run.dataset in datasets]


def _groups(runs: Sequence[Run], store: Store, depths: Mapping[str, int], grouping: Grouping) -> list[list[Run]]:
    """Group the runs that are trained together."""
    needed = {dependency.digest for run in runs for dependency in run.dependencies()}
    folders = {dataset: _folders_to_resume(store, dataset) for dataset in {run.dataset for run in runs}}
    apart = grouping != "cohort"
    groups: dict[CohortKey, list[Run]] = defaultdict(list)
    for run in runs:
        folder = folders[run.dataset].get(run.id) if folders[run.dataset] else None
        # Runs with dependents are trained apart, so that their dependents wait for nothing else. With several workers,
        # runs that can start do not wait for those that need a head first.
        depth = depths[run.digest] if apart else 0
        student = run.student if apart else None
        key = CohortKey(depth, run.digest in needed, cohort_key(run), folder, teacher_key(run), student)
        groups[key].append(run)
    return list(groups.values()) if apart else list(merge_teacher_free(groups).values())


def _job(cohort: CohortPlan) -> Job:
    needs = frozenset(dependency.digest for run in cohort.runs for dependency in run.dependencies())
    return Job(cohort.runs, needs, cohort.seconds)


def _folders_to_resume(store: Store, dataset: str) -> dict[str, Path]:
    """Find, by run id, the folder of the most advanced checkpoint that holds the run."""
    folders = checkpoints.folders_by_progress(store, dataset)
    return {run_id: folder for folder in folders for run_id in checkpoints.members(folder)}
