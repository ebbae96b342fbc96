"""Submits the jobs that are ready as the queue has room, and a watchdog that goes on with it, through submitit.

A watchdog is a job of one core that SLURM starts when all submitted jobs have ended, whatever killed them. It lets a
sweep survive without any command that watches it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm import slurm as submitit_slurm

from benchmark.core.errors import UserError
from benchmark.results.leases import this_user
from slurm import client
from slurm.client import QueuedTask, SchedulerError
from slurm.journal import Submission
from slurm.look import Look
from slurm.pace import WATCHDOG_DELAY_SECONDS
from slurm.profile import WATCHDOG_MINUTES, Profile
from slurm.sweep import Sweep

NO_ROOM = (
    "Invalid job array",
    "MaxSubmit",
    "SubmitJobsLimit",
    "MaxJobs",
    "job submit limit",
    "QOS policy",
    "Resource temporarily unavailable",
    "temporarily unable to accept job",
)
"""What sbatch says if the queue, or one array, may not hold so many jobs."""
BUSY = ("Unable to contact slurm controller", "Socket timed out", "Zero Bytes", "Communication connection", "Transport")
ENTRY_POINTS = "slurm.entry"
"""The module that submitted jobs start in. Pickled jobs of sweeps under way name it, so it is never renamed."""
ELSEWHERE_SECONDS = 300
"""Delay before the next try if a process outside this cluster trains the same run."""
MOST_ARRAYS = 100
"""A watchdog waits for at most this many arrays; another watchdog follows it anyway."""


class QueueFull(Exception):
    """The cluster takes no more jobs for now, or no array of this size."""


@dataclass(frozen=True)
class SubmitConstraints:
    """When and where jobs of one array may run."""

    after: tuple[str, ...] = ()
    """Tasks that must have ended, in whatever way."""
    exclude: tuple[str, ...] = ()
    """Nodes to avoid."""
    delay_seconds: int = 0

    def parameters(self, profile: Profile) -> dict[str, Any]:
        """What submitit is told about jobs of a profile under these constraints."""
        parameters = profile.parameters()
        if self.after:
            parameters["dependency"] = "afterany:" + ":".join(self.after)
        if exclude := dict.fromkeys((*profile.exclude, *self.exclude)):
            parameters["exclude"] = ",".join(exclude)
        if self.delay_seconds:
            parameters["additional_parameters"]["begin"] = f"now+{self.delay_seconds}"
        return parameters


class _Executor(submitit.SlurmExecutor):
    """submitit's executor; its sbatch ends in time and ignores the options of the job that it may be called in."""

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        inside = [name for name in os.environ if name not in client.outside_environment()]
        unset = [word for name in inside for word in ("-u", name)]
        limit = ["timeout", "-k", "5", f"{client.SUBMIT_SECONDS:.0f}"]
        return ["env", *unset, *limit, *super()._make_submission_command(submission_file_path)]

    def _internal_process_submissions(self, delayed_submissions: list[Any]) -> list[Any]:
        # For an array submitit makes another executor, by this name.
        plain = submitit_slurm.SlurmExecutor
        submitit_slurm.SlurmExecutor = _Executor  # type: ignore[misc]
        try:
            return super()._internal_process_submissions(delayed_submissions)
        finally:
            submitit_slurm.SlurmExecutor = plain  # type: ignore[misc]


def submit_array(sweep: Sweep, profile: Profile, jobs: Sequence[int], constraints: SubmitConstraints) -> Submission:
    """Submit jobs as one array.

    Raises:
        UserError: SLURM refuses them, and would refuse them later too; the shared folder cannot be written.
        QueueFull: SLURM takes no more jobs for now, or not so many.
        SchedulerError: SLURM does not answer.
    """

    def call_sbatch(executor: _Executor) -> str:
        submitted = executor.map_array(_find_entry_point("run_job"), [str(sweep.folder)] * len(jobs), jobs)
        return str(submitted[0].job_id).partition("_")[0]

    return _submit(sweep, profile, jobs, constraints.parameters(profile), call_sbatch)


def submit_watchdog(sweep: Sweep, profile: Profile, arrays: Sequence[str], delay_seconds: int = 0) -> Submission:
    """Submit a job that reconciles the sweep when some arrays have ended, and not before a delay.

    Raises:
        UserError, QueueFull, SchedulerError: see `submit_array`.
    """
    # It asks for as little as possible, and for nothing that another partition may lack.
    small = profile.replace(
        gpus=0,
        gres="",
        cpus=1,
        time=WATCHDOG_MINUTES,
        grace_seconds=30,
        memory="2G" if profile.memory else None,
        partition=profile.keeper_partition or profile.partition,
        constraint="" if profile.keeper_partition else profile.constraint,
        exclude=(),
        reservation="",
        options={},
    )
    parameters = SubmitConstraints(after=tuple(arrays), delay_seconds=delay_seconds).parameters(small)

    def call_sbatch(executor: _Executor) -> str:
        return str(executor.submit(_find_entry_point("keep"), str(sweep.folder)).job_id)

    return _submit(sweep, profile, (), parameters, call_sbatch)


def _find_entry_point(name: str) -> Callable[..., None]:
    """The function that a job calls first, found by its name: it ends in the dispatcher, which imports this module."""
    entry_point: Callable[..., None] = getattr(importlib.import_module(ENTRY_POINTS), name)
    return entry_point


def _submit(
    sweep: Sweep,
    profile: Profile,
    jobs: Sequence[int],
    parameters: dict[str, Any],
    call_sbatch: Callable[[_Executor], str],
) -> Submission:
    """Submit jobs, or the watchdog if there are none, with a note before the call and another one after it.

    After a crash between the two notes, the next process finds by the name in the first one whether SLURM has the jobs.
    """
    token = uuid.uuid4().hex[:10]
    submission = Submission(token=token, when=time.time(), jobs=tuple(jobs), keeper=not jobs, user=this_user())
    name = sweep.queue_name(submission)
    sweep.journal.write_submission(submission)
    try:
        folder = sweep.folder / "logs" / submission.token
        try:
            folder.mkdir(parents=True, exist_ok=True)
            executor = _Executor(folder=folder, python=profile.python or None)
            executor.update_parameters(job_name=name, **parameters)
            with contextlib.redirect_stderr(io.StringIO()):
                array = call_sbatch(executor)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}; free some space there") from error
        except (FailedJobError, FailedSubmissionError) as error:
            raise _classify_error(error) from error
    except Exception:
        found = client.find_by_name(name)
        if found == "":
            sweep.journal.remove_submission(submission)
        if not found:
            raise
        # The answer was lost, but SLURM has the jobs.
        array = found
    submission = submission.replace(array=array)
    sweep.journal.write_submission(submission)
    return submission


def _classify_error(error: Exception) -> Exception:
    reason = " ".join(str(error).replace("sbatch: error:", "").split())
    if any(words in reason for words in NO_ROOM):
        return QueueFull(reason)
    if any(words in reason for words in BUSY):
        return SchedulerError(reason)
    if not reason or getattr(error.__cause__, "returncode", 0) in (124, 137):
        return SchedulerError(f"sbatch gave no answer in {client.SUBMIT_SECONDS:.0f} s")
    return UserError(f"SLURM refuses the jobs: {reason}; change the profile and give the command again")


def submit_ready(look: Look) -> None:
    """Submit what is ready, the longest chains first; SLURM starts a job when the jobs that it needs have ended.

    Raises:
        UserError: SLURM refuses the jobs, and would refuse them later too.
    """
    journal = look.sweep.journal
    try:
        _fill_queue(look)
        journal.write_refusal("")
    except QueueFull as error:
        look.result.trouble = str(error)
        journal.write_refusal(f"no room for more: {error}; the rest is submitted as jobs end")
    except SchedulerError as error:
        # Without an answer the previous refusal still holds.
        look.result.trouble = str(error)
    except UserError as error:
        journal.write_refusal(str(error))
        raise
    look.result.waiting = len(_ready_jobs(look))


def _fill_queue(look: Look) -> None:
    """Submit ready jobs until the profile's `max_submitted` is reached.

    Raises:
        QueueFull: SLURM takes no more jobs for now.
        SchedulerError: SLURM does not answer.
        UserError: SLURM refuses the jobs.
    """
    limit = client.array_limit()
    # One place is kept for the watchdog.
    most = max(1, look.profile.max_submitted - look.profile.submit_from_jobs)
    while (room := most - len(look.open)) > 0 and (groups := _group(look, _ready_jobs(look)[:room])):
        for constraints, jobs in groups.items():
            _submit_group(look, constraints, jobs, limit)


def _ready_jobs(look: Look) -> list[int]:
    """The jobs whose needs have ended or are with SLURM, in the order in which they should start."""
    known = look.ended.keys() | look.open.keys()
    plan = look.sweep.plan
    ready = [job for job in plan.jobs if job.number not in known and plan.needs[job.number] <= known]
    return [job.number for job in sorted(ready, key=lambda job: -job.priority)]


def _group(look: Look, jobs: list[int]) -> Mapping[SubmitConstraints, list[int]]:
    """Group jobs that may form an array: they wait for the same jobs and avoid the same nodes."""
    groups: dict[SubmitConstraints, list[int]] = defaultdict(list)
    for job in jobs:
        after = {look.open[needed] for needed in look.sweep.plan.needs[job] if needed in look.open}
        if "" in after:
            # It is unknown whether SLURM has a job that it needs; the next look may know.
            continue
        delay = 0
        if (other := look.behind.get(job)) is not None:
            if other and client.state_of(other) not in (None, client.NOT_FOUND):
                after.add(other)
            else:
                delay = ELSEWHERE_SECONDS
        exclude = sorted(look.sweep.journal.read_state(job).failed_on) if look.submissions[job] else ()
        groups[SubmitConstraints(tuple(sorted(after)), tuple(exclude), delay)].append(job)
    return groups


def _submit_group(look: Look, constraints: SubmitConstraints, jobs: list[int], limit: int) -> None:
    """Submit jobs of equal constraints in arrays as large as SLURM takes them."""
    size = min(limit, len(jobs))
    while jobs:
        if look.sweep.is_cancelled:
            raise SchedulerError("the sweep was cancelled meanwhile")
        try:
            submitted = submit_array(look.sweep, look.profile, jobs[:size], constraints)
        except QueueFull:
            if size == 1:
                raise
            size //= 2
        except UserError as refusal:
            if not constraints.exclude:
                raise
            look.say(f"{refusal}; keeping away from {', '.join(constraints.exclude)} is given up")
            constraints = SubmitConstraints(constraints.after, (), constraints.delay_seconds)
        else:
            look.result.submitted.append(submitted)
            look.add(submitted)
            jobs = jobs[size:]


def ensure_watchdog(look: Look, queue: Mapping[str, QueuedTask]) -> None:
    """Submit a watchdog unless one is pending; a running one may be this process, or may have looked already."""
    is_pending = any(queue[task].state == "PENDING" for task in look.watchdogs if task in queue)
    is_needed = look.profile.submit_from_jobs and bool(look.open or look.result.waiting)
    if is_pending or not is_needed or look.sweep.is_cancelled:
        return
    try:
        delay = 0 if look.arrays else round(WATCHDOG_DELAY_SECONDS)
        submit_watchdog(look.sweep, look.profile, look.arrays[-MOST_ARRAYS:], delay)
    except (QueueFull, SchedulerError):
        look.result.is_followed = False
    except UserError as refusal:
        look.result.is_followed = False
        look.say(
            f"{refusal}. Nothing looks after the sweep but its jobs and commands that watch it: set "
            "keeper_partition to one that takes a job of one core"
        )
