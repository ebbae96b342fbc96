"""The executor that trains on this machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table as ScreenTable

from benchmark.core.spec import Run
from benchmark.core.text import counted
from benchmark.data.dataset import Dataset
from benchmark.execution.executor import ExecutionPlan, JobsByDataset, group_by_source, print_groups
from benchmark.execution.pool import run_jobs
from benchmark.execution.progress import ProgressDisplay
from benchmark.execution.scheduler import ExecutionSummary
from benchmark.planning.atlas import price_atlases
from benchmark.planning.cost import training_multiply_adds
from benchmark.planning.jobs import Job, missing_jobs
from benchmark.planning.request import RunGroup
from benchmark.planning.timed import GpuSpeed
from benchmark.results.store import Store
from benchmark.training.launcher import check_sharing
from benchmark.training.settings import TrainSettings

START_SECONDS = 8.0
"""What a command takes beside its training: starting, importing, rendering."""


@dataclass(frozen=True)
class Local:
    """Trains on this machine, in worker processes or (with one worker) in this process."""

    device: torch.device
    workers: int
    bf16: bool | None = None

    def check_folders(self, runs: Path, data_root: Path | None) -> None:
        """Accept every folder of this machine."""

    def check_runs(self, runs: Sequence[Run]) -> None:
        """Refuse runs whose batches cannot be shared among processes as requested."""
        for run in runs:
            check_sharing(run, str(self.device), self.workers)

    def plan_jobs(self, groups: Sequence[RunGroup], store: Store, retry_failed: bool = False) -> JobsByDataset:
        """Plan the jobs of all runs without a record, enough to keep every process busy."""
        jobs = {}
        for source, runs, images in group_by_source(groups):
            size, count = images.image_size, len(images.train.labels)
            jobs[source] = missing_jobs(runs, store, self.workers, size, count, retry_failed)
        return jobs

    def print_plan(self, plan: ExecutionPlan, store: Store, console: Console) -> None:
        """Print the jobs, summed up by kind or (if the plan is verbose) one by one, and what they cost."""
        print_groups(console, plan.groups, store)
        gpu = GpuSpeed.from_store(store)
        images = {source: images for source, _, images in group_by_source(plan.groups)}
        estimates = {job: estimate_job(job, images[source], gpu) for source, jobs in plan.jobs.items() for job in jobs}
        if not estimates:
            console.print("Nothing is to be trained: every run has its record.")
            return
        console.print(_list_jobs(estimates) if plan.verbose else _sum_up_kinds(estimates))
        prices = [
            price_atlases([job.runs for job in jobs], images[source], store) for source, jobs in plan.jobs.items()
        ]
        atlases = [price for price in prices if price]
        making = [
            Estimate(0, each.images, each.multiply_adds, each.seconds, each.gpu_seconds, measured=0) for each in atlases
        ]
        total = add_up([*estimates.values(), *making])
        # No plan is faster than its longest job, however many processes there are.
        seconds = START_SECONDS + max(total.seconds / self.workers, *(job.seconds for job in estimates))
        processes = f"{self.workers} CPU {'process' if self.workers == 1 else 'processes'}"
        lines = [
            *(line for price in atlases for line in price.describe()),
            f"To train: {counted(total.runs, 'run')} (teachers and their heads included) in "
            f"{counted(len(estimates), 'job')}, {total.multiply_adds:.2e} multiply-adds"
            f"{' with those of the atlases' if atlases else ''}.",
            f"Roughly {format_hours(seconds)} with {processes}; {format_hours(total.gpu_seconds)} on one {gpu.name} "
            f"({describe_speed(total)}).",
            f"Nothing was started.{'' if plan.verbose else ' Pass --verbose to list each job.'}",
        ]
        for line in lines:
            console.print(line, highlight=False, soft_wrap=not console.is_terminal)

    def train(self, plan: ExecutionPlan, settings: TrainSettings, store: Store, console: Console) -> ExecutionSummary:
        """Train the jobs of each dataset in turn, until all are done or the user stops."""
        summaries: list[ExecutionSummary] = []
        for source, jobs in plan.jobs.items():
            for run in (run for job in jobs for run in job.runs if plan.retry_failed):
                store.forget_failure(run)
            if not jobs:
                console.print("nothing to train: every run has its record")
                continue
            with ProgressDisplay(jobs, console) as display:
                summaries.append(run_jobs(jobs, replace(settings, dataset=source), self.workers, display))
            if summaries[-1].stopped:
                break
        return ExecutionSummary.merge(summaries)


class Estimate(NamedTuple):
    """What one job or several cost.

    images: shown in training, over all runs; seconds: on one core; measured: runs of kinds whose speed on the GPU is
    known from records.
    """

    runs: int
    images: int
    multiply_adds: int
    seconds: float
    gpu_seconds: float
    measured: int


def estimate_job(job: Job, images: Dataset, gpu: GpuSpeed) -> Estimate:
    """Estimate what a job costs that trains on the images of a dataset."""
    size, count = images.image_size, len(images.train.labels)
    shown = {run: run.schedule.epochs * round(run.fraction * count) for run in job.runs}
    return Estimate(
        runs=len(job.runs),
        images=sum(shown.values()),
        multiply_adds=sum(shown[run] * training_multiply_adds(run, size) for run in job.runs),
        seconds=job.seconds,
        gpu_seconds=sum(gpu.seconds(run, size, count) for run in job.runs),
        measured=sum(gpu.is_measured(run, size) for run in job.runs),
    )


def add_up(estimates: Iterable[Estimate]) -> Estimate:
    """Add up what several jobs cost."""
    return Estimate(*map(sum, zip(*estimates, strict=True)))


def describe_speed(estimate: Estimate) -> str:
    """Describe the speed of a GPU, and whether it was measured or is assumed."""
    speed = f"{estimate.images / estimate.gpu_seconds:,.0f} images/s"
    if estimate.measured == estimate.runs:
        return f"{speed}, measured"
    if estimate.measured:
        return f"{speed}: measured for {estimate.measured} of {counted(estimate.runs, 'run')}, assumed for the others"
    return f"{speed}, assumed, not measured"


def format_hours(seconds: float) -> str:
    """Write a rough time: `40 s`, `12 min`, `1.5 h`, `6,994 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36_000 else f"{seconds / 3600:,.0f} h"


def _sum_up_kinds(estimates: Mapping[Job, Estimate]) -> ScreenTable:
    """List jobs of the same methods in one line, with the networks and seeds that they are for."""
    kinds: dict[str, list[Job]] = defaultdict(list)
    for job in estimates:
        kinds[job.methods].append(job)
    screen = ScreenTable("jobs that train", "for", "jobs", "one core", "one GPU", box=None, pad_edge=False)
    for methods, jobs in kinds.items():
        total = add_up(estimates[job] for job in jobs)
        networks = {job.networks for job in jobs}
        what = counted(len(networks), "pair" if any(">" in name for name in networks) else "network")
        extent = f"{what} x {counted(len({job.runs[0].seed for job in jobs}), 'seed')}"
        hours = [format_hours(total.seconds), format_hours(total.gpu_seconds)]
        screen.add_row(methods, extent, str(len(jobs)), *hours)
    return screen


def _list_jobs(estimates: Mapping[Job, Estimate]) -> ScreenTable:
    """List each job in a line."""
    screen = ScreenTable("job", "runs", "epochs", "multiply-adds", "one core", "one GPU", box=None, pad_edge=False)
    for job, cost in estimates.items():
        epochs = max(run.schedule.epochs for run in job.runs)
        hours = [format_hours(cost.seconds), format_hours(cost.gpu_seconds)]
        screen.add_row(job.name, str(cost.runs), str(epochs), f"{cost.multiply_adds:.1e}", *hours)
    return screen
