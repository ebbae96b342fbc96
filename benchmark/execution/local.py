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
    """This machine: so many processes, or with one this process itself."""

    device: torch.device
    workers: int
    bf16: bool | None = None

    def check_folders(self, runs: Path, data_root: Path | None) -> None:
        """All folders of this machine can be used."""

    def check_runs(self, runs: Sequence[Run]) -> None:
        """Refuse batches that cannot be shared as they are to be."""
        for run in runs:
            check_sharing(run, str(self.device), self.workers)

    def plans_of(self, parts: Sequence[RunGroup], store: Store, retry_failed: bool) -> JobsByDataset:
        """Jobs of what has no record, so many that no process is idle."""
        plans = {}
        for source, runs, images in group_by_source(parts):
            size, count = images.image_size, len(images.train.labels)
            plans[source] = missing_jobs(runs, store, self.workers, size, count, retry_failed)
        return plans

    def print_plan(self, order: ExecutionPlan, store: Store, console: Console) -> None:
        """Every job with its multiply-adds and about how long it takes on one core."""
        print_groups(console, order.parts, store)
        screen = ScreenTable("job", "runs", "epochs", "multiply-adds", "on one core, about", box=None, pad_edge=False)
        total, missing, everything = 0, 0, [job for jobs in order.plans.values() for job in jobs]
        for source, _, images in group_by_source(order.parts):
            for job in order.plans[source]:
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
            f"{self.workers} CPU {'process' if self.workers == 1 else 'processes'} (a GPU is not reckoned with). "
            "Nothing was started.",
            highlight=False,
            soft_wrap=not console.is_terminal,
        )

    def train(self, order: ExecutionPlan, settings: TrainSettings, store: Store, console: Console) -> ExecutionSummary:
        """Train the jobs of each dataset in turn, until all are done or the user stops."""
        reports: list[ExecutionSummary] = []
        for source, jobs in order.plans.items():
            for run in (run for job in jobs for run in job.runs if order.retry_failed):
                store.forget_failure(run)
            if not jobs:
                console.print("nothing to train: every run has its record")
                continue
            with ProgressDisplay(jobs, console) as display:
                reports.append(run_jobs(jobs, replace(settings, dataset=source), self.workers, display))
            if reports[-1].stopped:
                break
        return ExecutionSummary.joined(reports)


def run_multiply_adds(run: Run, images: Dataset) -> int:
    """Multiply-adds of training a run on the images of a dataset."""
    shown = round(run.fraction * len(images.train.labels))
    return run.schedule.epochs * shown * training_multiply_adds(run, images.image_size)
