"""What one reconciliation knows of a sweep: how jobs ended, and what SLURM was last given of the others."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmark.results.leases import this_user
from benchmark.training.settings import TrainSettings
from slurm import client
from slurm.journal import JobState, Submission
from slurm.profile import Profile
from slurm.sweep import Sweep

Say = Callable[[str], None]
DOUBT_SECONDS = client.SUBMIT_SECONDS + 30
"""How long a call of sbatch whose caller died may still be under way."""
DOUBT_OF_OTHERS_SECONDS = 3600.0
"""The same for another user's call, whose jobs may be invisible to this user."""


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


@dataclass
class Look:
    """A sweep as one reconciliation sees it; the steps of the reconciliation keep it up to date."""

    sweep: Sweep
    say: Say
    settings: TrainSettings
    profile: Profile
    ended: dict[int, JobState]
    open: dict[int, str] = field(default_factory=dict)
    """The latest task of each job that SLURM has; empty if SLURM's answer is unknown."""
    submissions: dict[int, list[Submission]] = field(default_factory=lambda: defaultdict(list))
    """All submissions of each job, the oldest first."""
    behind: dict[int, str] = field(default_factory=dict)
    """The job of another sweep that a job must wait for; empty: a process outside of SLURM."""
    watchdogs: list[str] = field(default_factory=list)
    result: ReconcileResult = field(default_factory=ReconcileResult)

    @classmethod
    def begin(cls, sweep: Sweep, say: Say) -> Look:
        """Read the sweep's journal.

        Raises:
            UserError: the sweep's settings cannot be read, or its folder cannot be written.
        """
        look = cls(sweep, say, *sweep.read_settings(), sweep.journal.read_endings())
        for submission in sweep.journal.read_submissions():
            if max(submission.jobs, default=0) >= len(sweep.plan.jobs):
                # No process of this sweep has written it.
                continue
            array = submission.array or client.find_by_name(sweep.queue_name(submission))
            if array:
                if not submission.array:
                    # The process that submitted died before it noted SLURM's answer.
                    submission = submission.replace(array=array)
                    sweep.journal.write_submission(submission)
                look.add(submission)
            elif array == "" and _is_overdue(submission):
                sweep.journal.remove_submission(submission)
            else:
                look.open.update(dict.fromkeys(set(submission.jobs) - look.ended.keys(), ""))
        return look

    @property
    def arrays(self) -> list[str]:
        """The arrays and single jobs that SLURM has of the sweep, the oldest first."""
        return sorted({task.partition("_")[0] for task in self.open.values() if task}, key=int)

    def add(self, submission: Submission) -> None:
        """Note what SLURM was given."""
        if submission.keeper:
            self.watchdogs.append(submission.array)
        for job, task in submission.tasks.items():
            self.submissions[job].append(submission)
            if job not in self.ended:
                self.open[job] = task

    def end(self, job: int, ending: JobState, reason: str = "") -> None:
        """Note how a job ended, and print it unless it ended well.

        Raises:
            UserError: the shared folder cannot be written.
        """
        self.sweep.journal.write_ending(job, ending, reason)
        self.ended[job] = ending
        self.open.pop(job, None)
        if ending != "done":
            self.say(f"{ending}    {self.sweep.plan.jobs[job].name}: {reason}")


def _is_overdue(submission: Submission) -> bool:
    """Whether a call of sbatch that has no answer can no longer get one."""
    limit = DOUBT_SECONDS if submission.user == this_user() else DOUBT_OF_OTHERS_SECONDS
    return time.time() - submission.when > limit
