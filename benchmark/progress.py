"""What long work looks like: a live line for each running cohort under a total, or plain lines where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from benchmark.command_line import INTERRUPTED
from benchmark.errors import UserError
from benchmark.executor import Ending, Report, Watcher, run_jobs
from benchmark.plan import Job
from benchmark.training.cohort import Progress
from benchmark.training.material import Settings

PLAIN_SECONDS = 20.0
BAR_WIDTH = 20


def duration(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def share_done(progress: Progress | None) -> float:
    """The share of a cohort's steps that is done."""
    if progress is None:
        return 0.0
    return (progress.epoch - 1 + progress.step / progress.steps) / progress.epochs


class Display(Watcher):
    """Shows a plan at work on a terminal (live) or in a log (plain lines)."""

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        self.console = console
        self.total = len(jobs)
        self.work = sum(job.seconds for job in jobs) or 1.0
        self.running: dict[int, tuple[Job, Progress | None]] = {}
        self.done, self.done_work, self.failed = 0, 0.0, 0
        self.began = time.perf_counter()
        self.last_line: dict[int, float] = {}
        self.live = (
            Live(console=console, refresh_per_second=4, get_renderable=self._picture) if console.is_terminal else None
        )

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def started(self, job: Job) -> None:
        self.running[id(job)] = (job, None)
        self._line(f"started   {job.name}")

    def progress(self, job: Job, progress: Progress) -> None:
        self.running[id(job)] = (job, progress)
        now = time.perf_counter()
        if not self.live and now - self.last_line.get(id(job), 0.0) > PLAIN_SECONDS:
            self.last_line[id(job)] = now
            self._line(f"          {job.name}: {self._words(progress)}")

    def said(self, job: Job, line: str) -> None:
        self._line(f"{job.name}: {line}")

    def ended(self, job: Job, ending: Ending) -> None:
        self.running.pop(id(job), None)
        if ending.reason is not None:
            self.failed += 1
            self._line(f"failed    {job.name}: {ending.reason}")
        elif ending.stopped:
            self._line(f"stopped   {job.name}")
        else:
            self.done += 1
            self.done_work += job.seconds
            outcomes = ", ".join(f"{method} {outcome}" for method, outcome in ending.outcomes.items())
            self._line(f"finished  {job.title}: {outcomes} ({self.done} of {self.total} jobs)")

    def _line(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)

    def _words(self, progress: Progress) -> str:
        top1 = "" if progress.top1 is None else f", test {progress.top1:.1f} %"
        return (
            f"epoch {progress.epoch}/{progress.epochs}, {progress.images_per_second:.0f} images/s, "
            f"loss {progress.loss:.3f}{top1}, {duration(progress.seconds_left)} left"
        )

    def _picture(self) -> Group:
        rows: list[tuple[ProgressBar, str, str]] = []
        for job, progress in self.running.values():
            words = "starting" if progress is None else self._words(progress)
            rows.append((ProgressBar(1.0, share_done(progress), width=BAR_WIDTH), job.name, words))
        done = self.done_work + sum(job.seconds * share_done(progress) for job, progress in self.running.values())
        spent = time.perf_counter() - self.began
        left = "" if done < 0.02 * self.work else f", about {duration(spent * (self.work - done) / done)} left"
        failed = f", {self.failed} failed" if self.failed else ""
        words = f"{self.done} of {self.total} jobs{failed}, {duration(spent)} spent{left}"
        rows.append((ProgressBar(self.work, done, width=BAR_WIDTH), "total", words))
        table = Table.grid(padding=(0, 1))
        widest = max(len(words) for _, _, words in rows)
        # The figures are what people look at; the names take what room is left.
        name_width = max(10, min(max(len(name) for _, name, _ in rows), self.console.width - BAR_WIDTH - widest - 4))
        for width in (BAR_WIDTH, name_width, None):
            table.add_column(width=width, no_wrap=True, overflow="ellipsis")
        for row in rows:
            table.add_row(*row)
        return Group(table)


def train(jobs: Sequence[Job], settings: Settings, workers: int, console: Console) -> Report:
    """Train all jobs and show how they get on."""
    if not jobs:
        console.print("nothing to train: every run has its record")
        return Report()
    with Display(jobs, console) as display:
        return run_jobs(jobs, settings, workers, display)


def exit_code(report: Report, console: Console) -> int:
    """The exit code of a command that trained, after telling what went wrong.

    Raises:
        UserError: something that the user must mend kept jobs from ending.
    """
    if report.stopped:
        console.print("stopped; all that was done is kept, and the same command goes on from here")
        return INTERRUPTED
    if report.user_errors:
        raise UserError(report.user_errors[0])
    if report.failures:
        console.print(f"{len(report.failures)} of the jobs failed; what they say stands above")
        return 1
    return 0
