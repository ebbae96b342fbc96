"""`python -m benchmark.merge`: what is new comes in whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.io.files import compute_sha256
from benchmark.merge import Merge
from benchmark.merge.__main__ import main
from benchmark.results.leases import LeaseManager
from benchmark.results.record import comparable_part, compute_checksum
from benchmark.results.store import Store, load
from benchmark.training.job import run_until_done
from tests import engine, report_records
from tests.commands import files_under, run_here
from tests.merges import (
    counts,
    here,
    merged,
    run_of,
    there,
    trained,
    weights_of,
    why,
    write,
)

__all__ = ["here", "there", "trained"]


# What comes in.


def test_trained_runs_come_in_to_the_last_byte_and_are_equal_after_that(
    trained: tuple[Path, list[Run]], here: Path
) -> None:
    source, runs = trained
    assert counts(merged(source, here)) == {"new": len(runs)}
    assert len(runs) == 3
    for run in runs:
        ours, theirs = Store(here).folder(run), Store(source).folder(run)
        names = {"record.json", "run.json", "epochs.jsonl", *(path.name for path in theirs.glob("*.safetensors"))}
        assert set(files_under(ours)) == names
        for name in names:
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
        for part, digest in (Store(here).record(run) or {})["weights"].items():
            assert Store(here).weights(run, part)
            assert digest == compute_sha256(ours / f"{part}.safetensors")
    assert len(load(here)) == 3
    assert counts(merged(source, here)) == {"equal": 3}
    assert run_until_done(runs, engine.settings(here))


def test_what_is_derived_is_written_from_the_record_and_not_copied(there: Path, here: Path) -> None:
    folder = write(there, run_of())
    (folder / "run.json").write_text("rubbish")
    (folder / "edge.json").write_text("rubbish")
    assert counts(merged(there, here)) == {"new": 1}
    ours = Store(here).folder(run_of())
    assert set(files_under(ours)) == {"record.json", "run.json", "epochs.jsonl", "student.safetensors"}
    assert Run.model_validate_json((ours / "run.json").read_text()) == run_of()
    epochs = [json.loads(line) for line in (ours / "epochs.jsonl").read_text().splitlines()]
    assert epochs == (Store(here).record(run_of()) or {})["epochs"]


def test_new_equal_conflicting_kept_replaced_and_unfinished_runs_are_told_apart(there: Path, here: Path) -> None:
    new, equal, conflicting, kept, replaced, unfinished = (run_of(seed=seed) for seed in range(6))
    for root in (there, here):
        write(root, equal, provenance={"host": root.name})
    write(there, new)
    write(there, conflicting)
    write(here, conflicting, weights_of(conflicting, seed=1))
    report_records.failed(there, kept)
    write(here, kept)
    write(there, replaced)
    report_records.failed(here, replaced)
    Store(there).begin(unfinished)
    before = {
        path: path.read_bytes() for run in (equal, conflicting, kept) for path in Store(here).folder(run).iterdir()
    }
    expected = dict.fromkeys(("new", "equal", "conflicting", "kept", "replaced", "unfinished"), 1)
    assert counts(merged(there, here, dry_run=True)) == expected
    assert not Store(here).folder(new).exists()
    found = merged(there, here)
    assert counts(found) == expected
    assert found["replaced"][0].why == "a failed run"
    assert found["kept"][0].why == "failed there: loss not finite at epoch 3, step 17"
    assert Store(here).missing([new, equal, conflicting, kept, replaced], retry_failed=True) == []
    assert not Store(here).folder(unfinished).exists()
    assert {path: path.read_bytes() for path in before} == before


def test_a_conflict_names_the_first_difference_and_what_may_explain_it(there: Path, here: Path) -> None:
    run = run_of()
    epochs = report_records.record_of(run)["epochs"]
    other = [*epochs[:-1], epochs[-1] | {"top1": 70.9}]
    made = report_records.record_of(run)["provenance"]
    write(here, run, epochs=epochs, final=epochs[-1] | {}, best_on_test=epochs[0], provenance=made)
    changes = {"epochs": other, "final": other[-1], "best_on_test": epochs[0]}
    write(there, run, **changes, provenance=made | {"torch": "2.11.0", "device_name": "Another"})
    assert why(there, here, "conflicting") == (
        f"final.top1 {json.dumps(epochs[-1]['top1'])} here, 70.9 there; torch 2.13.0 here, 2.11.0 there; "
        "device_name A processor here, Another there"
    )


def test_other_weights_beside_equal_figures_are_a_conflict(there: Path, here: Path) -> None:
    write(here, run_of())
    write(there, run_of(), weights_of(run_of(), seed=1))
    assert why(there, here, "conflicting").startswith("all figures are equal, and the weights differ: weights.student ")


def test_a_damaged_record_here_is_put_aside_for_the_whole_one(there: Path, here: Path) -> None:
    write(there, run_of())
    folder = write(here, run_of())
    (folder / "record.json").write_text("{")
    (finding,) = Merge(Store(here)).merge(there)
    assert (finding.kind, finding.why) == ("replaced", "a damaged record, which is put aside")
    assert Store(here).missing([run_of()], retry_failed=True) == []
    assert any(path.name.startswith("damaged-record.json") for path in folder.iterdir())


def test_a_run_that_is_being_trained_here_is_left(there: Path, here: Path) -> None:
    write(there, run_of())
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()

    def train() -> None:
        LeaseManager(here).acquire(Store(here).folder(run_of()))
        ready.set()
        done.wait(60)

    process = context.Process(target=train)
    process.start()
    try:
        assert ready.wait(60)
        (finding,) = Merge(Store(here)).merge(there)
        assert finding.kind == "busy"
        assert f"process {process.pid}" in finding.why
        assert Store(here).record(run_of()) is None
    finally:
        done.set()
        process.join()
    # Its process has gone, and with it the claim.
    assert counts(merged(there, here)) == {"new": 1}


def test_a_merge_that_is_killed_at_any_moment_leaves_whole_runs_or_none_and_goes_on(
    there: Path, tmp_path: Path
) -> None:
    runs = [run_of(seed=seed) for seed in range(2)]
    for run in runs:
        write(there, run)
    replace = os.replace

    def killed_after(files: int, here: Path) -> None:
        def counted(source: Any, target: Any) -> None:
            nonlocal files
            if files == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            files -= 1
            replace(source, target)

        os.replace = counted
        merged(there, here)

    moments, whole = 0, set()
    while True:
        here = tmp_path / f"here-{moments}"
        process = multiprocessing.get_context("fork").Process(target=killed_after, args=(moments, here))
        process.start()
        process.join()
        store = Store(here)
        whole.add(sum(bool(store.weights(run)) for run in runs if store.record(run) is not None))
        merged(there, here)
        assert all(store.weights(run) for run in runs)
        assert not [name for name in files_under(here) if name.endswith(".tmp")]
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        moments += 1
    # Four files a run are put in their places.
    assert moments >= 8
    assert whole == {0, 1, 2}


def test_a_store_is_published_without_weights_hosts_and_paths_and_is_equal_to_its_source(
    there: Path, here: Path, tmp_path: Path
) -> None:
    run = run_of()
    made = report_records.record_of(run)["provenance"]
    made |= {"command": "python -m benchmark.run --data-root '/home/my name/data'", "pieces": [{"host": "node7"}]}
    write(there, run, provenance=made)
    failed = run_of(seed=1)
    report_records.failed(there, failed)
    assert counts(merged(there, here, without_host=True, without_weights=True)) == {"new": 2}
    for each in (run, failed):
        assert set(files_under(Store(here).folder(each))) == {"record.json", "run.json", "epochs.jsonl"}
    record, source = Store(here).record(run) or {}, Store(there).record(run) or {}
    assert record["provenance"] == {key: value for key, value in made.items() if key != "host"} | {
        "command": "python -m benchmark.run --data-root PATH",
        "pieces": [{}],
    }
    assert comparable_part(record) == comparable_part(source)
    written = "".join(path.read_text() for path in here.rglob("*") if path.is_file())
    assert not any(word in written for word in ("secret-host-name", "node7", "my name", "/home"))
    assert len(load(here)) == 2
    # What is published is the same run as its source, whichever comes in first.
    assert counts(merged(here, there)) == counts(merged(there, here)) == {"equal": 2}
    more = tmp_path / "more"
    found = merged(here, more)
    assert counts(found) == {"new": 1, "refused": 1}
    assert found["refused"][0].why == "student.safetensors is missing; --without-weights takes the record alone"
    assert counts(merged(here, more, without_weights=True)) == {"new": 1, "equal": 1}
    assert (Store(more).folder(run) / "record.json").read_text() == (
        Store(here).folder(run) / "record.json"
    ).read_text()


def test_figures_of_released_teachers_come_in(there: Path, here: Path) -> None:
    names = ["a" * 64, "b" * 64, "c" * 64]
    for name in names:
        Store(there).save_teacher_metrics("digits", name, {"top1": 70.0, "nll": 1.0})
    Store(here).save_teacher_metrics("digits", names[1], {"top1": 70.0, "nll": 1.0})
    Store(here).save_teacher_metrics("digits", names[2], {"top1": 71.5, "nll": 1.0})
    found = merged(there, here)
    assert counts(found) == {"new": 1, "equal": 1, "conflicting": 1}
    assert found["conflicting"][0].why == "top1 71.5 here, 70.0 there"
    assert Store(here).teacher_metrics()[names[0]] == {"top1": 70.0, "nll": 1.0}
    assert Store(here).teacher_metrics()[names[2]]["top1"] == 71.5


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", '{"top1": 1.0}', "its name is not a sha256"),
        ("a" * 64 + ".json", '{"top1": 1.0}', "does not match its checksum"),
        ("a" * 64 + ".json", '{"top1": NaN}', "holds NaN"),
        ("a" * 64 + ".json", " " * 5000, "at most 4.0 KiB are read"),
        ("a" * 64 + ".json", "summed 101", "holds no figures of a teacher"),
    ],
)
def test_figures_that_the_suite_did_not_write_are_refused(
    there: Path, here: Path, name: str, content: str, reason: str
) -> None:
    (there / "digits" / "teachers").mkdir(parents=True)
    if content.startswith("summed"):
        figures = {"top1": float(content.split()[1])}
        content = json.dumps(figures | {"sha256": compute_checksum(figures)})
    (there / "digits" / "teachers" / name).write_text(content)
    assert reason in why(there, here)


def test_figures_of_a_dataset_whose_name_is_none_are_refused(there: Path, here: Path) -> None:
    Store(there).save_teacher_metrics("\x1b[2J", "a" * 64, {"top1": 70.0})
    assert why(there, here) == "its dataset's name could not name a file"
    assert not here.exists()


def test_checkpoints_are_not_merged(there: Path, here: Path) -> None:
    write(there, run_of())
    (there / "digits" / "cohorts" / "some").mkdir(parents=True)
    (there / "digits" / "cohorts" / "some" / "checkpoint.safetensors").write_bytes(b"")
    assert counts(merged(there, here)) == {"new": 1}
    assert not (here / "digits" / "cohorts").exists()


# The command.


def command(*arguments: str) -> tuple[int, list[str]]:
    ended = run_here(*arguments, module="benchmark.merge")
    assert "Traceback" not in ended.stderr
    return ended.returncode, (ended.stdout + ended.stderr).splitlines()


def test_the_command_says_what_came_of_each_run_and_ends_with_1_where_something_was_refused(
    there: Path, here: Path, tmp_path: Path
) -> None:
    write(there, run_of())
    write(there, run_of(seed=1))
    (there / "digits" / "a\x1b[31m[bold]\nb" / "x").mkdir(parents=True)
    (there / "digits" / "a\x1b[31m[bold]\nb" / "record.json").write_text("{}")
    write(tmp_path / "more", run_of(seed=1))
    code, lines = command(str(there), str(tmp_path / "more"), "--runs", str(here))
    assert code == 1
    assert "refused: digits/a\\x1b[31m[bold]\\nb: record.json is of format None, this version reads format 2" in lines
    told = [line.split()[:2] for line in lines]
    assert told.count(["new", "2"]) == 1
    assert told.count(["equal", "1"]) == 1
    assert "\x1b" not in "".join(lines)
    assert main([tmp_path / "more"], here) == 0


def test_a_dry_run_says_what_would_be_done(there: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(there, run_of())
    assert main([there], here, dry_run=True) == 0
    said = capsys.readouterr().out
    assert "dry run: " in said
    assert "would be brought in" in said
    assert not here.exists()


def test_a_dry_run_of_two_stores_counts_a_run_that_both_have_once(there: Path, here: Path, tmp_path: Path) -> None:
    write(there, run_of())
    write(tmp_path / "more", run_of())
    merge = Merge(Store(here), dry_run=True)
    assert [finding.kind for root in (there, tmp_path / "more") for finding in merge.merge(root)] == ["new", "equal"]
    assert not here.exists()


@pytest.mark.parametrize("place", ["missing", "file", "empty", "links", "here", "here/digits", "link-to-here"])
def test_a_folder_that_is_no_other_store_is_refused_in_one_line(here: Path, tmp_path: Path, place: str) -> None:
    write(here, run_of())
    (tmp_path / "file").write_text("")
    (tmp_path / "empty" / "x" / "y").mkdir(parents=True)
    (tmp_path / "link-to-here").symlink_to(here)
    (tmp_path / "links" / "digits").mkdir(parents=True)
    (tmp_path / "links" / "digits" / run_of().id).symlink_to(Store(here).folder(run_of()))
    with pytest.raises(UserError) as caught:
        main([tmp_path / place], here)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / place) in str(caught.value)


def test_runs_for_which_there_is_no_room_are_refused_before_any_is_copied(
    there: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(there, run_of())
    usage = shutil.disk_usage(there)._replace(free=2**26)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"no room in .*: the runs to bring in take .* and 64\.0 MiB are free"):
        merged(there, here)
    assert not here.exists()


def test_a_folder_that_may_not_be_read_is_refused_and_the_rest_goes_on(there: Path, here: Path) -> None:
    if os.geteuid() == 0 or sys.platform == "win32":
        pytest.skip("everything may be read")
    write(there, run_of())
    closed = write(there, run_of(seed=1))
    closed.chmod(0)
    try:
        found = merged(there, here)
    finally:
        closed.chmod(0o755)
    assert counts(found) == {"new": 1, "refused": 1}
    assert "Permission denied" in found["refused"][0].why
