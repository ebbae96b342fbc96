"""CIFAR-100 is the same dataset from either layout, and what is wrong with a layout is said in one line."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.core.errors import UserError
from benchmark.data import Dataset, cifar100, load_dataset
from benchmark.data.torchvision_operators import import_torchvision

CLASSES = [f"class_{number:02}" for number in range(100)]
PER_CLASS = {"train": 2, "test": 1}


@pytest.fixture(scope="module")
def pixels() -> dict[str, np.ndarray]:
    """A hundred classes of noise, uint8 [classes, images, 32, 32, 3] for each split."""
    random = np.random.default_rng(0)
    return {split: random.integers(256, size=(100, n, 32, 32, 3), dtype=np.uint8) for split, n in PER_CLASS.items()}


@pytest.fixture(scope="module")
def class_folders(pixels: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    for split, classes in pixels.items():
        for name, images in zip(CLASSES, classes, strict=True):
            folder = root / "cifar100" / split / name
            folder.mkdir(parents=True)
            for number, image in enumerate(images):
                Image.fromarray(image).save(folder / f"{number}.png")
    return root


@pytest.fixture
def folders(class_folders: Path, tmp_path: Path) -> Path:
    """A data folder of its own with class folders that a test may spoil."""
    shutil.copytree(class_folders / "cifar100", tmp_path / "folders" / "cifar100")
    return tmp_path / "folders"


@pytest.fixture
def archive(pixels: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder in torchvision's layout; torchvision still checks it, against the checksums of these files."""
    root = tmp_path / "archive"
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    content: dict[str, Any] = {"meta": {"fine_label_names": CLASSES, "coarse_label_names": ["all"]}}
    for split, classes in pixels.items():
        order = random.permutation(100 * PER_CLASS[split])
        flat = classes.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2).reshape(-1, 3072)
        labels = np.repeat(np.arange(100), PER_CLASS[split])[order].tolist()
        content[split] = {"data": flat[order], "fine_labels": labels, "coarse_labels": [0] * len(labels)}
    checksums = {}
    for name, value in content.items():
        (folder / name).write_bytes(pickle.dumps(value, protocol=2))
        checksums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    cifar = import_torchvision("datasets").CIFAR100
    monkeypatch.setattr(cifar, "train_list", [["train", checksums["train"]]])
    monkeypatch.setattr(cifar, "test_list", [["test", checksums["test"]]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": checksums["meta"]})
    return root


def load(root: Path) -> Dataset:
    return load_dataset("cifar100", root, download=False)


def test_both_layouts_give_the_same_dataset(archive: Path, folders: Path, pixels: dict[str, np.ndarray]) -> None:
    one, other = load(archive), load(folders)
    assert one.fingerprint == other.fingerprint
    assert one.classes == other.classes == tuple(CLASSES)
    for split, per_class in PER_CLASS.items():
        first, second = getattr(one, split), getattr(other, split)
        assert torch.equal(first.images, second.images)
        assert first.labels.tolist() == second.labels.tolist() == [n for n in range(100) for _ in range(per_class)]
        ours = {image.tobytes() for image in first.images[first.labels == 7].numpy()}
        assert ours == {image.tobytes() for image in pixels[split][7]}


def test_its_constants_are_the_published_ones(folders: Path) -> None:
    dataset = load(folders)
    assert (dataset.name, dataset.num_classes, dataset.image_size) == ("cifar100", 100, 32)
    assert (dataset.padding, dataset.flip) == (4, True)
    assert dataset.mean == (0.5071, 0.4867, 0.4408)
    assert dataset.std == (0.2675, 0.2565, 0.2761)


def test_file_names_do_not_matter(folders: Path) -> None:
    before = load(folders).fingerprint
    first, second = (folders / "cifar100" / "train" / CLASSES[3] / f"{number}.png" for number in (0, 1))
    first.rename(first.with_name("z.png"))
    second.rename(second.with_name("a.PNG"))
    assert load(folders).fingerprint == before


def test_one_changed_pixel_changes_the_fingerprint(folders: Path) -> None:
    before = load(folders)
    path = folders / "cifar100" / "test" / CLASSES[3] / "0.png"
    image = np.array(Image.open(path))
    image[0, 0, 0] ^= 1
    Image.fromarray(image).save(path)
    after = load(folders)
    assert after.fingerprint != before.fingerprint
    assert not torch.equal(after.test.images, before.test.images)


def test_class_folders_win_where_both_layouts_are(folders: Path) -> None:
    (folders / "cifar-100-python").mkdir()
    assert load(folders).num_classes == 100


def test_labels_of_the_archive_are_brought_into_alphabetical_order(archive: Path, folders: Path) -> None:
    cifar = import_torchvision("datasets").CIFAR100
    meta = archive / "cifar-100-python" / "meta"
    for split in PER_CLASS:
        path = meta.with_name(split)
        content = pickle.loads(path.read_bytes())
        content["fine_labels"] = [99 - label for label in content["fine_labels"]]
        path.write_bytes(pickle.dumps(content, protocol=2))
        getattr(cifar, f"{split}_list")[0][1] = hashlib.md5(path.read_bytes()).hexdigest()
    meta.write_bytes(pickle.dumps({"fine_label_names": CLASSES[::-1]}, protocol=2))
    cifar.meta["md5"] = hashlib.md5(meta.read_bytes()).hexdigest()
    assert load(archive).fingerprint == load(folders).fingerprint


def test_a_damaged_archive_is_refused(archive: Path) -> None:
    path = archive / "cifar-100-python" / "test"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"cifar-100-python fails torchvision's checksums; delete it"):
        load(archive)
    path.unlink()
    with pytest.raises(UserError, match=r"cifar-100-python/test is missing; delete"):
        load(archive)


def test_a_missing_dataset_says_where_it_was_looked_for_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        load(tmp_path / "nothing")
    message = str(raised.value)
    assert "\n" not in message
    for part in (str(tmp_path / "nothing"), "cifar100/{train,test}/<class>/*.png", "cifar-100-python", "switched off"):
        assert part in message
    assert not (tmp_path / "nothing").exists()


def test_the_layout_itself_in_place_of_its_parent_is_recognised(folders: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean its parent\?"):
        load(folders / "cifar100")


def test_a_failed_download_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar100, "URL", "http://nowhere.invalid/cifar-100-python.tar.gz")
    with pytest.raises(UserError, match=r"downloading it failed \([^()]+\); put class folders"):
        load_dataset("cifar100", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_download_is_read_like_any_archive(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    packed = tmp_path / "data" / "cifar-100-python.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(archive / "cifar-100-python", "cifar-100-python")
    monkeypatch.setattr(cifar100, "HASH", f"md5:{hashlib.md5(packed.read_bytes()).hexdigest()}")
    assert load_dataset("cifar100", tmp_path / "data").fingerprint == load(archive).fingerprint


def test_an_incomplete_set_of_classes_is_refused(folders: Path) -> None:
    for split in PER_CLASS:
        shutil.rmtree(folders / "cifar100" / split / CLASSES[50])
    with pytest.raises(UserError, match=r"cifar100 has 99 classes; CIFAR-100 has 100"):
        load(folders)
