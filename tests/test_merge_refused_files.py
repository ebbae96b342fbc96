"""Which weights, links and special files a merge refuses, and what changes under its eyes."""

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

from benchmark.backbones import build_network
from benchmark.core.spec import Run
from benchmark.io.files import compute_sha256
from benchmark.io.untrusted import UntrustedInputError
from benchmark.merge import Merge
from benchmark.merge import merging as module
from benchmark.merge.runs import compute_max_bytes
from benchmark.results.store import Store
from tests.merges import (
    counts,
    here,
    merged,
    nested,
    rewritten,
    run_of,
    there,
    weights_of,
    why,
    write,
)

__all__ = ["here", "there"]


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
        "is no safetensors file",
    ),
    "an endless header": (lambda: struct.pack("<Q", 2**63) + b"{}", "is no safetensors file"),
    "nothing": (lambda: b"", "is no safetensors file"),
    "a nested header": (
        lambda: struct.pack("<Q", 20_000) + nested(10_000).encode(),
        "is no safetensors file",
    ),
    "a list for a header": (lambda: struct.pack("<Q", 2) + b"[]", "is no safetensors file"),
    "a huge shape on no bytes": (
        lambda: crafted({"a": entry([2**40, 2**40], 0, 0)}, b""),
        "is no safetensors file",
    ),
    "overlapping tensors": (
        lambda: crafted({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12),
        "is no safetensors file",
    ),
    "a gap": (lambda: crafted({"a": entry([1], 4, 8)}, b"\0" * 8), "is no safetensors file"),
    "a negative place": (lambda: crafted({"a": entry([1], -4, 0)}, b""), "is no safetensors file"),
    "an unhashable kind": (
        lambda: crafted({"a": entry([1], 0, 4) | {"dtype": []}}, b"\0" * 4),
        "is no safetensors file",
    ),
    "an unknown kind": (lambda: crafted({"a": entry([1], 0, 4, "OBJ")}, b"\0" * 4), "is no safetensors file"),
    "no tensors": (lambda: safetensors.torch.save({}), "holds no tensors"),
    "kinds of one byte": (
        lambda: safetensors.torch.save(altered("fc.bias", torch.zeros(10, dtype=torch.float8_e4m3fn))),
        "does not hold the weights of ResNet8",
    ),
    "more bytes at its end": (
        lambda: safetensors.torch.save(weights_of(run_of())) + b"more",
        "is no safetensors file",
    ),
}


@pytest.mark.parametrize("attack", WEIGHTS)
def test_weights_that_are_not_the_network_s_are_refused_though_their_checksum_fits(
    there: Path, here: Path, attack: str
) -> None:
    content, reason = WEIGHTS[attack]
    folder = write(there, run_of())
    (folder / "student.safetensors").write_bytes(content())
    digest = compute_sha256(folder / "student.safetensors")
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
    assert why(there, here) == "student.safetensors does not have the checksum that the record names"
    os.truncate(weights, compute_max_bytes(run_of(), "student") + 1)
    assert "are read" in why(there, here)
    weights.unlink()
    assert why(there, here) == "student.safetensors is missing; --without-weights takes the record alone"


@pytest.mark.parametrize("classes", [2, 1000])
def test_weights_for_any_number_of_classes_are_taken(there: Path, here: Path, classes: int) -> None:
    write(there, run_of(), weights_of(run_of(), classes=classes))
    assert counts(merged(there, here)) == {"new": 1}


def test_a_run_of_a_network_that_this_version_does_not_have_is_refused(there: Path, here: Path) -> None:
    run = run_of().replace(student="ResNet9000\x7f"[:10])
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
    from benchmark.io.untrusted import ForeignFolder

    folder = write(there, run_of())
    with ForeignFolder.at(folder) as opened:
        (folder / "record.json").unlink()
        os.mkfifo(folder / "record.json")
        with pytest.raises(UntrustedInputError, match="is no plain file"):
            opened.text("record.json", 10)
        (folder / "record.json").unlink()
        (folder / "record.json").symlink_to("run.json")
        with pytest.raises(UntrustedInputError, match="is a link"):
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


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of one run."""
    root = tmp_path_factory.mktemp("written")
    write(root, run_of())
    return root


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_damage_to_a_record_brings_in_another_outcome(
    written: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    source, run, place = written, run_of(), tmp_path_factory.mktemp("damaged")
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
