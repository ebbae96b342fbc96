"""How long it takes to plan a large sweep and to read its records: `python -m benchmark.speed --what planning`."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmark.core.devices import peak_memory
from benchmark.core.protocols import protocol_named, scale_named
from benchmark.core.spec import Run
from benchmark.core.text import counted
from benchmark.planning.jobs import missing_jobs
from benchmark.planning.request import RunFactory
from benchmark.planning.tables import plan_table
from benchmark.results.record import RECORD_FORMAT, compute_checksum
from benchmark.results.store import Store, load
from tables.specification import load_table, table_names

RUNS = 100_000
SCALE = "paper"
DATASET = "made-up"
IMAGE_SIZE, IMAGES = 32, 50_000
EPOCHS = 240
"""In each made-up record, as in those of the protocol."""


def measure(console: Console, count: int, workers: int, folder: Path | None = None) -> None:
    """Print seconds and memory of planning so many runs of the tables, without records and with, and of loading these.

    folder: where the records are made for a while; the system's folder for temporary files by default.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        store = Store(Path(place))
        with _timed(console, "planning, no record yet"):
            runs = _runs(count)
            jobs = missing_jobs(runs, store, workers, IMAGE_SIZE, IMAGES)
        together = sum(len(job.runs) for job in jobs)
        console.print(
            f"{counted(len(runs), 'run')} and what they depend on: {together} in {counted(len(jobs), 'job')}",
            highlight=False,
        )
        with _timed(console, f"making {len(runs)} records"):
            _make_records(store, runs)
        for reading in ("first, which makes the index", "second", "third"):
            with _timed(console, f"loading, {reading}"):
                load(store.root)
        with _timed(console, "planning, all recorded"):
            missing_jobs(_runs(count), store, workers, IMAGE_SIZE, IMAGES)


def _runs(count: int) -> list[Run]:
    """So many runs of all tables, by as many seeds as it takes."""
    asked = []
    for table in (load_table(name).at(SCALE) for name in table_names()):
        protocol = protocol_named(table.protocol_for(SCALE))
        asked.append((table, RunFactory(DATASET, "0" * 64, protocol, scale_named(SCALE), torch.device("cpu"))))

    def all_of(seeds: Iterable[int]) -> list[Run]:
        seeds = tuple(seeds)
        grids = (plan_table(table, request, seeds) for table, request in asked)
        return list(dict.fromkeys(run for grid in grids for run in grid.requested_runs()))

    seeds = -(-count // len(all_of(range(1))))
    return all_of(range(seeds))[:count]


def _make_records(store: Store, runs: Sequence[Run]) -> None:
    """Records as the store writes them, but that nothing is flushed to the disk."""
    figures = {"loss": 0.25, "terms": {"ce": 1.5, "kd": 0.125}, "top1": 75.0, "top5": 93.5, "nll": 0.875, "ece": 4.0}
    epochs = [{"epoch": epoch + 1, **figures} for epoch in range(EPOCHS)]
    for number, run in enumerate(runs):
        final = epochs[-1] | {"top1": 70 + number / len(runs)}
        record = {
            **{"format": RECORD_FORMAT, "id": run.id, "digest": run.digest, "run": json.loads(run.model_dump_json())},
            **{"status": "finished", "epochs": epochs, "final": final, "best_on_test": final, "weights": {}},
            **{"cost": {"images": IMAGES, "parameters": 272019}, "provenance": {"seconds": number / 7, "torch": "2"}},
        }
        folder = store.folder(run)
        folder.mkdir(parents=True)
        text = json.dumps(record | {"sha256": compute_checksum(record)}, indent=1)
        (folder / "record.json").write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def _timed(console: Console, what: str) -> Iterator[None]:
    wall, processor = time.perf_counter(), time.process_time()
    yield
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    memory = peak_memory(torch.device("cpu")) / 1e6
    console.print(
        f"{what}: {wall:.2f} s ({processor:.2f} s of processor time), at most {memory:.0f} MB so far",
        highlight=False,
        soft_wrap=True,
    )
