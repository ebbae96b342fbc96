"""What jobs call first: submitit names these functions in what it writes, and nothing is imported before its time."""

from __future__ import annotations


def run_job(folder: str, number: int) -> None:
    """Train a job of the sweep in a folder."""
    from slurm import worker

    worker.run_job(folder, number)


def keep(folder: str) -> None:
    """Look after the sweep in a folder once."""
    from slurm import worker

    worker.keep(folder)
