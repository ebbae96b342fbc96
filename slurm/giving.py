"""Gives the cluster what of a sweep can start and what it has room for, and sees that somebody looks again."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmark.errors import UserError
from slurm import scheduler
from slurm.profile import Profile
from slurm.states import Ending
from slurm.submission import NoRoom, NotNow, Terms, TooLarge, submit, submit_keeper
from slurm.sweep import Sweep

if TYPE_CHECKING:
    from slurm.dispatch import Tended

ELSEWHERE_SECONDS = 300
"""When to look again after a run that somebody trains whom the cluster does not know."""
POLICY = "QOS policy"
"""What sbatch says both of too many jobs and of jobs that ask for too much."""
KEEPER_DELAY_SECONDS = 60
"""How soon a keeper looks where nothing of the sweep is with the cluster."""
LONGEST_SECONDS = 120.0
"""So long jobs are submitted at most in one look; whoever looks may hold a graphics card."""
MOST_ARRAYS = 100
"""How many arrays a keeper waits for; it is followed by another one anyway."""


@dataclass
class Giver:
    """One round of submitting, by the only process that does so.

    ended: how jobs have ended; open: the latest task of those that the cluster has, empty where its answer was never
    heard; tasks: all of a job, with when they were submitted; after: the job of another sweep that a job waits for,
    empty where it is none of the cluster's. `open` and `tasks` are kept up.
    """

    sweep: Sweep
    profile: Profile
    ended: Mapping[int, Ending]
    open: dict[int, str]
    tasks: dict[int, list[tuple[float, str]]]
    after: Mapping[int, str]
    found: Tended
    say: Callable[[str], None]
    _began: float = field(default_factory=time.monotonic)

    def submit_all(self) -> None:
        """Submit what is ready, the longest chains first; what needs a job that is with the cluster waits there.

        Raises:
            UserError: SLURM refuses the jobs, and would later too.
        """
        refused: str | None = None
        try:
            refused = self._submit_ready()
        except UserError as refusal:
            refused = str(refusal)
            raise
        finally:
            # Without an answer what was said before still stands.
            if refused is not None:
                self.sweep.note_refusal(refused)
        self.found.waiting = len(self._ready())

    def _submit_ready(self) -> str | None:
        """Submit what is ready; returns why there is no room for the rest, "" if there is, None without an answer.

        Raises:
            UserError: SLURM refuses the jobs, and would later too.
        """
        limit = scheduler.array_limit()
        # One place is kept for the keeper.
        room = max(1, self.profile.max_submitted - self.profile.submit_from_jobs) - len(self.open)
        try:
            while room > 0 and (groups := self._groups(self._ready()[:room])):
                for terms, jobs in groups:
                    room -= self._submit_group(terms, jobs, limit)
        except NoRoom as refusal:
            self.found.trouble = str(refusal)
            if POLICY in str(refusal) and not self.open:
                # That may be for ever, and nothing of this sweep is there to make room by ending.
                raise UserError(
                    f"SLURM takes no job of this sweep: {refusal}; change the profile, or wait"
                ) from refusal
            return f"no room for more: {refusal}; the rest is submitted as jobs end"
        except NotNow as trouble:
            self.found.trouble = str(trouble)
            return None
        return ""

    def _ready(self) -> list[int]:
        """The jobs whose needs have ended or are with the cluster, in the order in which they should start."""
        waiting = [job for job in self.sweep.jobs if job.number not in self.ended and job.number not in self.open]
        placed = self.ended.keys() | self.open.keys()
        ready = [job for job in waiting if self.sweep.needs.get(job.number, frozenset()) <= placed]
        return [job.number for job in sorted(ready, key=lambda job: -job.priority)]

    def _groups(self, jobs: Iterable[int]) -> list[tuple[Terms, list[int]]]:
        """Jobs that may form an array: those that wait for the same and keep away from the same nodes."""
        groups: dict[Terms, list[int]] = defaultdict(list)
        for job in jobs:
            needed = self.sweep.needs.get(job, frozenset())
            after = {self.open[other] for other in needed if self.open.get(other)}
            if any(other in self.open and not self.open[other] for other in needed):
                # What it needs is in doubt; it is looked at again.
                continue
            delay = 0
            if job in self.after:
                other_task = self.after[job]
                if other_task and scheduler.state_of(other_task) not in (None, scheduler.GONE):
                    after.add(other_task)
                else:
                    delay = ELSEWHERE_SECONDS
            exclude = tuple(sorted(self.sweep.state(job).failed_on)) if self.tasks[job] else ()
            groups[Terms(tuple(sorted(after)), exclude, delay)].append(job)
        return list(groups.items())

    def _submit_group(self, terms: Terms, jobs: list[int], limit: int) -> int:
        """Submit jobs of equal terms in arrays of the size that the cluster takes; returns how many it took.

        Raises:
            NoRoom: it takes no more, or too much time has gone.
            NotNow: it cannot be asked now.
        """
        given = 0
        size = min(limit, len(jobs))
        while given < len(jobs):
            if self.sweep.is_stopped:
                raise NotNow("the sweep was cancelled meanwhile")
            if time.monotonic() - self._began > LONGEST_SECONDS:
                raise NotNow("submitting takes long; the rest follows")
            part = jobs[given : given + size]
            try:
                submission = submit(self.sweep, self.profile, part, terms)
            except (TooLarge, NoRoom) as refusal:
                if size == 1:
                    raise NoRoom(str(refusal)) from refusal
                size = max(1, size // 2)
                continue
            except UserError as refusal:
                if not terms.exclude:
                    raise
                self.say(f"{refusal}; keeping away from {', '.join(terms.exclude)} is given up")
                terms = Terms(terms.after, (), terms.delay_seconds)
                continue
            self.found.submitted.append(submission)
            for job, task in submission.tasks.items():
                self.open[job] = task
                self.tasks[job].append((submission.when, task))
            given += len(part)
        return given

    def see_to_keeper(self, waiting: Sequence[str]) -> None:
        """See that something looks after the sweep when all that is with the cluster has ended.

        waiting: the keepers that are pending; one that runs may be this very process, or has looked already.
        """
        if not self.profile.submit_from_jobs or self.sweep.is_stopped:
            return
        arrays = sorted({task.partition("_")[0] for task in self.open.values() if task}, key=int)
        if waiting or not (self.open or self.found.waiting):
            return
        try:
            delay = 0 if arrays else KEEPER_DELAY_SECONDS
            submit_keeper(self.sweep, self.profile, arrays[-MOST_ARRAYS:], delay)
        except (NoRoom, TooLarge, NotNow):
            self.found.is_followed = False
        except UserError as refusal:
            self.found.is_followed = False
            self.say(
                f"{refusal}. Nothing looks after the sweep but its jobs and commands that watch it: set "
                "keeper_partition to one that takes a job of one core"
            )
