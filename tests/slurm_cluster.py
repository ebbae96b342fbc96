"""A real SLURM of four nodes for tests: import the fixture `cluster` where it is needed.

A test that kills daemons or sets options makes its own with `devcluster(...)` and is marked with `needs_slurm`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.devcluster import Cluster, devcluster, missing

PATIENCE = 300.0
"""Seconds after which a test gives up waiting; long, since the machine may be busy with other things."""
REASON = missing()
needs_slurm = pytest.mark.skipif(REASON is not None, reason=f"no SLURM cluster can be made here: {REASON}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Four idle nodes of two processors, shared by a module's tests; skips where SLURM is not installed."""
    if REASON is not None:
        pytest.skip(f"no SLURM cluster can be made here: {REASON}")
    with devcluster(nodes=4, cpus=2) as started:
        yield started


def until(happens: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait until something happens; fails, with `what` did not, after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not happens():
        assert time.monotonic() < deadline, f"{what} did not happen in {patience:.0f} s"
        time.sleep(0.05)
