"""The cache of decoded images is checked, rebuilt when its source changes, and built by one process at a time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmark.core.errors import UserError
from benchmark.data.cache import Content, locate_cache, read_or_build
from benchmark.data.dataset import ImageSet


def content(seed: int = 0) -> Content:
    stream = torch.Generator().manual_seed(seed)
    train, test = (torch.randint(256, (count, 4, 4, 3), dtype=torch.uint8, generator=stream) for count in (6, 4))
    return Content(("a", "b"), ImageSet(train, torch.arange(6) % 2), ImageSet(test, torch.arange(4) % 2))


def never() -> Content:
    raise AssertionError("built although it was cached")


def interrupted() -> Content:
    raise KeyboardInterrupt


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, ...]:
    return (tmp_path / "cache",)


def test_what_is_read_is_what_was_built(place: tuple[Path, ...]) -> None:
    built = read_or_build(place, "set", "source", content)
    again = read_or_build(place, "set", "source", never)
    for found in (built, again):
        assert found.content.classes == ("a", "b")
        for split in ("train", "test"):
            expected, got = getattr(content(), split), getattr(found.content, split)
            assert torch.equal(got.images, expected.images)
            assert torch.equal(got.labels, expected.labels)
    assert (built.hashes, built.mean, built.std) == (again.hashes, again.mean, again.std)


def test_writing_to_what_was_read_does_not_change_the_cache(place: tuple[Path, ...]) -> None:
    read_or_build(place, "set", "source", content).content.train.images.zero_()
    again = read_or_build(place, "set", "source", never)
    assert torch.equal(again.content.train.images, content().train.images)


def test_another_source_is_built_anew_and_takes_the_old_ones_place(place: tuple[Path, ...]) -> None:
    old = read_or_build(place, "set", "source", content)
    (place[0] / "set" / ".train-images.0.tmp").write_bytes(b"left by a killed process")
    new = read_or_build(place, "set", "changed", lambda: content(1))
    assert torch.equal(new.content.train.images, content(1).train.images)
    assert torch.equal(old.content.train.images, content().train.images)
    names = [path.name for path in (place[0] / "set").iterdir()]
    # Labels did not change, so their files are the same; of the images only the new ones are left.
    assert len([name for name in names if name.endswith(".npy")]) == 4
    assert not [name for name in names if name.endswith(".tmp")]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "empty"])
@pytest.mark.parametrize("pattern", ["train-images-*", "test-labels-*"])
def test_a_damaged_array_is_told_and_built_again(
    place: tuple[Path, ...], pattern: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    read_or_build(place, "set", "source", content)
    (path,) = (place[0] / "set").glob(pattern)
    whole = bytearray(path.read_bytes())
    whole[-3] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes({"flip": bytes(whole), "cut": bytes(whole[:-3]), "empty": b""}[damage])
    found = read_or_build(place, "set", "source", content)
    assert torch.equal(found.content.train.images, content().train.images)
    assert torch.equal(found.content.test.labels, content().test.labels)
    (message,) = caplog.messages
    assert f"the dataset cache {place[0] / 'set'} is damaged ({path.name} " in message
    read_or_build(place, "set", "source", never)


@pytest.mark.parametrize("spoil", [lambda text: text[:-9], lambda text: "[]", lambda text: text.replace('"b"', '"c"')])
def test_a_damaged_index_is_told_and_built_again(
    place: tuple[Path, ...], spoil: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    read_or_build(place, "set", "source", content)
    path = place[0] / "set" / "index.json"
    path.write_text(spoil(path.read_text()))
    found = read_or_build(place, "set", "source", content)
    assert found.content.classes == ("a", "b")
    assert "is damaged (index.json " in caplog.text
    read_or_build(place, "set", "source", never)


def test_a_cache_that_a_disk_spoils_as_it_is_written_is_refused(
    place: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmark.data.cache.content_hash", lambda array: "another")
    with pytest.raises(UserError, match=r"is damaged as it is written \(.*; check that disk$"):
        read_or_build(place, "set", "source", content)


def test_an_interrupted_build_leaves_no_cache(place: tuple[Path, ...]) -> None:
    with pytest.raises(KeyboardInterrupt):
        read_or_build(place, "set", "source", interrupted)
    found = read_or_build(place, "set", "source", content)
    assert torch.equal(found.content.train.images, content().train.images)


def test_a_cache_of_which_the_index_was_never_written_is_built_again(place: tuple[Path, ...]) -> None:
    read_or_build(place, "set", "source", content)
    (place[0] / "set" / "index.json").unlink()
    found = read_or_build(place, "set", "source", lambda: content(1))
    assert torch.equal(found.content.train.images, content(1).train.images)


def test_one_builds_while_others_wait(place: tuple[Path, ...]) -> None:
    builds, found = [], []

    def build() -> Content:
        builds.append(threading.get_ident())
        time.sleep(0.2)
        return content()

    def read() -> None:
        found.append(read_or_build(place, "set", "source", build))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert len({json.dumps(one.hashes) for one in found}) == 1
    assert len(found) == 4


def test_a_folder_that_cannot_be_written_falls_back_to_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    root = tmp_path / "data"
    root.mkdir()
    # A file where the folder would be stands for a disk that cannot be written, also for a privileged user.
    (root / ".kd-cache").write_text("")
    place = locate_cache(root, None)
    read_or_build(place, "set", "source", content)
    assert f"cannot be written to {root / '.kd-cache'}" in caplog.text
    assert str(tmp_path / "home") in caplog.text
    caplog.clear()
    read_or_build(place, "set", "source", never)
    assert not caplog.text


def test_data_folders_do_not_share_the_users_cache(tmp_path: Path) -> None:
    fallbacks = {locate_cache(tmp_path / name, None)[1] for name in ("one", "other")}
    assert len(fallbacks) == 2


def test_a_cache_folder_of_ones_own_must_be_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"dataset cache cannot be written to .*file"):
        read_or_build(locate_cache(tmp_path, tmp_path / "file"), "set", "source", content)


def test_a_finished_cache_is_read_without_its_lock(place: tuple[Path, ...]) -> None:
    read_or_build(place, "set", "source", content)
    # A folder where the lock would be: it cannot be taken, as on a disk that cannot be written.
    lock = place[0] / "set.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()
    read_or_build(place, "set", "source", never)
    with pytest.raises(UserError, match="dataset cache cannot be written"):
        read_or_build(place, "set", "changed", content)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_the_arrays_are_mapped_and_not_read_whole(place: tuple[Path, ...]) -> None:
    found = read_or_build(place, "set", "source", content)
    mapped = Path("/proc/self/maps").read_text()
    for path in (place[0] / "set").glob("*.npy"):
        assert path.name in mapped
    assert found.content.train.images.shape == (6, 4, 4, 3)
