"""Looks after a sweep: sees what ended, notes what can never run, and gives the cluster what it has room for.

Anybody may call `tend` at any time: the command that started the sweep, each of its jobs as it ends, its keeper. One at
a time does it, under a claim on the shared folder; whoever dies over it leaves nothing that the next cannot go on from.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from benchmark.claims import Claim, Claims
from benchmark.errors import UserError
from slurm import scheduler
from slurm.needs import LOST, answer_of, standing
from slurm.scheduler import Task
from slurm.states import Attempt, Ending, State, Submission
from slurm.submission import NoRoom, NotNow, Terms, TooLarge, name_in_queue, submit, submit_keeper
from slurm.sweep import Sweep

Say = Callable[[str], None]
PATIENCE_SECONDS = 120.0
DOUBT_SECONDS = 30.0
"""So long after it was begun a call of sbatch, whose caller died, may still be under way."""
ELSEWHERE_SECONDS = 300
"""When to look again after a run that is trained outside of the cluster."""
MOST_ASKED_AFTER = 100
MOST_ARRAYS = 100
"""How many arrays a keeper waits for; it is followed by another one anyway."""


@dataclass
class Tended:
    """What one look at a sweep found and did."""

    answers: bool = True
    """Whether SLURM said what is in its queue."""
    in_queue: dict[int, Task] = field(default_factory=dict)
    submitted: list[Submission] = field(default_factory=list)
    waiting: int = 0
    """Jobs that could start and for which there is no room."""
    trouble: str = ""
    """Why no more was submitted, where that is not for want of room."""


def tend(sweep: Sweep, say: Say = print, patience: float = PATIENCE_SECONDS) -> Tended | None:
    """Look after a sweep; None where another process has done so since this was called, or still does.

    Raises:
        UserError: SLURM refuses the jobs, or the shared folder cannot be written.
    """
    place = sweep.folder / "dispatch"
    claims = Claims(sweep.store.root, scheduler.is_alive)
    wish = place / f"wish-{uuid.uuid4().hex[:10]}"
    taken = claims.take(place)
    with contextlib.suppress(OSError):
        wish.touch()
    deadline, pause = time.monotonic() + patience, 0.2
    tended = None
    try:
        while True:
            if isinstance(taken, Claim):
                try:
                    # A wish that is removed is granted by what is looked at after that.
                    while wishes := list(place.glob("wish-*")):
                        for other in wishes:
                            other.unlink(missing_ok=True)
                        tended = Tending(sweep, say).once()
                finally:
                    taken.release()
                # One may have been made after the last look, by somebody who then found the claim taken.
                if not any(place.glob("wish-*")):
                    return tended
            elif not wish.exists() or time.monotonic() > deadline:
                return tended
            else:
                # Whether its owner lives is asked of SLURM, which many jobs that end at once must not wear out.
                time.sleep(pause)
                pause = min(2 * pause, 5.0)
            taken = claims.take(place)
    finally:
        with contextlib.suppress(OSError):
            wish.unlink(missing_ok=True)


class Tending:
    """One look at a sweep, by the only process that does so."""

    def __init__(self, sweep: Sweep, say: Say) -> None:
        self.sweep, self.say = sweep, say
        _, self.profile = sweep.settings()
        self.ended = sweep.ended()
        self.open: dict[int, str] = {}
        """The latest task of each job that has not ended."""
        self.tasks: dict[int, list[tuple[float, str]]] = defaultdict(list)
        """All tasks of a job, with when they were submitted."""
        self.after: dict[int, str] = {}
        """The job of another sweep that a job must wait for; empty: one outside of the cluster."""
        self.keepers: list[str] = []
        self.found = Tended()

    def once(self) -> Tended:
        """See what has become of everything, and submit what there is room for."""
        if self.sweep.is_stopped:
            return self.found
        self._read_submissions()
        arrays = {task.partition("_")[0] for task in (*self.open.values(), *self.keepers) if task}
        queue = scheduler.queue(arrays)
        if queue is None:
            self.found.answers = False
            return self.found
        self.found.in_queue = {job: queue[task] for job, task in self.open.items() if task in queue}
        self._see_what_left(queue)
        self._restart_the_silent()
        self._block_hopeless()
        with contextlib.suppress(NoRoom):
            self._submit_all()
        self.found.waiting = len(self._ready())
        self._see_to_keeper(queue)
        return self.found

    def _read_submissions(self) -> None:
        for noted in self.sweep.submissions():
            submission = noted
            if not submission.array:
                array = scheduler.named(name_in_queue(self.sweep, submission))
                if array:
                    submission = submission.changed(array=array)
                    self.sweep.write_submission(submission)
                elif array == "" and time.time() - submission.when > DOUBT_SECONDS:
                    self.sweep.remove_submission(submission)
                    continue
                else:
                    # Its jobs may be with the cluster: they are neither submitted again nor asked after.
                    self.open.update({job: "" for job in submission.jobs if job not in self.ended})
                    continue
            if submission.keeper:
                self.keepers.append(submission.array)
            for job, task in submission.tasks.items():
                self.tasks[job].append((submission.when, task))
                if job not in self.ended:
                    self.open[job] = task

    # What has left the queue.

    def _see_what_left(self, queue: Mapping[str, Task]) -> None:
        asked = 0
        for job, task in list(self.open.items()):
            if not task or task in queue:
                continue
            state = self.sweep.state(job)
            attempt = next((entry for entry in reversed(state.attempts) if entry.owner.job == task), None)
            leaving = attempt.leaving if attempt else None
            if leaving == "waiting":
                self._reopen_needs(job)
            elif leaving == "elsewhere" and attempt is not None:
                self.after[job] = attempt.waits_for
            if leaving in ("elsewhere", "waiting", "time limit", "interrupted"):
                del self.open[job]
            elif (answer := answer_of(self.sweep, job)) is not None:
                self._end(job, *answer)
            elif self.tasks[job][-1][0] <= max(state.forgiven, self.sweep.resumed):
                # What became of it before a user had it tried again, or went on with the sweep, does not count.
                del self.open[job]
            elif leaving == "failed" and attempt is not None:
                self._end(job, "failed", attempt.reason)
            elif asked < MOST_ASKED_AFTER:
                asked += 1
                known = self._see_how_it_left(job, task, state, attempt)
                # Where SLURM does not answer, it is not asked after every other job as well.
                asked = asked if known else MOST_ASKED_AFTER

    def _see_how_it_left(self, job: int, task: str, state: State, attempt: Attempt | None) -> bool:
        """Judge a job that left the queue without a word; whether SLURM said what became of it."""
        said = scheduler.state_of(task)
        if said is None or said in scheduler.WAITING or said in scheduler.RUNNING:
            # It has not left, whatever squeue said: it is looked at again.
            return said is not None
        del self.open[job]
        if said == "CANCELLED":
            self._end(job, "cancelled", "cancelled with scancel")
        else:
            self._lost(job, task, state, attempt)
        return True

    def _reopen_needs(self, job: int) -> None:
        """Have trained again what a job found missing although the job that makes it was done."""
        for needed in self.sweep.needs.get(job, frozenset()):
            if self.ended.get(needed) == "done" and answer_of(self.sweep, needed) is None:
                self.say(f"{self.sweep.jobs[needed].name} has lost its record; it is trained again")
                self.sweep.reopen(needed)
                del self.ended[needed]

    def _lost(self, job: int, task: str, state: State, attempt: Attempt | None) -> None:
        """A job was ended from outside, or never came as far as to say anything of itself."""
        began = {entry.owner.job for entry in state.attempts}
        since = max(state.forgiven, self.sweep.resumed)
        never_began = sum(when > since and other not in began for when, other in self.tasks[job])
        if state.fruitless + never_began <= self.profile.resubmissions:
            where = f" on {attempt.owner.node}" if attempt else ""
            self.say(f"job {task}{where} was lost ({self.sweep.jobs[job].name}); it is submitted again")
            return
        why = tired(state) if state.fruitless else f"its job ended {never_began} times before it began"
        said = scheduler.comment_of(task) or self._last_words(task)
        self._end(job, "failed", f"{why}{': ' + said if said else ''}")

    def _last_words(self, task: str) -> str:
        """The last line that a job left on its error output."""
        for path in self.sweep.folder.glob(f"logs/*/{task}_0_log.err"):
            with contextlib.suppress(OSError), path.open("rb") as opened:
                opened.seek(max(0, path.stat().st_size - 4000))
                lines = opened.read().decode(errors="replace").strip().splitlines()
                if lines:
                    return f"{lines[-1].strip()[:200]} ({path})"
        return ""

    def _restart_the_silent(self) -> None:
        """Jobs that SLURM takes for running and that have said nothing for long: what ran them was killed unseen."""
        settings, _ = self.sweep.settings()
        for job, task in self.found.in_queue.items():
            if task.state != "RUNNING":
                continue
            last = self.sweep.state(job).last
            silent = last is not None and time.time() - last.beat > settings.silent_seconds
            if last is not None and last.owner.job == task.task and silent and last.ended is None:
                self.say(f"job {task.task} on {last.owner.node} has said nothing for long; it is started again")
                with contextlib.suppress(scheduler.SchedulerError):
                    scheduler.requeue(task.task)

    def _end(self, job: int, ending: Ending, reason: str = "") -> None:
        self.sweep.end(job, ending, reason)
        self.ended[job] = ending
        self.open.pop(job, None)
        if ending != "done":
            self.say(f"{ending}    {self.sweep.jobs[job].name}: {reason}")

    def _block_hopeless(self) -> None:
        """Tell what can never run for want of what it needs, in dependency order, and take it back from the cluster."""
        lost = {job for job, ending in self.ended.items() if ending in LOST}
        for job in sorted(set(self.sweep.needs) - set(self.ended)):
            if not self.sweep.needs[job] & lost:
                continue
            found = standing(self.sweep, job)
            if found.is_hopeless:
                task = self.open.get(job)
                self._end(job, "blocked", "; ".join(found.lost))
                lost.add(job)
                if task:
                    with contextlib.suppress(scheduler.SchedulerError):
                        scheduler.cancel([task])

    # What can be submitted.

    def _submit_all(self) -> None:
        """Submit what is ready, the longest chains first; what needs a job that is with the cluster waits there."""
        limit = scheduler.array_limit()
        # One place is kept for the keeper.
        room = max(1, self.profile.max_submitted - self.profile.submit_from_jobs) - len(self.open)
        while True:
            ready = self._ready()
            groups = self._groups(ready[: max(0, room)])
            for terms, jobs in groups:
                room -= self._submit_group(terms, jobs, limit)
            if not groups or room <= 0:
                return

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
                state = scheduler.state_of(other_task) if other_task else None
                if state not in (None, scheduler.GONE):
                    after.add(other_task)
                elif not other_task:
                    delay = ELSEWHERE_SECONDS
            exclude = tuple(sorted(self.sweep.state(job).failed_on)) if self.tasks[job] else ()
            groups[Terms(tuple(sorted(after)), exclude, delay)].append(job)
        return list(groups.items())

    def _submit_group(self, terms: Terms, jobs: list[int], limit: int) -> int:
        """Submit jobs of equal terms in arrays of the size that the cluster takes; returns how many it took.

        Raises:
            NoRoom: it takes no more, or cannot be asked now.
        """
        given = 0
        size = min(limit, len(jobs))
        while given < len(jobs):
            if self.sweep.is_stopped:
                raise NoRoom("the sweep was cancelled meanwhile")
            part = jobs[given : given + size]
            try:
                submission = submit(self.sweep, self.profile, part, terms)
            except (TooLarge, NoRoom) as refusal:
                if size == 1:
                    raise NoRoom(str(refusal)) from refusal
                size = max(1, size // 2)
                continue
            except NotNow as trouble:
                self.found.trouble = str(trouble)
                raise NoRoom(str(trouble)) from trouble
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

    def _see_to_keeper(self, queue: Mapping[str, Task]) -> None:
        """See that something looks after the sweep when all that is with the cluster has ended."""
        arrays = sorted({task.partition("_")[0] for task in self.open.values() if task}, key=int)
        is_due = bool(arrays or self.found.waiting or self.open)
        # One that runs may be this very process, or one that has looked already.
        is_there = any(queue[keeper].state == "PENDING" for keeper in self.keepers if keeper in queue)
        if not is_due or is_there or not self.profile.submit_from_jobs or self.sweep.is_stopped:
            return
        try:
            submit_keeper(self.sweep, self.profile, arrays[-MOST_ARRAYS:], 0 if arrays else 2 * int(DOUBT_SECONDS))
        except (NoRoom, TooLarge, NotNow):
            return


def tired(state: State) -> str:
    """Why a job is not tried again."""
    last = state.last
    where = f", last on {last.owner.node}" if last else ""
    return f"it ended {state.fruitless} times without getting any further{where}"
