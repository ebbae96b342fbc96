"""ImageNet: the list of its files, what identifies it, and what is refused."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark.core.errors import UserError
from benchmark.data import imagenet, load_dataset
from benchmark.data.streamed import ImageFiles
from benchmark.data.subsets import split_held_out, stratified_fraction
from tests.photographs import WNIDS, made_up_imagenet


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return made_up_imagenet(tmp_path / "data", train=4, val=2)


def train_folder(root: Path) -> Path:
    return root / "imagenet" / "train"


def settle(root: Path, seconds: float = 1000.0) -> None:
    """Let all folders have changed some time ago."""
    for folder in [*(root / "imagenet").glob("*/*"), *(root / "imagenet").glob("*")]:
        changed = folder.stat().st_mtime - seconds
        os.utime(folder, (changed, changed))


def test_images_stand_by_class_and_name_and_nothing_else_counts(root: Path) -> None:
    folder = train_folder(root) / WNIDS[0]
    image = folder / f"{WNIDS[0]}_0.JPEG"
    for name in (".hidden.JPEG", "notes.txt", "JPEG"):
        shutil.copy(image, folder / name)
    (folder / "folder.JPEG").mkdir()
    (root / "imagenet" / "train" / ".cache").mkdir()
    for name in ("a.jpg", "B.Png", "z.jpeg"):
        shutil.copy(image, folder / name)
    dataset = load_dataset("imagenet", root)
    assert isinstance(dataset.train, ImageFiles)
    assert dataset.classes == WNIDS
    assert (dataset.num_classes, dataset.image_size, len(dataset.train), len(dataset.test)) == (3, 224, 15, 6)
    assert dataset.train.labels.tolist() == [0] * 7 + [1] * 4 + [2] * 4
    paths = dataset.train.paths(torch.arange(15))
    named = [os.path.basename(path) for path in paths[:7]]
    assert named == ["B.Png", "a.jpg", *(f"{WNIDS[0]}_{number}.JPEG" for number in range(4)), "z.jpeg"]
    assert all(Path(path).is_file() for path in paths)
    assert (dataset.mean, dataset.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (dataset.padding, dataset.flip) == (0, True)


def test_the_order_is_that_of_bytes_whatever_the_names(root: Path) -> None:
    folder = train_folder(root) / WNIDS[1]
    strange = os.fsdecode(b"\xff\xfe.JPEG")
    shutil.copy(folder / f"{WNIDS[1]}_0.JPEG", folder / strange)
    shutil.copy(folder / f"{WNIDS[1]}_0.JPEG", folder / "größer.JPEG")
    dataset = load_dataset("imagenet", root)
    assert isinstance(dataset.train, ImageFiles)
    paths = dataset.train.paths(torch.arange(4, 10))
    assert [os.path.basename(path) for path in (paths[0], paths[-1])] == ["größer.JPEG", strange]
    assert all(os.path.isfile(path) for path in paths)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


CHANGES: dict[str, Callable[[Path], object]] = {
    "another size": lambda image: append(image),
    "another name": lambda image: image.rename(image.with_name("other.JPEG")),
    "one less": lambda image: image.unlink(),
    "one more": lambda image: shutil.copy(image, image.with_name("copy.JPEG")),
    "another class": lambda image: image.rename(image.parents[1] / WNIDS[2] / image.name),
    "another split": lambda image: image.rename(image.parents[2] / "val" / WNIDS[1] / image.name),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_fingerprint_follows_class_name_and_size_of_each_file(root: Path, change: Callable[[Path], object]) -> None:
    before = load_dataset("imagenet", root).fingerprint
    change(train_folder(root) / WNIDS[1] / f"{WNIDS[1]}_2.JPEG")
    assert load_dataset("imagenet", root).fingerprint != before


def test_the_fingerprint_does_not_depend_on_place_or_time(root: Path, tmp_path: Path) -> None:
    before = load_dataset("imagenet", root).fingerprint
    shutil.copytree(root / "imagenet", tmp_path / "elsewhere" / "imagenet")
    settle(tmp_path / "elsewhere")
    assert load_dataset("imagenet", tmp_path / "elsewhere").fingerprint == before


def test_the_fingerprint_follows_the_size_of_the_crops(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_dataset("imagenet", root).fingerprint
    monkeypatch.setattr(imagenet, "IMAGE_SIZE", 32)
    assert load_dataset("imagenet", root).fingerprint != before


def refuse_to_scan(*arguments: object) -> None:
    raise AssertionError("the files were listed anew")


def test_files_are_listed_once_until_a_folder_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(root)
    first = load_dataset("imagenet", root)
    assert (root / ".kd-cache" / "imagenet-files.npz").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "_scan", refuse_to_scan)
        again = load_dataset("imagenet", root)
    assert again.fingerprint == first.fingerprint
    assert isinstance(again.train, ImageFiles)
    assert isinstance(first.train, ImageFiles)
    assert again.train.paths(torch.arange(12)) == first.train.paths(torch.arange(12))
    assert torch.equal(again.train.labels, first.train.labels)
    image = train_folder(root) / WNIDS[0] / f"{WNIDS[0]}_0.JPEG"
    image.rename(image.with_name("other.JPEG"))
    assert load_dataset("imagenet", root).fingerprint != first.fingerprint


def test_a_folder_that_has_just_changed_is_listed_again(root: Path) -> None:
    # Within a tick of the file system's clock a second change would leave the same time.
    load_dataset("imagenet", root)
    assert not (root / ".kd-cache").exists()


def test_a_damaged_list_of_files_is_made_anew(root: Path) -> None:
    settle(root)
    fingerprint = load_dataset("imagenet", root).fingerprint
    kept = root / ".kd-cache" / "imagenet-files.npz"
    for content in (b"", b"nonsense", kept.read_bytes()[:-40], b"PK" + kept.read_bytes()[10:]):
        kept.write_bytes(content)
        assert load_dataset("imagenet", root).fingerprint == fingerprint
        np.load(kept, allow_pickle=False).close()


def test_a_data_folder_that_cannot_be_written_is_no_obstacle(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(root)
    # A file in the place of the folder keeps also a superuser from writing there.
    (root / ".kd-cache").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    load_dataset("imagenet", root)
    assert len(list((tmp_path / "home").rglob("imagenet-files.npz"))) == 1
    monkeypatch.setattr(imagenet, "_scan", refuse_to_scan)
    load_dataset("imagenet", root)
    monkeypatch.undo()
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    assert len(load_dataset("imagenet", root).train) == 12


def test_a_part_of_the_dataset_is_said_to_be_one(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.WARNING):
        load_dataset("imagenet", root)
    assert "part of ImageNet: 3 classes, 12 training and 6 validation images" in caplog.text
    caplog.clear()
    monkeypatch.setattr(imagenet, "NUM_CLASSES", 3)
    monkeypatch.setattr(imagenet, "WHOLE", {"train": 12, "val": 6})
    load_dataset("imagenet", root)
    assert not caplog.text


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as raised:
        load_dataset("imagenet", root)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_missing_dataset_is_refused_with_its_layout(tmp_path: Path, root: Path) -> None:
    line = refusal(tmp_path)
    assert f"no ImageNet in {tmp_path}: imagenet/{{train,val}}/<wnid>/*.JPEG is not there" in line
    assert "image-net.org" in line
    assert "did you mean its parent" in refusal(root / "imagenet")
    shutil.rmtree(root / "imagenet" / "val")
    assert refusal(root).startswith(f"no folder {root / 'imagenet' / 'val'}")


def test_validation_images_that_were_not_sorted_are_refused(root: Path) -> None:
    val = root / "imagenet" / "val"
    for number, image in enumerate(sorted(val.glob("*/*"))):
        image.rename(val / f"ILSVRC2012_val_{number:08}.JPEG")
    for folder in val.iterdir():
        if folder.is_dir():
            folder.rmdir()
    assert refusal(root).startswith(f"{val} holds files but no class folders; move each image into the folder")


def test_splits_with_other_classes_are_refused(root: Path) -> None:
    shutil.rmtree(train_folder(root) / WNIDS[1])
    assert f"{WNIDS[1]!r} is only in val (1 such)" in refusal(root)


def test_classes_without_images_and_single_classes_are_refused(root: Path) -> None:
    folder = root / "imagenet" / "val" / WNIDS[2]
    for image in folder.iterdir():
        image.rename(image.with_suffix(".txt"))
    assert refusal(root) == f"class folder {folder} has no images; it needs at least one (jpeg, jpg, png)"
    for wnid in WNIDS[1:]:
        for split in ("train", "val"):
            shutil.rmtree(root / "imagenet" / split / wnid)
    assert refusal(root).startswith(f"{root / 'imagenet'} has 1 classes; there must be two or more")


def test_parts_are_the_same_files(root: Path) -> None:
    train = load_dataset("imagenet", root).train
    assert isinstance(train, ImageFiles)
    half = train.subset(stratified_fraction(train.labels, 0.5, "imagenet", "fraction", 0))
    assert torch.bincount(half.labels).tolist() == [2, 2, 2]
    kept, held = split_held_out(train.labels, 0.25, "imagenet", "validation", 0)
    parts = (train.subset(kept), train.subset(held))
    assert [len(part) for part in parts] == [9, 3]
    together = [path for part in parts for path in part.paths(torch.arange(len(part)))]
    assert sorted(together) == list(train.paths(torch.arange(12)))
    for path in half.paths(torch.arange(6)):
        assert path in together
