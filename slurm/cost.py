"""Estimates what a plan costs on a cluster: by times in records of similar runs, else by multiply-adds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from benchmark.core.spec import Run
from benchmark.planning.cost import cohort_seconds, run_seconds, training_multiply_adds
from benchmark.planning.jobs import Grouping, Job, critical_path_lengths
from slurm.profile import Profile

Kind = tuple[str, str, str | None, int, str]
"""What decides how long an image takes: method, student, teacher, image size, precision."""
KIND = ["method", "student", "teacher", "cost_image_size", "precision"]
"""The columns of records that name the kind of a run."""
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
        try:
            rows = records[(records["status"] == "finished") & (records["provenance_device"] == profile.device)]
            seconds = rows["provenance_seconds_of_its_own"] + rows["provenance_seconds_of_its_teacher"]
            if profile.gpus:
                # The host's clock cannot tell the runs of a cohort apart there: each gets an equal share.
                members = rows["provenance_cohort"].map(lambda ids: len(json.loads(ids)))
                # Of no rows, pandas would keep the type of text.
                seconds = rows["provenance_seconds"] / members.astype(float)
            shown, multiply_adds = rows["cost_images"] * rows["epochs"], rows["cost_training_multiply_adds"]
        except KeyError:
            # No run has finished: the columns of times and costs are missing.
            return cls(profile, {})
        usable = (shown > 0) & (seconds > 0) & (multiply_adds > 0)
        if not usable.any():
            return cls(profile, {})
        per_image = (seconds / shown)[usable].groupby([rows[name] for name in KIND], dropna=False).median()
        measured = {
            (method, student, teacher if isinstance(teacher, str) else None, int(size), precision): each
            for method, student, teacher, size, precision, each in per_image.reset_index().itertuples(index=False)
        }
        return cls(profile, measured, float((seconds / multiply_adds)[usable].median()))

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


def kind_of(run: Run, image_size: int) -> Kind:
    """The kind of a run: what decides how long an image takes."""
    return (run.method, run.student, run.teacher_network, image_size, run.precision)


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
