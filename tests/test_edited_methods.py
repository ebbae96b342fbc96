"""A method that was edited and keeps its version: its runs stay as they are, and one line says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.core.spec import Run
from benchmark.planning.checks import check_records, stale_code_warnings
from benchmark.plugins.registry import all_methods, method_class
from benchmark.plugins.source import fingerprint_code
from benchmark.results import index
from benchmark.results.record import Record
from benchmark.results.store import Store, load
from benchmark.training.job import run_until_done
from tests import engine
from tests.new_methods import NewMethods, new_methods

__all__ = ["new_methods"]

EDIT = (" ** 2).mean()", " ** 4).mean()")
RAISED = ("    needs_teacher", "    version = 2\n    needs_teacher")


def recorded(store: Store, run: Run, **provenance: object) -> None:
    store.finish(run, {"status": "finished", "final": {"top1": 50.0}, "provenance": provenance}, {})


def method_code(store: Store, run: Run) -> str:
    record: Record = store.record(run) or {}
    return str(record["provenance"]["method_code"])


@pytest.mark.parametrize(
    "change",
    [
        ('"""Follows."""', '"""Goes\n    after."""'),
        ('    """Follows."""\n\n', ""),
        ('    name = "Follow"\n', '    name = "Follow"  # after\n    # and more\n\n'),
        ('"""Logits follow logits."""', "'''About.'''"),
        ('paper = "None, 2024"', 'paper = "Some, 2025"'),
        ('equation = "L = CE + distance"', 'equation = "L"\n    remark = "ours"'),
        ('{"ce": 1.0, "logits"', '{\n            "ce": 1.0,\n            "logits"'),
        ("def distance(one, other):\n", 'def distance(one, other):\n    """Its mean."""\n'),
    ],
)
def test_what_only_people_read_is_no_other_code(new_methods: NewMethods, change: tuple[str, str]) -> None:
    before = fingerprint_code(new_methods())
    assert len(before) == 64
    assert fingerprint_code(new_methods(change)) == before


@pytest.mark.parametrize(
    "change",
    [
        EDIT,
        ("share: float = 0.5", "share: float = 0.6"),
        ("one - other", "other - one"),
        ('"ce": 1.0', '"ce": True'),
        ("needs_teacher = True", "needs_teacher = True\n    teaches_itself = True"),
        ("    return ((one", "    paper = one\n    return ((one"),
    ],
)
def test_what_is_computed_is_other_code(new_methods: NewMethods, change: tuple[str, str]) -> None:
    before = fingerprint_code(new_methods())
    assert fingerprint_code(new_methods(change)) != before


def test_the_code_of_what_a_method_is_derived_from_counts(new_methods: NewMethods) -> None:
    def derived(*changes: tuple[str, str]) -> str:
        new_methods.write(*changes)
        new_methods.write(
            source='from methods.follow import Follower\n\n\nclass Again(Follower):\n    name = "Again"\n',
            file="again.py",
        )
        return fingerprint_code(all_methods()["Again"])

    assert derived() == derived() != derived(EDIT)


def test_the_record_tells_the_code_and_an_edit_is_told_until_the_version_is_raised(
    new_methods: NewMethods, tmp_path: Path
) -> None:
    place, store = engine.settings(tmp_path / "runs"), Store(tmp_path / "runs")
    trained = fingerprint_code(new_methods())
    run = engine.run_of("Follow")
    engine.train_dependencies([run], place)
    assert run_until_done([run], place)
    assert method_code(store, run) == trained
    assert check_records(store, [run]) == []
    content = (store.folder(run) / "record.json").read_bytes()
    new_methods(EDIT)
    assert engine.run_of("Follow") == run
    (line,) = check_records(store, [run, *run.dependencies()])
    assert line == (
        "warning: edited since these runs were trained, with the same version: Follow (1 run; methods/follow.py, "
        "version 1). They are not trained again; if a method computes something else now, raise the version in its "
        "class"
    )
    assert store.missing([run]) == []
    assert (store.folder(run) / "record.json").read_bytes() == content
    new_methods(EDIT, RAISED)
    again = engine.run_of("Follow")
    assert check_records(store, [again]) == []
    assert store.missing([again]) == [again]


def test_one_line_counts_the_runs_of_all_methods(tmp_path: Path) -> None:
    store = Store(tmp_path)
    seeds = [engine.run_of("KD", seed=seed) for seed in range(3)]
    others = {"AT": {"method_code": "0" * 64}, "SP": {}, "CC": {"method_code": None}, "PS-KD": {"method_code": [1]}}
    for run in seeds:
        recorded(store, run, method_code="0" * 64)
    for name, provenance in others.items():
        recorded(store, engine.run_of(name), **provenance)
    recorded(store, engine.run_of("CRD"), method_code=fingerprint_code(all_methods()["CRD"]))
    asked = [*seeds[:2], *(engine.run_of(name) for name in (*others, "CRD", "FitNet"))]
    (line,) = check_records(store, asked)
    assert "AT (1 run; methods/at.py, version 1), KD (2 runs; methods/kd.py, version 1)." in line
    # A run that has not been asked for is no matter, and neither are records that do not tell.
    assert check_records(store, [engine.run_of(name) for name in others if name != "AT"]) == []


def test_a_run_that_was_edited_while_it_was_interrupted_is_judged_by_its_last_piece() -> None:
    run = engine.run_of("KD")
    today = fingerprint_code(method_class("KD"))
    assert stale_code_warnings({run: f"{'0' * 64}+{today}"}) == []
    (line,) = stale_code_warnings({run: f"{today}+{'0' * 64}"})
    assert "KD (1 run;" in line


def test_nothing_is_put_aside_where_only_lines_are_wanted(tmp_path: Path) -> None:
    store, run = Store(tmp_path), engine.run_of("KD")
    recorded(store, run, method_code="0" * 64)
    assert check_records(store, [run], heal=False) == check_records(store, [run])
    assert "KD (1 run" in check_records(store, [run])[0]


def test_the_index_knows_the_code_so_that_no_record_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MIN_LOOKUPS", 0)
    store = Store(tmp_path)
    runs = [engine.run_of("KD"), engine.run_of("AT"), engine.run_of("SP")]
    for run, provenance in zip(runs, ({"method_code": "a"}, {"method_code": "b+c"}, {}), strict=True):
        recorded(store, run, **provenance)
    expected = dict(zip(runs, ("a", "b+c", None), strict=True))
    assert store.code_hashes(runs) == expected
    load(store.root)

    def read(run: Run) -> Record | None:
        raise AssertionError(f"{run.id} was read")

    monkeypatch.setattr(store, "record", read)
    assert store.code_hashes([*runs, engine.run_of("CC")]) == expected
    assert store.quarantine_damaged(runs) == ([], expected)


def test_an_edit_between_two_pieces_of_a_run_is_told_and_recorded(new_methods: NewMethods, tmp_path: Path) -> None:
    place, store = engine.settings(tmp_path / "runs"), Store(tmp_path / "runs")
    first = fingerprint_code(new_methods())
    run = engine.run_of("Follow")
    engine.train_dependencies([run], place)
    asked = iter([False] * 3 + [True] * 100)
    assert not run_until_done([run], place, stop=lambda: next(asked))
    second = fingerprint_code(new_methods(EDIT))
    lines: list[str] = []
    assert run_until_done([run], place, log=lines.append)
    told = "warning: edited since its runs were begun, with the same version: Follow; their records will tell"
    assert lines[-1] == told
    assert method_code(store, run) == f"{first}+{second}"
    # It was told, and its record tells; since its last piece nothing was edited.
    assert check_records(store, [run]) == []
