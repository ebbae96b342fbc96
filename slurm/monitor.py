"""How a sweep stands: whether each job waits, runs or has ended, how much of each table is there, what it cost."""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from slurm import client
from slurm.client import QueuedTask
from slurm.states import ShownProgress, State
from slurm.sweep import Sweep

Condition = Literal["running", "requeued", "pending", "held back", "unknown", "done", "failed", "blocked", "cancelled"]
"""requeued: pending, after it ran; held back: not yet given to the cluster; unknown: neither SLURM nor the job says."""
CONDITIONS: tuple[Condition, ...] = (
    "running",
    "requeued",
    "pending",
    "held back",
    "unknown",
    "done",
    "failed",
    "blocked",
    "cancelled",
)
FRESH_SECONDS = 60.0
"""How old the last word of a job may be for it to count as running where SLURM does not say."""
LITTLE_SPACE = 2**30
NEVER = (
    "AccountNotAllowed",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
    "JobHeldAdmin",
    "JobHeldUser",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "QOSMaxWallDurationPerJobLimit",
    "AssocMaxWallDurationPerJobLimit",
)
"""Why SLURM has jobs wait until somebody changes something."""


@dataclass(frozen=True)
class JobLine:
    """One job as people see it."""

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
    """A sweep at one moment. Hours are those of what one job holds: a graphics card, or the processors of a job."""

    name: str
    lines: tuple[JobLine, ...]
    coverage: tuple[SweepCoverage, ...]
    hours_used: float
    hours_left: float
    unit: str
    """What the hours are of: `GPU` or `job`."""
    troubles: tuple[str, ...] = ()
    is_cancelled: bool = False
    """Whether nothing more of the sweep is submitted or trained until its command is given again."""

    @property
    def counts(self) -> Counter[Condition]:
        """How many jobs there are in each condition."""
        return Counter(line.condition for line in self.lines)

    @property
    def is_moving(self) -> bool:
        """Whether the cluster has any of its jobs."""
        return any(line.condition in ("running", "requeued", "pending", "unknown") for line in self.lines)

    @property
    def is_over(self) -> bool:
        """Whether every job has ended."""
        return all(line.condition in ("done", "failed", "blocked", "cancelled") for line in self.lines)

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing more comes of it by itself: it is over, or cancelled and no longer with the cluster."""
        return self.is_over or (self.is_cancelled and not self.is_moving)

    @property
    def exit_code(self) -> int:
        """Of a command that shows it: 1 if a job failed, or was blocked by one that did."""
        return 1 if self.counts["failed"] or self.counts["blocked"] else 0


@dataclass
class Reader:
    """Takes snapshots of a sweep; what has not changed since the last one is not read again."""

    sweep: Sweep
    _states: dict[int, tuple[int, State]] = field(default_factory=dict)
    _recorded: set[tuple[int, str, str]] = field(default_factory=set)
    _still: set[int] = field(default_factory=set)
    """Jobs whose records were looked for after they last moved."""
    _reasons: dict[int, str] = field(default_factory=dict)

    def snapshot(self) -> Snapshot:
        """The sweep as it stands now."""
        sweep = self.sweep
        latest = latest_tasks(sweep)
        ended = sweep.ended()
        open_tasks = {job: task for job, task in latest.items() if job not in ended and task}
        found = client.queue(task.partition("_")[0] for task in open_tasks.values())
        answers = found is not None
        queue = {job: found[task] for job, task in open_tasks.items() if found and task in found}
        states = self._read_states()
        lines = tuple(
            self._line(job.number, job.name, states.get(job.number), ended.get(job.number), latest, queue, answers)
            for job in sweep.jobs
        )
        used, left = self._hours(states, ended)
        _, profile = sweep.settings()
        cards, is_cancelled = profile.gpus or 1, sweep.is_stopped
        return Snapshot(
            sweep.name,
            lines,
            tuple(self._coverage(lines)),
            used * cards,
            left * cards,
            "GPU" if profile.gpus else "job",
            tuple(self._troubles(lines, answers, queue, is_cancelled)),
            is_cancelled,
        )

    def _line(
        self,
        number: int,
        name: str,
        state: State | None,
        ending: Condition | None,
        latest: Mapping[int, str],
        queue: Mapping[int, QueuedTask],
        answers: bool,
    ) -> JobLine:
        last = state.last if state else None
        attempts = len(state.attempts) if state else 0
        task, node = latest.get(number, ""), last.owner.node if last else ""
        if ending is not None:
            if ending != "done" and number not in self._reasons:
                self._reasons[number] = self.sweep.reason(number)
            return JobLine(number, name, ending, task, node, None, self._reasons.get(number, ""), attempts)
        shown = state.shown if state and last and last.ended is None else None
        fresh = last is not None and last.ended is None and time.time() - last.beat < FRESH_SECONDS
        if number in queue:
            at = queue[number]
            if at.state == "PENDING":
                reason = "" if at.reason in ("None", "Priority", "Resources") else at.reason
                return JobLine(number, name, "requeued" if attempts else "pending", task, "", None, reason, attempts)
            return JobLine(number, name, "running", task, at.node, shown, "", attempts)
        if not answers and fresh:
            return JobLine(number, name, "running", task, node, shown, "by its own word", attempts)
        if not answers and task:
            return JobLine(number, name, "unknown", task, node, None, "SLURM does not say", attempts)
        reason = last.reason if last and last.ended else ""
        return JobLine(number, name, "held back", task, node, None, reason, attempts)

    def _read_states(self) -> dict[int, State]:
        folder = self.sweep.folder / "states"
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                number = entry.name.partition(".")[0]
                if entry.name.endswith(".json") and number.isdigit():
                    with contextlib.suppress(OSError):
                        written = entry.stat().st_mtime_ns
                        if self._states.get(int(number), (0, None))[0] != written:
                            self._states[int(number)] = (written, self.sweep.state(int(number)))
        return {number: state for number, (_, state) in self._states.items()}

    def _hours(self, states: Mapping[int, State], ended: Mapping[int, str]) -> tuple[float, float]:
        """Hours of jobs that were spent, and those the rest will take: estimated, corrected by what was seen."""
        used = sum(state.seconds for state in states.values())
        ratios = [
            states[job.number].seconds / job.seconds
            for job in self.sweep.jobs
            if ended.get(job.number) == "done" and job.number in states and job.seconds
        ]
        ratio = statistics.median(ratios) if ratios else 1.0
        left = 0.0
        for job in self.sweep.jobs:
            if job.number not in ended:
                state = states.get(job.number)
                reached = state.last.reached if state and state.last else 0.0
                left += job.seconds * ratio * (1 - reached)
        return used / 3600, left / 3600

    @functools.cached_property
    def _targets(self) -> dict[str, list[tuple[int, str, str]]]:
        return self.sweep.targets()

    def _coverage(self, lines: Iterable[JobLine]) -> Iterable[SweepCoverage]:
        """Records are looked for where jobs move: a hundred thousand files would keep a shared folder busy."""
        moving = {line.number for line in lines if line.condition in ("running", "requeued", "unknown")}
        for title, runs in self._targets.items():
            for run in runs:
                job, dataset, run_id = run
                looked_for = run not in self._recorded and (job in moving or job not in self._still)
                if looked_for and self.sweep.is_recorded(dataset, run_id):
                    self._recorded.add(run)
            yield SweepCoverage(title, sum(run in self._recorded for run in runs), len(runs))
        self._still = {job.number for job in self.sweep.jobs} - moving

    def _troubles(
        self, lines: Iterable[JobLine], answers: bool, queue: Mapping[int, QueuedTask], is_cancelled: bool
    ) -> Iterable[str]:
        if is_cancelled:
            yield "this sweep is cancelled; its command, given again, goes on with it"
        elif any(line.condition == "held back" for line in lines) and (refused := self.sweep.refused):
            yield f"held back: {refused}"
        if not answers:
            yield "SLURM does not answer: what runs is told from the jobs' own files"
        never = Counter(task.reason for task in queue.values() if task.reason in NEVER)
        for reason, count in never.items():
            jobs = "1 job waits" if count == 1 else f"{count} jobs wait"
            yield f"{jobs} for what will not come by itself: {reason}; change the profile, cancel and start again"
        yield from folder_troubles(self.sweep.store.root)


def latest_tasks(sweep: Sweep) -> dict[int, str]:
    """The task that each job was last submitted as; empty where SLURM's answer was never heard."""
    return {job: task for submission in sweep.submissions() for job, task in submission.tasks.items()}


def folder_troubles(folder: Path) -> list[str]:
    """What is wrong with a folder that jobs write to: nothing can be written there, or soon nothing more."""
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
    found = []
    free = os.statvfs(folder)
    if free.f_bavail * free.f_frsize < LITTLE_SPACE:
        found.append(f"only {free.f_bavail * free.f_frsize / 2**20:.0f} MB are free in {folder}")
    if seconds > 5:
        found.append(f"{folder} is slow: writing 64 kB took {seconds:.0f} s")
    return found
