"""What a dry run says of a sweep: its arrays and what they wait for, what it costs, and what other groupings would."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmark.executor import Plans
from benchmark.plan import Job
from benchmark.results import Store
from benchmark.words import duration
from slurm import scheduler
from slurm.cost import Price
from slurm.planning import in_order, to_train
from slurm.profile import Profile

MOST_NAMES = 3
WORDS = {
    "run": "a job for each run",
    "student": "a job for each student network",
    "cohort": "a job for each pass over the data",
}


def print_arrays(console: Console, plans: Plans, store: Store, profile: Profile, retry_failed: bool = False) -> None:
    """The arrays that jobs which are still to be done form, in the order in which they can start."""
    limit = scheduler.array_limit() if scheduler.is_installed() else scheduler.ARRAY_LIMIT
    screen = Table("array", "jobs", "waits for", "trains", "hours", box=None, pad_edge=False)
    numbers: dict[str, str] = {}
    for place, (needed, jobs) in enumerate(arrays_of(plans, store, limit, retry_failed), start=1):
        numbers.update({run.digest: str(place) for job in jobs for run in job.runs})
        waits = sorted({numbers[digest] for digest in needed if digest in numbers}, key=int)
        names = [job.title for job in jobs]
        shown = "; ".join(dict.fromkeys(names[:MOST_NAMES]))
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        hours = sum(job.seconds for job in jobs) / 3600 * max(1, profile.gpus)
        screen.add_row(str(place), str(len(jobs)), ", ".join(waits) or "nothing", shown + more, f"{hours:.2f}")
    if screen.row_count:
        console.print(screen)


def arrays_of(
    plans: Plans, store: Store, limit: int, retry_failed: bool = False
) -> list[tuple[frozenset[str], list[Job]]]:
    """Jobs that wait for the same, in arrays that the cluster takes; what they need, by digest, and the jobs."""
    missing = to_train([job for _, job in in_order(plans)], store, retry_failed)
    makers = {run.digest: place for place, job in enumerate(missing) for run in job.runs}
    groups: dict[frozenset[int], list[Job]] = defaultdict(list)
    for place, job in enumerate(missing):
        groups[frozenset(makers[digest] for digest in job.needs if makers.get(digest, place) != place)].append(job)
    return [
        (frozenset(run.digest for place in needed for run in missing[place].runs), jobs[first : first + limit])
        for needed, jobs in groups.items()
        for first in range(0, len(jobs), limit)
    ]


def print_prices(console: Console, prices: Sequence[Price], profile: Profile, known: int, asked: int) -> None:
    """What each grouping costs, that of the profile first, and what the cheapest one would save."""
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
    rest = asked - known
    timed = f"{known} of {asked} runs are of kinds timed on such a device" if known else "nothing was timed yet"
    speed = f"{profile.multiply_adds_per_second:.0e} a second" if profile.gpus else "the speed of one core"
    reckoned = f"; {rest} by their multiply-adds{'' if known else f', at {speed}'}" if rest else ""
    way = ", at the speed of what was timed" if rest and known else ""
    console.print(f"Estimated: {timed}{reckoned}{way}. Nothing was started.", highlight=False, soft_wrap=True)
