"""Reconciles a sweep with SLURM: records what ended, blocks what can never run, and submits what there is room for.

Anybody may call `reconcile` at any time: the command that started the sweep, each of its jobs as it ends, its watchdog.
A lease in the shared folder lets one process do it at a time. If that process dies, the next one goes on from the
files.
"""

from __future__ import annotations

import contextlib
import time
import uuid

from benchmark.io.files import write_text
from benchmark.io.untrusted import escape_control_chars
from benchmark.results.leases import Lease, LeaseManager, this_user
from slurm import client
from slurm.client import SchedulerError
from slurm.dependencies import TERMINAL_FAILURES, check_readiness, outcome_from_records
from slurm.journal import Attempt, State
from slurm.look import Look, ReconcileResult, Say
from slurm.submit import ensure_watchdog, submit_ready
from slurm.sweep import Sweep

PATIENCE_SECONDS = 120.0
MOST_LOG_BYTES = 2**16
"""Of the end of a log, of which the last line is read."""


def reconcile(sweep: Sweep, say: Say = print, patience: float = PATIENCE_SECONDS) -> ReconcileResult | None:
    """Reconcile a sweep; returns None if another process has done so since this call began.

    Raises:
        UserError: SLURM refuses the jobs, or the shared folder cannot be written.
        SchedulerError: another process has been at it for longer than `patience` seconds.
    """
    folder = sweep.folder / "dispatch"
    leases = LeaseManager(sweep.store.root, client.is_alive)
    # Earlier versions use this name too.
    request = folder / f"wish-{uuid.uuid4().hex[:10]}"
    write_text(request, "")
    deadline, pause = time.monotonic() + patience, 0.2
    try:
        while request.exists():
            lease = leases.acquire(folder)
            if isinstance(lease, Lease):
                try:
                    # This reconciliation serves everybody who asked for one before it begins.
                    for served in folder.glob("wish-*"):
                        served.unlink(missing_ok=True)
                    return _reconcile_once(sweep, say)
                finally:
                    lease.release()
            if time.monotonic() > deadline:
                raise SchedulerError(f"{lease.label} looks after this sweep and has not ended in {patience:.0f} s")
            # The pause grows, since each try asks SLURM whether the holder lives, and many jobs may end at once.
            time.sleep(pause)
            pause = min(2 * pause, 5.0)
        return None
    finally:
        with contextlib.suppress(OSError):
            request.unlink(missing_ok=True)


def _reconcile_once(sweep: Sweep, say: Say) -> ReconcileResult:
    """Reconcile a sweep, as the only process that does so."""
    if sweep.is_cancelled:
        return ReconcileResult()
    look = Look.begin(sweep, say)
    queue = client.queue([*look.arrays, *look.watchdogs])
    if queue is None:
        return ReconcileResult(answers=False)
    for job, task in list(look.open.items()):
        if task and task not in queue:
            _record_departure(look, job, task)
    _block_hopeless(look)
    submit_ready(look)
    ensure_watchdog(look, queue)
    return look.result


def _record_departure(look: Look, job: int, task: str) -> None:
    """Record how a job that has left the queue ended, or have it submitted again."""
    state = look.sweep.journal.read_state(job)
    attempt = state.find_attempt(task)
    reason = attempt.leaving if attempt else None
    if attempt and reason == "waiting":
        _reopen_needs(look, job)
    elif attempt and reason == "elsewhere":
        look.behind[job] = attempt.waits_for
    if reason in ("elsewhere", "waiting", "time limit", "interrupted"):
        del look.open[job]
    elif (outcome := outcome_from_records(look.sweep, job)) is not None:
        look.end(job, *outcome)
    elif look.submissions[job][-1].when <= state.forgiven:
        # What happened before a user had the job tried again does not count.
        del look.open[job]
    elif attempt and reason == "failed":
        look.end(job, "failed", attempt.reason)
    elif (ending := _ask_how_it_ended(look, job, attempt)) == "CANCELLED":
        look.end(job, "cancelled", "cancelled with scancel")
    elif ending is not None:
        del look.open[job]
        _record_loss(look, job, state)


def _ask_how_it_ended(look: Look, job: int, attempt: Attempt | None) -> str | None:
    """SLURM's state of a job that said nothing when it left the queue; None if it may still run."""
    submission = look.submissions[job][-1]
    state = client.state_of(submission.tasks[job])
    if state is None or state in client.WAITING or state in client.RUNNING:
        # It has not left the queue, whatever squeue printed.
        return None
    is_silent = attempt is not None and time.time() - attempt.beat > look.settings.silent_seconds
    if state == client.NOT_FOUND and submission.user != this_user() and not is_silent:
        # SLURM may hide the jobs of other users; then only the job's own file tells about it.
        return None
    return state


def _record_loss(look: Look, job: int, state: State) -> None:
    """Have a job submitted again that was killed, or never began; give it up if that happens too often."""
    began = {attempt.owner.job for attempt in state.attempts}
    submitted = look.submissions[job]
    never_began = sum(each.when > state.forgiven and each.tasks[job] not in began for each in submitted)
    latest = submitted[-1].tasks[job]
    if state.no_progress_attempts + never_began <= look.profile.resubmissions:
        where = f" on {attempt.node}" if (attempt := state.find_attempt(latest)) else ""
        look.say(f"job {latest}{where} was lost ({look.sweep.plan.jobs[job].name}); it is submitted again")
        return
    why = give_up_reason(state) if state.no_progress_attempts else f"its job ended {never_began} times before it began"
    last_line = _read_last_line(look.sweep, latest)
    look.end(job, "failed", f"{why}{': ' + last_line if last_line else ''}")


def give_up_reason(state: State) -> str:
    """Why a job is not tried again."""
    where = f", last on {state.last.node}" if state.last else ""
    return f"it ended {state.no_progress_attempts} times without getting any further{where}"


def _read_last_line(sweep: Sweep, task: str) -> str:
    """The last line that a job left on its error output."""
    for path in sweep.folder.glob(f"logs/*/{task}_0_log.err"):
        with contextlib.suppress(OSError):
            # A pipe would be waited for.
            if not path.is_file():
                continue
            with path.open("rb") as opened:
                opened.seek(max(0, path.stat().st_size - MOST_LOG_BYTES))
                lines = opened.read(MOST_LOG_BYTES).decode(errors="replace").strip().splitlines()
            if lines:
                return f"{escape_control_chars(lines[-1].strip())} ({path})"
    return ""


def _reopen_needs(look: Look, job: int) -> None:
    """Train again what a job found missing although the job that makes it was done."""
    for needed in look.sweep.plan.needs[job]:
        if look.ended.get(needed) == "done" and outcome_from_records(look.sweep, needed) is None:
            look.say(f"{look.sweep.plan.jobs[needed].name} has lost its record; it is trained again")
            look.sweep.journal.remove_ending(needed)
            del look.ended[needed]


def _block_hopeless(look: Look) -> None:
    """Mark jobs that can never run because what they need has failed, and cancel them."""
    tasks: list[str] = []
    for job, needs in look.sweep.plan.needs.items():
        # Jobs only need jobs of lower numbers, so one pass reaches everything that a failure blocks.
        if job in look.ended or not any(look.ended.get(needed) in TERMINAL_FAILURES for needed in needs):
            continue
        status = check_readiness(look.sweep, job, look.ended)
        if status.lost and not (status.ready or status.waiting):
            tasks += [task] if (task := look.open.get(job)) else []
            look.end(job, "blocked", "; ".join(status.lost))
    if tasks:
        with contextlib.suppress(SchedulerError):
            client.cancel(tasks)
