"""A folder of runs that somebody sent: no name, link, pipe or number in it leads to a file outside of it, or hangs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.core.errors import UserError
from benchmark.export import load_edge
from benchmark.io.files import compute_sha256, save_tensors
from benchmark.results import index, leases
from benchmark.results.index import to_row
from benchmark.results.leases import Lease, LeaseHolder, LeaseManager, this_owner
from benchmark.results.record import MAX_RECORD_BYTES, CorruptRun, compute_checksum
from benchmark.results.store import Store, load
from benchmark.training.checkpoint import members, read_checkpoint
from slurm.journal import Submission
from tests.damage import RUN
from tests.merges import rewritten
from tests.report_records import write

HOLDER = LeaseHolder(token="f" * 32, machine="far away", node="n9", process=7, started=1.0)
UNREADABLE: dict[str, Callable[[Path], Any]] = {
    "a pipe": os.mkfifo,
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a huge file": lambda path: (path.touch(), os.truncate(path, MAX_RECORD_BYTES + 1)),
    "a link to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", ".", ""])
def test_no_run_has_its_folder_outside_of_the_store(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be the name of a folder"):
        Store(tmp_path).folder(RUN.replace(dataset=name))
    assert Store(tmp_path).folder(RUN.replace(student=f"x/{name}")).parent == tmp_path / RUN.dataset


def test_a_record_counts_only_in_the_folder_of_its_run(tmp_path: Path) -> None:
    folder = write(tmp_path, RUN, 2)
    folder.rename(folder.with_name("copy"))
    (line,) = Store(tmp_path).read_all()[1]
    assert line.endswith(f"lies in a folder of another name; rename it to {RUN.id}")


@pytest.mark.parametrize("kind", [kind for kind in UNREADABLE if kind != "a link to itself"])
def test_a_record_that_is_no_plain_file_of_sensible_size_is_damaged(tmp_path: Path, kind: str) -> None:
    store = Store(tmp_path)
    path = write(tmp_path, RUN, 2) / "record.json"
    path.unlink()
    UNREADABLE[kind](path)
    with pytest.raises(CorruptRun, match="is damaged"):
        store.record(RUN)
    assert len(store.quarantine(RUN)) == 1
    assert store.missing([RUN]) == [RUN]


@pytest.mark.parametrize("kind", UNREADABLE)
def test_weights_that_are_no_file_of_the_record_are_not_waited_for(tmp_path: Path, kind: str) -> None:
    store = Store(tmp_path)
    folder = write(tmp_path, RUN, 2)
    rewritten(folder, lambda record: record["weights"].update(student="0" * 64))
    UNREADABLE[kind](folder / "student.safetensors")
    with pytest.raises(CorruptRun, match=r"student.safetensors"):
        store.weights(RUN)
    store.quarantine(RUN)
    assert store.missing([RUN]) == [RUN]


def test_a_checkpoint_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"checkpoint-000001-00000001-{'0' * 64}.safetensors")
    with pytest.warns(UserWarning, match="damaged checkpoint"):
        assert read_checkpoint(tmp_path) is None


def test_the_notes_of_a_checkpoint_stop_no_reader_however_deep_they_are(tmp_path: Path) -> None:
    save_tensors(tmp_path / "new", {"a": torch.zeros(1)}, {"notes": "[" * 100_000})
    (tmp_path / "new").rename(tmp_path / f"checkpoint-000001-00000001-{compute_sha256(tmp_path / 'new')}.safetensors")
    assert members(tmp_path) == ()
    with pytest.warns(UserWarning, match="damaged checkpoint"):
        assert read_checkpoint(tmp_path) is None


NOTES: dict[str, Any] = {
    "runs": {"a": {"figures": [], "seconds": 1.0, "teacher_seconds": 0.0}},
    "seconds": 1.0,
    "images": 4,
    "resumed": 0,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"runs": {"a": {"figures": 3, "seconds": 1.0, "teacher_seconds": 0.0}}},
        {"runs": {"a": {"figures": [], "seconds": "long", "teacher_seconds": 0.0}}},
        {"runs": {**NOTES["runs"], "b": NOTES["runs"]["a"]}},
        {"runs": ["a"]},
        {"seconds": None},
        {"images": -1},
        {"resumed": "twice"},
        {"pieces": {"0": 1}},
    ],
)
def test_notes_of_a_checkpoint_of_other_types_are_damage(tmp_path: Path, changes: dict[str, Any]) -> None:
    save_tensors(tmp_path / "new", {"a/weight": torch.zeros(1)}, {"notes": json.dumps(NOTES | changes)})
    (tmp_path / "new").rename(tmp_path / f"checkpoint-000001-00000001-{compute_sha256(tmp_path / 'new')}.safetensors")
    if not changes:
        found = read_checkpoint(tmp_path, ["a"])
        assert found is not None
        assert (found.epoch, found.step, list(found.tensors["a"])) == (1, 1, ["weight"])
        return
    with pytest.warns(UserWarning, match="damaged checkpoint"):
        assert read_checkpoint(tmp_path, list((NOTES | changes)["runs"])) is None


@pytest.mark.parametrize("kind", UNREADABLE)
def test_figures_of_an_export_that_are_no_plain_file_are_refused(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path, RUN, 2)
    UNREADABLE[kind](folder / "edge.json")
    with pytest.raises(UserError, match=r"edge\.json cannot be read"):
        load_edge(folder)


@pytest.mark.parametrize(
    "figures", [{"top1": "70"}, {"top1": [70.0]}, {"top1": float("nan")}, {"top1": None}, {"x": {}}]
)
def test_figures_of_a_teacher_that_are_no_numbers_are_left_out(tmp_path: Path, figures: dict[str, Any]) -> None:
    store = Store(tmp_path)
    store.save_teacher_metrics("digits", "a" * 64, {"top1": 70.0})
    path = tmp_path / "digits" / "teachers" / f"{'b' * 64}.json"
    path.write_text(json.dumps(figures | {"sha256": compute_checksum(figures)}))
    os.mkfifo(path.with_name(f"{'c' * 64}.json"))
    assert store.teacher_metrics() == {"a" * 64: {"top1": 70.0}}


@pytest.mark.parametrize(
    "entry",
    [
        3,
        [],
        [1, 2, 3],
        [1, 2, 3, "d", "finished", None, {}, 8],
        [1, 2, 3, "d", "lost", None, {}],
        [1, 2, 3, "d", "failed", 4, {}],
    ],
)
def test_an_index_from_elsewhere_is_used_only_if_it_has_the_form_of_one(tmp_path: Path, entry: Any) -> None:
    write(tmp_path, RUN, 2)
    text = json.dumps({f"{RUN.dataset}/{RUN.id}": entry})
    (tmp_path / index.NAME).write_text(f"{index._compute_checksum(text)}\n{text}")
    assert load(tmp_path)["status"].tolist() == ["finished"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("provenance", 3),
        ("provenance.seconds", "long"),
        ("provenance.seconds_of_its_own", [1.0]),
        ("provenance.seconds_of_its_teacher", None),
        ("provenance.processes", {"a": 1}),
        ("provenance.cohort", 7),
        ("final", None),
        ("final", "70 %"),
        ("final.top1", "70"),
        ("final.top1", True),
        ("final.stages", 3),
        ("best_on_test", None),
        ("cost", [1]),
        ("cost.images", "many"),
        ("cost.training_multiply_adds", -1),
        ("epochs", {"1": 70.0}),
        ("epochs", [3]),
    ],
)
def test_a_record_of_other_types_than_the_suite_computes_with_is_damaged(
    tmp_path: Path, place: str, value: Any
) -> None:
    folder = write(tmp_path, RUN, 2)
    *parts, last = place.split(".")

    def change(record: dict[str, Any]) -> None:
        for part in parts:
            record = record.setdefault(part, {})
        record[last] = value

    rewritten(folder, change)
    with pytest.raises(CorruptRun, match="is damaged"):
        Store(tmp_path).record(RUN)
    with pytest.raises(UserError, match="is damaged"):
        load(tmp_path)


def test_results_do_not_change_what_run_a_row_is_of() -> None:
    run = RUN.replace(seed=3)
    record = {"run": run.model_dump(), "status": "finished", "final": {"seed": 9, "top1": 1.0}, "provenance": {}}
    assert to_row(record) | {"seed": 3, "top1": 1.0} == to_row(record)


# Leases.


@pytest.mark.parametrize("link", ["run", leases.OWNERS])
def test_no_lease_is_taken_through_a_link(tmp_path: Path, link: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".mine.tmp").touch()
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / link).symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a link"):
        LeaseManager(runs).acquire(runs / "run")
    assert [path.name for path in elsewhere.iterdir()] == [".mine.tmp"]


def test_a_lease_of_the_future_is_no_sign_of_life(tmp_path: Path) -> None:
    path = tmp_path / "run" / "claim-000001.json"
    path.parent.mkdir()
    for content in (HOLDER.model_dump_json(), "{"):
        path.write_text(content)
        os.utime(path, (4e9, 4e9))
        held = LeaseManager(tmp_path).acquire(tmp_path / "run")
        assert isinstance(held, Lease)
        held.release(forget=True)


def test_no_number_of_a_lease_is_too_large_to_be_followed(tmp_path: Path) -> None:
    for number in (10**12, 10**200):
        (tmp_path / f"claim-{number}.json").write_text(HOLDER.model_dump_json())
    held = LeaseManager(tmp_path).acquire(tmp_path)
    assert isinstance(held, Lease)
    assert held.is_valid()


@pytest.mark.parametrize("job", ["--help", "1;rm", "1_", "12_3 ", "../1", "1" * 30])
def test_the_job_of_a_lease_is_no_option_of_a_command(tmp_path: Path, job: str) -> None:
    with pytest.raises(ValueError, match="job"):
        this_owner().replace(job=job)


def test_what_a_lease_says_is_shown_escaped() -> None:
    assert "\x1b" not in HOLDER.replace(node="\x1b[2J").label
    assert len(HOLDER.replace(node="x" * 10_000).label) < 100


@pytest.mark.parametrize(
    "changes",
    [{"token": "../../victim"}, {"token": "/tmp/victim"}, {"token": ""}, {"array": "1 x"}, {"array": "9" * 5000}],
)
def test_a_submission_names_only_its_own_file(changes: dict[str, str]) -> None:
    fields = {"token": "0123456789", "when": 1.0, "jobs": [0], "array": "12"}
    assert Submission.model_validate(fields)
    with pytest.raises(ValueError, match="pattern"):
        Submission.model_validate(fields | changes)
