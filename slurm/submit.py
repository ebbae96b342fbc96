"""Submits jobs through submitit: `submit` makes one journaled call of sbatch, `Submitter` fills the queue in order."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm import slurm as submitit_slurm

from benchmark.core.errors import UserError
from benchmark.results.owners import this_user
from slurm import client
from slurm.profile import WATCHDOG_MINUTES, Profile
from slurm.states import JobState, ReconcileResult, Submission
from slurm.sweep import Sweep

NO_ROOM = (
    "MaxSubmit",
    "SubmitJobsLimit",
    "MaxJobs",
    "job submit limit",
    "QOS policy",
    "Resource temporarily unavailable",
    "temporarily unable to accept job",
)
BUSY = ("Unable to contact slurm controller", "Socket timed out", "Zero Bytes", "Communication connection", "Transport")
TOO_LARGE = ("Invalid job array",)
ENTRY_POINTS = "slurm.entry"
"""The module that submitted jobs start in. Pickled jobs of sweeps under way name it, so it is never renamed."""
ELSEWHERE_SECONDS = 300
"""Delay before the next try if a process outside this cluster trains the same run."""
POLICY = "QOS policy"
"""sbatch says this both of too many jobs and of jobs that ask for too much."""
WATCHDOG_DELAY_SECONDS = 60
"""Delay of the watchdog if SLURM has no job of the sweep."""
LONGEST_SECONDS = 120.0
"""One look submits jobs for at most this long; the process that looks may hold a graphics card."""
MOST_ARRAYS = 100
"""A watchdog waits for at most this many arrays; another watchdog follows it anyway."""


class QueueFull(Exception):
    """The cluster takes no more jobs for now."""


class ArrayTooLarge(Exception):
    """The cluster takes no array of this size."""


class SchedulerUnavailable(Exception):
    """SLURM did not answer, or asked to be left alone for a while."""


@dataclass(frozen=True)
class SubmitConstraints:
    """When and where jobs of one array may run."""

    after: tuple[str, ...] = ()
    """Tasks that must have ended, in whatever way."""
    exclude: tuple[str, ...] = ()
    """Nodes to keep away from."""
    delay_seconds: int = 0

    def parameters(self) -> dict[str, Any]:
        """What submitit is told of them; what it has no word for stands under `additional_parameters`."""
        return {
            **({"dependency": "afterany:" + ":".join(self.after)} if self.after else {}),
            **({"exclude": ",".join(self.exclude)} if self.exclude else {}),
            **({"additional_parameters": {"begin": f"now+{self.delay_seconds}"}} if self.delay_seconds else {}),
        }


class _Executor(submitit.SlurmExecutor):
    """submitit's executor, whose sbatch does not take the job it is called in for a template, and ends in time."""

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        inside = [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]
        unset = [word for name in inside for word in ("-u", name)]
        limit = ["timeout", "-k", "5", f"{client.SUBMIT_SECONDS:.0f}"]
        return ["env", *unset, *limit, *super()._make_submission_command(submission_file_path)]

    def _internal_process_submissions(self, delayed_submissions: list[Any]) -> list[Any]:
        # For an array submitit makes an executor of its own, by this name: it must be one of these as well.
        plain = submitit_slurm.SlurmExecutor
        submitit_slurm.SlurmExecutor = _Executor  # type: ignore[misc]
        try:
            return super()._internal_process_submissions(delayed_submissions)
        finally:
            submitit_slurm.SlurmExecutor = plain  # type: ignore[misc]


def submit(sweep: Sweep, profile: Profile, jobs: Sequence[int], constraints: SubmitConstraints) -> Submission:
    """Give jobs to the cluster as one array.

    Raises:
        UserError: SLURM refuses them as they are; the shared folder cannot be written.
        QueueFull, ArrayTooLarge, SchedulerUnavailable: not now, or not so many.
    """
    excluded = tuple(dict.fromkeys((*profile.exclude, *constraints.exclude)))
    parameters = _merged(
        profile.parameters(), SubmitConstraints(constraints.after, excluded, constraints.delay_seconds).parameters()
    )

    def give(executor: _Executor) -> str:
        given = executor.map_array(_entry_point("run_job"), [str(sweep.folder)] * len(jobs), jobs)
        return str(given[0].job_id).partition("_")[0]

    return _submit_journaled(sweep, profile, _submission(jobs), parameters, give)


def submit_watchdog(sweep: Sweep, profile: Profile, arrays: Sequence[str], delay_seconds: int = 0) -> Submission:
    """Have the sweep looked after once when some arrays have ended, and not before some seconds have gone.

    Raises:
        UserError, QueueFull, ArrayTooLarge, SchedulerUnavailable: see `submit`.
    """
    parameters = _merged(
        profile.parameters(), SubmitConstraints(after=tuple(arrays), delay_seconds=delay_seconds).parameters()
    )
    # It asks for as little as can be, and for nothing that another partition may not have.
    for name in ("gpus_per_node", "gres", *(("constraint",) if profile.keeper_partition else ())):
        parameters.pop(name, None)
    parameters |= {
        "time": WATCHDOG_MINUTES,
        "cpus_per_task": 1,
        "srun_args": ["--cpus-per-task=1"],
        "signal_delay_s": 30,
    }
    options: dict[str, Any] = {"requeue": True, **({"mem": "2G"} if profile.memory else {})}
    if delay_seconds:
        options["begin"] = f"now+{delay_seconds}"
    parameters["additional_parameters"] = options
    if profile.keeper_partition:
        parameters["partition"] = profile.keeper_partition

    def give(executor: _Executor) -> str:
        return str(executor.submit(_entry_point("keep"), str(sweep.folder)).job_id)

    return _submit_journaled(sweep, profile, _submission((), keeper=True), parameters, give)


def _entry_point(name: str) -> Callable[..., None]:
    """What a job calls first, found by its name: it ends in the dispatcher, which imports this module."""
    entry_point: Callable[..., None] = getattr(importlib.import_module(ENTRY_POINTS), name)
    return entry_point


def _submission(jobs: Sequence[int], keeper: bool = False) -> Submission:
    token, user = uuid.uuid4().hex[:10], this_user()
    return Submission(token=token, when=time.time(), jobs=tuple(jobs), keeper=keeper, user=user)


def _merged(parameters: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    options = parameters["additional_parameters"] | more.pop("additional_parameters", {})
    return parameters | more | {"additional_parameters": options}


def queue_name(sweep: Sweep, submission: Submission) -> str:
    """What the jobs of a submission are called in the queue, as no others are."""
    return f"{sweep.job_name}-{submission.token}"


def _submit_journaled(
    sweep: Sweep,
    profile: Profile,
    submission: Submission,
    parameters: dict[str, Any],
    give: Callable[[_Executor], str],
) -> Submission:
    """Submit, with a note before it and one after: whoever comes after a crash between them asks what came of it."""
    sweep.write_submission(submission)
    try:
        folder = sweep.folder / "logs" / submission.token
        try:
            folder.mkdir(parents=True, exist_ok=True)
            executor = _Executor(folder=folder, python=profile.python or None)
            executor.update_parameters(job_name=queue_name(sweep, submission), **parameters)
            with contextlib.redirect_stderr(io.StringIO()):
                array = give(executor)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}; free some space there") from error
        except (FailedJobError, FailedSubmissionError) as error:
            raise _classify_error(error) from error
    except Exception:
        found = client.find_by_name(queue_name(sweep, submission))
        if not found:
            if found == "":
                sweep.remove_submission(submission)
            raise
        # The answer was lost, the jobs were not.
        array = found
    submission = submission.replace(array=array)
    sweep.write_submission(submission)
    return submission


def _classify_error(error: Exception) -> Exception:
    said = " ".join(str(error).replace("sbatch: error:", "").split())
    for words, kind in ((TOO_LARGE, ArrayTooLarge), (NO_ROOM, QueueFull), (BUSY, SchedulerUnavailable)):
        if any(word in said for word in words):
            return kind(said)
    cause = error.__cause__
    if not said or getattr(cause, "returncode", 0) in (124, 137):
        return SchedulerUnavailable(f"sbatch gave no answer in {client.SUBMIT_SECONDS:.0f} s")
    return UserError(f"SLURM refuses the jobs: {said}; change the profile and give the command again")


@dataclass
class Submitter:
    """One round of submitting, by the only process that does so.

    ended: how jobs have ended; open: the latest task of those that the cluster has, empty where its answer was never
    heard; tasks: all of a job, with when they were submitted; after: the job of another sweep that a job waits for,
    empty where it is none of the cluster's. `open` and `tasks` are kept up.
    """

    sweep: Sweep
    profile: Profile
    ended: Mapping[int, JobState]
    open: dict[int, str]
    tasks: dict[int, list[tuple[float, str]]]
    after: Mapping[int, str]
    result: ReconcileResult
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
        self.result.waiting = len(self._ready())

    def _submit_ready(self) -> str | None:
        """Submit what is ready; returns why there is no room for the rest, "" if there is, None without an answer.

        Raises:
            UserError: SLURM refuses the jobs, and would later too.
        """
        limit = client.array_limit()
        # One place is kept for the watchdog.
        room = max(1, self.profile.max_submitted - self.profile.submit_from_jobs) - len(self.open)
        try:
            while room > 0 and (groups := self._groups(self._ready()[:room])):
                for constraints, jobs in groups:
                    room -= self._submit_group(constraints, jobs, limit)
        except QueueFull as refusal:
            self.result.trouble = str(refusal)
            if POLICY in str(refusal) and not self.open:
                # That may be for ever, and nothing of this sweep is there to make room by ending.
                raise UserError(
                    f"SLURM takes no job of this sweep: {refusal}; change the profile, or wait"
                ) from refusal
            return f"no room for more: {refusal}; the rest is submitted as jobs end"
        except SchedulerUnavailable as trouble:
            self.result.trouble = str(trouble)
            return None
        return ""

    def _ready(self) -> list[int]:
        """The jobs whose needs have ended or are with the cluster, in the order in which they should start."""
        waiting = [job for job in self.sweep.jobs if job.number not in self.ended and job.number not in self.open]
        placed = self.ended.keys() | self.open.keys()
        ready = [job for job in waiting if self.sweep.needs.get(job.number, frozenset()) <= placed]
        return [job.number for job in sorted(ready, key=lambda job: -job.priority)]

    def _groups(self, jobs: Iterable[int]) -> list[tuple[SubmitConstraints, list[int]]]:
        """Jobs that may form an array: those that wait for the same and keep away from the same nodes."""
        groups: dict[SubmitConstraints, list[int]] = defaultdict(list)
        for job in jobs:
            needed = self.sweep.needs.get(job, frozenset())
            after = {self.open[other] for other in needed if self.open.get(other)}
            if any(other in self.open and not self.open[other] for other in needed):
                # What it needs is in doubt; it is looked at again.
                continue
            delay = 0
            if job in self.after:
                other_task = self.after[job]
                if other_task and client.state_of(other_task) not in (None, client.NOT_FOUND):
                    after.add(other_task)
                else:
                    delay = ELSEWHERE_SECONDS
            exclude = tuple(sorted(self.sweep.state(job).failed_on)) if self.tasks[job] else ()
            groups[SubmitConstraints(tuple(sorted(after)), exclude, delay)].append(job)
        return list(groups.items())

    def _submit_group(self, constraints: SubmitConstraints, jobs: list[int], limit: int) -> int:
        """Submit jobs of equal constraints in arrays of the size that the cluster takes; returns how many it took.

        Raises:
            QueueFull: it takes no more, or too much time has gone.
            SchedulerUnavailable: it cannot be asked now.
        """
        given = 0
        size = min(limit, len(jobs))
        while given < len(jobs):
            if self.sweep.is_stopped:
                raise SchedulerUnavailable("the sweep was cancelled meanwhile")
            if time.monotonic() - self._began > LONGEST_SECONDS:
                raise SchedulerUnavailable("submitting takes long; the rest follows")
            part = jobs[given : given + size]
            try:
                submission = submit(self.sweep, self.profile, part, constraints)
            except (ArrayTooLarge, QueueFull) as refusal:
                if size == 1:
                    raise QueueFull(str(refusal)) from refusal
                size = max(1, size // 2)
                continue
            except UserError as refusal:
                if not constraints.exclude:
                    raise
                self.say(f"{refusal}; keeping away from {', '.join(constraints.exclude)} is given up")
                constraints = SubmitConstraints(constraints.after, (), constraints.delay_seconds)
                continue
            self.result.submitted.append(submission)
            for job, task in submission.tasks.items():
                self.open[job] = task
                self.tasks[job].append((submission.when, task))
            given += len(part)
        return given

    def ensure_watchdog(self, waiting: Sequence[str]) -> None:
        """See that something looks after the sweep when all that is with the cluster has ended.

        waiting: the watchdogs that are pending; one that runs may be this very process, or has looked already.
        """
        if not self.profile.submit_from_jobs or self.sweep.is_stopped:
            return
        arrays = sorted({task.partition("_")[0] for task in self.open.values() if task}, key=int)
        if waiting or not (self.open or self.result.waiting):
            return
        try:
            delay = 0 if arrays else WATCHDOG_DELAY_SECONDS
            submit_watchdog(self.sweep, self.profile, arrays[-MOST_ARRAYS:], delay)
        except (QueueFull, ArrayTooLarge, SchedulerUnavailable):
            self.result.is_followed = False
        except UserError as refusal:
            self.result.is_followed = False
            self.say(
                f"{refusal}. Nothing looks after the sweep but its jobs and commands that watch it: set "
                "keeper_partition to one that takes a job of one core"
            )
