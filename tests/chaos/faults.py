"""What is done to workers and files: drawn in advance from a seed, so that the same seed intends the same faults."""

from __future__ import annotations

import glob
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

How = Literal["truncated", "emptied", "flipped"]
KILLS = {"kill": 5, "stop, then kill": 2, "terminate": 2, "kill all": 3}
"""Signals to workers, with how often each is drawn. To stop is SIGSTOP for a while; to terminate is SIGTERM."""
DAMAGES = {"record": 7, "checkpoint": 6, "weights": 4, "cache": 2, "claim": 3, "run.json": 1, "epochs.jsonl": 1}
"""Files, likewise."""
OF_A_RUN = ("record", "weights", "run.json", "epochs.jsonl")
LIVE = ("record", "weights")
"""What may also be damaged under the eyes of workers.

Not a checkpoint or a cache: they are memory-mapped, and a page that changes after its checksum was compared is nothing
that a program can survive. Not the claim of a living worker: its loss is answered by another worker, by design.
"""
WAYS: dict[How, int] = {"flipped": 3, "truncated": 2, "emptied": 1}
STEPS = (16, 60)
"""Up to so many things that workers do are waited for before the next fault, mostly and now and then."""
NOW_AND_THEN = 0.25
PATTERNS = {
    "record": "runs/*/*/record.json",
    "checkpoint": "runs/*/cohorts/*/checkpoint-*.safetensors",
    "weights": "runs/*/*/*.safetensors",
    "claim": "runs/*/*/claim-*.json",
    "run.json": "runs/*/*/run.json",
    "epochs.jsonl": "runs/*/*/epochs.jsonl",
    "cache": ".kd-cache/*/*.*",
}


@dataclass(frozen=True)
class Damage:
    """A file to be damaged: of which kind, which one of those that are there (0 to 1), and how."""

    kind: str
    run: float
    """Of which run, where it is a run's: those that were trained are no likelier than others."""
    pick: float
    how: How
    place: float
    """Where it is cut, or where the first bit is flipped, as a share of the file."""
    bits: int
    """How many bits are flipped."""


@dataclass(frozen=True)
class Kill:
    """A signal to one of the workers, or to all, after so many steps of them and then so many seconds."""

    how: str
    pick: float
    steps: int
    seconds: float


@dataclass(frozen=True)
class Round:
    """What is intended from a start of the workers to the next one."""

    parts: tuple[tuple[float, ...], ...]
    """Of each worker, a number for each run: those below a half it leaves to others."""
    live: tuple[tuple[Kill, Damage | None], ...]
    """Faults while they work; the damage comes just before the kill."""
    after: tuple[Damage, ...]
    """Faults when none is left."""


def rounds(seed: int, workers: int, runs: int, damages: Mapping[str, int]) -> Iterator[Round]:
    """The faults that a seed intends, without an end. damages: how often each kind of file is drawn."""
    stream = random.Random(seed)
    alive = {kind: weight for kind, weight in damages.items() if kind in LIVE}
    while True:
        # One worker at least trains all.
        parts = tuple(tuple(max(stream.random(), worker == 0) for _ in range(runs)) for worker in range(workers))
        live = tuple(
            (_kill(stream), _damage(stream, alive) if alive and stream.random() < 0.5 else None)
            for _ in range(stream.randint(1, workers))
        )
        yield Round(parts, live, tuple(_damage(stream, damages) for _ in range(stream.randint(5, 10))))


def _kill(stream: random.Random) -> Kill:
    how = stream.choices(list(KILLS), list(KILLS.values()))[0]
    most = STEPS[stream.random() < NOW_AND_THEN]
    return Kill(how, stream.random(), stream.randint(1, most), stream.random() * 0.03)


def _damage(stream: random.Random, kinds: Mapping[str, int]) -> Damage:
    kind = stream.choices(list(kinds), list(kinds.values()))[0]
    how = stream.choices(list(WAYS), list(WAYS.values()))[0]
    return Damage(kind, stream.random(), stream.random(), how, stream.random(), stream.randint(1, 3))


class Files:
    """Damages files below a folder and remembers by which time of change each damaged one is known.

    runs: the ids of the runs that are trained there.
    """

    def __init__(self, folder: Path, runs: Sequence[str]) -> None:
        self.folder, self.runs = folder, runs
        self.damaged: dict[int, tuple[str, Path]] = {}
        """Kind and path by time of change, in ns."""

    def damage(self, damage: Damage) -> bool:
        """Damage a file as intended; False where there is none of its kind that is not damaged already."""
        run = self.runs[int(damage.run * len(self.runs))] if damage.kind in OF_A_RUN else ""
        # Unlike that of a path, this glob goes on where a worker removes a folder while it is gone through.
        names = glob.iglob(PATTERNS[damage.kind], root_dir=self.folder, include_hidden=True)
        paths = (self.folder / name for name in names)
        found = sorted(path for path in paths if (not run or path.parent.name == run) and self._is_fit(path))
        if not found:
            return False
        path = found[int(damage.pick * len(found))]
        try:
            with path.open("r+b") as file:
                _spoil(file.fileno(), damage)
                stamp = time.time_ns() // 10**9 * 10**9 + len(self.damaged) + 1
                # By the open file: a worker may have put another one in its place.
                os.utime(file.fileno(), ns=(stamp, stamp))
        except OSError:
            # Removed by a worker since it was listed.
            return False
        self.damaged[stamp] = (damage.kind, path)
        return True

    def _is_fit(self, path: Path) -> bool:
        try:
            found = path.stat()
        except OSError:
            return False
        return found.st_size > 0 and found.st_mtime_ns not in self.damaged


def _spoil(file: int, damage: Damage) -> None:
    """Change the bytes of an open file where they lie."""
    size = os.fstat(file).st_size
    if damage.how == "emptied":
        os.ftruncate(file, 0)
    elif damage.how == "truncated":
        os.ftruncate(file, int(damage.place * size))
    else:
        for number in range(damage.bits):
            # A step that no size divides, so that no bit is flipped twice.
            bit = (int(damage.place * size * 8) + number * 1_000_003) % (size * 8)
            (byte,) = os.pread(file, 1, bit // 8)
            os.pwrite(file, bytes([byte ^ (1 << bit % 8)]), bit // 8)
