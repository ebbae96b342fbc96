"""SLURM's commands, each bounded in time and tried again; what they say as values, and None where they cannot say."""

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
from benchmark.results.owners import LeaseHolder, this_user

TRIES = 3
PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 30.0
SUBMIT_SECONDS = 90.0
"""sbatch itself waits and tries again where the controller is busy."""
NOT_FOUND = "GONE"
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
ARRAY_LIMIT = 1001
"""SLURM's own default, taken where the controller does not tell its configuration."""
_QUEUE = "%i|%T|%r|%N|%M"


class SchedulerError(Exception):
    """A command of SLURM failed or did not answer, also when it was tried again."""


@dataclass(frozen=True)
class QueuedTask:
    """A job as the queue shows it. task: `12_3` of an array, else `12`.

    Jobs of an array are never called by their own numbers: that of the last one is also that of the whole array.
    """

    task: str
    state: str
    reason: str
    node: str
    run_time: str
    """How long it has run since it last started, as SLURM writes it."""


COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "srun")


def is_installed() -> bool:
    """Whether this machine can submit."""
    return all(shutil.which(name) for name in COMMANDS)


def check_installed() -> None:
    """Refuse a machine that cannot submit.

    Raises:
        UserError: SLURM's commands are not there.
    """
    for name in COMMANDS:
        if shutil.which(name) is None:
            raise UserError(
                f"{name} is not found on this machine; run this where jobs are submitted, or leave --executor slurm out"
            )


def outside_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment without what SLURM sets within a job: sbatch would take it for options."""
    return {name: value for name, value in environment.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}


def run_command(command: Sequence[str], tries: int = TRIES, timeout: float = TIMEOUT_SECONDS) -> str:
    """What a command printed.

    Raises:
        SchedulerError: it failed, or did not answer in time, so many times.
    """
    said = ""
    for attempt in range(tries):
        if attempt:
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout, check=False, env=outside_environment()
            )
        except subprocess.TimeoutExpired:
            said = f"no answer in {timeout:.0f} s"
            continue
        except OSError as error:
            raise SchedulerError(f"{command[0]}: {error.strerror}") from error
        if ended.returncode == 0:
            return ended.stdout
        said = " ".join(ended.stderr.split()) or f"exit code {ended.returncode}"
        if "Invalid job id" in said:
            break
    raise SchedulerError(f"{command[0]}: {said}")


def queue(arrays: Iterable[str]) -> dict[str, QueuedTask] | None:
    """The jobs of some arrays that are pending or running, each task of its own, by task; None: SLURM cannot say."""
    wanted = sorted(set(arrays), key=int)
    if not wanted:
        return {}
    try:
        text = run_command(["squeue", "-h", "-r", "-o", _QUEUE, "-j", ",".join(wanted)])
    except SchedulerError as error:
        # The only ones that were asked for have been forgotten by now.
        return {} if "Invalid job id" in str(error) else None
    found = {}
    for line in text.splitlines():
        parts = line.split("|")
        if len(parts) != 5 or not parts[0][:1].isdigit():
            # Not what was asked for: that a job is not in it then tells nothing.
            return None
        found[parts[0]] = QueuedTask(*parts)
    return found


def find_by_name(name: str) -> str | None:
    """The number of the job or array of a name, empty where the queue has none; None: SLURM cannot say."""
    try:
        numbers = run_command(["squeue", "-h", "-o", "%F", "--name", name]).split()
    except SchedulerError:
        return None
    if not all(number.isdigit() for number in numbers):
        return None
    return numbers[0] if numbers else ""


def state_of(job: str) -> str | None:
    """The state of a job, GONE where SLURM has forgotten it; None: SLURM cannot say."""
    try:
        shown = run_command(["scontrol", "show", "job", "-o", job])
    except SchedulerError as error:
        return NOT_FOUND if "Invalid job id" in str(error) else None
    match = re.search(r"\bJobState=(\S+)", shown)
    return match[1] if match else None


def is_alive(owner: LeaseHolder) -> bool | None:
    """Whether the job that made a claim still runs, as far as SLURM can say."""
    state = state_of(owner.job)
    if state is None:
        return None
    if state == NOT_FOUND and owner.user != this_user():
        # On some clusters nobody sees the jobs of others.
        return None
    return state.split("+")[0] in RUNNING


def end_time(job: str, tries: int = TRIES) -> float | None:
    """When SLURM will end a running job, in seconds since 1970; None where it cannot say."""
    # What is left, and not when it ends: nodes' clocks differ, and have summer and winter.
    with contextlib.suppress(SchedulerError):
        left = parse_seconds(run_command(["squeue", "-h", "-j", job, "-o", "%L"], tries).strip())
        return None if left is None else time.time() + left
    return None


def parse_seconds(text: str) -> float | None:
    """A duration as SLURM writes it, `1-02:03:04` or less of it; None where it is none (`UNLIMITED`, `INVALID`)."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return 86400.0 * days + 3600 * hours + 60 * minutes + seconds


def requeue(job: str) -> None:
    """Have a running job started again.

    Raises:
        SchedulerError: SLURM refuses, or does not answer.
    """
    run_command(["scontrol", "requeue", job])


def cancel(jobs: Sequence[str]) -> None:
    """End jobs, or arrays with all that belongs to them; those that have ended are no error.

    Raises:
        SchedulerError: SLURM does not answer.
    """
    for first in range(0, len(jobs), 200):
        run_command(["scancel", "--quiet", *jobs[first : first + 200]])


def comment(job: str, text: str) -> None:
    """Leave a line with SLURM about a job, for when nothing can be written to the shared folder."""
    with contextlib.suppress(SchedulerError):
        run_command(["scontrol", "update", f"JobId={job}", f"Comment={text[:200]}"], tries=1)


def comment_of(job: str) -> str:
    """The line that was left with SLURM about a job; empty where there is none."""
    with contextlib.suppress(SchedulerError):
        match = re.search(r"\bComment=(.*?)(?: \w+=|$)", run_command(["scontrol", "show", "job", "-o", job], tries=1))
        return match[1].strip() if match else ""
    return ""


def array_limit() -> int:
    """How many jobs an array may have at most."""
    with contextlib.suppress(SchedulerError):
        match = re.search(r"MaxArraySize\s*=\s*(\d+)", run_command(["scontrol", "show", "config"]))
        # The limit counts from 0, so that an array of MaxArraySize jobs still fits; beyond it indices are refused.
        return max(1, int(match[1])) if match else ARRAY_LIMIT
    return ARRAY_LIMIT
