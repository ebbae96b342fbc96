"""One call of sbatch, through submitit: bounded in time, tried again, and never given to the cluster twice unseen."""

from __future__ import annotations

import contextlib
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

from benchmark.errors import UserError
from benchmark.owners import this_user
from slurm import entry, scheduler
from slurm.profile import Profile
from slurm.states import Submission
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
KEEPER_MINUTES = 10


class NoRoom(Exception):
    """The cluster takes no more jobs for now."""


class TooLarge(Exception):
    """The cluster takes no array of this size."""


class NotNow(Exception):
    """SLURM did not answer, or asked to be left alone for a while."""


@dataclass(frozen=True)
class Terms:
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
        limit = ["timeout", "-k", "5", f"{scheduler.SUBMIT_SECONDS:.0f}"]
        return ["env", *unset, *limit, *super()._make_submission_command(submission_file_path)]

    def _internal_process_submissions(self, delayed_submissions: list[Any]) -> list[Any]:
        # For an array submitit makes an executor of its own, by this name: it must be one of these as well.
        plain = submitit_slurm.SlurmExecutor
        submitit_slurm.SlurmExecutor = _Executor  # type: ignore[misc]
        try:
            return super()._internal_process_submissions(delayed_submissions)
        finally:
            submitit_slurm.SlurmExecutor = plain  # type: ignore[misc]


def submit(sweep: Sweep, profile: Profile, jobs: Sequence[int], terms: Terms) -> Submission:
    """Give jobs to the cluster as one array.

    Raises:
        UserError: SLURM refuses them as they are; the shared folder cannot be written.
        NoRoom, TooLarge, NotNow: not now, or not so many.
    """
    excluded = tuple(dict.fromkeys((*profile.exclude, *terms.exclude)))
    parameters = _merged(profile.parameters(), Terms(terms.after, excluded, terms.delay_seconds).parameters())

    def give(executor: _Executor) -> str:
        given = executor.map_array(entry.run_job, [str(sweep.folder)] * len(jobs), jobs)
        return str(given[0].job_id).partition("_")[0]

    return _noted(sweep, profile, _submission(jobs), parameters, give)


def submit_keeper(sweep: Sweep, profile: Profile, arrays: Sequence[str], delay_seconds: int = 0) -> Submission:
    """Have the sweep looked after once when some arrays have ended, and not before some seconds have gone.

    Raises:
        UserError, NoRoom, TooLarge, NotNow: see `submit`.
    """
    parameters = _merged(profile.parameters(), Terms(after=tuple(arrays), delay_seconds=delay_seconds).parameters())
    # It asks for as little as can be, and for nothing that another partition may not have.
    for name in ("gpus_per_node", "gres", *(("constraint",) if profile.keeper_partition else ())):
        parameters.pop(name, None)
    parameters |= {
        "time": KEEPER_MINUTES,
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
        return str(executor.submit(entry.keep, str(sweep.folder)).job_id)

    return _noted(sweep, profile, _submission((), keeper=True), parameters, give)


def _submission(jobs: Sequence[int], keeper: bool = False) -> Submission:
    token, user = uuid.uuid4().hex[:10], this_user()
    return Submission(token=token, when=time.time(), jobs=tuple(jobs), keeper=keeper, user=user)


def _merged(parameters: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    options = parameters["additional_parameters"] | more.pop("additional_parameters", {})
    return parameters | more | {"additional_parameters": options}


def name_in_queue(sweep: Sweep, submission: Submission) -> str:
    """What the jobs of a submission are called in the queue, as no others are."""
    return f"{sweep.job_name}-{submission.token}"


def _noted(
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
            executor.update_parameters(job_name=name_in_queue(sweep, submission), **parameters)
            with contextlib.redirect_stderr(io.StringIO()):
                array = give(executor)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}; free some space there") from error
        except (FailedJobError, FailedSubmissionError) as error:
            raise _translated(error) from error
    except Exception:
        found = scheduler.named(name_in_queue(sweep, submission))
        if not found:
            if found == "":
                sweep.remove_submission(submission)
            raise
        # The answer was lost, the jobs were not.
        array = found
    submission = submission.changed(array=array)
    sweep.write_submission(submission)
    return submission


def _translated(error: Exception) -> Exception:
    said = " ".join(str(error).replace("sbatch: error:", "").split())
    for words, kind in ((TOO_LARGE, TooLarge), (NO_ROOM, NoRoom), (BUSY, NotNow)):
        if any(word in said for word in words):
            return kind(said)
    cause = error.__cause__
    if not said or getattr(cause, "returncode", 0) in (124, 137):
        return NotNow(f"sbatch gave no answer in {scheduler.SUBMIT_SECONDS:.0f} s")
    return UserError(f"SLURM refuses the jobs: {said}; change the profile and give the command again")
