"""The journal of a sweep whose folder somebody sent: no note in it hangs its readers or is taken for another's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slurm.journal import LARGEST_NOTE, Journal, State

NOTES = ("states/000000.json", "ended/000000.failed", f"submissions/{'a' * 10}.json", "refused")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    for kind in ("states", "ended", "submissions"):
        (tmp_path / kind).mkdir()
    return Journal(tmp_path)


def write_sparse_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(LARGEST_NOTE + 1)


@pytest.mark.parametrize("make", [os.mkfifo, write_sparse_file, lambda path: path.write_bytes(b"\xff{")])
def test_a_note_that_no_journal_writes_says_nothing(journal: Journal, make) -> None:
    for note in NOTES:
        make(journal.folder / note)
    assert journal.read_state(0) == State(job=0)
    assert journal.read_reason(0) == ""
    assert journal.read_submissions() == []
    assert journal.read_refusal() == ""


def test_the_state_of_another_job_is_not_taken_for_this_one(journal: Journal) -> None:
    journal.write_state(State(job=1, forgiven=3.0))
    (journal.folder / "states" / "000001.json").rename(journal.folder / "states" / "000000.json")
    assert journal.read_state(0) == State(job=0)


def test_a_number_that_is_no_decimal_names_no_job(journal: Journal) -> None:
    (journal.folder / "ended" / "1\N{SUPERSCRIPT TWO}.done").touch()
    journal.write_ending(3, "done")
    assert journal.read_endings() == {3: "done"}
