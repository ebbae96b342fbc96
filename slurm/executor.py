"""The cluster as an executor: plans become sweeps, which are watched until all of them has ended."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table

from benchmark.cli.app import INTERRUPTED
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.core.text import counted, duration
from benchmark.execution.executor import Detached, ExecutionPlan, JobsByDataset, group_by_source, print_groups
from benchmark.execution.scheduler import ExecutionSummary
from benchmark.planning.jobs import Grouping, Job, all_jobs
from benchmark.planning.request import RunGroup
from benchmark.results.store import Store, load
from benchmark.training.settings import TrainSettings
from slurm import client
from slurm import client as scheduler
from slurm.client import SchedulerError
from slurm.cost import Rates, SweepPrice, estimate_price, price_jobs
from slurm.dependencies import resume, retry
from slurm.dispatcher import reconcile
from slurm.monitor import Reader
from slurm.plan import SweepRequest, create_or_open_sweep, pending_jobs, topological_order
from slurm.profile import Profile
from slurm.screen import SweepDisplay, watch
from slurm.states import ReconcileResult
from slurm.sweep import Sweep


@dataclass(frozen=True)
class Slurm:
    """A cluster by its profile. waits: whether commands watch their sweep until it is over."""

    profile: Profile
    waits: bool = True

    @property
    def device(self) -> torch.device:
        """What the nodes train on."""
        return torch.device(self.profile.device)

    @property
    def bf16(self) -> bool | None:
        """Of graphics cards what the profile says; processors are taken to be like this machine's."""
        return self.profile.bf16 if self.profile.gpus else None

    def check_folders(self, runs: Path, data_root: Path | None) -> None:
        """Refuse folders that the nodes cannot see."""
        if not self.profile.shared:
            return
        shared = Path(self.profile.shared).expanduser().resolve()
        if not shared.is_dir():
            raise UserError(f"shared = {self.profile.shared!r} of the profile is no folder; name the one all nodes see")
        for option, folder in (("--runs", runs), ("--data-root", data_root)):
            if folder is not None and not folder.resolve().is_relative_to(shared):
                raise UserError(
                    f"{option} {folder} does not lie in {shared}, the folder that all nodes share; choose one that does"
                )

    def check_runs(self, runs: Sequence[Run]) -> None:
        """Refuse runs whose batches more processes share than a job has graphics cards."""
        shared_by = max((run.processes for run in runs), default=1)
        if shared_by > 1 and self.profile.gpus not in (0, shared_by):
            raise UserError(
                f"--processes-per-run {shared_by} needs as many graphics cards, and the profile has gpus = "
                f"{self.profile.gpus}; make them equal"
            )

    def plan_jobs(self, parts: Sequence[RunGroup], store: Store, retry_failed: bool) -> JobsByDataset:
        """All jobs, also those that are done, grouped as the profile says and priced by what was measured."""
        return self._priced(parts, store, self.profile.grouping)

    def _priced(self, parts: Sequence[RunGroup], store: Store, grouping: Grouping) -> JobsByDataset:
        rates = rates_of(self.profile, store.root)
        plans = {}
        for source, runs, images in group_by_source(parts):
            size, count = images.image_size, len(images.train.labels)
            jobs = all_jobs(runs, store, grouping, size, count)
            plans[placed(source)] = price_jobs(jobs, rates, size, count)
        return plans

    def print_plan(self, order: ExecutionPlan, store: Store, console: Console) -> None:
        """The arrays that jobs form, what they wait for, what it costs, and what other groupings would."""
        print_groups(console, order.groups, store)
        rates = rates_of(self.profile, store.root)
        print_arrays(console, order.jobs, store, self.profile, order.retry_failed)
        prices = [self._price(order, store, grouping) for grouping in get_args(Grouping)]
        asked = [(run, images.image_size) for _, runs, images in group_by_source(order.groups) for run in runs]
        print_prices(console, prices, self.profile, sum(rates.is_measured(*each) for each in asked), len(asked))

    def _price(self, order: ExecutionPlan, store: Store, grouping: Grouping) -> SweepPrice:
        groups = self._priced(order.groups, store, grouping).values()
        jobs = [job for group in groups for job in pending_jobs(group, store, order.retry_failed)]
        return estimate_price(grouping, jobs, self.profile)

    def train(self, order: ExecutionPlan, settings: TrainSettings, store: Store, console: Console) -> ExecutionSummary:
        """Give all jobs to the cluster and, if this command waits, watch them until all have ended."""
        client.check_installed()
        if not any(pending_jobs(jobs, store, order.retry_failed) for jobs in order.jobs.values()):
            console.print("nothing to train: every run has its record")
            return ExecutionSummary()
        settings = for_jobs(settings)
        targets = {part.title: part.runs for part in order.groups}
        asked = SweepRequest(order.title, settings.command, self.profile.grouping, targets, order.jobs)
        sweep, is_new = create_or_open_sweep(settings.runs, asked)
        sweep.write_settings(settings, self.profile)
        again = resume(sweep) + (retry(sweep) if order.retry_failed else [])
        how = "planned" if is_new else "taken up"
        console.print(f"sweep {sweep.name}: {how}, {counted(len(sweep.jobs), 'job')}", highlight=False)
        if again:
            console.print(f"{len(again)} of them are to do once more", highlight=False)
        if (before := sweep.about("grouping")) != self.profile.grouping:
            console.print(
                f'its jobs stay as they were planned, with grouping = "{before}"; remove {sweep.folder} to plan anew',
                highlight=False,
                soft_wrap=True,
            )
        try:
            console.print(looked_after(sweep, console), highlight=False, soft_wrap=True)
            if not self.waits:
                raise Detached(0)
            with SweepDisplay(console) as display:
                watch(Reader(sweep), display, look_after=lambda: reconcile(sweep, display.say))
            if sweep.is_stopped:
                return ExecutionSummary(stopped=True)
        except (KeyboardInterrupt, Detached) as leaving:
            console.print(
                f"The sweep goes on without this command: python -m slurm.status --runs {settings.runs} "
                f"--sweep {sweep.name} shows it, python -m slurm.cancel with the same options ends it, and this "
                "command, given again, watches it and renders what it gave.",
                highlight=False,
                soft_wrap=True,
            )
            raise Detached(leaving.code if isinstance(leaving, Detached) else INTERRUPTED) from None
        return _report(sweep, order.jobs)


@functools.lru_cache(maxsize=1)
def rates_of(profile: Profile, runs: Path) -> Rates:
    """How fast the cluster trains, by the records of a folder; they are read once a command."""
    try:
        return Rates.of(profile, load(runs))
    except UserError:
        # A damaged record is told of where it matters; here it only makes the estimate a rougher one.
        return Rates(profile, {})


def placed(source: str) -> str:
    """A dataset as any node finds it: a name, or the absolute path of a file."""
    return str(Path(source).absolute()) if source.endswith(".toml") or Path(source).is_file() else source


def looked_after(sweep: Sweep, console: Console) -> str:
    """Look after a sweep, and say what that did.

    Raises:
        UserError: SLURM refuses the jobs, or the shared folder cannot be written.
    """
    try:
        return told(reconcile(sweep, lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)))
    except SchedulerError as error:
        return str(error)


def told(tended: ReconcileResult | None) -> str:
    """What a look at a sweep did, for people."""
    if tended is None:
        return "another process looks after this sweep right now"
    if not tended.answers:
        return "SLURM does not answer; what can be submitted will be once it does"
    jobs = sum(len(submission.jobs) for submission in tended.submitted)
    arrays = len(tended.submitted)
    said = f"submitted {counted(jobs, 'job')} in {counted(arrays, 'array')}" if jobs else "nothing to submit"
    if tended.waiting:
        said += f"; {tended.waiting} wait for room and will be submitted as jobs end"
    if tended.trouble:
        said += f"; {tended.trouble}"
    if not tended.is_followed:
        said += "; only a command that watches it, or one of its jobs as it ends, will submit more"
    return said


def _report(sweep: Sweep, plans: JobsByDataset) -> ExecutionSummary:
    report = ExecutionSummary()
    ended = sweep.ended()
    for jobs in plans.values():
        for job in jobs:
            numbers = {number for run in job.runs if (number := sweep.job_of(run)) is not None}
            bad = [number for number in sorted(numbers) if ended.get(number) in ("failed", "blocked", "cancelled")]
            if bad and any(not sweep.store.has_record(run) for run in job.runs):
                report.failures[job] = "; ".join(dict.fromkeys(sweep.reason(number) for number in bad))
    return report


def for_jobs(settings: TrainSettings) -> TrainSettings:
    """Settings that hold wherever a job is started."""
    return replace(
        settings,
        runs=settings.runs.absolute(),
        data_root=settings.data_root.absolute() if settings.data_root else None,
        released=tuple((sha256, path.absolute()) for sha256, path in settings.released),
    )


MOST_NAMES = 3


WORDS = {
    "run": "a job for each run",
    "student": "a job for each student network",
    "cohort": "a job for each pass over the data",
}


def print_arrays(
    console: Console, plans: JobsByDataset, store: Store, profile: Profile, retry_failed: bool = False
) -> None:
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
    plans: JobsByDataset, store: Store, limit: int, retry_failed: bool = False
) -> list[tuple[frozenset[str], list[Job]]]:
    """Jobs that wait for the same, in arrays that the cluster takes; what they need, by digest, and the jobs."""
    missing = pending_jobs([job for _, job in topological_order(plans)], store, retry_failed)
    makers = {run.digest: place for place, job in enumerate(missing) for run in job.runs}
    groups: dict[frozenset[int], list[Job]] = defaultdict(list)
    for place, job in enumerate(missing):
        groups[frozenset(makers[digest] for digest in job.needs if makers.get(digest, place) != place)].append(job)
    return [
        (frozenset(run.digest for place in needed for run in missing[place].runs), jobs[first : first + limit])
        for needed, jobs in groups.items()
        for first in range(0, len(jobs), limit)
    ]


def print_prices(console: Console, prices: Sequence[SweepPrice], profile: Profile, known: int, asked: int) -> None:
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
