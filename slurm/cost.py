"""What a plan will cost on a cluster: by what was measured there where records say, else by multiply-adds."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from benchmark.core.spec import Run
from benchmark.planning.cost import cohort_seconds, run_seconds, training_multiply_adds
from benchmark.planning.jobs import Grouping, Job, critical_path_lengths
from slurm.profile import Profile

Kind = tuple[str, str, str | None, int, str]
"""What decides how long an image takes: method, student, teacher, image size, precision."""
NEEDED = (
    "method",
    "student",
    "teacher",
    "precision",
    "epochs",
    "cost_images",
    "cost_image_size",
    "cost_training_multiply_adds",
    "provenance_device",
    "provenance_seconds",
    "provenance_seconds_of_its_own",
    "provenance_seconds_of_its_teacher",
    "provenance_cohort",
)
"""The columns of records that rates are made of."""
OVERHEAD_SECONDS = 60.0
"""What each job spends before its first step: Python, libraries, the dataset."""


@dataclass(frozen=True)
class Rates:
    """How fast a cluster trains.

    measured: seconds for an image, by kind; per_multiply_add: seconds, by what was measured; None where nothing was.
    """

    profile: Profile
    measured: Mapping[Kind, float]
    per_multiply_add: float | None = None

    @classmethod
    def of(cls, profile: Profile, records: pd.DataFrame) -> Rates:
        """The rates that finished runs show which were trained on the kind of device that the profile asks for.

        records: as `benchmark.results.load` gives them.
        """
        rows: list[dict[Hashable, Any]] = []
        if {*NEEDED} <= set(records.columns):
            usable = (records["status"] == "finished") & (records["provenance_device"] == profile.device)
            rows = records[usable].dropna(subset=["cost_images"]).to_dict("records")
        seconds: dict[Kind, list[float]] = defaultdict(list)
        each: list[float] = []
        for row in rows:
            shown = row["cost_images"] * row["epochs"]
            own = row["provenance_seconds_of_its_own"] + row["provenance_seconds_of_its_teacher"]
            if profile.gpus:
                # The host's clock cannot tell the runs of a cohort apart there: they share what all of it took.
                own = row["provenance_seconds"] / max(1, len(json.loads(row["provenance_cohort"])))
            if shown > 0 and own > 0 and row["cost_training_multiply_adds"] > 0:
                teacher = row["teacher"] if isinstance(row["teacher"], str) else None
                kind = (row["method"], row["student"], teacher, int(row["cost_image_size"]), row["precision"])
                seconds[kind].append(own / shown)
                each.append(own / row["cost_training_multiply_adds"])
        measured = {kind: statistics.median(values) for kind, values in seconds.items()}
        return cls(profile, measured, statistics.median(each) if each else None)

    def is_measured(self, run: Run, image_size: int) -> bool:
        """Whether a run of this kind was timed on such a device."""
        return kind_of(run, image_size) in self.measured

    def run_seconds(self, run: Run, image_size: int, images: int) -> float:
        """What a run takes alone."""
        shown = round(run.fraction * images) * run.schedule.epochs
        measured = self.measured.get(kind_of(run, image_size))
        if measured is not None:
            return shown * measured
        if self.per_multiply_add is None and not self.profile.gpus:
            return run_seconds(run, image_size, images)
        each = self.per_multiply_add or 1 / self.profile.multiply_adds_per_second
        return shown * training_multiply_adds(run, image_size) * each

    def job_seconds(self, runs: Sequence[Run], image_size: int, images: int) -> float:
        """What runs take together: what they share, the teacher's outputs most of all, is computed once."""
        alone = sum(run_seconds(run, image_size, images) for run in runs)
        shared = cohort_seconds(runs, image_size, images) / alone if alone else 1.0
        return OVERHEAD_SECONDS + shared * sum(self.run_seconds(run, image_size, images) for run in runs)


def kind_of(run: Run, image_size: int) -> Kind:
    """What decides how long an image takes in a run."""
    return (run.method, run.student, run.teacher_network, image_size, run.precision)


def price_jobs(jobs: Sequence[Job], rates: Rates, image_size: int, images: int) -> list[Job]:
    """The jobs with the seconds that they will take on the cluster."""
    return [replace(job, seconds=rates.job_seconds(job.runs, image_size, images)) for job in jobs]


@dataclass(frozen=True)
class SweepPrice:
    """What a grouping costs: jobs, hours of what each job holds, and the soonest that all can be done."""

    grouping: Grouping
    jobs: int
    hours: float
    longest_chain: float
    """Hours of the longest row of jobs that wait for each other; no cluster is faster."""


def estimate_price(grouping: Grouping, jobs: Sequence[Job], profile: Profile) -> SweepPrice:
    """What some jobs cost, whose seconds are those on the cluster."""
    longest = max(critical_path_lengths(jobs), default=0.0)
    hours = sum(job.seconds for job in jobs) / 3600 * max(1, profile.gpus)
    return SweepPrice(grouping, len(jobs), hours, longest / 3600)
