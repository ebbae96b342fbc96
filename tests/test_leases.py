"""Leases: of all that ask, one process holds, until it ends, on any folder; hostile lease files do no harm."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.core.errors import UserError
from benchmark.results import leases
from benchmark.results.leases import Lease, LeaseHolder, LeaseManager, this_owner

FORK = multiprocessing.get_context("fork")
SILENT = 300.0


def owner(**changes: Any) -> LeaseHolder:
    """A process on another node, of no cluster."""
    return LeaseHolder(token="f" * 32, machine="far away", node="n9", process=7, started=1.0).replace(**changes)


def leased_by(folder: Path, who: LeaseHolder, number: int = 1, seconds_ago: float = 0.0) -> Path:
    """The lease file of another holder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"claim-{number:06d}.json"
    path.write_text(who.model_dump_json())
    aged(path, seconds_ago)
    return path


def aged(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")


def contend(folder: Path, rounds: int, barrier: Any, answers: Connection) -> None:
    taken = []
    for number in range(rounds):
        barrier.wait()
        taken.append(isinstance(LeaseManager(folder).acquire(folder / str(number)), Lease))
    # Until all have asked, those that hold must live.
    barrier.wait()
    answers.send(taken)


def winners(folder: Path, rounds: int, processes: int = 6) -> list[int]:
    """How many of several processes hold a claim after all have asked for it at the same moment, by round."""
    barrier = FORK.Barrier(processes)
    pairs = [FORK.Pipe() for _ in range(processes)]
    children = [FORK.Process(target=contend, args=(folder, rounds, barrier, sends)) for _, sends in pairs]
    for child in children:
        child.start()
    answers = [receives.recv() for receives, _ in pairs]
    for child in children:
        child.join()
    return [sum(column) for column in zip(*answers, strict=True)]


def test_of_many_processes_that_ask_at_once_exactly_one_holds(tmp_path: Path) -> None:
    assert winners(tmp_path, 40) == [1] * 40


def test_one_holds_too_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_links)
    assert winners(tmp_path, 40) == [1] * 40


def test_of_many_that_find_a_dead_owner_one_takes_over(tmp_path: Path) -> None:
    for number in range(40):
        leased_by(tmp_path / str(number), owner(), seconds_ago=SILENT + 60)
    assert winners(tmp_path, 40) == [1] * 40


def hold(folder: Path, sends: Connection) -> None:
    sends.send(isinstance(LeaseManager(folder).acquire(folder / "run"), Lease))
    time.sleep(60)


def test_the_claim_of_a_killed_process_is_free_at_once_and_not_before(tmp_path: Path) -> None:
    receives, sends = FORK.Pipe()
    child = FORK.Process(target=hold, args=(tmp_path, sends))
    child.start()
    assert receives.recv()
    holder = LeaseManager(tmp_path).acquire(tmp_path / "run")
    assert isinstance(holder, LeaseHolder)
    assert holder.process == child.pid
    # A process that is stopped is still there, whatever it says.
    assert child.pid is not None
    os.kill(child.pid, signal.SIGSTOP)
    assert isinstance(LeaseManager(tmp_path, timeout=0).acquire(tmp_path / "run"), LeaseHolder)
    child.kill()
    child.join()
    assert isinstance(LeaseManager(tmp_path).acquire(tmp_path / "run"), Lease)


def test_a_process_with_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path: Path) -> None:
    mine = this_owner()
    leased_by(tmp_path / "run", mine.replace(token="0" * 32, started=mine.started - 3600))
    assert isinstance(LeaseManager(tmp_path).acquire(tmp_path / "run"), Lease)


@pytest.mark.parametrize(
    ("since_claim", "since_beat", "is_valid"), [(10, 10, True), (900, 10, True), (900, 900, False)]
)
def test_an_owner_that_nobody_can_ask_after_holds_as_long_as_it_beats(
    tmp_path: Path, since_claim: float, since_beat: float, is_valid: bool
) -> None:
    leased_by(tmp_path / "run", owner(), seconds_ago=since_claim)
    beat = tmp_path / leases.OWNERS / owner().token
    beat.parent.mkdir()
    beat.touch()
    aged(beat, since_beat)
    assert isinstance(LeaseManager(tmp_path).acquire(tmp_path / "run"), LeaseHolder) == is_valid


@pytest.mark.parametrize(
    ("said", "seconds_ago", "is_valid"),
    [(True, 600, True), (True, 9999, False), (False, 0, False), (None, 0, True), (None, 9999, False)],
)
def test_what_the_cluster_says_of_a_job_comes_first(
    tmp_path: Path, said: bool | None, seconds_ago: float, is_valid: bool
) -> None:
    leased_by(tmp_path / "run", owner(job="12_3"), seconds_ago=seconds_ago)
    taken = LeaseManager(tmp_path, lambda asked: said).acquire(tmp_path / "run")
    assert isinstance(taken, LeaseHolder) == is_valid


@pytest.mark.parametrize(("restarts", "is_valid"), [(0, False), (1, True), (2, True)])
def test_a_job_that_was_started_again_takes_the_place_of_its_earlier_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: int, is_valid: bool
) -> None:
    leased_by(tmp_path / "run", owner(job="12_3", restarts=restarts))
    monkeypatch.setattr(leases, "_owner_of", lambda process: owner(token="e" * 32, job="12_3", restarts=1))
    taken = LeaseManager(tmp_path, lambda asked: True).acquire(tmp_path / "run")
    assert isinstance(taken, LeaseHolder) == is_valid


def test_an_owner_that_was_wrongly_buried_notices(tmp_path: Path) -> None:
    held = LeaseManager(tmp_path).acquire(tmp_path / "run")
    assert isinstance(held, Lease)
    assert held.is_valid()
    leased_by(tmp_path / "run", owner(), number=held.number + 1)
    assert not held.is_valid()
    # What it gives up is its own claim, not that of its heir.
    held.release()
    assert isinstance(LeaseManager(tmp_path).acquire(tmp_path / "run"), LeaseHolder)


def test_a_claim_that_is_released_is_free_and_its_number_is_not_used_again(tmp_path: Path) -> None:
    taking = LeaseManager(tmp_path)
    numbers = []
    for _ in range(3):
        held = taking.acquire(tmp_path / "run")
        assert isinstance(held, Lease)
        numbers.append(held.number)
        held.release()
        assert taking.current_holder(tmp_path / "run") is None
    assert numbers == [1, 2, 3]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["claim-000003.json"]
    assert not (tmp_path / leases.OWNERS).exists()


def test_a_claim_on_what_is_done_leaves_no_file(tmp_path: Path) -> None:
    held = LeaseManager(tmp_path).acquire(tmp_path / "run")
    assert isinstance(held, Lease)
    held.release(forget=True)
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(("seconds_ago", "is_valid"), [(0, True), (SILENT + 60, False)])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b'{"token": 3}'])
def test_a_damaged_claim_is_somebodys_until_it_has_been_silent_for_long(
    tmp_path: Path, content: bytes, seconds_ago: float, is_valid: bool
) -> None:
    path = leased_by(tmp_path / "run", owner())
    path.write_bytes(content)
    aged(path, seconds_ago)
    assert isinstance(LeaseManager(tmp_path).acquire(tmp_path / "run"), LeaseHolder) == is_valid


def test_a_lease_from_elsewhere_deletes_no_file(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    runs = tmp_path / "runs"
    (runs / leases.OWNERS).mkdir(parents=True)
    named = {**owner().model_dump(), "process": 1}
    for number, token in enumerate([str(victim), "../../victim", "", ".", "..", f"{'f' * 32}\n", "F" * 32]):
        path = leased_by(runs / str(number), owner())
        path.write_text(json.dumps(named | {"token": token}))
        aged(path, SILENT * leases.STALL_FACTOR + 60)
        assert isinstance(LeaseManager(runs).acquire(runs / str(number)), Lease)
    assert victim.read_text() == "mine"


def test_a_heartbeat_is_not_removed_through_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    aged_file = elsewhere / owner().token
    aged_file.touch()
    aged(aged_file, SILENT + 60)
    runs = tmp_path / "runs"
    leased_by(runs / "run", owner(), seconds_ago=SILENT + 60)
    (runs / leases.OWNERS).symlink_to(elsewhere)
    assert LeaseManager(runs).current_holder(runs / "run") is None
    assert aged_file.exists()


def test_a_lease_that_is_a_pipe_or_very_large_is_not_waited_for(tmp_path: Path) -> None:
    for number, make in enumerate([os.mkfifo, lambda path: path.write_bytes(b"{" * 2**20)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        make(folder / "claim-000001.json")
        assert isinstance(LeaseManager(tmp_path).acquire(folder), LeaseHolder)
        aged(folder / "claim-000001.json", SILENT + 60)
        assert isinstance(LeaseManager(tmp_path).acquire(folder), Lease)


@pytest.mark.parametrize("changes", [{"process": 10**30}, {"process": -1}, {"restarts": 10**30}])
def test_no_number_in_a_lease_stops_the_reader(tmp_path: Path, changes: dict[str, int]) -> None:
    leased_by(tmp_path / "run", owner(machine=leases.this_machine(), **changes), seconds_ago=SILENT + 60)
    assert isinstance(LeaseManager(tmp_path).acquire(tmp_path / "run"), Lease)


def test_the_largest_number_of_six_digits_is_followed_by_one_of_seven(tmp_path: Path) -> None:
    leased_by(tmp_path / "run", owner(), number=999_999, seconds_ago=SILENT + 60)
    held = LeaseManager(tmp_path).acquire(tmp_path / "run")
    assert isinstance(held, Lease)
    assert held.number == 1_000_000
    assert held.is_valid()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_no_content_of_a_claim_does_harm(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("claims")
    path = leased_by(folder / "run", owner())
    path.write_bytes(content)
    holder = LeaseManager(folder).current_holder(folder / "run")
    assert (holder is None) == (content == leases.RELEASED.encode())


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("method", ["write_text", "mkdir"])
def test_a_folder_that_takes_nothing_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(Path, method, full)
    with pytest.raises(UserError, match=r"cannot write .*run: No space left on device; choose another .*--runs"):
        LeaseManager(tmp_path).acquire(tmp_path / "run")


def test_a_folder_in_which_nothing_can_be_made_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match=r"cannot write /proc/nothing"):
        LeaseManager(Path("/proc")).acquire(Path("/proc/nothing"))


def beats_and_release(folder: Path, change: Callable[[Lease], None]) -> float:
    held = LeaseManager(folder).acquire(folder / "run")
    assert isinstance(held, Lease)
    beat = folder / leases.OWNERS / this_owner().token
    aged(beat, 1000)
    change(held)
    time.sleep(0.15)
    age = time.time() - beat.stat().st_mtime if beat.exists() else 1000.0
    held.release()
    return age


def test_an_owner_beats_while_it_holds_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.02)
    assert beats_and_release(tmp_path, lambda held: None) < 10
    assert beats_and_release(tmp_path, lambda held: held.release()) == 1000
