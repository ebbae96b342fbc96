"""The journal of a sweep: what is noted of its jobs and submissions, and the files that hold the notes.

Each note has a file, so that jobs on different nodes never write the same one:

states/*.json         what a job says of itself: its attempts and its progress; only the job writes it
ended/*               how jobs ended, by name: `000012.done`; `000013.failed` holds the reason
submissions/*.json    a file for each call of sbatch, written before the call and again with its answer, so that
                      jobs which SLURM took from a process that died then are found and not submitted twice
refused               why SLURM last refused jobs that are ready; removed once it takes all of them
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

from pydantic import Field

from benchmark.core.errors import UserError
from benchmark.core.spec import Frozen
from benchmark.io.files import write_text
from benchmark.io.untrusted import UntrustedInputError, escape_control_chars, read_text_limited
from benchmark.results.leases import JobId, LeaseHolder

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
LARGEST_NOTE = 2**24
"""Bytes of a note; that of an array of ten thousand jobs has some hundred kB."""
LONGEST_LINE = 2000
"""Characters of a reason that are shown."""
ENDING = re.compile(rf"([0-9]{{6,9}})\.({'|'.join(ENDINGS)})")


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


def _read_line(path: Path) -> str:
    """The text of a note of one line, as a terminal may show it."""
    return escape_control_chars(" ".join(_read(path).split()), LONGEST_LINE)


def _read(path: Path) -> str:
    """The text of a note; empty if it is missing, damaged, or no plain file (a pipe, say)."""
    with contextlib.suppress(OSError, UnicodeDecodeError, UntrustedInputError):
        return read_text_limited(path, LARGEST_NOTE)
    return ""


class Journal:
    """Reads and writes the notes in a sweep's folder.

    Whatever writes raises UserError where the shared folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _list(self, kind: str) -> list[str]:
        """The names of the notes of a kind. Unlike a glob, it fails where the folder cannot be read."""
        with contextlib.suppress(FileNotFoundError):
            return os.listdir(self.folder / kind)
        return []

    def read_state(self, job: int) -> State:
        """What a job says of itself; an empty state if it never ran or its file is damaged."""
        with contextlib.suppress(ValueError):
            state = State.model_validate_json(_read(self._state(job)))
            if state.job == job:
                return state
        return State(job=job)

    def write_state(self, state: State) -> None:
        """Write what a job says of itself."""
        write_text(self._state(state.job), state.model_dump_json() + "\n")

    def _state(self, job: int) -> Path:
        return self.folder / "states" / f"{job:06d}.json"

    def read_endings(self) -> dict[int, JobState]:
        """How the jobs that are over have ended."""
        endings: dict[int, JobState] = {}
        for name in self._list("ended"):
            # A journal gives no other names, such as `12.done` or `0000012.done`.
            if (match := ENDING.fullmatch(name)) and match[1] == f"{int(match[1]):06d}":
                endings[int(match[1])] = cast(JobState, match[2])
        return endings

    def read_reason(self, job: int) -> str:
        """Why a job failed; empty if it did not."""
        for ending in ENDINGS:
            if reason := _read_line(self._ending(job, ending)):
                return reason
        return ""

    def write_ending(self, job: int, ending: JobState, reason: str = "") -> None:
        """Note how a job ended."""
        write_text(self._ending(job, ending), reason)
        self.remove_ending(job, *(other for other in ENDINGS if other != ending))

    def remove_ending(self, job: int, *endings: JobState) -> None:
        """Remove the note that a job has ended, in some ways or in any."""
        for ending in endings or ENDINGS:
            self._ending(job, ending).unlink(missing_ok=True)

    def _ending(self, job: int, ending: JobState) -> Path:
        return self.folder / "ended" / f"{job:06d}.{ending}"

    def read_submissions(self) -> list[Submission]:
        """All calls of sbatch, the oldest first."""
        submissions = []
        for name in self._list("submissions"):
            if name.endswith(".json"):
                with contextlib.suppress(ValueError):
                    text = _read(self.folder / "submissions" / name)
                    submissions.append(Submission.model_validate_json(text))
        # By SLURM's own numbers: the clocks of the nodes that submit differ.
        return sorted(submissions, key=lambda submission: (int(submission.array or 10**12), submission.when))

    def write_submission(self, submission: Submission) -> None:
        """Note a call of sbatch."""
        write_text(self._submission(submission), submission.model_dump_json() + "\n")

    def remove_submission(self, submission: Submission) -> None:
        """Remove the note of a call that submitted nothing."""
        self._submission(submission).unlink(missing_ok=True)

    def _submission(self, submission: Submission) -> Path:
        return self.folder / "submissions" / f"{submission.token}.json"

    def read_refusal(self) -> str:
        """Why SLURM last refused jobs that are ready; empty if it took all of them."""
        return _read_line(self.folder / "refused")

    def write_refusal(self, reason: str) -> None:
        """Note why SLURM refuses jobs, for `slurm.status`; empty: it takes all of them."""
        if reason == self.read_refusal():
            return
        with contextlib.suppress(OSError, UserError):
            if reason:
                write_text(self.folder / "refused", f"{reason}\n")
            else:
                (self.folder / "refused").unlink(missing_ok=True)
