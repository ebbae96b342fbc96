"""Groups runs into cohorts, and splits cohorts in halves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmark.core.spec import Run, cohort_key, teacher_key
from benchmark.planning.cost import run_seconds
from benchmark.planning.request import collect_dependencies
from benchmark.plugins.registry import method_class
from benchmark.results.store import Store
from benchmark.training import checkpoint as checkpoints


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
