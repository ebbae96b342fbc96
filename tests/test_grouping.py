"""Cohorts are split and joined as the plainest way of doing it would."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.core.spec import Run
from benchmark.planning.cost import cohort_seconds, run_seconds
from benchmark.planning.jobs import CohortKey, Job, balance_jobs, dependency_depths, merge_teacher_free
from benchmark.plugins.registry import method_class
from tests import engine

IMAGE_SIZE, IMAGES = 8, 640
REQUEST = engine.request()
RUNS = [
    REQUEST.run(method, student, "ResNet32", seed)
    for method, student, seed in itertools.product(
        ("Baseline", "KD", "AT", "SSKD", "LSSKD"), ("ResNet8", "ResNet20"), range(2)
    )
]


def seconds(runs: list[Run]) -> float:
    return cohort_seconds(runs, IMAGE_SIZE, IMAGES)


def split_plainly(level: list[list[Run]], workers: int) -> list[list[Run]]:
    """Halve the dearest of all cohorts that can be halved, until there are as many as workers."""
    level = list(level)
    while len(level) < workers:
        dearest = max(level, key=lambda runs: (len(runs) > 1, seconds(runs)))
        if len(dearest) < 2:
            break
        level.remove(dearest)
        halves: list[list[Run]] = [[], []]
        for run in sorted(dearest, key=lambda run: -run_seconds(run, IMAGE_SIZE, IMAGES)):
            cheaper = min(halves, key=lambda half: sum(run_seconds(other, IMAGE_SIZE, IMAGES) for other in half))
            cheaper.append(run)
        level.extend([run for run in dearest if run in half] for half in halves)
    return level


@given(runs=st.permutations(RUNS), cuts=st.sets(st.integers(1, len(RUNS) - 1)), workers=st.integers(1, len(RUNS) + 3))
@settings(max_examples=60, deadline=None)
def test_the_dearest_cohort_is_halved_until_no_worker_is_idle(runs: list[Run], cuts: set[int], workers: int) -> None:
    ends = [0, *sorted(cuts), len(runs)]
    groups = [list(runs[start:end]) for start, end in itertools.pairwise(ends)]
    depths = dict.fromkeys((run.digest for run in runs), 0)
    jobs = [Job(tuple(group), seconds(group)) for group in groups]
    found = balance_jobs(jobs, depths, workers, IMAGE_SIZE, IMAGES)
    assert [list(job.runs) for job in found] == split_plainly(groups, workers)
    assert all(job.seconds == seconds(list(job.runs)) for job in found)


def test_each_depth_is_split_for_all_workers() -> None:
    runs = RUNS[:4]
    depths = {run.digest: place % 2 for place, run in enumerate(runs)}
    jobs = [Job(tuple(runs[start::2]), seconds(runs[start::2])) for start in (0, 1)]
    assert [len(job.runs) for job in balance_jobs(jobs, depths, 2, IMAGE_SIZE, IMAGES)] == [1] * 4


def test_a_run_is_as_deep_as_what_it_waits_for() -> None:
    student = REQUEST.run("SSKD", "ResNet8", "ResNet32", 0)
    teacher, head = student.dependencies()
    depths = dependency_depths([student, RUNS[0]])
    assert depths == {teacher.digest: 0, head.digest: 1, student.digest: 2, RUNS[0].digest: 0}


def join_plainly(groups: dict[CohortKey, list[Run]]) -> dict[CohortKey, list[Run]]:
    """Look for a host among all groups, for each teacher-free one."""
    joined = dict(groups)
    for place in groups:
        hosts = [
            other
            for other, runs in groups.items()
            if other.teacher is not None
            and (other.has_dependents, other.cohort, other.folder) == (False, place.cohort, place.folder)
            and method_class(runs[0].method).listed
        ]
        if place.teacher is None and not place.has_dependents and hosts:
            joined[hosts[0]] = joined.pop(place) + joined[hosts[0]]
    return joined


PLACES = st.builds(
    CohortKey,
    depth=st.just(0),
    has_dependents=st.booleans(),
    cohort=st.sampled_from("ab"),
    folder=st.none(),
    teacher=st.sampled_from([None, "first", "second"]),
    student=st.none(),
)
HEAD = REQUEST.run("SSKD", "ResNet8", "ResNet32", 0).head


@given(places=st.lists(PLACES, unique=True), runs=st.permutations([*RUNS, HEAD]))
def test_teacher_free_runs_join_the_first_cohort_that_has_a_teacher(places: list[CohortKey], runs: list[Run]) -> None:
    groups = {place: [run] for place, run in zip(places, runs, strict=False)}
    assert list(merge_teacher_free(groups).items()) == list(join_plainly(groups).items())
