"""Small sweeps on a real SLURM: planned, given to the cluster, disturbed, and compared with what nobody disturbed."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from benchmark.core.spec import Run
from benchmark.data import load_dataset
from benchmark.execution.pool import run_jobs
from benchmark.execution.scheduler import JobCallback
from benchmark.planning.jobs import Job, missing_jobs
from benchmark.planning.request import RunOptions
from benchmark.planning.teachers import Teachers
from benchmark.results.record import comparable_part
from benchmark.results.store import Store
from benchmark.targets import TableTarget
from benchmark.training.settings import TrainSettings
from slurm.client import SchedulerError
from slurm.dependencies import resume
from slurm.dispatcher import reconcile
from slurm.journal import JobState
from slurm.plan import SweepRequest
from slurm.profile import Profile
from slurm.sweep import Sweep, create_or_open_sweep
from tables.specification import load_table
from tests.commands import ROOT, small_dataset, small_table
from tests.devcluster import Cluster, processes_of
from tests.slurm_cluster import PATIENCE, until

PACE = 0.2
"""The share of their usual time that jobs and commands of tests wait between two looks (slurm/pace.py)."""
EPOCHS = 8
PROFILE = Profile(gpus=0, cpus=1, time=10, grace_seconds=20, submit_from_jobs=False)
"""Of small jobs: a processor for ten minutes. Who tests it looks after the sweep, which saves jobs that would."""


@dataclass(frozen=True)
class Planned:
    """What a command would ask for: jobs by dataset, in a place of their own."""

    place: Path
    target: TableTarget
    source: str
    jobs: Sequence[Job]
    settings: TrainSettings

    @property
    def runs(self) -> list[Run]:
        """All runs that are to be trained."""
        return [run for job in self.jobs for run in job.runs]

    @property
    def asked(self) -> SweepRequest:
        """The same as a sweep asks for it."""
        part = self.target.groups[0]
        return SweepRequest("small", "a test", "student", {part.title: part.runs}, {self.source: self.jobs})

    def sweep(self, profile: Profile = PROFILE) -> Sweep:
        """The sweep of these runs, taken up; nothing of it is given to the cluster yet."""
        sweep, _ = create_or_open_sweep(self.settings.runs, self.asked)
        sweep.write_settings(self.settings, profile)
        resume(sweep)
        return sweep

    def number(self, sweep: Sweep, method: str, seed: int | None = None) -> int:
        """The job that trains the runs of a method and a seed; without one there is only one such job."""
        numbers = {sweep.plan.find_job(run) for run in self.runs if run.method == method and seed in (None, run.seed)}
        (number,) = numbers
        assert number is not None
        return number


def planned(
    place: Path,
    methods: Sequence[str] = ("Baseline",),
    epochs: int = EPOCHS,
    seeds: int = 1,
    settings: Sequence[str] = (),
) -> Planned:
    """A table of ResNet20 on 36 images of 8x8, nine steps an epoch, in `place`."""
    place.mkdir(parents=True, exist_ok=True)
    toml = place / "blocks.toml"
    if not toml.exists():
        small_dataset(place)
    images = load_dataset(str(toml))
    wish = RunOptions(
        scale="demo",
        device=torch.device("cpu"),
        epochs=epochs,
        seeds=seeds,
        settings=("protocol.batch_size=4", *settings),
        precision="fp32",
    )
    table = load_table(str(small_table(place, list(methods))))
    target = TableTarget.plan(table, wish, str(toml), images, Teachers())
    runs = place / "runs"
    jobs = missing_jobs(target.groups[0].runs, Store(runs), 2, images.image_size, len(images.train.labels))
    given = TrainSettings(runs=runs, dataset="", command="a test", checkpoint_seconds=1)
    return Planned(place, target, str(toml), jobs, given)


@contextlib.contextmanager
def at_cluster(cluster: Cluster, **more: str) -> Iterator[None]:
    """The environment of a user of a cluster."""
    ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "KD_SLURM_PACE": str(PACE)}
    environment = {**cluster.environment, **ours, **more}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """A module's cluster, its fixture `running`, as its user has it, and emptied afterwards."""
    with at_cluster(running):
        yield running
        clear(running)


def bring_home(sweep: Sweep, said: list[str] | None = None, tends: bool = True, patience: float = PATIENCE) -> None:
    """Look after a sweep until all of it has ended; or, where others are to look after it, only wait for that."""
    lines = said if said is not None else []
    deadline = time.monotonic() + patience
    while len(sweep.journal.read_endings()) < len(sweep.plan.jobs):
        assert time.monotonic() < deadline, (
            f"{sweep.journal.read_endings()} and no more in {patience:.0f} s; {lines}; {logs(sweep)}"
        )
        if tends:
            with contextlib.suppress(SchedulerError):
                reconcile(sweep, lines.append)
        time.sleep(0.3)


def commanded(capsys: pytest.CaptureFixture[str], command: Callable[..., int], **options: Any) -> tuple[int, str]:
    """The exit code of a command's function, called here to save its start, and what it printed, on one line."""
    capsys.readouterr()
    code = command(**options)
    return code, " ".join(capsys.readouterr().out.split())


def logs(sweep: Sweep) -> str:
    """What the jobs of a sweep have printed, for a test that fails."""
    return "\n".join(f"{path.name}: {path.read_text()}" for path in sorted(sweep.folder.glob("logs/*/*log.*")))


def endings(sweep: Sweep) -> list[JobState]:
    """How the jobs have ended, by number."""
    ended = sweep.journal.read_endings()
    return [ended[number] for number in sorted(ended)]


def leavings(sweep: Sweep, number: int) -> list[str | None]:
    """How the attempts at a job were left, in order."""
    return [attempt.leaving for attempt in sweep.journal.read_state(number).attempts]


def trains(sweep: Sweep, number: int, epochs: int = 1) -> bool:
    """Whether the latest attempt at a job runs and some epochs of its first run are done."""
    last = sweep.journal.read_state(number).last
    path = sweep.store.folder(sweep.plan.read_runs(number)[0]) / "epochs.jsonl"
    try:
        return last is not None and last.ended is None and len(path.read_text().splitlines()) >= epochs
    except OSError:
        return False


def freeze(sweep: Sweep, number: int) -> psutil.Process:
    """Hold a job up where it is, until SIGCONT; SLURM sends one with whatever it tells a job."""
    process = python_of(sweep, number)
    process.send_signal(signal.SIGSTOP)
    return process


def python_of(sweep: Sweep, number: int) -> psutil.Process:
    """The process of the latest attempt at a job."""
    last = sweep.journal.read_state(number).last
    assert last is not None
    return psutil.Process(last.owner.process)


def task_of(sweep: Sweep, number: int) -> str:
    """What a job was last submitted as."""
    return [submission.tasks[number] for submission in sweep.journal.read_submissions() if number in submission.tasks][
        -1
    ]


def shown(cluster: Cluster, job: str, name: str) -> str:
    """A field of what `scontrol show job` prints."""
    match = re.search(rf"\b{name}=(\S*)", cluster.command("scontrol", "show", "job", "-o", job))
    assert match is not None
    return match[1]


def daemon_of(cluster: Cluster, job: str, step: str) -> psutil.Process:
    """The slurmstepd of a job's step: `0`, or `batch`."""
    raw = shown(cluster, job, "JobId")
    for process in processes_of(cluster.folder, cluster.name):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if words.startswith(f"slurmstepd: [{raw}.{step}]"):
                return psutil.Process(process)
    raise AssertionError(f"no slurmstepd of {raw}.{step}")


def jobs_in(cluster: Cluster, *options: str) -> list[str]:
    """The jobs that wait or run, an array's one by one."""
    return cluster.command("squeue", "-h", "-r", "-o", "%i", *options).split()


def clear(cluster: Cluster) -> None:
    """End all jobs at once."""
    for job in jobs_in(cluster):
        cluster.command("scancel", "--quiet", job)
    for process in processes_of(cluster.folder, cluster.name):
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(process)
            if "submitit" in " ".join(found.cmdline()):
                found.kill()
    until(lambda: not jobs_in(cluster), "an empty queue")


@functools.cache
def _undisturbed() -> Planned:
    place = Path(tempfile.mkdtemp(prefix="undisturbed-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return planned(place)


def undisturbed(plan: Planned) -> Store:
    """The records of the same plan trained by `run_jobs` in this process, where nothing disturbs them."""
    reference = _undisturbed()
    settings = replace(reference.settings, dataset=reference.source)
    report = run_jobs(plan.jobs, settings, 1, JobCallback())
    assert not report.failures, report.failures
    return Store(settings.runs)


def assert_equal_to_undisturbed(plan: Planned, runs: Sequence[Run] | None = None) -> None:
    """Curves, figures and weights are those that nobody disturbed, bit by bit, and there is one record a run."""
    reference, store = undisturbed(plan), Store(plan.settings.runs)
    for run in plan.runs if runs is None else runs:
        record, expected = store.record(run), reference.record(run)
        assert record is not None
        assert expected is not None
        assert comparable_part(record) == comparable_part(expected)
        files = {path.name for path in reference.folder(run).glob("*.safetensors")}
        assert {path.name for path in store.folder(run).glob("*.safetensors")} == files
        for name in files:
            assert (store.folder(run) / name).read_bytes() == (reference.folder(run) / name).read_bytes()


def wrapped(place: Path, scripts: Mapping[str, str]) -> str:
    """A PATH on which some commands are scripts; in them `$REAL` is the command itself."""
    place.mkdir(parents=True, exist_ok=True)
    for name, script in scripts.items():
        path = place / name
        path.write_text(f"#!/bin/bash\nREAL=/usr/bin/{name}\n{script}\n")
        path.chmod(0o755)
    return f"{place}{os.pathsep}{os.environ['PATH']}"
