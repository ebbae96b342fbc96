"""Where the checkpoints of a cohort are, and which cohorts' checkpoints some runs can go on from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from benchmark.results import Store
from benchmark.spec import Run
from benchmark.training.checkpoint import latest_position, members


def cohort_name(runs: Sequence[Run]) -> str:
    """A name for a set of runs, whatever their order."""
    return hashlib.sha256("".join(sorted(run.digest for run in runs)).encode()).hexdigest()[:16]


def cohort_folder(store: Store, runs: Sequence[Run]) -> Path:
    """Where the checkpoints of a cohort are."""
    return store.cohorts(runs[0].dataset) / cohort_name(runs)


def resume_folders(store: Store, runs: Sequence[Run]) -> list[Path]:
    """The folders of the checkpoints that hold all of the runs, the most advanced first."""
    wanted = {run.id for run in runs}
    found: list[tuple[tuple[int, int], Path]] = []
    cohorts = store.cohorts(runs[0].dataset)
    for folder in sorted(cohorts.iterdir()) if cohorts.is_dir() else []:
        position = latest_position(folder)
        if position is not None and wanted <= set(members(folder)):
            found.append((position, folder))
    return [folder for _, folder in sorted(found, reverse=True)]
