"""The fault harness on a suite that is broken on purpose: run as a program, it prints a line of JSON for each breakage.

Not imported by any test: workers are forked, which a process that has trained anything before cannot do.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmark.results import record
from benchmark.results.leases import LeaseManager
from benchmark.training import checkpoint
from tests.chaos import faults, fixture
from tests.chaos.harness import Harness

FIGURE = b'"loss": '
hash_file, plan = checkpoint.compute_sha256, fixture.missing_jobs


class Whatever(str):
    """A checksum that is never another one."""

    __hash__ = str.__hash__

    def __ne__(self, other: object) -> bool:
        return False


def unverified(path: Path) -> str:
    # What is written is still named after what it holds.
    return hash_file(path) if path.suffix == ".tmp" else Whatever()


def altered(file: int, damage: faults.Damage) -> None:
    """Change a figure in a record, which then is as good to read as before."""
    text = os.pread(file, os.fstat(file).st_size, 0)
    place = text.rfind(FIGURE) + len(FIGURE)
    os.pwrite(file, b"%d" % (int(text[place : place + 1]) % 9 + 1), place)


def without_kd(runs: Any, *rest: Any) -> list[Any]:
    kept = [(job, [run for run in job.runs if run.method != "KD"]) for job in plan(runs, *rest)]
    return [job.with_runs(some) for job, some in kept if some]


BROKEN: dict[str, tuple[Any, str, Any, dict[str, int], int]] = {
    "nothing": (faults, "WAYS", {"flipped": 1}, {"checkpoint": 1, "record": 1}, 8),
    "records are not verified": (
        record,
        "compute_checksum",
        lambda read: read.get("sha256"),
        {"record": 1},
        8,
    ),
    "checkpoints are not verified": (checkpoint, "compute_sha256", unverified, {"checkpoint": 1}, 3),
    "claims are not respected": (LeaseManager, "current_holder", lambda *_: None, {"run.json": 1}, 6),
    "a run is forgotten": (fixture, "missing_jobs", without_kd, {"run.json": 1}, 3),
}
"""What is replaced by what, which files are damaged then, and how many faults are to count."""


def main(folder: Path) -> None:
    harness = Harness(folder)
    harness.train_undisturbed()
    for name, (owner, attribute, replacement, damages, count) in BROKEN.items():
        spoil = altered if name == "records are not verified" else faults._spoil
        with (
            patch.object(faults, "WAYS", {"flipped": 1}),
            patch.object(owner, attribute, replacement),
            patch.object(faults, "_spoil", spoil),
        ):
            verdict = harness.disturb(folder / name.replace(" ", "-"), count, seconds=300, damages=damages)
        print(json.dumps([name, verdict.counted.total(), verdict.problems]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
