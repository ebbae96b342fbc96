"""What is written down about the jobs of a sweep: what each job says of itself, and what was submitted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from pydantic import Field

from benchmark.core.spec import Frozen
from benchmark.io.untrusted import escape_control_chars
from benchmark.results.owners import JobId, LeaseHolder

JobState = Literal["done", "failed", "blocked", "cancelled"]
ENDINGS: tuple[JobState, ...] = get_args(JobState)
ExitReason = Literal["done", "failed", "time limit", "preempted", "cancelled", "elsewhere", "waiting", "interrupted"]
"""Why an attempt ended. done: all runs have records; failed: an error; time limit, preempted, cancelled: the clock, the
cluster or a user stopped it; elsewhere: another job trains the same runs; waiting: a needed run is missing;
interrupted: the cluster's process that watched it died."""
LARGEST = 10**12
"""Of the numbers of a state; a larger one is no training's."""
NOT_COUNTED: tuple[ExitReason, ...] = ("elsewhere", "waiting", "cancelled", "preempted")
"""Why attempts end through no fault of their own."""
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
"""What sbatch may be told to avoid."""


class Attempt(Frozen):
    """One time that a job ran, as the job itself describes it. Times are in seconds since 1970."""

    owner: LeaseHolder
    began: float
    beat: float
    """When it last wrote."""
    ended: float | None = None
    leaving: ExitReason | None = None
    reason: str = ""
    waits_for: JobId = ""
    """The job of another sweep that trains the same run."""
    reached: float = 0.0
    """Share of the job's steps that are done."""

    @property
    def node(self) -> str:
        """Where it ran, as a terminal may show it."""
        return escape_control_chars(self.owner.node, 60)

    @property
    def seconds(self) -> float:
        """How long it held what the cluster gave it."""
        return (self.ended or self.beat) - self.began


class ShownProgress(Frozen):
    """Where a running job is: the epoch (from 1), and how fast it goes."""

    epoch: int = Field(le=LARGEST)
    epochs: int = Field(le=LARGEST)
    images_per_second: float = Field(le=LARGEST)
    seconds_left: float = Field(le=LARGEST)
    top1: float | None = None


class State(Frozen):
    """What a job says of itself."""

    job: int
    attempts: tuple[Attempt, ...] = ()
    shown: ShownProgress | None = None
    forgiven: float = 0.0
    """When a user last had it tried again; errors before that time no longer count."""

    @property
    def last(self) -> Attempt | None:
        """The attempt that began last."""
        return self.attempts[-1] if self.attempts else None

    @property
    def seconds(self) -> float:
        """How long its attempts held what the cluster gave them."""
        return sum(attempt.seconds for attempt in self.attempts)

    @property
    def failed_on(self) -> frozenset[str]:
        """The nodes on which it failed, or was lost before a user had it tried again."""
        return frozenset(
            attempt.owner.node
            for attempt in self.attempts
            if (attempt.leaving == "failed" or (attempt.leaving is None and attempt.began < self.forgiven))
            and NODE_NAME.fullmatch(attempt.owner.node)
        )

    def _count(self) -> tuple[int, float]:
        """The attempts without progress at the end, and the share of steps that was reached since the last restart.

        Progress is a share that no earlier attempt reached: a job that dies at the same step each time makes none,
        wherever its attempts begin.
        """
        count, reached = 0, 0.0
        for attempt in self.attempts:
            if attempt.began < self.forgiven or attempt.leaving in ("done", "failed"):
                count, reached = 0, 0.0
                continue
            if attempt.reached > reached:
                count = 0
            elif attempt.leaving not in NOT_COUNTED:
                count += 1
            reached = max(reached, attempt.reached)
        return count, reached

    @property
    def no_progress_attempts(self) -> int:
        """How many attempts in a row, up to now, ended without a result and without progress."""
        return self._count()[0]

    @property
    def reached(self) -> float:
        """The share of its steps that it reached since it last began from scratch."""
        return self._count()[1]

    def find_attempt(self, task: str) -> Attempt | None:
        """The latest attempt that ran as a SLURM task."""
        return next((attempt for attempt in reversed(self.attempts) if attempt.owner.job == task), None)


class Submission(Frozen):
    """One call of sbatch: the jobs, and the array that they became. `array` is empty until SLURM has answered."""

    token: Annotated[str, Field(pattern=r"^[0-9a-z]{1,32}$")]
    """Names its file and the folder of its logs."""
    when: float
    jobs: tuple[Annotated[int, Field(ge=0)], ...]
    array: Annotated[str, Field(pattern=r"^[0-9]{0,18}$")] = ""
    keeper: bool = False
    """Whether it is the watchdog, which trains nothing."""
    user: str = ""
    """Who called sbatch; on some clusters nobody sees the jobs of others."""

    @property
    def tasks(self) -> dict[int, str]:
        """The task of each job; a single job is no array."""
        if len(self.jobs) == 1:
            return {self.jobs[0]: self.array}
        return {job: f"{self.array}_{index}" for index, job in enumerate(self.jobs)}


@dataclass
class ReconcileResult:
    """What one reconciliation of a sweep found and did."""

    answers: bool = True
    """Whether SLURM told its queue."""
    submitted: list[Submission] = field(default_factory=list)
    waiting: int = 0
    """Jobs that could start and for which the queue has no room."""
    trouble: str = ""
    """Why not all of them were submitted."""
    is_followed: bool = True
    """Whether a watchdog waits, or nothing is left to reconcile."""
