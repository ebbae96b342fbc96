"""The index of a store: it says what the records say, whatever has become of it or of them since."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.results import index
from benchmark.results.index import to_dataframe
from benchmark.results.store import Store, load
from tests import engine

METHODS = ("Baseline", "KD", "LSSKD", "PS-KD")


def run_of(method: str, seed: int = 0, dataset: str = "digits") -> Run:
    request = dataclasses.replace(engine.request(), dataset=dataset)
    return request.run(method, "ResNet20", "WRN-16-2", seed)


def finish(store: Store, run: Run, **figures: Any) -> None:
    final = {"top1": 50.0 + run.seed, "epochs_seen": 3, "terms": {"ce": 0.5}, **figures}
    if run.method == "KD":
        del final["epochs_seen"]
    provenance = {"torch": "2", "seconds": 1.5, "cuda": None if run.seed else "12", "dirty": bool(run.seed)}
    store.finish(run, {"status": "finished", "final": final, "provenance": provenance}, {})


def fail(store: Store, run: Run) -> None:
    store.finish(run, {"status": "failed", "reason": "loss not finite", "provenance": {"torch": "2"}}, {})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two datasets with runs of several kinds, one of them failed, and folders that hold no record."""
    store = Store(tmp_path / "runs")
    for number, method in enumerate(METHODS):
        for seed in range(2):
            finish(store, run_of(method, seed, ("zebra", "digits")[number % 2]))
    fail(store, run_of("CRD"))
    store.begin(run_of("FitNet"))
    store.save_teacher_metrics("digits", "a" * 64, {"top1": 70.0})
    store.cohorts("digits").mkdir()
    return store


def path_of(store: Store, run: Run) -> Path:
    return store.folder(run) / "record.json"


class Reader:
    """Reads records and remembers which."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.read: list[str] = []

    def by_path(self, path: Path) -> dict[str, Any]:
        self.read.append(path.parent.name)
        record: dict[str, Any] = json.loads(path.read_text())
        return record

    def by_run(self, run: Run) -> dict[str, Any] | None:
        self.read.append(run.id)
        return self.store.record(run)

    def load(self) -> pd.DataFrame:
        """The frame, which must be that of the records; what was read for it stands in `read`."""
        self.read.clear()
        frame = index.load(self.store.root, self.by_path)
        assert_frame_equal(frame, to_dataframe(self.store.read_all()[0]), check_exact=True)
        assert_frame_equal(load(self.store.root), frame, check_exact=True)
        return frame


def test_a_record_is_read_once_and_the_frame_is_that_of_the_records(store: Store) -> None:
    reader = Reader(store)
    assert len(reader.load()) == len(reader.read) == 9
    assert len(reader.load()) == 9
    assert reader.read == []


def test_what_changed_is_read_again_and_what_has_gone_is_dropped(store: Store) -> None:
    reader = Reader(store)
    reader.load()
    changed, gone, new = run_of("KD"), run_of("PS-KD"), run_of("AT")
    finish(store, changed, top1=99.0, note="other columns")
    shutil.rmtree(store.folder(gone))
    finish(store, new)
    frame = reader.load()
    assert sorted(reader.read) == sorted([changed.id, new.id])
    assert frame.set_index("id").top1[changed.id] == 99.0
    assert gone.id not in set(frame.id)
    reader.load()
    assert reader.read == []


def test_another_file_of_the_same_size_and_time_is_read(store: Store) -> None:
    reader = Reader(store)
    reader.load()
    path = path_of(store, run_of("KD"))
    before = path.stat()
    finish(store, run_of("KD"), top1=51.0)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    reader.load()
    assert reader.read == [run_of("KD").id]


def test_the_index_of_a_copied_folder_is_not_believed(store: Store, tmp_path: Path) -> None:
    Reader(store).load()
    shutil.copytree(store.root, tmp_path / "copy")
    reader = Reader(Store(tmp_path / "copy"))
    reader.load()
    assert len(reader.read) == 9


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def no_index_at_all(path: Path) -> None:
    path.write_text("[]")


def of_other_code(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_schema_version", lambda: "other code")
        load(path.parent)


def of_other_columns(path: Path) -> None:
    text = '{"digits/x": [1]}'
    path.write_text(f"{index._compute_checksum(text)}\n{text}")


def a_folder(path: Path) -> None:
    path.unlink()
    (path / "in the way").mkdir(parents=True)


@pytest.mark.parametrize("spoil", [cut_short, emptied, no_index_at_all, of_other_code, of_other_columns, a_folder])
def test_an_index_that_is_no_use_is_made_anew(store: Store, spoil: Callable[[Path], None]) -> None:
    reader = Reader(store)
    reader.load()
    spoil(store.root / index.NAME)
    reader.load()
    assert len(reader.read) == 9
    reader.load()
    # Where there is no place for it there is none, and nothing else is amiss.
    assert len(reader.read) == (9 if spoil is a_folder else 0)


def test_no_altered_byte_of_the_index_alters_what_is_loaded(store: Store) -> None:
    frame = Reader(store).load()
    whole = (store.root / index.NAME).read_bytes()
    places = range(0, len(whole), max(1, len(whole) // 60))
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 64
        (store.root / index.NAME).write_bytes(damaged)
        assert_frame_equal(load(store.root), frame, check_exact=True)


def test_a_folder_without_records_gets_no_index(tmp_path: Path) -> None:
    assert_frame_equal(load(tmp_path / "nowhere"), to_dataframe([]))
    assert not (tmp_path / "nowhere").exists()
    assert load(tmp_path).empty
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_record_is_told_and_what_was_read_is_kept(store: Store) -> None:
    path = path_of(store, run_of("PS-KD", 1))
    whole = path.read_text()
    path.write_text(whole[:-30])
    for _ in range(2):
        with pytest.raises(UserError, match=f"record {path} is damaged"):
            load(store.root)
    path.write_text(whole)
    reader = Reader(store)
    reader.load()
    assert run_of("PS-KD", 1).id in reader.read
    assert run_of("CRD").id not in reader.read


ROWS = st.lists(
    st.dictionaries(
        st.sampled_from(["a", "b.c", "path", "é", "shape"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        min_size=1,
    ),
    min_size=1,
    max_size=6,
)


@given(rows=ROWS)
@settings(max_examples=60, deadline=None)
def test_rows_of_any_kind_come_back_as_they_were(tmp_path_factory, rows: list[dict[str, Any]]) -> None:
    root = tmp_path_factory.mktemp("rows")
    entries = {str(place): index.CachedRow(1, 2, 3, "d", "failed", None, row) for place, row in enumerate(rows)}
    index._write(root, entries)
    again = index._read(root)
    assert_frame_equal(pd.DataFrame([entry.row for entry in again.values()]), pd.DataFrame(rows), check_exact=True)


def test_an_index_of_an_earlier_version_is_ignored(store: Store) -> None:
    (store.root / "index.parquet").write_bytes(b"PAR1 and more")
    assert len(Reader(store).load()) == 9


@pytest.fixture
def always_indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of records are treated as a multitude is."""
    monkeypatch.setattr(index, "MIN_LOOKUPS", 0)


EXPECTED = {run_of("CRD"): "failed", run_of("FitNet"): None, run_of("KD"): "finished", run_of("KD", 7): None}


def statuses(store: Store, runs: Iterable[Run], reader: Reader) -> dict[Run, str | None]:
    found = index.read_statuses(store.root, list(runs), reader.by_run)
    return {run: ending and ending.status for run, ending in found.items()}


def test_statuses_are_those_of_the_records_without_any_index(store: Store) -> None:
    assert store.statuses(EXPECTED) == EXPECTED
    assert Store(store.root / "nowhere").statuses(EXPECTED) == dict.fromkeys(EXPECTED)
    assert not (store.root / index.NAME).exists()


@pytest.mark.usefixtures("always_indexed")
def test_statuses_are_read_once_and_stay_true(store: Store) -> None:
    reader = Reader(store)
    assert statuses(store, EXPECTED, reader) == EXPECTED
    assert sorted(reader.read) == sorted([run_of("CRD").id, run_of("KD").id])
    reader.read.clear()
    assert statuses(store, EXPECTED, reader) == EXPECTED
    assert reader.read == []
    # What the planner has read, a frame needs not read again, and the other way round.
    reader.load()
    assert len(reader.read) == 7
    fail(store, run_of("KD"))
    shutil.rmtree(store.folder(run_of("CRD")))
    finish(store, run_of("KD", 7))
    now = {run_of("CRD"): None, run_of("FitNet"): None, run_of("KD"): "failed", run_of("KD", 7): "finished"}
    reader.read.clear()
    assert statuses(store, now, reader) == now
    assert sorted(reader.read) == sorted([run_of("KD").id, run_of("KD", 7).id])
    reader.load()
    assert reader.read == []


@pytest.mark.usefixtures("always_indexed")
def test_a_record_damaged_after_it_was_indexed_is_noticed(store: Store) -> None:
    load(store.root)
    path = path_of(store, run_of("KD"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        store.statuses(EXPECTED)
    (line,), _ = store.quarantine_damaged(EXPECTED)
    assert str(path) in line
    assert store.statuses(EXPECTED) == EXPECTED | {run_of("KD"): None}


@pytest.mark.usefixtures("always_indexed")
def test_the_record_of_another_run_is_noticed_though_it_is_in_the_index(store: Store) -> None:
    mine, other = run_of("KD"), run_of("Baseline", dataset="zebra")
    path_of(store, mine).write_bytes(path_of(store, other).read_bytes())
    load(store.root)
    with pytest.raises(UserError, match="belongs to another run"):
        store.statuses([mine])
