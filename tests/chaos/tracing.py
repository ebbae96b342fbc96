"""What workers do, as they do it: each writes a line to one common file, and the harness reads along.

A line is written with one append, so the order of the lines is the order in which things happened: a claim is noted
after it was taken and before it is given up. Which damaged file is read afterwards is known from Python's own audit
event of opening a file: a damaged file has a time of change of its own, to the nanosecond, and whoever replaces it
makes a file with another one. Everything a worker believes passes through such an opening: weights and checkpoints are
read once to compare their checksum, before the library that parses them opens them out of Python's sight.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.results.leases import Lease, LeaseManager
from benchmark.results.store import Store
from benchmark.training import checkpoint as checkpoints

STEPS = ("claimed", "begun", "saved", "epoch", "record")
"""What is done, as far as a fault may wait for it."""


class Pen:
    """Writes the lines of one worker."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, what: str, about: str | int = "") -> None:
        """Append a line."""
        os.write(self.file, (json.dumps([self.name, what, about]) + "\n").encode())


def watch(pen: Pen, folder: Path) -> None:
    """Note from now on what this process claims and writes in a store, and which files below `folder` it reads."""
    _watch_readings(pen, str(folder))
    acquire, release = LeaseManager.acquire, Lease.release

    def watched_acquire(self: LeaseManager, folder: Path) -> Any:
        lease = acquire(self, folder)
        if isinstance(lease, Lease):
            pen.note("claimed", folder.name)
        return lease

    def watched_release(self: Lease, forget: bool = False) -> None:
        pen.note("released", self.folder.name)
        release(self, forget)

    def after(function: Callable[..., Any], what: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*given: Any, **named: Any) -> Any:
            result = function(*given, **named)
            about = getattr(given[1], "id", "") if isinstance(given[0], Store) else ""
            pen.note(what, about)
            return result

        return watched

    replaced: list[tuple[Any, str, Any]] = [
        (LeaseManager, "acquire", watched_acquire),
        (Lease, "release", watched_release),
        (Store, "begin", after(Store.begin, "begun")),
        (Store, "write_epochs", after(Store.write_epochs, "epoch")),
        (Store, "finish", after(Store.finish, "record")),
        (checkpoints, "write_checkpoint", after(checkpoints.write_checkpoint, "saved")),
    ]
    for owner, name, function in replaced:
        setattr(owner, name, function)


def _watch_readings(pen: Pen, below: str) -> None:
    def hear(event: str, details: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(details[0], str) or not details[0].startswith(below):
            return
        if details[2] & os.O_ACCMODE == os.O_RDONLY:
            try:
                pen.note("read", os.stat(details[0]).st_mtime_ns)
            except OSError:
                return

    sys.addaudithook(hear)


@dataclass
class Seen:
    """What the lines say so far."""

    path: Path
    holds: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """By worker, the runs that it has claimed and not released; also of workers that are dead by now."""
    read: set[int] = field(default_factory=set)
    """The times of change, in ns, of the files that were read."""
    records: Counter[str] = field(default_factory=Counter)
    """How often a run was brought to its record."""
    steps: int = 0
    together: list[str] = field(default_factory=list)
    """What two living workers held at once."""
    _lost: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _place: int = 0

    def look(self) -> None:
        """Read the lines that were written since the last look."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._place)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._place += len(whole)
        for line in whole.splitlines():
            self._note(*json.loads(line))

    def _note(self, worker: str, what: str, about: Any) -> None:
        # It lives, and somebody else has claimed what it holds since.
        self.together += [f"{run} was held by {worker} and by another worker at once" for run in self._lost[worker]]
        self._lost[worker].clear()
        self.steps += what in STEPS
        if what == "read":
            self.read.add(about)
        elif what == "claimed":
            for other, runs in self.holds.items():
                if other != worker and about in runs:
                    # No more than that it has died is known of the other one, until it does something.
                    runs.discard(about)
                    self._lost[other].add(about)
            self.holds[worker].add(about)
        elif what == "released":
            self.holds[worker].discard(about)
        elif what == "record":
            self.records[about] += 1
