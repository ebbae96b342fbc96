"""Reconciles a sweep with SLURM: records what ended, blocks what can never run, and submits what there is room for.

Anybody may call `reconcile` at any time: the command that started the sweep, each of its jobs as it ends, its watchdog.
A lease in the shared folder lets one process do it at a time. If that process dies, the next one goes on from the
files.
"""

from __future__ import annotations

import contextlib
import functools
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping

from benchmark.io.files import write_text
from benchmark.results.leases import Lease, LeaseManager
from benchmark.results.owners import this_user
from slurm import client
from slurm.client import QueuedTask, SchedulerError
from slurm.dependencies import TERMINAL_FAILURES, outcome_from_records, readiness
from slurm.states import Attempt, JobState, ReconcileResult, State, Submission
from slurm.submit import Submitter, queue_name
from slurm.sweep import Sweep

Say = Callable[[str], None]
PATIENCE_SECONDS = 120.0
DOUBT_SECONDS = client.SUBMIT_SECONDS + 30
"""So long after it was begun a call of sbatch, whose caller died, may still be under way."""
DOUBT_OF_OTHERS_SECONDS = 3600.0
"""The same for a call by somebody else, whose jobs may not be shown to this user."""
SILENT_LOOK_SECONDS = 30.0
"""So long after a running job was first found silent it is looked at again, before anything is done about it."""
MOST_ASKED_AFTER = 100


def reconcile(sweep: Sweep, say: Say = print, patience: float = PATIENCE_SECONDS) -> ReconcileResult | None:
    """Reconcile a sweep; returns None if another process has done so since this call began.

    Raises:
        UserError: SLURM refuses the jobs, or the shared folder cannot be written.
        SchedulerError: another process has been at it for longer than `patience` seconds.
    """
    folder = sweep.folder / "dispatch"
    leases = LeaseManager(sweep.store.root, client.is_alive)
    request = folder / f"wish-{uuid.uuid4().hex[:10]}"
    lease = leases.acquire(folder)
    with contextlib.suppress(OSError):
        request.touch()
    deadline, pause = time.monotonic() + patience, 0.2
    result = None
    try:
        while True:
            if isinstance(lease, Lease):
                try:
                    # A request is removed before the look that serves it. Earlier versions use this name too.
                    while requests := list(folder.glob("wish-*")):
                        for other in requests:
                            other.unlink(missing_ok=True)
                        result = Reconciler(sweep, say).run_once()
                finally:
                    lease.release()
                # Another process may have made a request after the last look and then found the lease taken.
                if not any(folder.glob("wish-*")):
                    return result
            elif not request.exists():
                return result
            elif time.monotonic() > deadline:
                raise SchedulerError(f"{lease.label} looks after this sweep and has not ended in {patience:.0f} s")
            else:
                # Whether its owner lives is asked of SLURM, which many jobs that end at once must not wear out.
                time.sleep(pause)
                pause = min(2 * pause, 5.0)
            lease = leases.acquire(folder)
    finally:
        with contextlib.suppress(OSError):
            request.unlink(missing_ok=True)


class Reconciler:
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
        self.by: dict[str, str] = {}
        """Who submitted each task."""
        self.watchdogs: list[str] = []
        self.result = ReconcileResult()

    def run_once(self) -> ReconcileResult:
        """Compare the sweep with the queue, record what changed, and submit what there is room for."""
        if self.sweep.is_stopped:
            return self.result
        self._read_submissions()
        arrays = {task.partition("_")[0] for task in (*self.open.values(), *self.watchdogs) if task}
        queue = client.queue(arrays)
        if queue is None:
            self.result.answers = False
            return self.result
        self.result.in_queue = {job: queue[task] for job, task in self.open.items() if task in queue}
        self._see_what_left(queue)
        self._restart_the_silent()
        self._block_hopeless()
        submitter = Submitter(
            self.sweep, self.profile, self.ended, self.open, self.tasks, self.after, self.result, self.say
        )
        submitter.submit_all()
        submitter.ensure_watchdog([job for job in self.watchdogs if job in queue and queue[job].state == "PENDING"])
        return self.result

    def _read_submissions(self) -> None:
        for noted in self.sweep.submissions():
            submission = noted
            if not submission.array:
                array = client.find_by_name(queue_name(self.sweep, submission))
                if array:
                    submission = submission.replace(array=array)
                    self.sweep.write_submission(submission)
                elif array == "" and time.time() - submission.when > self._doubt(submission):
                    self.sweep.remove_submission(submission)
                    continue
                else:
                    # Its jobs may be with the cluster: they are neither submitted again nor asked after.
                    self.open.update({job: "" for job in submission.jobs if job not in self.ended})
                    continue
            if submission.keeper:
                self.watchdogs.append(submission.array)
            self.by.update(dict.fromkeys(submission.tasks.values(), submission.user))
            for job, task in submission.tasks.items():
                self.tasks[job].append((submission.when, task))
                if job not in self.ended:
                    self.open[job] = task

    def _doubt(self, submission: Submission) -> float:
        """How long the answer to a call of sbatch may still come."""
        return DOUBT_SECONDS if submission.user == this_user() else DOUBT_OF_OTHERS_SECONDS

    # What has left the queue.

    def _see_what_left(self, queue: Mapping[str, QueuedTask]) -> None:
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
            elif (answer := outcome_from_records(self.sweep, job)) is not None:
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
        said = client.state_of(task)
        if said == client.NOT_FOUND and self.by.get(task) != this_user() and not self._is_silent(attempt):
            # Somebody else's job, which this user may not be shown: only its own file tells of it.
            return True
        if said is None or said in client.WAITING or said in client.RUNNING:
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
            if self.ended.get(needed) == "done" and outcome_from_records(self.sweep, needed) is None:
                self.say(f"{self.sweep.jobs[needed].name} has lost its record; it is trained again")
                self.sweep.reopen(needed)
                del self.ended[needed]

    def _lost(self, job: int, task: str, state: State, attempt: Attempt | None) -> None:
        """A job was ended from outside, or never came as far as to say anything of itself."""
        began = {entry.owner.job for entry in state.attempts}
        since = max(state.forgiven, self.sweep.resumed)
        never_began = sum(when > since and other not in began for when, other in self.tasks[job])
        if state.no_progress_attempts + never_began <= self.profile.resubmissions:
            where = f" on {attempt.owner.node}" if attempt else ""
            self.say(f"job {task}{where} was lost ({self.sweep.jobs[job].name}); it is submitted again")
            return
        why = (
            give_up_reason(state)
            if state.no_progress_attempts
            else f"its job ended {never_began} times before it began"
        )
        said = client.comment_of(task) or self._last_words(task)
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
        for job, task in self.result.in_queue.items():
            last = self.sweep.state(job).last if task.state == "RUNNING" else None
            is_of_this_start = last is not None and last.owner.job == task.task and last.ended is None
            # One that has just started again has not yet said anything.
            began = client.parse_seconds(task.run_time) or 0.0
            mark = self.sweep.folder / "silent" / f"{job:06d}"
            if not is_of_this_start or not self._is_silent(last) or began < self._patience:
                if mark.exists():
                    mark.unlink(missing_ok=True)
            elif not mark.exists():
                # After a shared folder was away, all of them seem to be silent for a moment.
                write_text(mark, "")
            elif time.time() - mark.stat().st_mtime > SILENT_LOOK_SECONDS:
                self.say(f"job {task.task} on {task.node} has said nothing for long; it is started again")
                mark.unlink(missing_ok=True)
                with contextlib.suppress(SchedulerError):
                    client.requeue(task.task)

    @functools.cached_property
    def _patience(self) -> float:
        settings, _ = self.sweep.settings()
        return settings.silent_seconds

    def _is_silent(self, attempt: Attempt | None) -> bool:
        return attempt is not None and time.time() - attempt.beat > self._patience

    def _end(self, job: int, ending: JobState, reason: str = "") -> None:
        self.sweep.end(job, ending, reason)
        self.ended[job] = ending
        self.open.pop(job, None)
        if ending != "done":
            self.say(f"{ending}    {self.sweep.jobs[job].name}: {reason}")

    def _block_hopeless(self) -> None:
        """Tell what can never run for want of what it needs, in dependency order, and take it back from the cluster."""
        lost = {job for job, ending in self.ended.items() if ending in TERMINAL_FAILURES}
        tasks: list[str] = []
        for job in sorted(set(self.sweep.needs) - set(self.ended)):
            if not self.sweep.needs[job] & lost:
                continue
            found = readiness(self.sweep, job, self.ended)
            if found.is_hopeless:
                tasks += [task] if (task := self.open.get(job)) else []
                self._end(job, "blocked", "; ".join(found.lost))
                lost.add(job)
        if tasks:
            with contextlib.suppress(SchedulerError):
                client.cancel(tasks)


def give_up_reason(state: State) -> str:
    """Why a job is not tried again."""
    last = state.last
    where = f", last on {last.owner.node}" if last else ""
    return f"it ended {state.no_progress_attempts} times without getting any further{where}"
