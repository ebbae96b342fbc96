"""The executors there are, by name: processes of this machine, this process alone, or a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table as ScreenTable

from benchmark.data.dataset import Dataset
from benchmark.errors import UserError
from benchmark.estimate import training_multiply_adds
from benchmark.executor import Executor, Order, Plans, by_source, print_parts
from benchmark.plan import jobs_for
from benchmark.pool import run_jobs
from benchmark.processors import processors
from benchmark.progress import Display
from benchmark.results import Store
from benchmark.schedule import Report
from benchmark.spec import Run
from benchmark.targets import Part
from benchmark.training.devices import resolve_device
from benchmark.training.material import Settings
from benchmark.training.processes import check_sharing
from benchmark.words import counted, duration

ExecutorName = Literal["local", "debug", "slurm"]


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

    def plans_of(self, parts: Sequence[Part], store: Store, retry_failed: bool) -> Plans:
        """Jobs of what has no record, so many that no process is idle."""
        plans = {}
        for source, runs, images in by_source(parts):
            size, count = images.image_size, len(images.train.labels)
            plans[source] = jobs_for(runs, store, self.workers, size, count, retry_failed)
        return plans

    def print_plan(self, order: Order, store: Store, console: Console) -> None:
        """Every job with its multiply-adds and about how long it takes on one core."""
        print_parts(console, order.parts, store)
        screen = ScreenTable("job", "runs", "epochs", "multiply-adds", "on one core, about", box=None, pad_edge=False)
        total, missing, everything = 0, 0, [job for jobs in order.plans.values() for job in jobs]
        for source, _, images in by_source(order.parts):
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

    def train(self, order: Order, settings: Settings, store: Store, console: Console) -> Report:
        """Train the jobs of each dataset in turn, until all are done or the user stops."""
        reports: list[Report] = []
        for source, jobs in order.plans.items():
            for run in (run for job in jobs for run in job.runs if order.retry_failed):
                store.forget_failure(run)
            if not jobs:
                console.print("nothing to train: every run has its record")
                continue
            with Display(jobs, console) as display:
                reports.append(run_jobs(jobs, replace(settings, dataset=source), self.workers, display))
            if reports[-1].stopped:
                break
        return Report.joined(reports)


def executor_named(
    name: ExecutorName, device: str, workers: int | None, processes: int, profile: Path | None, waits: bool
) -> Executor:
    """The executor that a command's options describe. processes: how many share each batch of a run.

    Raises:
        UserError: an option speaks of another executor; the device is not there; the profile cannot be read.
    """
    if name == "slurm":
        # Its library would make every other command start later.
        from slurm.executor import Slurm
        from slurm.profile import EXAMPLE, load_profile

        if workers is not None:
            raise UserError("--workers speaks of this machine; with --executor slurm the profile says what jobs get")
        if profile is None:
            raise UserError(f"--executor slurm needs --profile FILE; {EXAMPLE} documents every field of one")
        cluster = Slurm(load_profile(profile), waits)
        if device not in ("auto", str(cluster.device)):
            raise UserError(
                f"--device {device}: the jobs of this profile train on {cluster.device}; change its gpus, or leave "
                "--device out"
            )
        return cluster
    if profile is not None:
        raise UserError(f"--profile speaks of a cluster; pass --executor slurm, or leave it out of --executor {name}")
    if not waits:
        raise UserError(f"--no-wait speaks of a cluster; pass --executor slurm, or leave it out of --executor {name}")
    if name == "debug" and (workers or 1) > 1:
        raise UserError("--executor debug trains in this process; leave --workers out, or use --executor local")
    here = resolve_device(device)
    usual = 1 if here.type == "cuda" or processes > 1 else processors()
    return Local(here, 1 if name == "debug" else workers or usual)


def run_multiply_adds(run: Run, images: Dataset) -> int:
    """Multiply-adds of training a run on the images of a dataset."""
    shown = round(run.fraction * len(images.train.labels))
    return run.schedule.epochs * shown * training_multiply_adds(run, images.image_size)
