"""A store of made-up records, so that a report has everything to show without anything trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark.core.protocols import get_protocol, get_scale
from benchmark.core.rng import generator
from benchmark.core.spec import Run
from benchmark.planning.request import RunFactory, collect_dependencies
from benchmark.planning.tables import plan_table
from benchmark.plugins.registry import method_class
from benchmark.report.table import ReportCell, ReportTable
from benchmark.results.store import Store
from tables.specification import load_table


def request(scale: str = "paper", dataset: str = "cifar100", **changes: Any) -> RunFactory:
    """A request for runs on a dataset that nobody has."""
    place = (dataset, "made up", get_protocol("lsskd"), get_scale(scale), torch.device("cpu"))
    return RunFactory(*place, precision="fp32", **changes)


def fill(
    root: Path,
    table: str = "II",
    scale: str = "paper",
    dataset: str = "cifar100",
    seeds: int = 3,
    methods: Sequence[str] = (),
    pairs: Sequence[str] = (),
    epochs: int | None = None,
) -> list[Run]:
    """Records of a table's cells, and of all that these depend on, with curves of so many epochs or all of them."""
    specification = load_table(table)
    # How long these rows are takes seconds to count, and nothing here depends on it.
    rows = tuple(row for row in specification.rows if row.as_long_as is None)
    specification = specification.model_copy(update={"rows": rows}).at(scale)
    runs = collect_dependencies(
        plan_table(specification, request(scale, dataset), range(seeds), methods, pairs).requested_runs()
    )
    for run in runs:
        write(root, run, epochs)
    return runs


def write(root: Path, run: Run, length: int | None = None, **changes: Any) -> Path:
    """A record of a run with curves that look like those of training; returns its folder."""
    store = Store(root)
    record = {**record_of(run, length), **changes}
    store.begin(run)
    store.finish(run, record, {})
    return store.folder(run)


def record_of(run: Run, epochs: int | None = None) -> dict[str, Any]:
    """What a run might have recorded; the same for the same run."""
    stream = np.random.default_rng(int(torch.randint(2**31, (), generator=generator("made up", run.digest))))
    length = epochs or run.schedule.epochs
    method = method_class(run.method)
    top = (
        70 + 4 * ((hash_of(run.method) % 100) / 100) + 3 * ((hash_of(run.student) % 100) / 100) + stream.normal(0, 0.3)
    )
    figures = []
    for epoch in range(1, length + 1):
        share = epoch / length
        rate = 1 - math.exp(-5 * share) + 0.08 * (share > 0.62) + 0.04 * (share > 0.87)
        accuracy = min(99.0, top * rate / 1.12 + stream.normal(0, 0.6) * (1.1 - share))
        line: dict[str, Any] = {"epoch": epoch, "loss": 4.6 * math.exp(-3 * share) + 0.3 + abs(stream.normal(0, 0.02))}
        if method.trains_student:
            line |= {"top1": accuracy, "top5": min(99.9, accuracy + 20), "nll": 3 - accuracy / 40, "ece": 12 * share}
            if method.student_branches:
                line["stages"] = [accuracy - 14, accuracy - 6, accuracy + 1]
        figures.append(line)
    last = dict(figures[-1])
    if "stages" in last:
        last["stages_joint"] = [value - 9 for value in last["stages"]]
    figures[-1] = last
    found: dict[str, Any] = {"status": "finished", "epochs": figures, "final": last}
    if method.trains_student:
        found["best_on_test"] = max(figures, key=lambda line: line["top1"])
    factor = 10 if method.student_branches else 3 if method.needs_teacher else 1
    found["cost"] = {
        "images": 50000,
        "image_size": 32,
        "parameters": 703284 if method.trains_student else 0,
        "parameters_in_training": 703284 * (4 if method.student_branches else 1),
        "multiply_adds": 101_000_000 if method.trains_student else 0,
        "training_multiply_adds": factor * 303_000_000 * 50000 * length,
    }
    found["provenance"] = {
        "version": "0.1.0",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "command": "python -m benchmark.run",
        "python": "3.11.7",
        "torch": "2.13.0",
        "cuda": None,
        "device": "cpu",
        "device_name": "A processor",
        "host": "secret-host-name",
        "written": f"2026-01-{1 + run.seed:02d}T12:00:00+00:00",
        "precision": run.precision,
        "threads": 1,
        "seconds": 12.5 * factor * length,
        "seconds_of_its_own": 10.0 * factor * length,
        "seconds_of_its_teacher": 2.5 * length if run.teacher else 0.0,
        "images_per_second": 5000.0,
        "peak_memory_bytes": 2**30 * factor // 2,
        "cohort": [run.id],
        "resumed": 0,
        "pieces": [{"epoch": 1, "step": 0, "device": "cpu", "device_name": "A processor", "threads": 1}],
    }
    return found


def hash_of(text: str) -> int:
    """A number that is the same in every process."""
    return sum((place + 1) * ord(letter) for place, letter in enumerate(text))


def failed(root: Path, run: Run, reason: str = "loss not finite at epoch 3, step 17") -> Path:
    """The record of a run that failed."""
    provenance = record_of(run, 1)["provenance"]
    store = Store(root)
    store.begin(run)
    record = {"status": "failed", "reason": reason, "failed_at": {"epoch": 3, "step": 17}, "epochs": []}
    store.finish(run, {**record, "provenance": provenance}, {})
    return store.folder(run)


def column(listing: ReportTable, title: str) -> dict[str, ReportCell]:
    """What stands in a column, by the name of the row."""
    place = [heading.name for heading in listing.headings].index(title)
    return {row[0].text: row[place] for row in listing.rows}
