"""Calls SLURM's commands, each with a time limit and several tries; None means that SLURM cannot say."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmark.core.errors import UserError
from benchmark.results.leases import LeaseHolder, this_user
from slurm.pace import RETRY_SECONDS
from slurm.profile import parse_duration

TRIES = 3
TIMEOUT_SECONDS = 30.0
SUBMIT_SECONDS = 90.0
"""sbatch itself waits and tries again where the controller is busy."""
NOT_FOUND = "GONE"
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
ARRAY_LIMIT = 1001
"""SLURM's own default, used if the controller does not tell its configuration."""
_QUEUE = "%i|%T|%r|%N|%j"


class SchedulerError(Exception):
    """A command of SLURM failed or did not answer, although it was tried again."""


@dataclass(frozen=True)
class QueuedTask:
    """A job as the queue shows it. task: `12_3` of an array, else `12`.

    A job of an array is named by its array and index, never by its own number: the last job's number is also the
    array's.
    """

    task: str
    state: str
    reason: str
    node: str
    name: str


COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "srun")


def missing_command() -> str | None:
    """A command of SLURM that this machine lacks, if it lacks any."""
    return next((name for name in COMMANDS if shutil.which(name) is None), None)


def check_installed() -> None:
    """Refuse a machine that cannot submit.

    Raises:
        UserError: it lacks a command of SLURM.
    """
    if (name := missing_command()) is not None:
        raise UserError(
            f"{name} is not found on this machine; run this where jobs are submitted, or leave --executor slurm out"
        )


def outside_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment without the variables that SLURM sets within a job, which sbatch would take for options."""
    return {name: value for name, value in environment.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}


def run_command(command: Sequence[str], tries: int = TRIES, timeout: float = TIMEOUT_SECONDS) -> str:
    """Run a command and return its output.

    Raises:
        SchedulerError: it failed, or did not answer in time, in every try.
    """
    reason = ""
    for attempt in range(tries):
        if attempt:
            time.sleep(RETRY_SECONDS * 2 ** (attempt - 1))
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout, check=False, env=outside_environment()
            )
        except subprocess.TimeoutExpired:
            reason = f"no answer in {timeout:.0f} s"
            continue
        except OSError as error:
            raise SchedulerError(f"{command[0]}: {error.strerror}") from error
        if ended.returncode == 0:
            return ended.stdout
        reason = " ".join(ended.stderr.split()) or f"exit code {ended.returncode}"
        if "Invalid job id" in reason:
            break
    raise SchedulerError(f"{command[0]}: {reason}")


def queue(arrays: Iterable[str]) -> dict[str, QueuedTask] | None:
    """The tasks of some arrays that are pending or running; None: SLURM cannot say."""
    wanted = sorted(set(arrays), key=int)
    if not wanted:
        return {}
    try:
        text = run_command(["squeue", "-h", "-r", "-o", _QUEUE, "-j", ",".join(wanted)])
    except SchedulerError as error:
        # SLURM has forgotten all of them by now.
        return {} if "Invalid job id" in str(error) else None
    tasks = {}
    for line in text.splitlines():
        parts = line.split("|", 4)
        if len(parts) != 5 or not parts[0][:1].isdigit():
            # The output is damaged: a task that it lacks may still be in the queue.
            return None
        tasks[parts[0]] = QueuedTask(*parts)
    return tasks


def find_by_name(name: str) -> str | None:
    """The number of the job or array of a name, empty if the queue has none; None: SLURM cannot say."""
    try:
        numbers = run_command(["squeue", "-h", "-o", "%F", "--name", name]).split()
    except SchedulerError:
        return None
    if not all(number.isdigit() for number in numbers):
        return None
    return numbers[0] if numbers else ""


def state_of(job: str) -> str | None:
    """The state of a job, NOT_FOUND if SLURM has forgotten it; None: SLURM cannot say."""
    try:
        shown = run_command(["scontrol", "show", "job", "-o", job])
    except SchedulerError as error:
        return NOT_FOUND if "Invalid job id" in str(error) else None
    match = re.search(r"\bJobState=(\S+)", shown)
    return match[1] if match else None


def is_alive(owner: LeaseHolder) -> bool | None:
    """Whether the job that holds a lease still runs; None: SLURM cannot say."""
    state = state_of(owner.job)
    if state is None:
        return None
    if state == NOT_FOUND and owner.user != this_user():
        # On some clusters nobody sees the jobs of others.
        return None
    return state.split("+")[0] in RUNNING


def end_time(job: str, tries: int = TRIES) -> float | None:
    """When SLURM will end a running job, in seconds since 1970; None: SLURM cannot say."""
    # SLURM tells the time that is left, since the clocks of nodes and their time zones differ.
    with contextlib.suppress(SchedulerError):
        left = parse_duration(run_command(["squeue", "-h", "-j", job, "-o", "%L"], tries))
        return None if left is None else time.time() + left
    return None


def requeue(job: str) -> None:
    """Start a running job again.

    Raises:
        SchedulerError: SLURM refuses, or does not answer.
    """
    run_command(["scontrol", "requeue", job])


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs and arrays; those that have ended are no error.

    Raises:
        SchedulerError: SLURM does not answer.
    """
    for first in range(0, len(jobs), 200):
        run_command(["scancel", "--quiet", *jobs[first : first + 200]])


def array_limit() -> int:
    """The largest size of an array."""
    with contextlib.suppress(SchedulerError):
        match = re.search(r"MaxArraySize\s*=\s*(\d+)", run_command(["scontrol", "show", "config"]))
        # The indices are less than MaxArraySize and begin at 0.
        return max(1, int(match[1])) if match else ARRAY_LIMIT
    return ARRAY_LIMIT
