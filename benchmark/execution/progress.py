"""The progress display: on a terminal one live line per running job and a total, otherwise plain log lines."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from benchmark.cli.app import INTERRUPTED
from benchmark.core.errors import UserError
from benchmark.core.text import counted, describe_position, duration
from benchmark.execution.scheduler import ExecutionSummary, JobCallback, JobOutcome
from benchmark.planning.jobs import Job
from benchmark.training.settings import Progress

PLAIN_SECONDS = 20.0
SLOW_SECONDS = 1.0
BAR_WIDTH, NARROW_BAR_WIDTH = 20, 8
NARROW = 110
"""Terminal width below which the bar is narrowed to leave room for names."""
KNOWN_SHARE = 0.1
"""Share of the work after which the remaining time is estimated; the first images are slow."""
MOST_FAILURES = 5
"""How many reasons for failures are repeated at the end."""


class Display:
    """A live picture at the bottom of a terminal; otherwise, and above it, lines that stay."""

    def __init__(self, console: Console, **options: Any) -> None:
        self.console = console
        self.live = Live(console=console, **options) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(Text(line), soft_wrap=True)


@contextlib.contextmanager
def announce_if_slow(text: str) -> Iterator[None]:
    """Print a line on the error output if what happens within takes longer than a second."""
    timer = threading.Timer(SLOW_SECONDS, lambda: Console(stderr=True, highlight=False).print(text, soft_wrap=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class ProgressDisplay(Display, JobCallback):
    """Shows the progress of a plan on a terminal (live) or in a log (plain lines)."""

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        self.total = len(jobs)
        self.work = sum(job.seconds for job in jobs) or 1.0
        self.running: dict[int, tuple[Job, Progress | None]] = {}
        self.done, self.done_work, self.failed = 0, 0.0, 0
        self.began = time.perf_counter()
        self.last_line: dict[int, float] = {}
        # Last, because a live display asks for its picture as it is made.
        super().__init__(console, refresh_per_second=4, get_renderable=self._picture)

    def on_start(self, job: Job) -> None:
        self.running[id(job)] = (job, None)
        self.say(f"started   {job.name}")

    def on_progress(self, job: Job, progress: Progress) -> None:
        self.running[id(job)] = (job, progress)
        now = time.perf_counter()
        if not self.live and now - self.last_line.get(id(job), 0.0) > PLAIN_SECONDS:
            self.last_line[id(job)] = now
            self.say(f"          {job.name}: {describe_position(progress, progress.loss)}")

    def on_message(self, job: Job, line: str) -> None:
        self.say(f"{job.name}: {line}")

    def on_end(self, job: Job, outcome: JobOutcome) -> None:
        self.running.pop(id(job), None)
        if outcome.reason is not None:
            self.failed += 1
            self.say(f"failed    {job.name}: {outcome.reason}")
        elif outcome.stopped:
            self.say(f"stopped   {job.name}")
        else:
            self.done += 1
            self.done_work += job.seconds
            results = ", ".join(f"{method} {result}" for method, result in outcome.outcomes.items())
            self.say(f"finished  {job.title}: {results} ({self.done} of {counted(self.total, 'job')})")

    def _picture(self) -> Group:
        rows: list[tuple[ProgressBar, str, str]] = []
        bar_width = NARROW_BAR_WIDTH if self.console.width < NARROW else BAR_WIDTH
        done = self.done_work
        for job, progress in self.running.values():
            loss = None if progress is None or self.console.width < NARROW else progress.loss
            text = "starting" if progress is None else describe_position(progress, loss)
            share = progress.share_done if progress else 0.0
            rows.append((ProgressBar(1.0, share, width=bar_width), job.name, text))
            done += job.seconds * share
        spent = time.perf_counter() - self.began
        left = "" if done < KNOWN_SHARE * self.work else f", about {duration(spent * (self.work - done) / done)} left"
        failed = f", {self.failed} failed" if self.failed else ""
        text = f"{self.done} of {counted(self.total, 'job')}{failed}, {duration(spent)} spent{left}"
        rows.append((ProgressBar(self.work, done, width=bar_width), "total", text))
        table = Table.grid(padding=(0, 1))
        widest = max(len(text) for _, _, text in rows)
        # The numbers matter most; names get the remaining width.
        name_width = max(10, min(max(len(name) for _, name, _ in rows), self.console.width - bar_width - widest - 4))
        for width in (bar_width, name_width, None):
            table.add_column(width=width, no_wrap=True, overflow="ellipsis")
        for row in rows:
            table.add_row(*row)
        return Group(table)


def _print_failures(summary: ExecutionSummary, console: Console) -> None:
    """Print again at the end why jobs failed."""
    reasons: dict[str, list[str]] = {}
    for job, reason in summary.failures.items():
        reasons.setdefault(reason, []).extend(map(str, summary.tracebacks.get(job, [])))
    for reason, paths in list(reasons.items())[:MOST_FAILURES]:
        console.print(Text(f"{reason}; traceback: {', '.join(paths)}" if paths else reason), soft_wrap=True)
    more = "" if len(reasons) <= MOST_FAILURES else "; the other reasons are printed above"
    console.print(f"{len(summary.failures)} of the jobs failed{more}")


def exit_code(summary: ExecutionSummary, console: Console) -> int:
    """The exit code of a command that trained, after telling what went wrong.

    Raises:
        UserError: the user must correct something before the jobs can be trained.
    """
    if summary.stopped:
        console.print("stopped; finished work and checkpoints are kept; run the same command again to continue")
        return INTERRUPTED
    if summary.user_errors:
        raise UserError(summary.user_errors[0])
    if summary.failures:
        _print_failures(summary, console)
        return 1
    return 0
