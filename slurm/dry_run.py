"""Prints what a sweep would submit and cost: its arrays, what they wait for, and the price of each grouping."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmark.core.text import duration
from benchmark.execution.executor import JobsByDataset
from benchmark.planning.jobs import Grouping, find_needed
from benchmark.results.store import Store
from slurm import client
from slurm.cost import SweepPrice
from slurm.plan import pending_jobs, topological_order
from slurm.profile import Profile

MOST_NAMES = 3
"""How many jobs of an array are named."""
WORDS: dict[Grouping, str] = {
    "run": "a job for each run",
    "student": "a job for each student network",
    "cohort": "a job for each pass over the data",
}


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
