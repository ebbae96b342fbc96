"""What a merge refuses, and how it says so: nothing foreign is trusted."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from benchmark import merge as module
from benchmark.backbones import build_network
from benchmark.files import sha256_of, write_text
from benchmark.foreign import Refused, bounded_json, shown
from benchmark.foreign_weights import largest
from benchmark.merge import Merge
from benchmark.results import Store
from benchmark.spec import Run
from tests.merges import (
    counts,
    here,
    merged,
    rewritten,
    run_of,
    there,
    trained,
    weights_of,
    why,
    write,
)

__all__ = ["here", "there", "trained"]


# What is refused.


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


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
        "it has 2 epochs, its schedule 6",
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
    run = run.changed(**{part: name if part == "dataset" else getattr(run, part).changed(name=name)})
    if len(run.id) > 200:
        pytest.skip("no folder could have this name")
    folder = Store(there).folder(run_of())
    write(there, run_of())
    moved = folder.rename(folder.with_name(run.id))
    rewritten(moved, lambda r: r.update(run=run.model_dump(mode="json"), id=run.id, digest=run.digest))
    found = why(there, here)
    assert "\x1b" not in found
    assert not here.exists()


def crafted(tensors: dict[str, Any], content: bytes) -> bytes:
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + content


def entry(shape: list[int], begin: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


def altered(name: str, value: Tensor) -> dict[str, Tensor]:
    return weights_of(run_of()) | {name: value}


WEIGHTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "of another network": (
        lambda: safetensors.torch.save(dict(build_network("ResNet20", 10).state_dict())),
        "does not hold the weights of ResNet8",
    ),
    "a tensor of another shape": (
        lambda: safetensors.torch.save(altered("fc.weight", torch.zeros(10, 65))),
        "does not hold the weights of ResNet8",
    ),
    "a bias for another number of classes": (
        lambda: safetensors.torch.save(altered("fc.bias", torch.zeros(11))),
        "does not hold the weights of ResNet8",
    ),
    "doubles": (
        lambda: safetensors.torch.save(altered("fc.bias", torch.zeros(10, dtype=torch.float64))),
        "does not hold the weights of ResNet8",
    ),
    "one more tensor": (
        lambda: safetensors.torch.save(altered("more", torch.zeros(1))),
        "does not hold the weights of ResNet8",
    ),
    "not a number": (
        lambda: safetensors.torch.save(altered("fc.bias", torch.full((10,), float("nan")))),
        "holds numbers that are not finite, in fc.bias",
    ),
    "a pickle": (
        lambda: b"\x80\x02ccposix\nmkdir\n(S'x'\ntR." + b" " * 100,
        "is no safetensors file: its header would",
    ),
    "an endless header": (lambda: struct.pack("<Q", 2**63) + b"{}", "its header would have"),
    "nothing": (lambda: b"", "is cut short"),
    "a nested header": (
        lambda: struct.pack("<Q", 20_000) + nested(10_000).encode(),
        "its header is nested deeper than 3 levels",
    ),
    "a list for a header": (lambda: struct.pack("<Q", 2) + b"[]", "its header names no tensors"),
    "a huge shape on no bytes": (
        lambda: crafted({"a": entry([2**40, 2**40], 0, 0)}, b""),
        "a is not where its shape says",
    ),
    "overlapping tensors": (
        lambda: crafted({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12),
        "b is not where its shape says",
    ),
    "a gap": (lambda: crafted({"a": entry([1], 4, 8)}, b"\0" * 8), "a is not where its shape says"),
    "a negative place": (lambda: crafted({"a": entry([1], -4, 0)}, b""), "nothing sensible of a"),
    "an unhashable kind": (
        lambda: crafted({"a": entry([1], 0, 4) | {"dtype": []}}, b"\0" * 4),
        "nothing sensible of a",
    ),
    "an unknown kind": (lambda: crafted({"a": entry([1], 0, 4, "OBJ")}, b"\0" * 4), "nothing sensible of a"),
    "more bytes at its end": (
        lambda: safetensors.torch.save(weights_of(run_of())) + b"more",
        "has more bytes than its header tells of",
    ),
}


@pytest.mark.parametrize("attack", WEIGHTS)
def test_weights_that_are_not_the_network_s_are_refused_though_their_checksum_fits(
    there: Path, here: Path, attack: str
) -> None:
    content, reason = WEIGHTS[attack]
    folder = write(there, run_of())
    (folder / "student.safetensors").write_bytes(content())
    digest = sha256_of(folder / "student.safetensors")
    rewritten(folder, lambda record: record["weights"].update(student=digest))
    found = why(there, here)
    assert found.startswith("student.safetensors ")
    assert reason in found


def test_missing_altered_cut_and_oversized_weights_are_refused(there: Path, here: Path) -> None:
    weights = write(there, run_of()) / "student.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert why(there, here) == "student.safetensors does not have the checksum that the record names"
    weights.write_bytes(content[:-5])
    assert why(there, here) == "student.safetensors is cut short, or is no safetensors file"
    os.truncate(weights, largest(run_of(), "student") + 1)
    assert "are read" in why(there, here)
    weights.unlink()
    assert why(there, here) == "student.safetensors is missing"


@pytest.mark.parametrize("classes", [2, 1000])
def test_weights_for_any_number_of_classes_are_taken(there: Path, here: Path, classes: int) -> None:
    write(there, run_of(), weights_of(run_of(), classes=classes))
    assert counts(merged(there, here)) == {"new": 1}


def test_a_run_of_a_network_that_this_version_does_not_have_is_refused(there: Path, here: Path) -> None:
    run = run_of().changed(student="ResNet9000\x7f"[:10])
    write(there, run, weights_of(run_of()))
    assert why(there, here) == "its network ResNet9000 is none of this version"


@pytest.mark.parametrize("name", ["record.json", "student.safetensors", "epochs.jsonl", "more"])
def test_a_link_in_a_run_s_folder_is_refused_and_not_followed(
    there: Path, here: Path, tmp_path: Path, name: str
) -> None:
    folder = write(there, run_of())
    target = tmp_path / "elsewhere"
    if (folder / name).exists():
        (folder / name).rename(target)
    (folder / name).symlink_to(target)
    assert why(there, here) == f"{name} is a link"


def test_links_to_folders_are_refused_and_not_followed(there: Path, here: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", run_of(seed=1))
    write(there, run_of())
    elsewhere = Store(tmp_path / "elsewhere").folder(run_of(seed=1))
    (there / "digits" / elsewhere.name).symlink_to(elsewhere)
    (there / "cifar100").symlink_to(tmp_path / "elsewhere" / "digits")
    (there / "digits" / "teachers").symlink_to(tmp_path)
    found = merged(there, here)
    assert counts(found) == {"new": 1, "refused": 3}
    assert {finding.why.partition(" ")[2] for finding in found["refused"]} == {"is a link"}
    assert [path.name for path in (here / "digits").iterdir()] == [run_of().id]


@pytest.mark.parametrize("kind", ["fifo", "socket"])
@pytest.mark.parametrize("name", ["record.json", "student.safetensors", "other"])
def test_pipes_and_sockets_are_refused_and_never_opened(
    there: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    folder = write(there, run_of())
    (folder / name).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(folder / name)
    else:
        # The path of a socket is short.
        monkeypatch.chdir(folder)
        socket.socket(socket.AF_UNIX).bind(name)
        monkeypatch.undo()
    assert why(there, here) == f"{name} is neither a file nor a folder"


def test_a_file_that_becomes_a_pipe_after_its_folder_was_listed_is_not_waited_for(there: Path) -> None:
    from benchmark.foreign import ForeignFolder

    folder = write(there, run_of())
    with ForeignFolder.at(folder) as opened:
        (folder / "record.json").unlink()
        os.mkfifo(folder / "record.json")
        with pytest.raises(Refused, match="is no plain file"):
            opened.text("record.json", 10)
        (folder / "record.json").unlink()
        (folder / "record.json").symlink_to("run.json")
        with pytest.raises(Refused, match="is a link"):
            opened.text("record.json", 10)


def test_a_run_that_changes_between_the_look_and_the_copy_is_not_brought_in(
    there: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(there, run_of())
    begin = Store.begin

    def spoiled(store: Store, run: Run) -> None:
        begin(store, run)
        (folder / "student.safetensors").write_bytes(b"other")

    monkeypatch.setattr(Store, "begin", spoiled)
    (finding,) = Merge(Store(here)).merge(there)
    assert finding.kind == "refused"
    assert Store(here).record(run_of()) is None
    assert "student.safetensors" not in {path.name for path in Store(here).folder(run_of()).iterdir()}


def test_a_run_that_is_finished_here_between_the_look_and_the_copy_stays(
    there: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(there, run_of())
    weights = weights_of(run_of(), seed=1)
    monkeypatch.setattr(module, "_check_room", lambda *_: write(here, run_of(), weights))
    (finding,) = Merge(Store(here)).merge(there)
    assert finding.kind == "conflicting"
    assert torch.equal(Store(here).weights(run_of())["fc.weight"], weights["fc.weight"])


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_damage_to_a_record_brings_in_another_outcome(
    trained: tuple[Path, list[Run]], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    source, runs = trained
    run, place = runs[0], tmp_path_factory.mktemp("damaged")
    folder = Store(place / "there").folder(run)
    shutil.copytree(Store(source).folder(run), folder)
    name = data.draw(st.sampled_from(["record.json", "student.safetensors"]))
    content = bytearray((folder / name).read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.booleans()):
        del content[position:]
    (folder / name).write_bytes(content)
    found = counts(merged(place / "there", place / "here"))
    assert found in ({"refused": 1}, {"new": 1})
    if "new" in found:
        # Only where the flipped bit lay in white space, which stands for nothing.
        assert Store(place / "here").record(run) == Store(source).record(run)
    else:
        assert not (place / "here").exists()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text('aé"\\[{,\n'), st.lists, max_leaves=9
    )
)
def test_bounded_json_reads_what_json_writes(value: Any) -> None:
    assert bounded_json(json.dumps(value)) == value


@given(st.text())
def test_what_is_shown_can_be_printed_on_one_line(text: str) -> None:
    assert shown(text).isprintable()
