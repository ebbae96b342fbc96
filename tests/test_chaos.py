"""The fault harness finds nothing wrong with the suite, and finds what is wrong with a broken one."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.__main__ import KINDS
from tests.chaos.compare import wrong_figure
from tests.chaos.faults import DAMAGES, Damage, Files, rounds
from tests.chaos.tracing import Pen, Seen
from tests.commands import ROOT, environment, run_here

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers are forked")


def program(module: str, *given: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, which bounds its time itself."""
    command = [sys.executable, "-m", module, *given]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT, check=False)


def test_sixty_faults_cost_nothing(tmp_path: Path) -> None:
    """Faults go on until sixty and some of each kind have counted; hundreds would be of the same kinds."""
    ended = program("tests.chaos", str(tmp_path / "kept"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = {line[:16].strip(): [int(text) for text in line[16:].split()] for line in ended.stdout.splitlines()[1:13]}
    injected, counted = rows["total"]
    assert injected >= counted >= 60
    # Every kind of fault that can count did.
    for kind in KINDS:
        assert rows[kind][1] > 0, ended.stdout
    assert "9 records: 0 lost, 0 wrong, 0 duplicated, 0 failed" in ended.stdout
    assert len(list((tmp_path / "kept").glob("disturbed/runs/*/*/record.json"))) == 9
    assert list((tmp_path / "kept").glob("disturbed/runs/*/*/damaged-record.json-*"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, dict[str, list[str]]]]:
    """How many faults counted and what was found, by what was broken."""
    ended = program("tests.sabotaged_chaos", str(tmp_path_factory.mktemp("broken")))
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    return {name: (counted, problems) for name, counted, problems in lines}


@pytest.mark.parametrize(
    ("breakage", "found"),
    [
        ("records are not verified", ("wrong",)),
        # A flipped bit gives other weights, or ones that cannot be trained.
        ("checkpoints are not verified", ("wrong", "lost", "failed")),
        ("claims are not respected", ("duplicated",)),
        ("a run is forgotten", ("lost",)),
    ],
)
def test_a_broken_suite_is_found_out(broken, breakage: str, found: tuple[str, ...]) -> None:
    counted, problems = broken[breakage]
    assert counted > 0
    assert any(problems[kind] for kind in found), problems


def test_what_is_not_broken_is_not_found_out(broken) -> None:
    counted, problems = broken["nothing"]
    assert counted >= 8
    assert not any(problems.values()), problems


@pytest.mark.parametrize(
    "given", [["/tmp/" + "a" * 300], ["/tmp/" + "a/" * 5000], ["\0"], ["new", "many"], ["new", "0"]]
)
def test_a_folder_or_number_that_cannot_be_is_refused_in_one_line(tmp_path: Path, given: list[str]) -> None:
    ended = run_here(*given, module="tests.chaos", folder=tmp_path)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_seed_intends_the_same_faults() -> None:
    first, again, other = (list(itertools.islice(rounds(seed, 2, 8, DAMAGES), 20)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert all(any(numbers) and min(intent.parts[0]) >= 0.5 for intent in first for numbers in intent.parts)


@pytest.mark.parametrize("how", ["flipped", "truncated", "emptied"])
def test_a_damaged_file_counts_once_it_is_read_and_not_once_it_is_replaced(tmp_path: Path, how) -> None:
    folder = tmp_path / "runs" / "set" / "a"
    folder.mkdir(parents=True)
    path, log = folder / "record.json", tmp_path / "seen.jsonl"
    path.write_text('{"a": 1}')
    files, seen, pen = Files(tmp_path, ["a"]), Seen(log), Pen(log, "one")
    assert files.damage(Damage("record", 0.0, 0.0, how, 0.5, 3))
    assert path.read_text(errors="replace") != '{"a": 1}'
    # A file that is damaged already is left: it would be one fault and not two.
    assert not files.damage(Damage("record", 0.0, 0.0, how, 0.5, 3))
    pen.note("read", path.stat().st_mtime_ns)
    seen.look()
    assert seen.read == set(files.damaged)
    path.unlink()
    path.write_text('{"a": 2}')
    assert path.stat().st_mtime_ns not in files.damaged
    assert files.damage(Damage("record", 0.0, 0.0, how, 0.5, 3))
    seen.look()
    assert len(files.damaged) == 2
    assert len(seen.read & files.damaged.keys()) == 1


def test_what_is_not_there_is_not_damaged(tmp_path: Path) -> None:
    (tmp_path / "runs" / "set" / "b").mkdir(parents=True)
    (tmp_path / "runs" / "set" / "b" / "record.json").write_text("{}")
    assert not Files(tmp_path, ["a"]).damage(Damage("record", 0.0, 0.0, "emptied", 0.0, 1))


def test_a_folder_that_goes_while_files_are_looked_for_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, going = tmp_path / "runs" / "set" / "a" / "record.json", tmp_path / "runs" / ".owners"
    path.parent.mkdir(parents=True)
    going.mkdir()
    path.write_text('{"a": 1}')
    listed = os.scandir

    def scandir(folder):
        if Path(folder).name == going.name:
            going.rmdir()
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert Files(tmp_path, ["a"]).damage(Damage("record", 0.0, 0.0, "emptied", 0.0, 1))
    assert not going.exists()


def seen_of(path: Path, *lines: tuple[str, str, str]) -> Seen:
    """What some lines of workers say."""
    for worker, what, about in lines:
        Pen(path, worker).note(what, about)
    seen = Seen(path)
    seen.look()
    return seen


def test_two_living_workers_that_hold_one_run_are_found_out(tmp_path: Path) -> None:
    both = (("one", "claimed", "run"), ("two", "claimed", "run"))
    # The first one may have died before the second one claimed; only what it does afterwards shows that it lives.
    assert not seen_of(tmp_path / "dead", *both).together
    assert len(seen_of(tmp_path / "alive", *both, ("one", "saved", "")).together) == 1
    assert len(seen_of(tmp_path / "reading", *both, ("one", "read", "1")).together) == 1
    released = (both[0], ("one", "released", "run"), both[1], ("one", "claimed", "other"))
    assert not seen_of(tmp_path / "released", *released).together


def test_a_worker_holds_what_it_claimed_until_it_is_released(tmp_path: Path) -> None:
    lines = (("one", "claimed", "a"), ("one", "claimed", "b"), ("one", "released", "a"), ("one", "record", "b"))
    seen = seen_of(tmp_path / "seen", *lines)
    assert seen.holds["one"] == {"b"}
    assert seen.records == {"b": 1}
    # A line that is half written is read when it is whole.
    with (tmp_path / "seen").open("a") as file:
        file.write('["one", "released"')
        file.flush()
        seen.look()
        assert seen.holds["one"] == {"b"}
        file.write(', "b"]\n')
    seen.look()
    assert not seen.holds["one"]


def test_the_first_difference_is_named() -> None:
    right = {"a": [1, {"b": 2}], "c": 3}
    assert wrong_figure(right, json.loads(json.dumps(right))) is None
    assert wrong_figure(right, {"a": [1, {"b": 5}], "c": 4}) == "a[1].b is 5 instead of 2"
    assert wrong_figure(right, {"a": [1], "c": 3}) == "a is [1] instead of [1, {'b': 2}]"
