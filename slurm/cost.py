"""Estimates what a sweep costs, and prints that and the arrays it would submit.

Estimates are by times in records of similar runs, else by multiply-adds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from rich.console import Console
from rich.table import Table

from benchmark.core.spec import Run
from benchmark.core.text import duration
from benchmark.execution.executor import JobsByDataset
from benchmark.planning.cost import cohort_seconds, run_seconds, training_multiply_adds
from benchmark.planning.jobs import Grouping, Job, critical_path_lengths, find_needed
from benchmark.planning.timed import Kind, kind_of, measure_kinds, select_timed, to_numbers
from benchmark.results.store import Store
from slurm import client
from slurm.plan import pending_jobs, topological_order
from slurm.profile import Profile

OVERHEAD_SECONDS = 60.0
"""What each job spends before its first step: Python, libraries, the dataset."""
MOST_NAMES = 3
"""How many jobs of an array are named."""
WORDS: dict[Grouping, str] = {
    "run": "a job for each run",
    "student": "a job for each student network",
    "cohort": "a job for each pass over the data",
}


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


def print_arrays(
    console: Console, plans: JobsByDataset, store: Store, profile: Profile, retry_failed: bool = False
) -> None:
    """Print the arrays of the jobs that are still to be done, in the order in which they can start."""
    limit = client.ARRAY_LIMIT if client.missing_command() else client.array_limit()
    jobs = pending_jobs([job for _, job in topological_order(plans)], store, retry_failed)
    groups: dict[frozenset[int], list[int]] = defaultdict(list)
    for place, needed in enumerate(find_needed(jobs)):
        groups[frozenset(needed)].append(place)
    screen = Table("array", "jobs", "waits for", "trains", "hours", box=None, pad_edge=False)
    numbers: dict[int, int] = {}
    for awaited, places in groups.items():
        for first in range(0, len(places), limit):
            array = [jobs[place] for place in places[first : first + limit]]
            numbers.update(dict.fromkeys(places[first : first + limit], screen.row_count + 1))
            waits = ", ".join(map(str, sorted({numbers[place] for place in awaited})))
            names = "; ".join(dict.fromkeys(job.title for job in array[:MOST_NAMES]))
            more = f" and {len(array) - MOST_NAMES} more" if len(array) > MOST_NAMES else ""
            hours = sum(job.seconds for job in array) / 3600 * max(1, profile.gpus)
            screen.add_row(str(screen.row_count + 1), str(len(array)), waits or "nothing", names + more, f"{hours:.2f}")
    if screen.row_count:
        console.print(screen)


def print_prices(console: Console, prices: Sequence[SweepPrice], profile: Profile, known: int, asked: int) -> None:
    """Print what each grouping costs, and what the cheapest one would save.

    known: of how many runs the kind was timed; asked: how many runs there are.
    """
    unit = "GPU hours" if profile.gpus else "hours of jobs"
    chosen = next(price for price in prices if price.grouping == profile.grouping)
    cheapest = min(prices, key=lambda price: price.hours)
    if not chosen.jobs:
        console.print("Nothing to train: every run has its record. Nothing was started.", highlight=False)
        return
    screen = Table("grouping", "jobs", unit, "longest chain", "", box=None, pad_edge=False)
    for price in prices:
        marks = ["this profile's"] * (price is chosen) + ["the cheapest"] * (price is cheapest)
        screen.add_row(
            f"{price.grouping}: {WORDS[price.grouping]}",
            str(price.jobs),
            f"{price.hours:.2f}",
            duration(3600 * price.longest_chain),
            ", ".join(marks),
        )
    console.print(screen)
    saved = chosen.hours - cheapest.hours
    if saved > 0.005 * chosen.hours:
        console.print(
            f'grouping = "{cheapest.grouping}" would save {saved:.2f} of {chosen.hours:.2f} {unit}.', highlight=False
        )
    speed = f"{profile.multiply_adds_per_second:.0e} a second" if profile.gpus else "the speed of one core"
    source = f"{known} of {asked} runs are of kinds timed on such a device" if known else "nothing was timed yet"
    if known < asked:
        speed = "the speed of what was timed" if known else speed
        source += f"; {asked - known} by their multiply-adds, at {speed}"
    console.print(f"Estimated: {source}. Nothing was started.", highlight=False, soft_wrap=True)
