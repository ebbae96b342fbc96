"""What an executor is: it plans jobs as suits it, says what they cost, and trains them. All leave the same records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
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


class Detached(Exception):
    """A command leaves its work to others before it is done, as the user wished. code: its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class ExecutionPlan:
    """What is to be trained: the title of it all, the tables and figures it is for, and the jobs by dataset."""

    title: str
    parts: Sequence[RunGroup]
    plans: JobsByDataset
    retry_failed: bool


class Executor(Protocol):
    """Plans jobs as suits it, and trains them."""

    @property
    def device(self) -> torch.device:
        """What jobs train on."""

    @property
    def bf16(self) -> bool | None:
        """Whether that computes in bf16; None: it is one of this machine, and can be asked."""

    def check_folders(self, runs: Path, data_root: Path | None) -> None:
        """Refuse folders that jobs could not use, before anything is planned.

        Raises:
            UserError: such a folder.
        """

    def check_runs(self, runs: Sequence[Run]) -> None:
        """Refuse runs that cannot be trained there.

        Raises:
            UserError: such a run.
        """

    def plans_of(self, parts: Sequence[RunGroup], store: Store, retry_failed: bool) -> JobsByDataset:
        """The jobs of all parts by dataset, what several ask for in one of them."""

    def print_plan(self, order: ExecutionPlan, store: Store, console: Console) -> None:
        """Say what would be trained and what it costs."""

    def train(self, order: ExecutionPlan, settings: TrainSettings, store: Store, console: Console) -> ExecutionSummary:
        """Train all jobs.

        Raises:
            UserError: something that the user must mend.
            Left: the jobs are left to others.
        """


def group_by_source(parts: Sequence[RunGroup]) -> list[tuple[str, list[Run], Dataset]]:
    """The runs of all parts by dataset, each once."""
    found = []
    for source in dict.fromkeys(part.source for part in parts):
        own = [part for part in parts if part.source == source]
        found.append((source, list(dict.fromkeys(run for part in own for run in part.runs)), own[0].images))
    return found


def print_groups(console: Console, parts: Sequence[RunGroup], store: Store) -> None:
    """Say how much of each table and figure there is."""
    for part in parts:
        finished = len(part.runs) - len(store.missing(part.runs, retry_failed=True))
        console.print(f"{part.title}: {counted(len(part.runs), 'run')} asked for, {finished} done.", highlight=False)
