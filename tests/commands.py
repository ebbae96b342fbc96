"""Command lines as users run them: in processes of their own, on a table and a dataset of a few small images."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark.cli.app import run_app
from benchmark.results.record import Record
from benchmark.results.store import Store

ROOT = Path(__file__).parents[1]
TIMEOUT = 600.0
"""Seconds after which a test gives up waiting for a command or an event; long, since the machine may be busy."""


def small_dataset(folder: Path) -> Path:
    """Three classes of 12 training and 4 test images of 8x8, told apart by their colour, and their TOML file."""
    stream = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(("blue", "green", "red")):
            place = folder / "images" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = stream.integers(0, 120, (8, 8, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(place / f"{number}.png")
    toml = folder / "blocks.toml"
    toml.write_text('name = "blocks"\nfolder = "images"\nimage_size = 8\npadding = 1\nflip = true\n')
    return toml


def small_table(
    folder: Path,
    methods: Sequence[str] = ("Baseline", "KD", "LSSKD"),
    teacher: str = "ResNet20",
    student: str = "ResNet20",
    dataset: str = "blocks.toml",
) -> Path:
    """A table of one column on the small dataset."""
    rows = "".join(f'[[rows]]\nmethod = "{method}"\n' for method in methods)
    toml = folder / "small.toml"
    toml.write_text(
        f'name = "small"\ncaption = "A small table."\ndataset = "{dataset}"\n'
        f'[[columns]]\nteacher = "{teacher}"\nstudent = "{student}"\n{rows}'
    )
    return toml


def arguments(table: Path, place: Path, *more: str, epochs: int = 2) -> list[str]:
    """What trains a table in so many epochs, in one process, with everything that is written kept under `place`."""
    where = ["--runs", str(place / "runs"), "--reports", str(place / "reports")]
    short = ["--epochs", str(epochs), "--precision", "fp32", "--workers", "1"]
    return ["--table", str(table), *where, *short, *more]


def environment() -> dict[str, str]:
    """One thread, and a checkout that is found from any folder."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def run_command(
    *command: str, module: str = "benchmark.run", folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command line of the suite to its end."""
    return subprocess.run(
        [sys.executable, "-m", module, *command],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=folder or ROOT,
        timeout=TIMEOUT,
        check=False,
    )


def run_here(
    *command: str, module: str = "benchmark.run", folder: Path | None = None, encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    """What `run_command` does, in this process, which has imported everything; the terminal has the encoding."""
    opened = importlib.import_module(module)
    if hasattr(opened, "__path__"):
        opened = importlib.import_module(f"{module}.__main__")
    said, errors = (io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2))
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(errors),
    ):
        patch.setattr(sys, "argv", [str(opened.__file__), *command])
        patch.setenv("COLUMNS", "200")
        # On a busy machine a second is soon over; nobody here waits for the word on a slow plan.
        patch.setattr("benchmark.execution.progress.SLOW_SECONDS", 600)
        patch.chdir(folder or ROOT)
        with pytest.raises(SystemExit) as ended:
            run_app(opened.main, f"python -m {module}")
    texts = [stream.buffer.getvalue().decode(encoding) for stream in (said, errors)]
    return subprocess.CompletedProcess(command, int(ended.value.code or 0), *texts)


@contextlib.contextmanager
def started_command(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Start `benchmark.run` in a process group of its own, as a terminal does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmark.run", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that a command does before it ends."""
    deadline = time.monotonic() + TIMEOUT
    while not happened():
        assert process.poll() is None, f"the command ended early: {process.communicate()[0]}"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def records_in(place: Path) -> dict[str, Record]:
    """The records that a command left, by run id."""
    return {record["id"]: record for record in Store(place / "runs").read_all()[0]}


def report_in(place: Path, ending: str) -> str:
    """The one report with this ending that a command left of its table."""
    (path,) = (place / "reports").glob(f"table_*.{ending}")
    return path.read_text(encoding="utf-8")


def record_of(place: Path, method: str, seed: int = 0) -> Record:
    """The one record of a method and a seed."""
    (record,) = (
        record
        for record in records_in(place).values()
        if record["run"]["method"] == method and record["run"]["seed"] == seed
    )
    return record


def files_under(folder: Path) -> list[str]:
    """Every file below a folder; none where there is no such folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
