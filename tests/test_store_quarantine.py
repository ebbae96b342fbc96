"""What is damaged in a store is found and put aside, by whoever means to train again, and touched by nobody else."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import benchmark.results.store as results
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.io.files import quarantine_file, restore
from benchmark.results.record import (
    CorruptRecord,
    CorruptRun,
    OtherVersion,
    comparable_part,
    compute_checksum,
    parse_record,
)
from benchmark.results.store import Store
from tests.damage import RUN, damaged_files, flip, record_path, weights_path
from tests.engine import run_of

RECORD = {"status": "finished", "epochs": [{"top1": 50.0}], "final": {"top1": 50.0}, "provenance": {"seconds": 1.25}}


def finished(folder: Path, run: Run = RUN) -> Store:
    """A store that holds one run."""
    store = Store(folder)
    store.begin(run)
    store.finish(run, dict(RECORD), {"student": {"weight": torch.arange(4.0)}})
    return store


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a record."""
    return record_path(finished(tmp_path_factory.mktemp("written"))).read_text()


def test_a_record_carries_the_checksum_of_the_rest_of_it(written: str) -> None:
    record = parse_record(written)
    assert record["format"] == 2
    assert record["sha256"] == compute_checksum(record)
    # Neither the order of its fields nor white space counts.
    assert parse_record(json.dumps(dict(reversed(record.items())), indent=7)) == record


@given(place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_no_changed_byte_of_a_record_passes(written: str, place: float, bits: int) -> None:
    content = bytearray(written.encode())
    content[int(place * len(content))] ^= bits
    try:
        found = parse_record(content.decode())
    except (CorruptRecord, UnicodeDecodeError):
        return
    assert found == parse_record(written)


@given(length=st.floats(0, 1, exclude_max=True))
def test_no_part_of_a_record_passes(written: str, length: float) -> None:
    # Without its last line end it is whole.
    with pytest.raises(CorruptRecord):
        parse_record(written[: int(length * (len(written) - 1))])


@pytest.mark.parametrize("text", ["", "[]", "null", "7", "{}", '{"format": 2}', "[" * 100_000, '{"format": 1e999}'])
def test_what_is_no_record_is_damaged(text: str) -> None:
    with pytest.raises(CorruptRecord):
        parse_record(text)


def of_format(written: str, number: int, summed: bool) -> str:
    record = json.loads(written) | {"format": number}
    del record["sha256"]
    return json.dumps(record | {"sha256": compute_checksum(record)} if summed else record)


@pytest.mark.parametrize(("number", "summed"), [(0, True), (3, True)])
def test_a_record_of_another_version_is_refused_and_not_put_aside(
    tmp_path: Path, written: str, number: int, summed: bool
) -> None:
    store = finished(tmp_path)
    record_path(store).write_text(of_format(written, number, summed))
    for read in (store.record, store.quarantine, store.weights, lambda run: store.quarantine_damaged([run])):
        with pytest.raises(OtherVersion, match=f"made by another version of the suite .*format {number}"):
            read(RUN)
    assert damaged_files(store) == []


def test_a_format_number_that_was_changed_is_damage(written: str) -> None:
    with pytest.raises(CorruptRecord, match="checksum differs"):
        parse_record(written.replace('"format": 2', '"format": 3'))
    with pytest.raises(CorruptRecord, match="checksum differs"):
        parse_record(of_format(written, 3, summed=False))


def test_the_outcome_of_a_repeated_run_is_equal_whatever_its_checksum(tmp_path: Path) -> None:
    store, other = finished(tmp_path / "one"), Store(tmp_path / "other")
    other.finish(RUN, RECORD | {"provenance": {"seconds": 2.5}}, {"student": {"weight": torch.arange(4.0)}})
    first, second = store.record(RUN), other.record(RUN)
    assert first is not None
    assert second is not None
    assert first["sha256"] != second["sha256"]
    assert comparable_part(first) == comparable_part(second)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_record_is_put_aside_and_nothing_is_deleted(tmp_path: Path, damage: str) -> None:
    store = finished(tmp_path)
    path = record_path(store)
    text = path.read_text()
    path.write_text({"flipped": text.replace("50.0", "51.0", 1), "cut": text[:40], "empty": ""}[damage])
    content = path.read_text()
    with pytest.raises(CorruptRun) as raised:
        store.record(RUN)
    assert raised.value.run == RUN
    (line,), _ = store.quarantine_damaged([RUN, run_of("KD")])
    assert line.startswith(f"warning: {path} is damaged; it was put aside as damaged-record.json-1")
    assert store.record(RUN) is None
    assert (store.folder(RUN) / "damaged-record.json-1").read_text() == content
    assert weights_path(store).exists()
    assert store.quarantine_damaged([RUN])[0] == store.quarantine(RUN) == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_damaged_weights_are_put_aside_with_their_record(tmp_path: Path, damage: str) -> None:
    store = finished(tmp_path)
    path = weights_path(store)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:50])
    else:
        flip(path)
    with pytest.raises(CorruptRun):
        store.weights(RUN)
    lines = store.quarantine(RUN)
    there = [] if damage == "missing" else ["damaged-student.safetensors-1"]
    assert damaged_files(store) == ["damaged-record.json-1", *there]
    assert len(lines) == 1 + len(there)
    assert store.record(RUN) is None


def test_what_is_whole_is_left_alone(tmp_path: Path) -> None:
    store = finished(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in store.folder(RUN).iterdir()}
    assert store.quarantine(RUN) == store.quarantine_damaged([RUN])[0] == []
    assert {path.name: path.stat().st_mtime_ns for path in store.folder(RUN).iterdir()} == before
    assert torch.equal(store.weights(RUN)["weight"], torch.arange(4.0))


def test_many_that_heal_at_once_put_one_file_aside(tmp_path: Path) -> None:
    store = finished(tmp_path)
    flip(record_path(store))
    said: list[str] = []
    start = threading.Barrier(8)

    def heal() -> None:
        start.wait()
        said.extend(store.quarantine(RUN))

    threads = [threading.Thread(target=heal) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 1
    # Which number is free depends on who came first.
    (name,) = damaged_files(store)
    assert name.startswith("damaged-record.json-")
    assert not record_path(store).exists()


@pytest.mark.parametrize("name", ["record.json", "student.safetensors"])
def test_what_another_process_has_healed_meanwhile_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    store, whole = finished(tmp_path / "one"), finished(tmp_path / "whole")
    path = store.folder(RUN) / name
    flip(path)

    def slow(path: Path) -> Path | None:
        # Between the look and the renaming, the run is trained again.
        shutil.copytree(whole.folder(RUN), store.folder(RUN), dirs_exist_ok=True)
        return quarantine_file(path)

    monkeypatch.setattr(results, "quarantine_file", slow)
    assert store.quarantine(RUN) == []
    assert damaged_files(store) == []
    assert store.record(RUN) == whole.record(RUN)
    assert torch.equal(store.weights(RUN)["weight"], torch.arange(4.0))


def test_what_is_put_back_takes_no_files_place(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    moved = quarantine_file(path)
    assert moved == tmp_path / "damaged-a.txt-1"
    path.write_text("new")
    restore(moved, path)
    assert path.read_text() == "new"
    assert moved.read_text() == "old"
    assert quarantine_file(path) == tmp_path / "damaged-a.txt-2"
    restore(tmp_path / "damaged-a.txt-2", path)
    assert path.read_text() == "new"
    assert quarantine_file(tmp_path / "nowhere") is None
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.txt", "damaged-a.txt-1"]


def test_who_only_reads_renames_nothing(tmp_path: Path) -> None:
    store = finished(tmp_path)
    flip(record_path(store))
    with pytest.raises(UserError, match="is damaged"):
        results.load(tmp_path)
    records, (line,) = store.read_all()
    assert records == []
    assert line.startswith(f"record {record_path(store)} is damaged (")
    with pytest.raises(CorruptRun):
        store.record(RUN)
    assert damaged_files(store) == []


def test_damaged_figures_of_released_teachers_are_left_out(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("a", "b"):
        store.save_teacher_metrics("digits", name * 64, {"top1": 71.25})
    assert store.teacher_metrics() == {name * 64: {"top1": 71.25} for name in ("a", "b")}
    path = tmp_path / "digits" / "teachers" / f"{'a' * 64}.json"
    for text in (path.read_text().replace("71.25", "77.25"), "", "[]", '{"top1": 71.25}'):
        path.write_text(text)
        assert store.teacher_metrics() == {"b" * 64: {"top1": 71.25}}
