"""What watches a sweep on a terminal: when it ends, with which exit code, and what it makes of trouble."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from benchmark.core.errors import UserError
from slurm import screen, status
from slurm.monitor import Condition, JobLine, Snapshot
from slurm.screen import SweepDisplay, watch
from slurm.sweep import Sweep
from tests.slurm_sweeps import planned


class Shown:
    """Takes the snapshots that the test names, or fails, one after another."""

    def __init__(self, *seen: Snapshot | Exception) -> None:
        self.seen = list(seen)

    def __call__(self) -> Snapshot:
        snapshot = self.seen.pop(0)
        if isinstance(snapshot, Exception):
            raise snapshot
        return snapshot


def stands(*conditions: Condition, is_cancelled: bool = False) -> Snapshot:
    lines = tuple(JobLine(number, f"job {number}", condition) for number, condition in enumerate(conditions))
    return Snapshot("small", lines, (), 0.0, 0.0, "job", is_cancelled=is_cancelled)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Snapshot, str]]:
    """What watching snapshots returns, and what it prints."""
    monkeypatch.setattr(screen, "SCREEN_SECONDS", 0.0)

    def run(take: Shown, look_after: Callable[[], object] | None = None) -> tuple[Snapshot, str]:
        said = io.StringIO()
        with SweepDisplay(Console(file=said, width=200)) as display:
            return watch(take, display, look_after), said.getvalue()

    return run


def test_a_sweep_is_watched_until_every_job_has_ended(watched) -> None:
    last = stands("done", "failed", "blocked", "cancelled")
    reader = Shown(stands("running", "pending"), stands("done", "held back"), last)
    assert watched(reader)[0] is last
    assert last.exit_code == 1
    assert stands("done", "cancelled").exit_code == 0


def test_a_cancelled_sweep_is_watched_until_the_cluster_has_none_of_it(watched) -> None:
    last = stands("done", "held back", is_cancelled=True)
    reader = Shown(stands("running", "held back"), stands("running", "held back", is_cancelled=True), last)
    assert watched(reader)[0] is last


def test_trouble_is_said_once_and_does_not_end_the_watch(watched) -> None:
    gone = OSError(116, "Stale file handle")
    reader = Shown(stands("running"), gone, gone, UserError("sweep.json cannot be read"), stands("running"), gone)
    reader.seen.append(stands("done"))
    last, said = watched(reader)
    assert last.is_over
    # Once, and once more after it had been well again.
    assert said.count("Stale file handle") == 2
    assert said.count("sweep.json cannot be read") == 1


def test_a_watched_sweep_is_looked_after_while_it_goes_on(watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "TEND_SECONDS", -1.0)
    looked: list[int] = []

    def look_after() -> None:
        looked.append(len(looked))
        raise UserError("the folder is full")

    last, said = watched(Shown(stands("held back"), stands("running"), stands("done")), look_after)
    assert (last.is_over, looked, said.count("the folder is full")) == (True, [0, 1], 1)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "Console", functools.partial(Console, force_terminal=True, width=120))


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Of two jobs, none of which was given to a cluster."""
    return planned(tmp_path, ("Baseline",), seeds=2).sweep()


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("once", [False, True], ids=["live", "once"])
def test_the_status_of_a_sweep_with_failed_jobs_is_an_exit_code_of_1(sweep: Sweep, once: bool) -> None:
    sweep.journal.write_ending(0, "done")
    sweep.journal.write_ending(1, "failed", "loss not finite")
    assert status.main(runs=sweep.store.root, once=once) == 1
    sweep.journal.remove_ending(1)
    sweep.journal.write_ending(1, "done")
    assert status.main(runs=sweep.store.root, once=once) == 0


@pytest.mark.usefixtures("terminal")
def test_the_live_status_of_a_cancelled_sweep_ends(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.cancel()
    assert status.main(runs=sweep.store.root) == 0
    assert "this sweep is cancelled; its command, given again, goes on with it" in capsys.readouterr().out


def test_a_sweep_that_cannot_be_read_is_one_clear_line(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(sweep: Sweep) -> Snapshot:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(status, "take_snapshot", fail)
    with pytest.raises(UserError, match=r"small-\w+ cannot be read: .*Stale file handle"):
        status.main(runs=sweep.store.root)
