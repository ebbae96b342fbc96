"""Rolling submission: submits the jobs that are ready as the queue has room, and a watchdog that goes on with it.

A watchdog is a job of one core that SLURM starts when all submitted jobs have ended, whatever killed them. It lets a
sweep survive without any command that watches it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from benchmark.core.errors import UserError
from slurm import client, submit
from slurm.client import QueuedTask, SchedulerError
from slurm.look import Look
from slurm.pace import WATCHDOG_DELAY_SECONDS
from slurm.submit import QueueFull, SubmitConstraints

ELSEWHERE_SECONDS = 300
"""Delay before the next try if a process outside this cluster trains the same run."""
MOST_ARRAYS = 100
"""A watchdog waits for at most this many arrays; another watchdog follows it anyway."""


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
    ready = [job for job in look.sweep.plan.jobs if job.number not in known and look.needs(job.number) <= known]
    return [job.number for job in sorted(ready, key=lambda job: -job.priority)]


def _group(look: Look, jobs: list[int]) -> Mapping[SubmitConstraints, list[int]]:
    """Group jobs that may form an array: they wait for the same jobs and avoid the same nodes."""
    groups: dict[SubmitConstraints, list[int]] = defaultdict(list)
    for job in jobs:
        after = {look.open[needed] for needed in look.needs(job) if needed in look.open}
        if "" in after:
            # It is unknown whether SLURM has a job that it needs; the next look may know.
            continue
        delay = 0
        if (other := look.behind.get(job)) is not None:
            if other and client.state_of(other) not in (None, client.NOT_FOUND):
                after.add(other)
            else:
                delay = ELSEWHERE_SECONDS
        exclude = sorted(look.sweep.journal.read_state(job).failed_on) if look.tasks[job] else ()
        groups[SubmitConstraints(tuple(sorted(after)), tuple(exclude), delay)].append(job)
    return groups


def _submit_group(look: Look, constraints: SubmitConstraints, jobs: list[int], limit: int) -> None:
    """Submit jobs of equal constraints in arrays as large as SLURM takes them."""
    size = min(limit, len(jobs))
    while jobs:
        if look.sweep.is_cancelled:
            raise SchedulerError("the sweep was cancelled meanwhile")
        try:
            submitted = submit.submit_array(look.sweep, look.profile, jobs[:size], constraints)
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
        submit.submit_watchdog(look.sweep, look.profile, look.arrays[-MOST_ARRAYS:], delay)
    except (QueueFull, SchedulerError):
        look.result.is_followed = False
    except UserError as refusal:
        look.result.is_followed = False
        look.say(
            f"{refusal}. Nothing looks after the sweep but its jobs and commands that watch it: set "
            "keeper_partition to one that takes a job of one core"
        )
