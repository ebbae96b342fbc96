"""What is written down about a sweep's jobs: what each says of itself, and what was given to the cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from benchmark.core.spec import Frozen
from benchmark.results.owners import LeaseHolder
from slurm.client import QueuedTask

JobState = Literal["done", "failed", "blocked", "cancelled"]
ENDINGS: tuple[JobState, ...] = ("done", "failed", "blocked", "cancelled")
ExitReason = Literal["done", "failed", "time limit", "preempted", "cancelled", "elsewhere", "waiting", "interrupted"]
"""How an attempt ended: with its records; with an error; told by the clock, by the cluster or by a user; because
somebody else trains the same; because what it needs is not there; because what watched it for the cluster died."""
NOT_COUNTED: tuple[ExitReason, ...] = ("elsewhere", "waiting", "cancelled", "preempted")
"""How attempts end that could not help it."""


class Attempt(Frozen):
    """One time that a job ran, as the job itself tells it."""

    owner: LeaseHolder
    began: float
    beat: float
    """When it last wrote, in seconds since 1970."""
    ended: float | None = None
    leaving: ExitReason | None = None
    reason: str = ""
    waits_for: str = ""
    """The job of another sweep that trains the same."""
    reached: float = 0.0
    """Share of its steps that was done."""

    @property
    def seconds(self) -> float:
        """How long it held what the cluster gave it."""
        return (self.ended or self.beat) - self.began


class ShownProgress(Frozen):
    """Where a running job is: the epoch (from 1), and how fast it goes."""

    epoch: int
    epochs: int
    images_per_second: float
    seconds_left: float
    top1: float | None = None


class State(Frozen):
    """What a job says of itself."""

    job: int
    attempts: tuple[Attempt, ...] = ()
    shown: ShownProgress | None = None
    forgiven: float = 0.0
    """When a user last had it tried again; what went wrong before no longer counts."""

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
        """The nodes on which it has failed, or, once a user had it tried again, ended without a word."""
        return frozenset(
            attempt.owner.node
            for attempt in self.attempts
            if attempt.leaving == "failed" or (attempt.leaving is None and attempt.began < self.forgiven)
        )

    @property
    def no_progress_attempts(self) -> int:
        """How many attempts in a row, up to now, ended without an answer and without getting any further.

        Further than any before: one that dies at the same step each time gets no further, wherever it began.
        """
        count, reached = 0, 0.0
        for attempt in self.attempts:
            further, reached = attempt.reached > reached, max(reached, attempt.reached)
            if attempt.began < self.forgiven or attempt.leaving in ("done", "failed"):
                count, reached = 0, 0.0
            elif further:
                count = 0
            elif attempt.leaving not in NOT_COUNTED:
                count += 1
        return count

    @property
    def reached(self) -> float:
        """How far it has come since it was last begun anew."""
        anew = [
            place + 1
            for place, attempt in enumerate(self.attempts)
            if attempt.began < self.forgiven or attempt.leaving in ("done", "failed")
        ]
        return max((attempt.reached for attempt in self.attempts[max(anew, default=0) :]), default=0.0)


class Submission(Frozen):
    """One call of sbatch: which jobs, and the array that they became. `array` is empty until SLURM has answered."""

    token: str
    when: float
    jobs: tuple[int, ...]
    array: str = ""
    keeper: bool = False
    user: str = ""
    """Who called; on some clusters nobody sees the jobs of others."""

    @property
    def tasks(self) -> dict[int, str]:
        """The task of each job; a single job is no array."""
        if len(self.jobs) == 1:
            return {self.jobs[0]: self.array}
        return {job: f"{self.array}_{index}" for index, job in enumerate(self.jobs)}


@dataclass
class ReconcileResult:
    """What one look at a sweep found and did."""

    answers: bool = True
    """Whether SLURM said what is in its queue."""
    in_queue: dict[int, QueuedTask] = field(default_factory=dict)
    submitted: list[Submission] = field(default_factory=list)
    waiting: int = 0
    """Jobs that could start and for which there is no room."""
    trouble: str = ""
    """Why no more was submitted."""
    is_followed: bool = True
    """Whether something will look again: a watchdog waits, or nothing is left to reconcile."""
