"""Estimates what a plan costs on a cluster: by times in records of similar runs, else by multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from benchmark.core.spec import Run
from benchmark.planning.cost import cohort_seconds, run_seconds, training_multiply_adds
from benchmark.planning.jobs import Grouping, Job, critical_path_lengths
from benchmark.planning.timed import Kind, kind_of, measure_kinds, select_timed, to_numbers
from slurm.profile import Profile

OVERHEAD_SECONDS = 60.0
"""What each job spends before its first step: Python, libraries, the dataset."""


@dataclass(frozen=True)
class Rates:
    """How fast a cluster trains.

    measured: seconds for an image, by kind; per_multiply_add: seconds, by all that was measured; None if nothing was.
    """

    profile: Profile
    measured: Mapping[Kind, float]
    per_multiply_add: float | None = None

    @classmethod
    def of(cls, profile: Profile, records: pd.DataFrame) -> Rates:
        """The median rates of finished runs that trained on the kind of device that the profile asks for.

        records: as `benchmark.results.load` gives them.
        """
        timed = select_timed(records, profile.device)
        multiply_adds = to_numbers(timed["cost_training_multiply_adds"])
        usable, multiply_adds = timed[multiply_adds > 0], multiply_adds[multiply_adds > 0]
        if usable.empty:
            return cls(profile, {})
        return cls(profile, measure_kinds(usable), float((usable["own_seconds"] / multiply_adds).median()))

    def is_measured(self, run: Run, image_size: int) -> bool:
        """Whether a run of this kind was timed on such a device."""
        return kind_of(run, image_size) in self.measured

    def run_seconds(self, run: Run, image_size: int, images: int) -> float:
        """The seconds that a run takes alone."""
        shown = round(run.fraction * images) * run.schedule.epochs
        measured = self.measured.get(kind_of(run, image_size))
        if measured is not None:
            return shown * measured
        if self.per_multiply_add is None and not self.profile.gpus:
            return run_seconds(run, image_size, images)
        each = self.per_multiply_add or 1 / self.profile.multiply_adds_per_second
        return shown * training_multiply_adds(run, image_size) * each

    def job_seconds(self, runs: Sequence[Run], image_size: int, images: int) -> float:
        """The seconds that runs take together: the outputs of their teacher, for one, are computed once."""
        alone = sum(run_seconds(run, image_size, images) for run in runs)
        shared = cohort_seconds(runs, image_size, images) / alone if alone else 1.0
        return OVERHEAD_SECONDS + shared * sum(self.run_seconds(run, image_size, images) for run in runs)


def price_jobs(jobs: Sequence[Job], rates: Rates, image_size: int, images: int) -> list[Job]:
    """The jobs with the seconds that they take on the cluster."""
    return [replace(job, seconds=rates.job_seconds(job.runs, image_size, images)) for job in jobs]


@dataclass(frozen=True)
class SweepPrice:
    """What a grouping costs: the number of jobs, and hours of GPUs, or of jobs without GPUs."""

    grouping: Grouping
    jobs: int
    hours: float
    longest_chain: float
    """Hours of the longest chain of jobs that wait for each other; no cluster is faster."""


def estimate_price(grouping: Grouping, jobs: Sequence[Job], profile: Profile) -> SweepPrice:
    """What jobs cost whose seconds are those on the cluster."""
    longest = max(critical_path_lengths(jobs), default=0.0)
    hours = sum(job.seconds for job in jobs) / 3600 * max(1, profile.gpus)
    return SweepPrice(grouping, len(jobs), hours, longest / 3600)
