"""How two runs of one specification differ, in a line."""

from __future__ import annotations

from typing import Any

from benchmark.io.json_diff import JsonDiff, canonical, first_difference
from benchmark.io.untrusted import escape_control_chars
from benchmark.results.record import Record, comparable_part

FIRST = ("status", "reason", "failed_at", "final", "best_on_test", "epochs", "cost", "weights")
"""The order in which records are compared."""
EXPLAINING = ("torch", "cuda", "device_name", "threads", "version", "commit")
"""The fields of provenance that may explain another outcome."""


def compare_records(ours: Record, theirs: Record) -> str:
    """The first difference between the outcomes of two records, and what may explain it; empty if they are equal."""
    here, there = comparable_part(ours), comparable_part(theirs)
    names = [*FIRST, *sorted({*here, *there} - {*FIRST})]
    difference = first_difference(*({name: side.get(name) for name in names} for side in (here, there)))
    if difference is None:
        return ""
    text = _line(difference)
    if difference.place[:1] == ("weights",):
        text = f"all figures are equal, and the weights differ: {text}"
    mine, other = ours["provenance"], theirs["provenance"]
    differing = [name for name in EXPLAINING if mine.get(name) != other.get(name)]
    return "; ".join(
        [text, *(f"{name} {_brief(mine.get(name))} here, {_brief(other.get(name))} there" for name in differing)]
    )


def compare_figures(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """The first difference between two measurements of a teacher; empty if they are equal."""
    difference = first_difference(ours, theirs)
    return "" if difference is None else _line(difference)


def _line(difference: JsonDiff) -> str:
    """A difference in words: `final.top1 71.2 here, 70.9 there`; items of lists are counted from 1."""
    place = ".".join(str(step + 1) if isinstance(step, int) else step for step in difference.place)
    return f"{escape_control_chars(place, 80)} {_brief(difference.left)} here, {_brief(difference.right)} there"


def _brief(value: Any) -> str:
    if value is None:
        return "nothing"
    return escape_control_chars(value if isinstance(value, str) else canonical(value), 40)
