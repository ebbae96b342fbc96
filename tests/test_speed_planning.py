"""The measurement of planning and loading does what it says it times."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from benchmark.planning.jobs import missing_jobs
from benchmark.results.store import Store, load
from benchmark.speed import planning


def test_it_plans_makes_records_and_loads_them(tmp_path: Path) -> None:
    screen = io.StringIO()
    planning.measure(Console(file=screen), 7, workers=1, folder=tmp_path)
    lines = screen.getvalue().splitlines()
    steps = ["planning", "making", "loading", "loading", "loading", "planning"]
    timed = [
        line for line in lines if re.search(r": \d+\.\d\d s \(\d+\.\d\d s of processor time\), at most \d+ MB", line)
    ]
    assert [line.partition(" ")[0].rstrip(",") for line in timed] == steps
    assert next(line for line in lines if line not in timed).startswith("7 runs and what they depend on: ")
    assert list(tmp_path.iterdir()) == []


def test_the_made_up_records_are_whole_ones(tmp_path: Path) -> None:
    runs = planning._runs(5)
    store = Store(tmp_path)
    planning._make_records(store, runs)
    assert {record["digest"] for record in store.records()} == {run.digest for run in runs}
    assert len(load(tmp_path)) == len(runs) == 5
    missing = {run for job in missing_jobs(runs, store, 1, 32, 640) for run in job.runs}
    assert missing.isdisjoint(runs)
