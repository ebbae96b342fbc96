"""What a sweep decided, in words, on a terminal and as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as ScreenTable
from rich.text import Text

from benchmark.core.models import FrozenModel
from benchmark.core.sequences import FIRST
from benchmark.core.statistics import LEVEL
from benchmark.core.text import counted, format_minus, format_signed
from benchmark.decisions.decide import Decision
from benchmark.io.files import write_text

PREFIX = "decision_"
WIDEST = 1000
"""Columns of a terminal in which every line of the table has room."""


class DecisionReport(FrozenModel):
    """What a sweep decided, as its JSON file holds it.

    target: the table or figure with its scale, by the stem of its files; most: how many seeds a column could have;
    level: of each column by itself; method, assumption: of the intervals; notes: what a reader must know.
    """

    claim: str
    target: str
    setting: str
    most: int
    level: float = LEVEL
    method: str = (
        "Lai's confidence sequence for the mean of normal values of unknown variance (The Annals of Statistics 4, "
        "1976, 265-280), of the differences paired by seed"
    )
    assumption: str = "the differences of the seeds are independent and normal, with one mean and one variance"
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...]
    summary: str
    generated_from: str

    @property
    def file_name(self) -> str:
        """Its file: one for each target, claim and limit."""
        told = hashlib.sha256(json.dumps([self.claim, self.most]).encode()).hexdigest()[:8]
        return f"{PREFIX}{self.target}_{told}.json"


def describe_decision(decision: Decision) -> str:
    """A decision in a line: `ResNet56>ResNet20: KD - Baseline +1.20 [+0.31, +2.09] at 4 seeds: holds`."""
    where = f"{decision.column}: {decision.compared}"
    if decision.mean is None:
        return f"{where}: no seed has all of it yet"
    interval = format_interval(decision) or "no interval"
    verdict = "go on" if decision.is_open else decision.verdict
    against = f" against {format_signed(decision.margin)}" if decision.margin else ""
    return f"{where} {format_signed(decision.mean)} {interval}{against} at {counted(decision.n, 'seed')}: {verdict}"


def describe_difference(decisions: Sequence[Decision]) -> str:
    """What is compared, and with what: `KD - Baseline against +0.50`."""
    return "; ".join(
        dict.fromkeys(
            each.compared + (f" against {format_signed(each.margin)}" if each.margin else "") for each in decisions
        )
    )


def format_interval(decision: Decision) -> str:
    """The interval of the mean, `` where there is none."""
    if decision.interval is None:
        return ""
    return f"[{', '.join(format_signed(end) for end in decision.interval)}]"


def format_cut(decision: Decision) -> str:
    """How much of the variance pairing took away: `63%`."""
    cut = decision.variance_cut
    return "" if cut is None else format_minus(f"{cut:.0%}")


def summarise_decisions(decisions: Sequence[Decision], most: int) -> str:
    """Say how many columns are decided, what it saved, and what the error rate is of."""
    columns, decided = len(decisions), [each for each in decisions if not each.is_open]
    said = [f"{len(decided)} of {counted(columns, 'column')} decided"]
    holding = sum(each.verdict == "holds" for each in decided)
    if decided:
        said[0] += f" ({holding} hold, {len(decided) - holding} do not)" if columns > 1 else f": {decided[0].verdict}"
    saved, runs = sum(each.saved for each in decisions), sum(each.saved_runs for each in decisions)
    said.append(f"{saved} of {columns * most} seeds saved against {most} for each ({counted(runs, 'run')})")
    if columns > 1:
        at_once = sum(each.at_once for each in decisions)
        error = 1 - LEVEL
        said.append(
            f"each column is decided by itself at {LEVEL:.0%}, so the chance of a wrong one among them is at most "
            f"{min(1.0, columns * error):.0%}; with {error:.0%} for all {columns} together, {at_once} are decided"
        )
    return "; ".join(said)


def _make_screen(decisions: Sequence[Decision], between: str) -> ScreenTable:
    """Make the table for a terminal; between: what stands between the teacher and the student of a column."""
    screen = ScreenTable(box=None, pad_edge=False)
    screen.add_column("column", overflow="fold")
    for heading in ("mean", "interval", "n", "verdict", "saved", "pairing cut"):
        screen.add_column(heading, no_wrap=True, justify="left" if heading == "verdict" else "right")
    for each in decisions:
        mean = "" if each.mean is None else format_signed(each.mean)
        cells = (mean, format_interval(each), str(each.n), each.verdict, str(each.saved), format_cut(each))
        screen.add_row(Text(each.column.replace(">", between)), *cells)
    return screen


def print_decisions(report: DecisionReport, console: Console) -> None:
    """Print the decisions as a table, and what they rest on."""
    screen = _make_screen(report.decisions, ">")
    if Measurement.get(console, console.options.update(max_width=WIDEST), screen).maximum > console.width:
        # Two lines for a pair, as in the headings of tables, rather than a break within a name.
        screen = _make_screen(report.decisions, "\n>")
    console.print(Text(f"{report.claim}: {describe_difference(report.decisions)}, {report.setting}", style="bold"))
    console.print(screen)
    for line in (f"{report.summary}.", *report.notes):
        console.print(Text(line), soft_wrap=not console.is_terminal)


def write_decisions(report: DecisionReport, folder: Path) -> Path:
    """Write the decisions as JSON and return the file.

    Raises:
        UserError: the folder cannot be written.
    """
    path = folder / report.file_name
    write_text(path, json.dumps(report.model_dump(mode="json"), indent=1) + "\n")
    return path


def list_notes(decisions: Sequence[Decision], gaps: Sequence[str]) -> tuple[str, ...]:
    """What a reader must know: the unit and the interval, seeds without a result, and where pairing is not whole."""
    notes = [
        f"Percentage points, paired by seed. The interval holds after each seed at once ({LEVEL:.0%}, Lai 1976) if the "
        f"differences are normal; it begins at {FIRST} seeds. Student's interval of the same seeds, which the report "
        "shows too, does not hold for rows whose number of seeds was chosen by looking at them."
    ]
    for each in decisions:
        if each.failed:
            named, verb = ("seed", "is") if len(each.failed) == 1 else ("seeds", "are")
            numbers = ", ".join(map(str, each.failed))
            notes.append(f"{each.column}: {named} {numbers} failed and {verb} left out.")
        if each.std == 0:
            notes.append(f"{each.column}: the same at all seeds, which does not tell how it varies, so no interval.")
    return (*notes, *gaps)
