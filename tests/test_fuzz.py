"""Every command on mutated arguments, files and records: it ends soon, with a known exit code and whole files.

A failing case prints its number and its command line. The cases depend on their seed alone, so it can be repeated.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import json
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from benchmark import catalogue
from benchmark.cli.app import make_app
from benchmark.core.errors import UserError
from benchmark.execution.local import Local
from benchmark.execution.scheduler import ExecutionSummary
from benchmark.results.record import compute_checksum
from slurm import client
from tests.commands import ROOT, run_here, small_dataset
from tests.test_upgrade import unpack

SECONDS = 10
"""Processor time for each kind of mutation; what is not reached by then is left out."""
CASES = 150
"""Of each kind."""
HANG_SECONDS = 30
"""Processor time after which a command is taken to hang; in real time it may take ten times as long."""
EXIT_CODES = (0, 1, 2, 130)

COMMANDS = {
    "benchmark.run": "--table table.toml --dry-run --methods Baseline,KD --epochs 1 --runs runs --set KD.temperature=4",
    "benchmark.tune": "--method LS --grid epsilon=0.1,0.3 --pair ResNet8>ResNet8 --epochs 1 --runs runs --seeds 2",
    "benchmark.audit": "--runs runs --reports reports --only ps-kd-average",
    "benchmark.report": "--runs runs --reports reports --scale quick --table table.toml",
    "benchmark.merge": "colleague --runs runs --dry-run",
    "benchmark.export": "Baseline_ResNet8 --onnx --runs runs --output out/student.onnx --threads 1",
    "benchmark.speed": "--methods KD,AT --rounds 1 --threads 1 --image-size 32 --precision fp32",
    "benchmark.catalogue": "--check",
    "benchmark.decisions": "--sweeps 100 --max-seeds 4",
    "slurm.status": "--runs runs --once --sweep table-demo-9077f703",
    "slurm.retry": "--failed --runs runs",
    "slurm.cancel": "--runs runs --wait-seconds 0",
}
FILES = {
    "table.toml": ("benchmark.run", "--table table.toml --dry-run --epochs 1"),
    "figure.toml": ("benchmark.run", "--figure figure.toml --dry-run --epochs 1 --dataset digits"),
    "blocks.toml": ("benchmark.run", "--table table.toml --dataset blocks.toml --dry-run --methods Baseline"),
    "claims.toml": ("benchmark.audit", "--claims claims.toml --reports reports"),
    "profile.toml": ("benchmark.run", "--table table.toml --executor slurm --profile profile.toml --dry-run"),
}
READERS = (
    ("benchmark.run", "--table table.toml --dry-run --methods Baseline,KD,LS --epochs 1 --runs runs"),
    ("benchmark.audit", "--runs runs --reports reports --only ps-kd-average"),
    ("benchmark.merge", "runs --runs others"),
    ("benchmark.export", "KD_ResNet8 --onnx --runs runs"),
    ("slurm.status", "--runs runs --once"),
)
TOKENS = (
    "", " ", "-", "--", "=", ",", ">", "-1", "0", "1e400", "nan", "1" * 5000, "a" * 300, "a\0b", "[" * 2000, "{}",
    "true", "null", "%s{0}", "\N{LATIN SMALL LETTER A WITH DIAERESIS}", "\udcff", "\u202e", "II", "all", "KD", "digits",
    "table.toml", "runs", "/dev/null", "/proc/self/mem", "KD.temperature=", "WRN-40-2>WRN-16-2", "a=1,a=2", "--help",
    "--list",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 0.5, 10**30, 1e308, "", "x" * 500, "a/../../b", "\u202e", [], [[]], {}, {"a": None}, "2",
    [1, "a"],
)  # fmt: skip
CHARACTERS = 'abz019.,=-[]{}"\n\t #\\\0\N{LATIN SMALL LETTER A WITH DIAERESIS}\u2028'
"""Without slashes: no mutation may lead out of the test's folder."""


class Hang(BaseException):
    """Raised in a command that does not end."""


@contextlib.contextmanager
def limited_time() -> Iterator[None]:
    """Raise `Hang` in what takes too long."""

    def stop(*_: object) -> None:
        raise Hang

    for kind in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(kind, stop)
    signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 10 * HANG_SECONDS)
    try:
        yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with everything in it and files of every kind; nothing trains, measures, submits or downloads."""
    store = unpack("d8b8c26", tmp_path)
    shutil.copytree(store / "runs", store / "colleague")
    small_dataset(store)
    for name, source in (
        ("figure.toml", "figures/figure_6.toml"),
        ("claims.toml", "benchmark/audit/papers/lsskd.toml"),
        ("profile.toml", "slurm/profiles/example.toml"),
    ):
        shutil.copy(ROOT / source, store / name)

    def refuse(*_: object, **__: object) -> None:
        raise UserError("the test exports nothing")

    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "there is no network in this test")

    monkeypatch.setattr(Local, "train", lambda *_: ExecutionSummary())
    monkeypatch.setattr("benchmark.speed.training.measure", lambda *_: None)
    monkeypatch.setattr("benchmark.export.__main__.export", refuse)
    monkeypatch.setattr(catalogue, "probe_method", lambda name: catalogue._facts(name))
    monkeypatch.setattr(catalogue, "write_text", lambda *_: None)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    for name in client.COMMANDS:
        (tmp_path / name).write_text("#!/bin/sh\necho 'Invalid job id specified' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return store


def check(case: str, module: str, command: list[str], folder: Path) -> None:
    """Run a command line and fail unless it ends as a command should."""
    shown = f"{case}: {module} {command!r:.1000}"
    try:
        with limited_time():
            ended = run_here(*command, module=module, folder=folder)
    except (Exception, Hang) as error:
        raise AssertionError(f"{shown}: {type(error).__name__}: {error!s:.500}") from error
    finally:
        torch.set_num_threads(1)
    assert ended.returncode in EXIT_CODES, shown
    assert "Traceback" not in ended.stdout + ended.stderr, shown
    if ended.returncode == 2:
        (line,) = (line for line in ended.stderr.splitlines() if not line.startswith("planning"))
        assert line.startswith("error: "), shown
        assert len(line) < 11_000, shown
    half_written = [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    assert not half_written, shown
    for path in folder.glob("reports/*"):
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".csv":
            rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
            assert len({len(row) for row in rows}) == 1, f"{shown}: {path}"


def cases(kind: str) -> Iterator[tuple[str, random.Random]]:
    """The cases of a kind, each with a stream of its own, until the time is up."""
    deadline = time.process_time() + SECONDS
    for number in range(CASES):
        if time.process_time() > deadline:
            return
        name = f"{kind} {number}"
        yield name, random.Random(name)


def option_names(module: str) -> list[str]:
    """The options of a command."""
    opened = importlib.import_module(module)
    opened = importlib.import_module(f"{module}.__main__") if hasattr(opened, "__path__") else opened
    return [option for parameter in typer.main.get_command(make_app(opened.main)).params for option in parameter.opts]


def mutate_arguments(command: list[str], options: list[str], stream: random.Random) -> list[str]:
    """A command line with a few arguments removed, repeated, swapped, replaced or added."""
    mutated = list(command)
    for _ in range(stream.randint(1, 3)):
        position = stream.randrange(len(mutated)) if mutated else 0
        match stream.randrange(6):
            case 0:
                del mutated[position : position + 1]
            case 1:
                mutated[position:position] = mutated[position : position + stream.randint(1, 2)]
            case 2:
                stream.shuffle(mutated)
            case 3:
                mutated[position : position + 1] = [stream.choice(TOKENS)]
            case 4:
                mutated += [stream.choice(options), stream.choice(TOKENS)]
            case 5 if mutated:
                mutated[position] = mutate_text(mutated[position], stream).replace("/", "")
    return mutated


def mutate_text(text: str, stream: random.Random) -> str:
    """A text with a piece removed, repeated, replaced or cut off."""
    start = stream.randrange(len(text) + 1)
    end = min(len(text), start + stream.choice((1, 1, 2, 5, 30)))
    put = "".join(stream.choices(CHARACTERS, k=stream.randint(1, 3)))
    return stream.choice(
        (
            text[:start] + text[end:],
            text[:end] + text[start:],
            text[:start] + put + text[end:],
            text[:start] + stream.choice(TOKENS) + text[end:],
            text[:start],
        )
    )


def mutate_lines(text: str, stream: random.Random) -> str:
    """A text with a line removed or repeated, a value replaced, or a piece of it mutated."""
    lines = text.splitlines()
    position = stream.randrange(len(lines))
    match stream.randrange(4):
        case 0:
            del lines[position]
        case 1:
            lines.insert(position, lines[stream.randrange(len(lines))])
        case 2:
            lines[position] = f"{lines[position].partition('=')[0]} = {json.dumps(stream.choice(VALUES))}"
        case 3:
            lines[position] = mutate_text(lines[position], stream)
    return "\n".join(lines)


def mutate_json(text: str, stream: random.Random) -> str:
    """A JSON document with one value replaced or removed; records have a checksum that is right again."""
    whole = json.loads(text)
    parent, key = {"": whole}, ""
    while isinstance(parent[key], dict | list) and parent[key] and stream.random() < 0.9:
        parent = parent[key]
        key = stream.choice(list(parent)) if isinstance(parent, dict) else stream.randrange(len(parent))
    if stream.random() < 0.2 and parent[key] is not whole:
        del parent[key]
    else:
        parent[key] = stream.choice(VALUES)
    if isinstance(whole, dict) and "sha256" in whole and stream.random() < 0.8:
        whole["sha256"] = compute_checksum(whole)
    return json.dumps(whole)


def mutate_file(path: Path, stream: random.Random) -> None:
    """Change a file of a store."""
    content = path.read_bytes()
    if path.suffix == ".json" and stream.random() < 0.7:
        # An empty file, and the index, which begins with its checksum, are no JSON.
        with contextlib.suppress(ValueError):
            path.write_text(mutate_json(content.decode(), stream), encoding="utf-8")
    elif stream.random() < 0.3:
        path.write_bytes(content[: stream.randrange(len(content) + 1)])
    else:
        position = stream.randrange(len(content) + 1)
        path.write_bytes(content[:position] + stream.randbytes(2) + content[position + stream.randrange(3) :])


def test_mutated_arguments(folder: Path) -> None:
    options = {module: option_names(module) for module in COMMANDS}
    for case, stream in cases("arguments"):
        module = stream.choice(list(COMMANDS))
        check(case, module, mutate_arguments(COMMANDS[module].split(), options[module], stream), folder)


def test_mutated_toml_files(folder: Path) -> None:
    originals = {name: (folder / name).read_text(encoding="utf-8") for name in FILES}
    for case, stream in cases("files"):
        name = stream.choice(list(FILES))
        module, command = FILES[name]
        text = originals[name]
        for _ in range(stream.randint(1, 3)):
            text = mutate_lines(text, stream) or "\n"
        (folder / name).write_bytes(text.encode(errors="surrogateescape"))
        check(case, module, command.split(), folder)
        (folder / name).write_text(originals[name], encoding="utf-8")


def test_mutated_stores(folder: Path) -> None:
    original = folder / "colleague"
    files = sorted(path.relative_to(original) for path in original.rglob("*") if path.is_file())
    for case, stream in cases("stores"):
        for name in ("runs", "others"):
            shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(original, folder / "runs")
        for path in stream.sample(files, stream.randint(1, 3)):
            mutate_file(folder / "runs" / path, stream)
        module, command = stream.choice(READERS)
        check(case, module, command.split(), folder)
