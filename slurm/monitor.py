"""The status of a sweep: whether each job waits, runs or has ended, the progress of each table, and the hours spent."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from benchmark.core.text import counted
from benchmark.io.untrusted import escape_control_chars
from slurm import client
from slurm.client import QueuedTask
from slurm.journal import LONGEST_LINE, JobState, ShownProgress, State
from slurm.sweep import Sweep

Condition = Literal["running", "requeued", "pending", "held back", "unknown", "done", "failed", "blocked", "cancelled"]
"""requeued: pending, after it ran; held back: not yet submitted; unknown: neither SLURM nor the job says."""
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
FRESH_SECONDS = 60.0
"""If SLURM does not answer, a job counts as running for this long after it last wrote its state."""
LITTLE_SPACE = 2**30
USUAL = ("None", "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit")
"""Why jobs usually wait. Other reasons, such as a time limit that the partition forbids, may last for ever."""


@dataclass(frozen=True)
class JobLine:
    """The status of one job."""

    number: int
    name: str
    condition: Condition
    task: str = ""
    node: str = ""
    shown: ShownProgress | None = None
    reason: str = ""
    attempts: int = 0


@dataclass(frozen=True)
class SweepCoverage:
    """Of a table or figure, how many of its runs have a record."""

    title: str
    done: int
    asked: int


@dataclass(frozen=True)
class Snapshot:
    """The status of a sweep at one moment. Hours are those of GPUs, or of jobs without GPUs."""

    name: str
    lines: tuple[JobLine, ...]
    coverage: tuple[SweepCoverage, ...]
    hours_used: float
    hours_left: float
    unit: str
    """`GPU` or `job`."""
    troubles: tuple[str, ...] = ()
    is_cancelled: bool = False

    @property
    def counts(self) -> Counter[Condition]:
        """The number of jobs in each condition."""
        return Counter(line.condition for line in self.lines)

    @property
    def is_over(self) -> bool:
        """Whether every job has ended."""
        return all(line.condition in get_args(JobState) for line in self.lines)

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing more happens by itself: it is over, or cancelled and SLURM has none of its jobs."""
        is_moving = any(self.counts[condition] for condition in ("running", "requeued", "pending", "unknown"))
        return self.is_over or (self.is_cancelled and not is_moving)

    @property
    def exit_code(self) -> int:
        """The exit code of a command that shows it: 1 if a job failed or is blocked."""
        return 1 if self.counts["failed"] or self.counts["blocked"] else 0


def take_snapshot(sweep: Sweep) -> Snapshot:
    """The status of a sweep now."""
    latest = {job: task for submission in sweep.journal.read_submissions() for job, task in submission.tasks.items()}
    ended = sweep.journal.read_endings()
    states = {job.number: sweep.journal.read_state(job.number) for job in sweep.plan.jobs}
    tasks = client.queue(task.partition("_")[0] for job, task in latest.items() if job not in ended and task)
    lines = []
    for job in sweep.plan.jobs:
        state, task = states[job.number], latest.get(job.number, "")
        node = state.last.node if state.last else ""
        line = JobLine(job.number, job.name, "held back", task, node, attempts=len(state.attempts))
        if (ending := ended.get(job.number)) is not None:
            lines.append(replace(line, condition=ending, reason=sweep.journal.read_reason(job.number)))
        else:
            lines.append(_describe_open(line, state, tasks))
    _, profile = sweep.read_settings()
    used, left = _estimate_hours(sweep, states, ended)
    return Snapshot(
        sweep.name,
        tuple(lines),
        tuple(_measure_coverage(sweep, ended)),
        used * (profile.gpus or 1),
        left * (profile.gpus or 1),
        "GPU" if profile.gpus else "job",
        tuple(_find_troubles(sweep, lines, tasks)),
        sweep.is_cancelled,
    )


def _describe_open(line: JobLine, state: State, tasks: Mapping[str, QueuedTask] | None) -> JobLine:
    """Complete the line of a job that has not ended. tasks: SLURM's queue, if SLURM answers."""
    last = state.last
    runs = last is not None and last.ended is None
    shown = state.shown if runs else None
    if tasks is None:
        if last is not None and runs and time.time() - last.beat < FRESH_SECONDS:
            return replace(line, condition="running", shown=shown, reason="by its own word")
        if line.task:
            return replace(line, condition="unknown", reason="SLURM does not say")
    elif (queued := tasks.get(line.task)) is not None:
        if queued.state != "PENDING":
            return replace(line, condition="running", node=queued.node, shown=shown)
        reason = "" if queued.reason in USUAL[:3] else queued.reason
        return replace(line, condition="requeued" if line.attempts else "pending", node="", reason=reason)
    return replace(line, reason=escape_control_chars(last.reason, LONGEST_LINE) if last and last.ended else "")


def _estimate_hours(sweep: Sweep, states: Mapping[int, State], ended: Mapping[int, JobState]) -> tuple[float, float]:
    """The hours that jobs have spent, and an estimate of those left, scaled by how long finished jobs took."""
    jobs = sweep.plan.jobs
    used = sum(state.seconds for state in states.values())
    done = [job for job in jobs if ended.get(job.number) == "done" and states[job.number].attempts and job.seconds]
    ratio = statistics.median(states[job.number].seconds / job.seconds for job in done) if done else 1.0
    left = 0.0
    for job in jobs:
        if job.number not in ended:
            last = states[job.number].last
            left += job.seconds * ratio * (1 - (last.reached if last else 0.0))
    return used / 3600, left / 3600


def _measure_coverage(sweep: Sweep, ended: Mapping[int, JobState]) -> Iterable[SweepCoverage]:
    for title, runs in sweep.plan.targets.items():
        # The file alone is enough: reading all records would take seconds.
        done = [
            (run.job is not None and ended.get(run.job) == "done")
            or (sweep.store.root / run.dataset / run.id / "record.json").exists()
            for run in runs
        ]
        yield SweepCoverage(title, sum(done), len(runs))


def _find_troubles(sweep: Sweep, lines: Iterable[JobLine], tasks: Mapping[str, QueuedTask] | None) -> Iterable[str]:
    """What the user should know, or mend."""
    if sweep.is_cancelled:
        yield "this sweep is cancelled; its command, given again, goes on with it"
    elif any(line.condition == "held back" for line in lines) and (refusal := sweep.journal.read_refusal()):
        yield f"held back: {refusal}"
    if tasks is None:
        yield "SLURM does not answer: what runs is told from the jobs' own files"
    waiting = [task.reason for task in (tasks or {}).values() if task.state == "PENDING"]
    for reason, count in Counter(reason for reason in waiting if reason not in USUAL).items():
        yield f"{counted(count, 'job')} in the queue for an unusual reason, which may last for ever: {reason}"
    yield from folder_troubles(sweep.store.root)


def folder_troubles(folder: Path) -> list[str]:
    """What is wrong with a folder that jobs write to: it cannot be written, is almost full, or is slow."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        began = time.monotonic()
        probe.write_bytes(b"\0" * 65536)
        with probe.open("rb+") as opened:
            os.fsync(opened.fileno())
        seconds = time.monotonic() - began
    except OSError as error:
        return [f"nothing can be written to {folder}: {error.strerror}"]
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    troubles = []
    free = os.statvfs(folder)
    if free.f_bavail * free.f_frsize < LITTLE_SPACE:
        troubles.append(f"only {free.f_bavail * free.f_frsize / 2**20:.0f} MB are free in {folder}")
    if seconds > 5:
        troubles.append(f"{folder} is slow: writing 64 kB took {seconds:.0f} s")
    return troubles
