"""The executor of a SLURM cluster: makes a sweep of what a command trains, submits it and watches it to its end."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console

from benchmark.cli.app import INTERRUPTED
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.core.text import counted
from benchmark.execution.executor import Detached, ExecutionPlan, JobsByDataset, group_by_source, print_groups
from benchmark.execution.scheduler import ExecutionSummary
from benchmark.planning.atlas import price_atlases
from benchmark.planning.jobs import Grouping, all_jobs
from benchmark.planning.request import RunGroup
from benchmark.results.store import Store, load
from benchmark.training.settings import TrainSettings
from slurm import client
from slurm.client import SchedulerError
from slurm.cost import Rates, SweepPrice, estimate_price, price_jobs, print_arrays, print_prices
from slurm.dependencies import TERMINAL_FAILURES, resume, retry
from slurm.dispatcher import reconcile
from slurm.look import ReconcileResult
from slurm.monitor import take_snapshot
from slurm.plan import SweepRequest, pending_jobs
from slurm.profile import Profile
from slurm.screen import SweepDisplay, watch
from slurm.sweep import Sweep, create_or_open_sweep


@dataclass(frozen=True)
class Slurm:
    """A cluster by its profile. waits: whether commands watch their sweep until it is over."""

    profile: Profile
    waits: bool = True

    @property
    def device(self) -> torch.device:
        """The device that jobs train on."""
        return torch.device(self.profile.device)

    @property
    def bf16(self) -> bool | None:
        """What the profile says of its GPUs; processors are taken to be like this machine's."""
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

    def plan_jobs(self, groups: Sequence[RunGroup], store: Store, retry_failed: bool = False) -> JobsByDataset:
        """All jobs, even those that are done, grouped as the profile says and priced by what was measured."""
        return self._price_jobs(groups, store, self.profile.grouping)

    def _price_jobs(self, groups: Sequence[RunGroup], store: Store, grouping: Grouping) -> JobsByDataset:
        rates = _measure_rates(self.profile, store.root)
        plans = {}
        for source, runs, images in group_by_source(groups):
            size, count = images.image_size, len(images.train.labels)
            jobs = all_jobs(runs, store, grouping, size, count)
            plans[_name_dataset(source)] = price_jobs(jobs, rates, size, count)
        return plans

    def print_plan(self, plan: ExecutionPlan, store: Store, console: Console) -> None:
        """Print the arrays that jobs form, what they wait for, and what each grouping costs."""
        print_groups(console, plan.groups, store)
        rates = _measure_rates(self.profile, store.root)
        print_arrays(console, plan.jobs, store, self.profile, plan.retry_failed)
        prices = [self._price(plan, store, grouping) for grouping in get_args(Grouping)]
        runs = [(run, images.image_size) for _, runs, images in group_by_source(plan.groups) for run in runs]
        for source, _, images in group_by_source(plan.groups):
            pending = pending_jobs(plan.jobs[_name_dataset(source)], store, plan.retry_failed)
            if price := price_atlases([job.runs for job in pending], images, store):
                for line in price.describe():
                    console.print(line, highlight=False, soft_wrap=True)
        print_prices(console, prices, self.profile, sum(rates.is_measured(*each) for each in runs), len(runs))

    def _price(self, plan: ExecutionPlan, store: Store, grouping: Grouping) -> SweepPrice:
        priced = self._price_jobs(plan.groups, store, grouping).values()
        jobs = [job for jobs in priced for job in pending_jobs(jobs, store, plan.retry_failed)]
        return estimate_price(grouping, jobs, self.profile)

    def train(self, plan: ExecutionPlan, settings: TrainSettings, store: Store, console: Console) -> ExecutionSummary:
        """Submit all jobs and, if this command waits, watch them until all have ended."""
        client.check_installed()
        if not any(pending_jobs(jobs, store, plan.retry_failed) for jobs in plan.jobs.values()):
            console.print("nothing to train: every run has its record")
            return ExecutionSummary()
        say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
        targets = {group.title: group.runs for group in plan.groups}
        request = SweepRequest(plan.title, settings.command, self.profile.grouping, targets, plan.jobs)
        sweep, is_new = create_or_open_sweep(settings.runs, request)
        sweep.write_settings(settings, self.profile)
        again = resume(sweep) + (retry(sweep) if plan.retry_failed else [])
        say(f"sweep {sweep.name}: {'planned' if is_new else 'taken up'}, {counted(len(sweep.plan.jobs), 'job')}")
        if again:
            say(f"{len(again)} of them are to do once more")
        if (before := sweep.plan.read_fact("grouping")) != self.profile.grouping:
            say(f'its jobs keep their grouping = "{before}"; remove {sweep.folder} to plan them anew')
        try:
            reconcile_and_print(sweep, console)
            if not self.waits:
                raise Detached(0)
            with SweepDisplay(console) as display:
                watch(lambda: take_snapshot(sweep), display, lambda: reconcile(sweep, display.say))
            if sweep.is_cancelled:
                return ExecutionSummary(stopped=True)
        except (KeyboardInterrupt, Detached) as leaving:
            say(
                f"The sweep goes on without this command: python -m slurm.status --runs {sweep.store.root} "
                f"--sweep {sweep.name} shows it, python -m slurm.cancel with the same options ends it, and this "
                "command, given again, watches it and renders what it gave."
            )
            raise Detached(leaving.exit_code if isinstance(leaving, Detached) else INTERRUPTED) from None
        return _summarize(sweep, plan.jobs)


@functools.lru_cache(maxsize=1)
def _measure_rates(profile: Profile, runs: Path) -> Rates:
    """How fast the cluster trains, by the records of a folder; a command reads them once."""
    try:
        return Rates.of(profile, load(runs))
    except UserError:
        # Another place reports a damaged record; here it only makes the estimate rougher.
        return Rates(profile, {})


def _name_dataset(source: str) -> str:
    """A dataset as any node finds it: a registered name, or the absolute path of a file."""
    return str(Path(source).absolute()) if source.endswith(".toml") or Path(source).is_file() else source


def reconcile_and_print(sweep: Sweep, console: Console) -> None:
    """Reconcile a sweep and print what that did.

    Raises:
        UserError: SLURM refuses the jobs, or the shared folder cannot be written.
    """
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    try:
        say(describe(reconcile(sweep, say)))
    except SchedulerError as error:
        say(str(error))


def describe(result: ReconcileResult | None) -> str:
    """What a reconciliation did, for people."""
    if result is None:
        return "another process looks after this sweep right now"
    if not result.answers:
        return "SLURM does not answer; what can be submitted will be once it does"
    jobs = sum(len(submission.jobs) for submission in result.submitted)
    arrays = counted(len(result.submitted), "array")
    parts = [f"submitted {counted(jobs, 'job')} in {arrays}" if jobs else "nothing to submit"]
    if result.waiting:
        parts.append(f"{result.waiting} wait for room and will be submitted as jobs end")
    if result.trouble:
        parts.append(result.trouble)
    if not result.is_followed:
        parts.append("only a command that watches it, or one of its jobs as it ends, will submit more")
    return "; ".join(parts)


def _summarize(sweep: Sweep, plans: JobsByDataset) -> ExecutionSummary:
    """The jobs that ended badly, with their reasons."""
    summary = ExecutionSummary()
    ended = sweep.journal.read_endings()
    for job in (job for jobs in plans.values() for job in jobs):
        numbers = {number for run in job.runs if (number := sweep.plan.find_job(run)) is not None}
        bad = [number for number in sorted(numbers) if ended.get(number) in TERMINAL_FAILURES]
        if bad and not all(sweep.store.has_record(run) for run in job.runs):
            summary.failures[job] = "; ".join(dict.fromkeys(sweep.journal.read_reason(number) for number in bad))
    return summary
