"""What earlier commits left is what it was: identities, records, checkpoints, rankings, merged runs, format 1."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from benchmark.core.spec import Run
from benchmark.results import Store, load
from benchmark.results.record import CorruptRecord, comparable_part, parse_record
from tests.commands import run_here

FIXTURES = Path(__file__).parent / "fixtures"
DIGESTS = json.loads((FIXTURES / "d8b8c26" / "digests.json").read_text(encoding="utf-8"))


def unpack(commit: str, folder: Path) -> Path:
    """A copy of the store that a commit left."""
    with tarfile.open(FIXTURES / commit / "store.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "store"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return unpack("d8b8c26", tmp_path)


def call(store: Path, name: str, *more: str, replaced: Callable[[str], str] = str) -> str:
    """Call a command of the fixture as it was called then; returns what it printed."""
    module, *arguments = json.loads((store / "commands.json").read_text(encoding="utf-8"))[name]
    ended = run_here(*map(replaced, arguments), *more, module=module, folder=store)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def hash_files(folder: Path) -> dict[str, str]:
    """The sha256 of every record and every weights file under a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.name == "record.json" or path.suffix == ".safetensors"
    }


def read_trained(store: Path, runs: str, run_id: str) -> tuple[dict[str, Any], str]:
    """The part of a run's record that must be equal, and the sha256 of the student's weights."""
    folder = store / runs / "digits" / run_id
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return comparable_part(record), hashlib.sha256((folder / "student.safetensors").read_bytes()).hexdigest()


def test_the_identity_of_every_pinned_run_is_what_it_was() -> None:
    now = [Run.model_validate(pinned["run"]) for pinned in DIGESTS]
    assert len(DIGESTS) >= 40
    assert [(run.digest, run.id) for run in now] == [(pinned["digest"], pinned["id"]) for pinned in DIGESTS]


def test_a_spec_without_its_default_fields_is_the_same_run() -> None:
    pinned = next(pinned for pinned in DIGESTS if pinned["run"]["start"] is None)
    spec = {name: value for name, value in pinned["run"].items() if name != "start"}
    assert Run.model_validate(spec).digest == pinned["digest"]


@pytest.mark.parametrize("name", ["finished", "tune"])
def test_what_was_finished_is_not_trained_again_and_not_touched(store: Path, name: str, tmp_path: Path) -> None:
    before = hash_files(store / "runs")
    assert len([path for path in before if path.endswith("record.json")]) == 12
    call(store, name, "--reports", str(tmp_path / "new"))
    assert hash_files(store / "runs") == before
    assert list((tmp_path / "new").iterdir())


def test_a_failed_run_stays_failed_and_the_command_says_so(store: Path, tmp_path: Path) -> None:
    before = hash_files(store / "runs")
    module, *arguments = json.loads((store / "commands.json").read_text(encoding="utf-8"))["failed"]
    ended = run_here(*arguments, "--reports", str(tmp_path / "new"), module=module, folder=store)
    assert "failed" in ended.stdout
    assert hash_files(store / "runs") == before


def test_a_ranking_is_written_again_as_it_was(store: Path, tmp_path: Path) -> None:
    call(store, "tune", "--reports", str(tmp_path / "new"))
    (ranking,) = (store / "reports").glob("tune_*.csv")
    assert (tmp_path / "new" / ranking.name).read_text(encoding="utf-8") == ranking.read_text(encoding="utf-8")


def test_all_records_are_listed_and_reported(store: Path, tmp_path: Path) -> None:
    frame = load(store / "runs")
    assert sorted(frame["status"]) == ["failed"] + ["finished"] * 11
    assert Store(store / "runs").read_all()[1] == []
    arguments = ["--runs", str(store / "runs"), "--reports", str(tmp_path / "new")]
    ended = run_here(*arguments, module="benchmark.report", folder=store)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "new" / "index.html").stat().st_size > 10_000
    assert sorted(pd.read_csv(tmp_path / "new" / "records.csv")["id"]) == sorted(frame["id"])


def test_the_runs_can_be_merged_into_another_store(store: Path, tmp_path: Path) -> None:
    ended = run_here(str(store / "runs"), "--runs", str(tmp_path / "ours"), module="benchmark.merge", folder=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ours, theirs = (
        {record["id"]: record["digest"] for record in Store(folder).read_all()[0]}
        for folder in (tmp_path / "ours", store / "runs")
    )
    assert ours == theirs
    assert len(ours) == 12


def test_a_checkpoint_goes_on_to_the_bits_of_an_undisturbed_run(store: Path, tmp_path: Path) -> None:
    expected = json.loads((store / "expected.json").read_text(encoding="utf-8"))
    shutil.rmtree(tmp_path / "whole", ignore_errors=True)
    said = call(store, "interrupted", "--reports", str(tmp_path / "a"))
    assert "resumed at epoch 2, step 204" in said
    call(
        store,
        "interrupted",
        "--reports",
        str(tmp_path / "b"),
        replaced=lambda word: "whole" if word == "runs" else word,
    )
    resumed = read_trained(store, "runs", expected["id"])
    # The checkpoint holds 204 steps of a processor with AVX-512; others give other bits, also in a run without a stop.
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert resumed == read_trained(store, "whole", expected["id"])
    assert resumed[0]["digest"] == expected["digest"]
    assert abs(resumed[0]["final"]["top1"] - expected["outcome"]["final"]["top1"]) < 2


def test_records_of_format_1_are_read_and_not_trained_again(tmp_path: Path) -> None:
    store = unpack("698e477", tmp_path)
    before = hash_files(store / "runs")
    call(store, "finished", "--reports", str(tmp_path / "new"))
    assert hash_files(store / "runs") == before
    assert len(load(store / "runs")) == 2


def test_a_record_of_format_1_with_another_specification_is_damaged(tmp_path: Path) -> None:
    path = next((unpack("698e477", tmp_path) / "runs").glob("*/Baseline*/record.json"))
    text = path.read_text(encoding="utf-8")
    assert parse_record(text)["format"] == 1
    with pytest.raises(CorruptRecord):
        parse_record(text.replace('"seed": 0', '"seed": 7'))
