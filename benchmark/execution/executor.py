"""The executor protocol: plans jobs, prints what they cost, and trains them. All executors write the same records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import typer
from rich.console import Console

from benchmark.core.spec import Run
from benchmark.core.text import counted
from benchmark.data.dataset import Dataset
from benchmark.execution.scheduler import ExecutionSummary
from benchmark.planning.jobs import Job
from benchmark.planning.request import RunGroup
from benchmark.results.store import Store
from benchmark.training.settings import TrainSettings

JobsByDataset = Mapping[str, Sequence[Job]]
"""Jobs by dataset, as `load_dataset` takes it."""


class Detached(typer.Exit):
    """Ends a command, with an exit code, whose sweep continues on the cluster."""


@dataclass(frozen=True)
class ExecutionPlan:
    """What a command trains: a title, the runs of its tables and figures, and the missing jobs by dataset.

    verbose: list each job when the plan is printed, instead of summing up jobs of one kind.
    """

    title: str
    groups: Sequence[RunGroup]
    jobs: JobsByDataset
    retry_failed: bool = False
    verbose: bool = False


class Executor(Protocol):
    """Plans jobs and trains them."""

    @property
    def device(self) -> torch.device:
        """The device that jobs train on."""

    @property
    def bf16(self) -> bool | None:
        """Whether the device supports bf16; None: it belongs to this machine and can be queried."""

    def check_folders(self, runs: Path, data_root: Path | None) -> None:
        """Refuse folders that jobs cannot use, before anything is planned.

        Raises:
            UserError: a job cannot use a folder.
        """

    def check_runs(self, runs: Sequence[Run]) -> None:
        """Refuse runs that this executor cannot train.

        Raises:
            UserError: it cannot train a run.
        """

    def plan_jobs(self, groups: Sequence[RunGroup], store: Store, retry_failed: bool = False) -> JobsByDataset:
        """Plan the jobs of all groups by dataset; a run that several groups need is planned once."""

    def print_plan(self, plan: ExecutionPlan, store: Store, console: Console) -> None:
        """Print what would be trained and what it costs."""

    def train(self, plan: ExecutionPlan, settings: TrainSettings, store: Store, console: Console) -> ExecutionSummary:
        """Train all jobs.

        Raises:
            UserError: the user must fix something first.
            Detached: the jobs continue without this command.
        """


def group_by_source(groups: Sequence[RunGroup]) -> list[tuple[str, list[Run], Dataset]]:
    """Collect the runs of all groups by dataset, each once."""
    grouped = []
    for source in dict.fromkeys(group.source for group in groups):
        own = [group for group in groups if group.source == source]
        grouped.append((source, list(dict.fromkeys(run for group in own for run in group.runs)), own[0].images))
    return grouped


def print_groups(console: Console, groups: Sequence[RunGroup], store: Store) -> None:
    """Print how many runs of each table and figure are done."""
    for group in groups:
        finished = len(group.runs) - len(store.missing(group.runs, retry_failed=True))
        console.print(f"{group.title}: {counted(len(group.runs), 'run')} asked for, {finished} done.", highlight=False)
