"""Which records a merge refuses, and how it says so: nothing foreign is trusted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.io.files import write_text
from benchmark.io.untrusted import escape_control_chars, parse_json_limited
from benchmark.results.store import Store
from tests.merges import (
    here,
    nested,
    rewritten,
    run_of,
    there,
    why,
    write,
)

__all__ = ["here", "there"]


RECORDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped figure": (
        lambda folder: rewritten(folder, lambda record: record["final"].update(top1=99.0), summed=False),
        "record.json does not match its checksum",
    ),
    "no checksum": (lambda folder: rewritten(folder, lambda r: r.pop("sha256") and None, summed=False), "its checksum"),
    "another format": (
        lambda folder: rewritten(folder, lambda record: record.update(format=3)),
        "is of format 3, this version reads format 2",
    ),
    "format 1": (
        lambda folder: rewritten(
            folder, lambda r: {k: 1 if k == "format" else v for k, v in r.items() if k != "sha256"}, summed=False
        ),
        "is of format 1",
    ),
    "cut short": (lambda folder: os.truncate(folder / "record.json", 1000), "record.json is no JSON"),
    "empty": (lambda folder: os.truncate(folder / "record.json", 0), "record.json is no JSON"),
    "not text": (lambda folder: (folder / "record.json").write_bytes(b"\xff" * 99), "record.json is no UTF-8 text"),
    "a list": (lambda folder: rewritten(folder, lambda record: [record]), "record.json is no record"),
    "10,000 nested lists": (
        lambda folder: (folder / "record.json").write_text(nested(10_000)),
        "record.json is nested deeper than 64 levels",
    ),
    "nested in a known field": (
        lambda folder: (folder / "record.json").write_text('{"format": 2, "run": ' + nested(100_000) + "}"),
        "record.json is nested deeper than 64 levels",
    ),
    "too many values": (
        lambda folder: (folder / "record.json").write_text("[" + "0," * 1_000_001 + "0]"),
        "record.json has more than 1,000,000 values",
    ),
    "too large": (
        lambda folder: os.truncate(folder / "record.json", 2**24 + 1),
        "record.json has 16.0 MiB, at most 16.0 MiB are read",
    ),
    "sparse and huge": (lambda folder: os.truncate(folder / "record.json", 2**40), "1024.0 GiB, at most 16.0 MiB"),
    "NaN": (
        lambda folder: rewritten(folder, lambda record: record["final"].update(top1=float("nan"))),
        "record.json holds NaN",
    ),
    "a number beyond all bounds": (
        lambda folder: write_text(
            folder / "record.json", (folder / "record.json").read_text().replace('"threads": 1', '"threads": 1e999')
        ),
        "record.json holds a number that is not finite",
    ),
    "a whole number of 5,000 digits": (
        lambda folder: write_text(
            folder / "record.json",
            (folder / "record.json").read_text().replace('"threads": 1', '"threads": ' + "9" * 5000),
        ),
        "beyond 2^63",
    ),
    "a name twice": (
        lambda folder: write_text(
            folder / "record.json", (folder / "record.json").read_text().replace("{", '{"status": "failed",', 1)
        ),
        "record.json names something twice",
    ),
    "pieces that are no pieces": (
        lambda folder: rewritten(folder, lambda record: record["provenance"].update(pieces=["x"])),
        "record.json is no record: provenance: Value error, pieces are no list of pieces",
    ),
    "an accuracy of 101 %": (
        lambda folder: rewritten(folder, lambda record: record["final"].update(top1=101.0)),
        "record.json is no record: final.top1",
    ),
    "a final figure that is no epoch's": (
        lambda folder: rewritten(folder, lambda record: record["final"].update(top1=99.0)),
        "its results are not those of its last epoch",
    ),
    "a text for a number": (
        lambda folder: rewritten(folder, lambda record: record["final"].update(top1="99")),
        "record.json is no record: final.top1",
    ),
    "an unknown field": (lambda folder: rewritten(folder, lambda record: record.update(run2=1)), "is no record: run2"),
    "an unknown figure": (
        lambda folder: rewritten(folder, lambda record: record["final"].update(method="KD")),
        "is no record: final.method",
    ),
    "weights of an unknown name": (
        lambda folder: rewritten(folder, lambda record: record["weights"].update({"../student": "0" * 64})),
        "is no record: weights",
    ),
    "no weights": (
        lambda folder: rewritten(folder, lambda record: record.update(weights={})),
        "it names no weights",
    ),
    "a terminal escape": (
        lambda folder: rewritten(folder, lambda record: record["provenance"].update(command="\x1b]0;x\x07")),
        "holds text with control characters",
    ),
    "half a surrogate": (
        lambda folder: rewritten(folder, lambda record: record["provenance"].update(command="\ud800")),
        "holds text with control characters",
    ),
    "a path as provenance's name": (
        lambda folder: rewritten(folder, lambda record: record["provenance"].update({"../x": 1})),
        "is no record: provenance",
    ),
    "an unknown field of the run": (
        lambda folder: rewritten(folder, lambda record: record["run"].update(extra=1)),
        "is refused: it is no record: ValidationError",
    ),
    "another seed than its id": (
        lambda folder: rewritten(folder, lambda record: record["run"].update(seed=5)),
        "its digest is not that of its specification",
    ),
    "a seed written as a text": (
        lambda folder: rewritten(folder, lambda record: record["run"].update(seed="0")),
        "its specification is not written as this version writes it",
    ),
    "too long a specification": (
        lambda folder: rewritten(folder, lambda r: r["run"]["options"].update(x=["y" * 9_000] * 40)),
        "its specification has 36",
    ),
    "fewer epochs than its schedule": (
        lambda folder: rewritten(
            folder, lambda r: r.update(epochs=r["epochs"][:2], final=r["epochs"][1], best_on_test=r["epochs"][1])
        ),
        "it has 2 epochs, its schedule 4",
    ),
    "epochs out of order": (
        lambda folder: rewritten(folder, lambda r: r.update(epochs=r["epochs"][::-1], final=r["epochs"][0])),
        "does not count its epochs",
    ),
}


@pytest.mark.parametrize("attack", RECORDS)
def test_a_record_that_training_did_not_write_is_refused(there: Path, here: Path, attack: str) -> None:
    spoil, reason = RECORDS[attack]
    folder = write(there, run_of())
    spoil(folder)
    found = why(there, here)
    assert reason in found
    assert "\n" not in found


def test_a_run_in_another_folder_than_its_own_is_refused(there: Path, here: Path) -> None:
    folder = write(there, run_of())
    folder.rename(folder.with_name("Baseline"))
    assert "its folder is not named after its run" in why(there, here)


def test_a_run_in_another_dataset_s_folder_is_refused(there: Path, here: Path) -> None:
    write(there, run_of())
    (there / "digits").rename(there / "cifar100")
    assert why(there, here) == "it is of dataset digits, and lies in another's folder"


@pytest.mark.parametrize("name", ["..", "../../x", "a/b", ".", "", "\x1b[2J", "a" * 200, ".hidden"])
@pytest.mark.parametrize("part", ["dataset", "scale", "protocol"])
def test_a_name_never_leads_out_of_the_store_or_the_reports(there: Path, here: Path, part: str, name: str) -> None:
    run = run_of()
    run = run.replace(**{part: name if part == "dataset" else getattr(run, part).replace(name=name)})
    if len(run.id) > 200:
        pytest.skip("no folder could have this name")
    folder = Store(there).folder(run_of())
    write(there, run_of())
    moved = folder.rename(folder.with_name(run.id))
    rewritten(moved, lambda r: r.update(run=run.model_dump(mode="json"), id=run.id, digest=run.digest))
    found = why(there, here)
    assert "\x1b" not in found
    assert not here.exists()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text('aé"\\[{,\n'), st.lists, max_leaves=9
    )
)
def test_bounded_json_reads_what_json_writes(value: Any) -> None:
    assert parse_json_limited(json.dumps(value)) == value


@given(st.text())
def test_what_is_shown_can_be_printed_on_one_line(text: str) -> None:
    assert escape_control_chars(text).isprintable()
