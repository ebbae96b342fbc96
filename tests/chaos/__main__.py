"""Kill workers and damage files of a small sweep, and compare what comes out.

`python -m tests.chaos [NEW_FOLDER [FAULTS]]` disturbs it until so many faults, some of each kind, have counted. The
folder is kept; without one a temporary folder is used, which is kept only where something is wrong. Exit code 0:
nothing was lost, wrong or duplicated, and enough faults counted; 1 otherwise.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli.app import run_app
from benchmark.io.files import check_writable
from tests.chaos.compare import Verdict
from tests.chaos.faults import DAMAGES, KILLS
from tests.chaos.harness import Harness

FAULTS = 60
"""How many faults must count."""
KINDS = ("kill", "terminate", "kill all", "record", "checkpoint", "weights", "cache", "claim")
"""Kinds of faults of which each must count at least once."""
MAX_SECONDS = 500.0
"""When the harness stops although too few faults have counted."""


def main(
    folder: Annotated[Path | None, typer.Argument(help="A new folder to work in. [a temporary one]")] = None,
    faults: Annotated[int, typer.Argument(min=1, max=10_000, help="How many faults must count.")] = FAULTS,
) -> int:
    """Kill workers and damage files of a small sweep, and compare what comes out."""
    if folder is not None:
        check_writable(folder, "the argument FOLDER")
    work = (folder or Path(tempfile.mkdtemp(prefix="chaos-"))).absolute()
    harness = Harness(work)
    harness.train_undisturbed()
    verdict = harness.disturb(work / "disturbed", faults, MAX_SECONDS, kinds=KINDS)
    print_verdict(verdict)
    missing = [kind for kind in KINDS if not verdict.counted[kind]]
    enough = verdict.counted.total() >= faults and not missing
    if not enough:
        print(f"only {verdict.counted.total()} of {faults} faults counted, and none of: {', '.join(missing) or '-'}")
    clean = enough and verdict.is_clean
    if folder is None and clean:
        shutil.rmtree(work, ignore_errors=True)
    else:
        print(f"kept: {work}")
    return 0 if clean else 1


def print_verdict(verdict: Verdict) -> None:
    """Print the faults by kind, then every problem, then the totals."""
    rows = [(kind, verdict.injected[kind], verdict.counted[kind]) for kind in (*KILLS, *DAMAGES)]
    print(f"{'fault':15} injected counted")
    for kind, injected, counted in [*rows, ("total", verdict.injected.total(), verdict.counted.total())]:
        print(f"{kind:15} {injected:8} {counted:7}")
    for kind, lines in verdict.problems.items():
        for line in lines:
            print(f"{kind}: {line}")
    totals = ", ".join(f"{len(lines)} {kind}" for kind, lines in verdict.problems.items())
    print(f"{verdict.rounds} rounds in {verdict.seconds:.0f} s, {verdict.records} records: {totals}")


if __name__ == "__main__":
    run_app(main, "python -m tests.chaos")
