"""The executor that trains on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table as ScreenTable

from benchmark.core.spec import Run
from benchmark.core.text import counted, duration
from benchmark.data.dataset import Dataset
from benchmark.execution.executor import ExecutionPlan, JobsByDataset, group_by_source, print_groups
from benchmark.execution.pool import run_jobs
from benchmark.execution.progress import ProgressDisplay
from benchmark.execution.scheduler import ExecutionSummary
from benchmark.planning.cost import training_multiply_adds
from benchmark.planning.jobs import missing_jobs
from benchmark.planning.request import RunGroup
from benchmark.results.store import Store
from benchmark.training.launcher import check_sharing
from benchmark.training.settings import TrainSettings


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

    def plan_jobs(self, groups: Sequence[RunGroup], store: Store, retry_failed: bool) -> JobsByDataset:
        """Plan the jobs of all runs without a record, enough to keep every process busy."""
        jobs = {}
        for source, runs, images in group_by_source(groups):
            size, count = images.image_size, len(images.train.labels)
            jobs[source] = missing_jobs(runs, store, self.workers, size, count, retry_failed)
        return jobs

    def print_plan(self, plan: ExecutionPlan, store: Store, console: Console) -> None:
        """Print every job with its multiply-adds and its estimated time on one core."""
        print_groups(console, plan.groups, store)
        screen = ScreenTable("job", "runs", "epochs", "multiply-adds", "on one core, about", box=None, pad_edge=False)
        total, missing, everything = 0, 0, [job for jobs in plan.jobs.values() for job in jobs]
        for source, _, images in group_by_source(plan.groups):
            for job in plan.jobs[source]:
                madds = sum(run_multiply_adds(run, images) for run in job.runs)
                epochs = max(run.schedule.epochs for run in job.runs)
                screen.add_row(job.name, str(len(job.runs)), str(epochs), f"{madds:.1e}", duration(job.seconds))
                total, missing = total + madds, missing + len(job.runs)
        if everything:
            console.print(screen)
        # No plan is faster than its longest job, however many processes there are.
        longest = max((job.seconds for job in everything), default=0.0)
        seconds = max(sum(job.seconds for job in everything) / self.workers, longest)
        console.print(
            f"To train: {counted(missing, 'run')} (teachers and their heads included) in "
            f"{counted(len(everything), 'job')}, {total:.2e} multiply-adds, roughly {duration(seconds)} with "
            f"{self.workers} CPU {'process' if self.workers == 1 else 'processes'} (a GPU is not considered). "
            "Nothing was started.",
            highlight=False,
            soft_wrap=not console.is_terminal,
        )

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


def run_multiply_adds(run: Run, images: Dataset) -> int:
    """Count the multiply-adds of training a run on the images of a dataset."""
    shown = round(run.fraction * len(images.train.labels))
    return run.schedule.epochs * shown * training_multiply_adds(run, images.image_size)
