"""What the faults cost: what a disturbed sweep holds, compared with an undisturbed one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError
from benchmark.io.files import compute_sha256
from benchmark.io.json_diff import first_difference
from benchmark.results.record import Record, comparable_part
from benchmark.results.store import Store
from tests.chaos.fixture import Sweep

LOST, WRONG, DUPLICATED, FAILED = "lost", "wrong", "duplicated", "failed"


@dataclass
class Verdict:
    """Faults by kind, and what is wrong with the sweep, a line each."""

    injected: Counter[str] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)
    """Those that hit a worker that held a claim, or a file that was read afterwards."""
    problems: dict[str, list[str]] = field(default_factory=lambda: {LOST: [], WRONG: [], DUPLICATED: [], FAILED: []})
    """Runs without a record; with another one than undisturbed; trained more than once; what ended without a cause."""
    records: int = 0
    rounds: int = 0
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not any(self.problems.values())


def compare(sweep: Sweep, calm: Path, disturbed: Path, problems: dict[str, list[str]]) -> int:
    """Note what a disturbed store lacks or has wrong, and records that no run explains; returns how many it holds."""
    expected, got = Store(calm), Store(disturbed)
    for run in sweep.runs:
        right = expected.record(run)
        assert right is not None
        try:
            found = got.record(run)
        except UserError as error:
            problems[WRONG].append(str(error))
            continue
        if found is None:
            problems[LOST].append(f"{run.id} has no record")
            continue
        differences = (
            [difference] if (difference := wrong_figure(comparable_part(right), comparable_part(found))) else []
        )
        problems[WRONG] += [f"{run.id}: {text}" for text in differences + _weights(got.folder(run), right)]
    known = {got.folder(run) for run in sweep.runs}
    held = list(disturbed.glob("*/*/record.json"))
    problems[DUPLICATED] += [f"{path} is the record of no run" for path in held if path.parent not in known]
    return len(held)


def _weights(folder: Path, right: Record) -> list[str]:
    """What is wrong with the weights in a run's folder."""
    texts = []
    for part, digest in right["weights"].items():
        path = folder / f"{part}.safetensors"
        if not path.exists():
            texts.append(f"{path.name} is not there")
        elif compute_sha256(path) != digest:
            texts.append(f"{path.name} is another one")
    return texts


def wrong_figure(right: Any, found: Any) -> str | None:
    """The first place where two values of JSON differ, and how; None where they are equal."""
    difference = first_difference(right, found)
    if difference is None:
        return None
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in difference.place)
    place = "".join(steps).lstrip(".") or "record"
    return f"{place} is {_short(difference.right)} instead of {_short(difference.left)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
