"""Submits one array or one watchdog through submitit, with a note in the journal before and after the call."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm import slurm as submitit_slurm

from benchmark.core.errors import UserError
from benchmark.results.owners import this_user
from slurm import client
from slurm.client import SchedulerError
from slurm.profile import WATCHDOG_MINUTES, Profile
from slurm.states import Submission
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
