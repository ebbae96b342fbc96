"""Data folders, archives and TOML files from elsewhere: no path leads out, no bomb is unpacked, one line says why."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark.analysis.figures import empty_result
from benchmark.audit.claims import load_claims
from benchmark.cli.app import refuse
from benchmark.core.errors import UserError
from benchmark.data import cache, decoding, folders, imagenet, load_dataset
from benchmark.data.cache import locate_cache, read_or_build
from benchmark.io.untrusted import UntrustedInputError, read_text_limited
from figures.specification import load_figure
from slurm.profile import load_profile
from tables.specification import load_table
from tests.commands import small_dataset
from tests.photographs import made_up_imagenet
from tests.test_data_cache import content, never


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Caches in a data folder.


def rewritten(index: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change an index as somebody who knows the format would."""
    inner = json.loads(index.read_text())["index"]
    change(inner)
    index.write_text(json.dumps({"sha256": cache._index_hash(inner), "index": inner}))


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, ...]:
    where = (tmp_path / "cache",)
    read_or_build(where, "set", "source", content)
    return where


def test_an_index_names_no_file_outside_of_its_folder(place: tuple[Path, ...], tmp_path: Path) -> None:
    folder = place[0] / "set"
    (train,) = folder.glob("train-images-*.npy")
    secret = train.rename(tmp_path / "secret.npy")
    rewritten(folder / "index.json", lambda index: index["files"].update({"train-images": str(secret)}))  # type: ignore[attr-defined]
    built = []

    def build() -> cache.Content:
        built.append(True)
        return content()

    read_or_build(place, "set", "source", build)
    assert built


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["sha256"].update({"train-images": "../../../../etc/" + "a" * 48}),
        lambda index: index["sha256"].update({"../x": "a" * 64}),
        lambda index: index["sha256"].update({"train-images": ["a"]}),
        lambda index: index.update(classes=["only one"]),
        lambda index: index.update(classes=[]),
    ],
)
def test_an_index_that_the_suite_did_not_write_is_built_again(
    place: tuple[Path, ...], change: Callable[[dict[str, object]], object]
) -> None:
    rewritten(place[0] / "set" / "index.json", change)
    again = read_or_build(place, "set", "source", content)
    assert again.content.classes == ("a", "b")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"sha256": "x", "index": ' + "[" * 100_000])
def test_an_index_that_is_nested_deeply_is_built_again(place: tuple[Path, ...], text: str) -> None:
    (place[0] / "set" / "index.json").write_text(text)
    assert read_or_build(place, "set", "source", content).content.classes == ("a", "b")
    read_or_build(place, "set", "source", never)


@pytest.mark.parametrize("name", ["index.json", "train-images-*.npy"])
def test_a_pipe_in_a_cache_is_not_waited_for(place: tuple[Path, ...], name: str) -> None:
    (path,) = (place[0] / "set").glob(name)
    path.unlink()
    os.mkfifo(path)
    assert read_or_build(place, "set", "source", content).content.classes == ("a", "b")
    read_or_build(place, "set", "source", never)


def kept_listing(tmp_path: Path) -> tuple[Path, Path]:
    """An ImageNet whose list of files is kept, and where."""
    root = tmp_path / "data"
    made_up_imagenet(root)
    for folder in [*(root / "imagenet").glob("*/*"), *(root / "imagenet").glob("*")]:
        os.utime(folder, (1e9, 1e9))
    load_dataset("imagenet", root)
    path = locate_cache(root, None)[0] / "imagenet-files.npz"
    assert path.is_file()
    return root, path


@pytest.mark.parametrize("name", [b"../../../secret.png", b"/secret.png"])
def test_a_kept_list_of_files_names_none_outside_of_its_folders(tmp_path: Path, name: bytes) -> None:
    root, path = kept_listing(tmp_path)
    with np.load(path) as arrays:
        changed = dict(arrays)
    names = changed["train-names"].astype("S40")
    names[0] = name
    np.savez(path, **changed | {"train-names": names})  # type: ignore[arg-type]
    found = load_dataset("imagenet", root).train
    assert name not in found.names.tolist()  # type: ignore[attr-defined]


def test_a_kept_list_of_files_that_is_compressed_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, path = kept_listing(tmp_path)
    with np.load(path) as arrays:
        np.savez_compressed(path, **dict(arrays) | {"more": np.zeros(10_000_000)})  # type: ignore[arg-type]
    assert not imagenet._is_stored(path)
    monkeypatch.setattr(np, "load", never)
    assert len(load_dataset("imagenet", root).train)


# Images.


def huge_png(width: int, height: int) -> bytes:
    """A small PNG file that says that it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(11_000, 10_000), (2**31 - 1, 2**31 - 1), (1, 101), (100_000, 200)])
def test_an_image_of_absurd_size_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(Image.Image, "load", never)
    (tmp_path / "x.png").write_bytes(huge_png(*size))
    found = refusal(lambda: decoding.read_image(str(tmp_path / "x.png")))
    assert "allowed: 100 million pixels, and 100 times as long as wide" in found


def test_an_image_in_a_class_folder_must_have_its_size_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml = small_dataset(tmp_path)
    (tmp_path / "images" / "train" / "red" / "0.png").write_bytes(huge_png(9_000, 9_000))
    assert "is 9000x9000 pixels; it must be 8x8" in refusal(lambda: load_dataset(str(toml)))


def test_an_image_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    toml = small_dataset(tmp_path)
    os.truncate(tmp_path / "images" / "train" / "red" / "0.png", 2**40)
    assert "has 1024.0 GiB; at most 256.0 MiB are read" in refusal(lambda: load_dataset(str(toml)))
    path = str(tmp_path / "images" / "train" / "red" / "0.png")
    assert "at most 256.0 MiB are read" in refusal(lambda: decoding.read_image(path))


def test_a_pipe_that_is_called_an_image_is_passed_over(tmp_path: Path) -> None:
    toml = small_dataset(tmp_path)
    os.mkfifo(tmp_path / "images" / "train" / "red" / "pipe.png")
    assert len(load_dataset(str(toml)).train) == 36
    assert len(folders.image_files(tmp_path / "images" / "train" / "red")) == 12


# TOML files.

READERS: dict[str, Callable[[Path], object]] = {
    "dataset": lambda path: load_dataset(str(path)),
    "table": load_table,
    "profile": load_profile,
    "claims": load_claims,
}


@pytest.mark.parametrize("kind", READERS)
def test_a_toml_file_from_elsewhere_is_bounded(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine.toml"

    def told() -> str:
        found = refusal(lambda: READERS[kind](path))
        assert str(path) in found
        return found

    path.write_text("a = " + "[" * 50_000)
    assert "is nested deeper than 64 levels" in told()
    path.write_text('name = "\\u001b]0;x\\u0007"\n')
    assert "holds text with control characters" in told()
    os.truncate(path, 2**40)
    assert "has 1024.0 GiB, at most 1.0 MiB are read" in told()
    path.unlink()
    os.mkfifo(path)
    assert "is no plain file" in told()
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "is no plain file" in told()


def test_bounded_text_reads_what_is_within_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("ä" * 50)
    assert read_text_limited(path, 100) == "ä" * 50
    with pytest.raises(UntrustedInputError, match="has 100 bytes, at most 99 bytes are read"):
        read_text_limited(path, 99)
    with pytest.raises(FileNotFoundError):
        read_text_limited(tmp_path / "y", 99)


# What is printed and written.


@pytest.mark.parametrize("scale", ["demo-/../../x", "demo-\0", "../x"])
def test_a_scale_that_a_record_makes_up_is_no_path(scale: str) -> None:
    result = dataclasses.replace(empty_result(load_figure("5")), scale=scale)
    assert set("/\0") & set(result.stem) == set()
    assert result.stem.startswith("figure_5_")


def test_a_name_in_an_error_does_not_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert refuse("cannot read a\x1b[2J[bold]\u202e/ä.png: gone\nfor good") == 2
    assert capsys.readouterr().err == "error: cannot read a\\x1b[2J[bold]\\u202e/ä.png: gone for good\n"
