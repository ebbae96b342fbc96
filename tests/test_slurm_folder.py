"""A shared folder that is full or read-only while a sweep runs on a real SLURM."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmark.core.errors import UserError
from benchmark.results.store import Store
from slurm import retry, status
from slurm.dispatcher import reconcile
from slurm.monitor import folder_troubles
from slurm.sweep import Sweep
from tests.devcluster import Cluster, devcluster
from tests.slurm_cluster import needs_slurm, until
from tests.slurm_sweeps import (
    Planned,
    assert_equal_to_undisturbed,
    at_cluster,
    bring_home,
    commanded,
    endings,
    freeze,
    logs,
    planned,
    python_of,
    trains,
)

pytestmark = needs_slurm


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes."""
    with devcluster(nodes=2, cpus=2) as cluster, at_cluster(cluster):
        yield cluster


def mounted(folder: Path, *options: str) -> bool:
    """Mount a small file system, or mount one anew; False where this user may not."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 24 MB; skips where none can be mounted."""
    folder = tmp_path / "shared"
    folder.mkdir()
    if not mounted(folder, "size=24m"):
        pytest.skip("only root may mount a small file system to fill")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all space that is left in a folder."""
    path = folder / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as opened:
        while True:
            opened.write(b"\0" * 4096)
    return path


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[Planned], str]:
    """What `python -m slurm.status --once` says of a plan."""
    return lambda plan: commanded(capsys, status.main, runs=plan.settings.runs, once=True)[1]


def whole_records(plan: Planned) -> int:
    """How many runs have a record; all of them can be read."""
    store = Store(plan.settings.runs)
    _, damaged = store.read_all()
    assert damaged == []
    return sum(store.record(run) is not None for run in plan.runs)


def test_a_folder_that_fills_up_is_said_and_after_space_is_made_all_goes_on(
    cluster: Cluster, small: Path, said: Callable[[Planned], str]
) -> None:
    plan = planned(small)
    sweep = plan.sweep()
    reconcile(sweep)
    until(lambda: trains(sweep, 0), "training")
    filler = fill(small)
    until(lambda: not cluster.command("squeue", "-h").split(), "the end of the job")
    # The screen may break the line anywhere.
    expected = f"nothing can be written to {plan.settings.runs}: No space left on device"
    assert expected.replace(" ", "") in said(plan).replace(" ", "")
    with pytest.raises(UserError, match="No space left on device"):
        reconcile(sweep)
    assert whole_records(plan) == 0
    filler.unlink()
    lines: list[str] = []
    bring_home(sweep, lines)
    assert endings(sweep) == ["done"], logs(sweep)
    assert_equal_to_undisturbed(plan)


def test_a_folder_that_is_read_only_is_said_and_nothing_is_damaged(
    cluster: Cluster, small: Path, said: Callable[[Planned], str]
) -> None:
    plan = planned(small)
    sweep = plan.sweep()
    reconcile(sweep)
    until(lambda: trains(sweep, 0), "training")
    frozen = freeze(sweep, 0)
    # Mounted over itself, since what is open for writing keeps a file system writable.
    runs = str(plan.settings.runs)
    subprocess.run(["mount", "--bind", runs, runs], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", runs], check=True)
    frozen.send_signal(signal.SIGCONT)
    try:
        until(lambda: not cluster.command("squeue", "-h").split(), "the end of the job")
        assert "Read-only file system" in said(plan)
        with pytest.raises(UserError, match="Read-only file system"):
            reconcile(sweep)
    finally:
        subprocess.run(["umount", "--lazy", runs], check=True)
    assert whole_records(plan) == 0
    bring_home(sweep)
    assert endings(sweep) == ["done"], logs(sweep)
    assert_equal_to_undisturbed(plan)


def test_a_job_that_may_write_no_large_files_fails_for_that_reason_and_is_retried(
    cluster: Cluster, tmp_path: Path, said: Callable[[Planned], str]
) -> None:
    plan = planned(tmp_path)
    sweep = plan.sweep()
    reconcile(sweep)
    until(lambda: trains(sweep, 0), "training")
    # Enough for what a job says of itself, too little for a checkpoint or for weights.
    python_of(sweep, 0).rlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
    bring_home(sweep)
    assert endings(sweep) == ["failed"]
    assert "File too large" in sweep.journal.read_reason(0)
    assert "File too large" in said(plan)
    assert whole_records(plan) == 0
    assert retry.main(failed=True, runs=plan.settings.runs) == 0
    bring_home(Sweep(sweep.folder))
    assert endings(sweep) == ["done"]
    assert_equal_to_undisturbed(plan)


def test_a_slow_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any("slow" in line for line in folder_troubles(tmp_path))
    moments = iter([0.0, 7.0])
    monkeypatch.setattr("slurm.monitor.time.monotonic", lambda: next(moments))
    assert f"{tmp_path} is slow: writing 64 kB took 7 s" in folder_troubles(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_said(cluster: Cluster, tmp_path: Path) -> None:
    plan = planned(tmp_path)
    sweep = plan.sweep()
    plan.settings.runs.chmod(0o500)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            reconcile(sweep)
    finally:
        plan.settings.runs.chmod(0o700)
