"""Shows a sweep: as a live screen on a terminal, otherwise as a line for each change."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from benchmark.core.errors import UserError
from benchmark.core.text import counted, describe_position
from benchmark.execution.progress import BAR_WIDTH, Display
from slurm.client import SchedulerError
from slurm.monitor import CONDITIONS, Condition, JobLine, Snapshot
from slurm.pace import SCREEN_SECONDS, TEND_SECONDS

COLOURS: dict[Condition, str] = {
    "running": "green",
    "requeued": "yellow",
    "unknown": "yellow",
    "done": "bold green",
    "failed": "bold red",
    "blocked": "red",
    "cancelled": "magenta",
}
MOST_LINES = 30
"""How many jobs of one condition are named; the others are counted."""
PLAIN_SECONDS = 30.0


def render_screen(snapshot: Snapshot, verbose: bool = False) -> RenderableType:
    """A snapshot as a screen: counts, running jobs, failures with reasons, the progress of each table, hours.

    verbose: also every job that waits.
    """
    parts: list[RenderableType] = [_headline(snapshot)]
    parts += [Text(trouble, style="bold red") for trouble in snapshot.troubles]
    named: tuple[Condition, ...] = ("running", "requeued", "unknown", "failed", "blocked", "cancelled")
    for condition in CONDITIONS if verbose else named:
        lines = [line for line in snapshot.lines if line.condition == condition]
        if lines:
            parts.append(_list_jobs(condition, lines, len(lines) if verbose else MOST_LINES))
    return Group(*parts, _coverage(snapshot))


def _headline(snapshot: Snapshot) -> Text:
    counts = [(condition, count) for condition in CONDITIONS if (count := snapshot.counts[condition])]
    parts = [Text(f"{count} {condition}", COLOURS.get(condition, "")) for condition, count in counts]
    return Text.assemble(
        f"sweep {snapshot.name}: ", Text(", ").join(parts), f" of {counted(len(snapshot.lines), 'job')}"
    )


def _list_jobs(condition: Condition, lines: list[JobLine], most: int) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style=COLOURS.get(condition, ""), no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for line in lines[:most]:
        position = describe_position(line.shown) if line.shown else ""
        attempts = f"{line.attempts} attempts" if line.attempts > 1 else ""
        summary = "; ".join(filter(None, [position, line.reason, attempts]))
        table.add_row(condition, f"{line.task} {line.node}".strip(), ": ".join(filter(None, [line.name, summary])))
    if len(lines) > most:
        table.add_row(condition, "", f"and {len(lines) - most} more (--verbose names them)")
    return table


def _coverage(snapshot: Snapshot) -> Group:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1))
    for entry in snapshot.coverage:
        bar = ProgressBar(max(1, entry.asked), entry.done, width=BAR_WIDTH)
        table.add_row(entry.title, bar, f"{entry.done} of {counted(entry.asked, 'run')}")
    unit = snapshot.unit
    hours = f"{_hours(snapshot.hours_used)} {unit} hours used"
    left = "" if snapshot.is_over else f", about {_hours(snapshot.hours_left)} left"
    return Group(table, Text(hours + left))


def _hours(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


class SweepDisplay(Display):
    """Shows a sweep as it goes: a live screen, or a line for whatever changes."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, auto_refresh=False, vertical_overflow="crop")
        self._seen: dict[int, Condition] = {}
        self._troubles: tuple[str, ...] = ()
        self._counted = 0.0

    def show(self, snapshot: Snapshot) -> None:
        """Show the status of the sweep."""
        if self.live:
            self.live.update(render_screen(snapshot), refresh=True)
            return
        for line in snapshot.lines:
            before = self._seen.get(line.number)
            if line.condition != before and line.condition not in ("pending", "held back"):
                where = f" (job {line.task}{' on ' + line.node if line.node else ''})" if line.task else ""
                reason = f": {line.reason}" if line.reason else ""
                self.say(f"{line.condition:<9} {line.name}{where}{reason}")
            self._seen[line.number] = line.condition
        for trouble in snapshot.troubles:
            if trouble not in self._troubles:
                self.say(trouble)
        self._troubles = snapshot.troubles
        if time.monotonic() - self._counted > PLAIN_SECONDS or snapshot.is_over:
            self._counted = time.monotonic()
            self.console.print(_headline(snapshot), soft_wrap=True)


def watch(
    take: Callable[[], Snapshot], display: SweepDisplay, look_after: Callable[[], object] | None = None
) -> Snapshot:
    """Show a sweep until it is over or cancelled; returns its last status.

    take: takes a snapshot; look_after: called now and then. Errors are printed once and do not end the watch, since
    their cause may be removed while the jobs go on.
    """
    last, trouble = -math.inf, ""
    while True:
        try:
            snapshot = take()
            display.show(snapshot)
            if snapshot.is_at_rest:
                return snapshot
            if look_after is not None and time.monotonic() - last > TEND_SECONDS:
                last = time.monotonic()
                look_after()
            trouble = ""
        except (UserError, SchedulerError, OSError) as error:
            if str(error) != trouble:
                trouble = str(error)
                display.say(trouble)
        time.sleep(SCREEN_SECONDS)
