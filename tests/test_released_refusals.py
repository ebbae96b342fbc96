"""Released teachers that are no plain weights of the network are refused, and nothing in them is run."""

from __future__ import annotations

import os
import resource
import runpy
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmark.backbones import build_branches
from benchmark.backbones import checkpoint_reader as module
from benchmark.backbones.released import apply_to, load_released
from benchmark.core.errors import UserError
from tests.released_files import NAME, archived, assert_same, leave_trace, network, released, weights


def test_one_line_names_missing_unexpected_and_misshapen_tensors_and_nothing_is_changed() -> None:
    given = dict(network(num_classes=100).state_dict())
    del given["conv1.weight"]
    for number in range(7):
        given[f"extra{number}.weight"] = torch.zeros(1)
    target = network(seed=1)
    with pytest.raises(UserError) as caught:
        apply_to(target, released(given), NAME)
    message = str(caught.value)
    assert "\n" not in message
    assert "does not fit ResNet20: missing: conv1.weight; " in message
    assert "unexpected: extra0.weight, extra1.weight, extra2.weight, extra3.weight and 3 more; " in message
    assert "fc.weight [100, 64] instead of [10, 64], fc.bias [100] instead of [10]" in message
    assert_same(dict(target.state_dict()), weights(seed=1))


def test_branches_need_a_checkpoint_that_has_some() -> None:
    with pytest.raises(UserError, match="has no auxiliary branches for ResNet20"):
        apply_to(build_branches(NAME, 40), released(weights()), NAME)


class Code:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    trace, path = tmp_path / "trace", tmp_path / "teacher.pth"
    torch.save({"model": weights(), "extra": Code(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"teacher.pth needs code \(\w+\.mkdir\) to be loaded and is refused"):
        load_released(path)
    assert not trace.exists()
    # The same file does run its code when it is trusted, so the refusal above is what kept it from running.
    torch.load(path, weights_only=False)
    assert trace.exists()


class CodeOf:
    """Pickles to a call of anything."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (eval, ["__import__('os').mkdir('{trace}')"], "builtins.eval"),
        (exec, ["import os; os.mkdir('{trace}')"], "builtins.exec"),
        (getattr, ["text", "upper"], "builtins.getattr"),
        (subprocess.getoutput, ["mkdir {trace}"], "commands.getoutput"),  # its name in Python 2
        (runpy.run_path, ["{trace}"], "runpy.run_path"),
    ],
)
def test_the_standard_library_is_refused_and_not_called(
    tmp_path: Path, function: Callable[..., Any], arguments: list[str], named: str, zipped: bool
) -> None:
    trace, path = tmp_path / "trace", tmp_path / "teacher.pth"
    code = CodeOf(function, *(argument.format(trace=trace) for argument in arguments))
    torch.save({"model": weights(), "extra": code}, path, _use_new_zipfile_serialization=zipped)
    assert f"needs code ({named}) to be loaded and is refused" in refusal(path)
    assert not trace.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_function_of_another_package_is_ignored_and_not_called(tmp_path: Path, zipped: bool) -> None:
    trace, path = tmp_path / "trace", tmp_path / "teacher.pth"
    stored = {"model": weights(), "extra": CodeOf(leave_trace, str(trace))}
    torch.save(stored, path, _use_new_zipfile_serialization=zipped)
    read = load_released(path)
    assert_same(read.backbone, weights())
    assert read.ignored == ("tests.released_files.leave_trace",)
    assert not trace.exists()
    # The same file does run its code when it is trusted, so the reader above is what kept it from running.
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_a_package_that_a_file_names_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_package.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = b"}X\x05\0\0\0extracevil_package\nThing\n)Rs"
    assert "needs code (evil_package.Thing)" in refusal(pickled(tmp_path / "teacher.pth", entry))
    assert "evil_package" not in sys.modules


def test_a_file_that_names_ever_more_classes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_STAND_INS", 4)
    names = b"".join(b"cpackage\nThing%d\n" % number for number in range(1000))
    assert "needs code (package.Thing4)" in refusal(pickled(tmp_path / "teacher.pth", names))


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save({"net": nn.Linear(1, 1)}, tmp_path / "teacher.pth")
    with pytest.raises(UserError, match=r"needs code \(torch.nn.modules.linear.Linear\)"):
        load_released(tmp_path / "teacher.pth")


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 no archive"])
@pytest.mark.parametrize("name", ["teacher.pth", "teacher.safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is no (checkpoint|safetensors file).*damaged") as caught:
        load_released(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pth"
    torch.save({"model": weights()}, path)
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(UserError, match="is damaged"):
        load_released(path)


@pytest.mark.parametrize("stored", [{}, {"model": {}}, {"model": {"epoch": 3}}, {"weights": {"a": torch.ones(1)}}, 3])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, stored: Any) -> None:
    torch.save(stored, tmp_path / "teacher.pth")
    with pytest.raises(UserError, match=r"holds no weights of a network; allowed: .*model, state_dict, net"):
        load_released(tmp_path / "teacher.pth")


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no checkpoint .*absent\.pth"):
        load_released(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="is a directory"):
        load_released(tmp_path)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (torch.tensor([1.0, float("nan")]), "not finite"),
        (torch.tensor([1.0, float("inf")]), "not finite"),
        (torch.ones(2, dtype=torch.int64), "torch.int64"),
        (torch.ones(2, dtype=torch.complex64), "torch.complex64"),
        (torch.ones(2).to_sparse(), "sparse"),
    ],
    ids=["nan", "inf", "int64", "complex64", "sparse"],
)
@pytest.mark.parametrize("prefix", ["backbone.", "auxiliary_classifier."])
def test_weights_that_are_no_finite_numbers_are_refused(
    tmp_path: Path, prefix: str, value: Tensor, complaint: str
) -> None:
    torch.save({"net": {f"{prefix}fc.bias": value}}, tmp_path / "teacher.pth")
    with pytest.raises(UserError, match=f"'fc.bias'.*{complaint}"):
        load_released(tmp_path / "teacher.pth")


def test_one_tensor_under_two_prefixes_is_refused(tmp_path: Path) -> None:
    torch.save({"fc.bias": torch.ones(1), "module.fc.bias": torch.zeros(1)}, tmp_path / "teacher.pth")
    with pytest.raises(UserError, match=r"holds 'fc\.bias' twice"):
        load_released(tmp_path / "teacher.pth")


# Files that would take more than they may, or pretend to be something else.


def pickled(path: Path, opcodes: bytes) -> Path:
    """A checkpoint whose object is what these opcodes of pickle's protocol 2 make."""
    return archived(path, {"data.pkl": b"\x80\x02" + opcodes + b".", "version": b"3\n", "byteorder": b"little"})


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_released(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pth"
    torch.save({"model": {"fc.bias": torch.zeros(10_000_000)}}, path)
    with zipfile.ZipFile(path) as archive:
        files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    bomb = archived(tmp_path / "bomb.pth", files, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    # It would unpack: torch reads it.
    assert len(torch.load(bomb, weights_only=True)["model"]["fc.bias"]) == 10_000_000
    assert "unpacks to more than its own size" in refusal(bomb)


def test_an_archive_with_two_files_of_one_name_or_of_too_many_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "teacher.pth"
    torch.save({"model": weights()}, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], b"other")
    assert "two files of one name" in refusal(path)
    monkeypatch.setattr(module, "MOST_ENTRIES", 10)
    assert "an archive of more than 10 files" in refusal(path)


def test_an_archive_that_is_mostly_no_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"model": weights(), "log": "x" * module.LARGEST_PICKLE}, tmp_path / "teacher.pth")
    assert "holds more than 16.0 MiB that are no tensors" in refusal(tmp_path / "teacher.pth")


def test_a_file_that_makes_one_thing_again_and_again_is_refused_before_memory_is_full(tmp_path: Path) -> None:
    many = b"](" + b"".join(b"J" + struct.pack("<i", number) for number in range(100_000)) + b"eq\x00"
    # `set(many)`, 100,000 times: 800 GB from 1 MB.
    again = b"cbuiltins\nset\nq\x01](" + b"h\x01h\x00\x85R" * 100_000 + b"e"
    path = pickled(tmp_path / "teacher.pth", many + again + b"\x86")
    assert path.stat().st_size < 1_200_000
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert "takes more memory than a checkpoint of its size may" in refusal(path)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_numpy_number_of_two_gigabytes_is_not_made(tmp_path: Path) -> None:
    kind = b"cnumpy\ndtype\n(X\x0b\x00\x00\x00V2000000000\x89\x88tR"
    path = pickled(tmp_path / "teacher.pth", b"cnumpy.core.multiarray\nscalar\n" + kind + b"\x85R")
    assert "holds no weights of a network" in refusal(path)


def test_a_view_that_repeats_one_number_without_end_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"fc.bias": torch.ones(1).expand(10**12)}}, tmp_path / "teacher.pth")
    assert (tmp_path / "teacher.pth").stat().st_size < 5000
    assert "holds tensors of more than 2.0 GiB" in refusal(tmp_path / "teacher.pth")


def test_a_storage_that_is_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pth"
    torch.save({"model": {"fc.bias": torch.ones(2)}}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    place = content.index(b"K\x02", content.index(b"cpu"))
    path.write_bytes(content[:place] + b"J\xff\xff\xff\x7f" + content[place + 2 :])
    assert "is no checkpoint that can be read safely" in refusal(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "made",
    [
        lambda: torch.ones(2, device="meta"),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
    ids=["meta", "nested"],
)
def test_tensors_of_unusual_kinds_are_refused(tmp_path: Path, made: Callable[[], Tensor]) -> None:
    torch.save({"model": {"fc.bias": made()}}, tmp_path / "teacher.pth")
    assert "give dense weights" in refusal(tmp_path / "teacher.pth")


def test_names_in_a_file_do_not_reach_the_terminal_as_they_are(tmp_path: Path) -> None:
    torch.save({"\x1b[2J" + "x" * 1000: torch.ones(1)}, tmp_path / "teacher.pth")
    with pytest.raises(UserError) as caught:
        apply_to(network(), load_released(tmp_path / "teacher.pth"), NAME)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    torch.save({"\x1b[2J": torch.ones(1, dtype=torch.int64)}, tmp_path / "teacher.pth")
    assert "'\\x1b[2J'" in refusal(tmp_path / "teacher.pth")


def test_pipes_devices_tar_files_and_files_of_absurd_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pth"
    os.mkfifo(path)
    assert "is no plain file" in refusal(path)
    assert "is no plain file" in refusal(Path(os.devnull))
    path.unlink()
    path.write_bytes(b"")
    os.truncate(path, 2**40)
    assert "has 1024.0 GiB; a checkpoint has at most 2.0 GiB" in refusal(path)
    with tarfile.open(tmp_path / "teacher.tar", "w") as archive:
        link = tarfile.TarInfo("storages")
        link.type, link.linkname = tarfile.SYMTYPE, "elsewhere"
        archive.addfile(link)
    assert "is no checkpoint that can be read safely" in refusal(tmp_path / "teacher.tar")


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 20_000) + b"[" * 20_000,
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[99999999],"data_offsets":[0,4]}}' + b"\0" * 4,
    ],
    ids=["endless header", "nested header", "huge shape"],
)
def test_a_crafted_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "teacher.safetensors").write_bytes(content)
    assert "is no safetensors file, or is damaged" in refusal(tmp_path / "teacher.safetensors")
