"""STL-10 is read from its binary layout, and shown small as torchvision's transforms show it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.core.errors import UserError
from benchmark.core.spec import Scale
from benchmark.data import Dataset, load_dataset, stl10
from benchmark.data.augmentation import Recipe
from benchmark.data.shown_small import ShownSmall
from benchmark.data.streaming import training_source
from benchmark.data.torchvision_operators import import_torchvision
from benchmark.planning.request import RunFactory
from benchmark.results.store import Store
from benchmark.training.job import run_until_done
from benchmark.training.settings import TrainSettings
from tests.commands import run_here
from tests.engine import SHORT

NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
COUNTS = {"train": 3, "test": 2}
"""Images of each class."""


@pytest.fixture
def pixels() -> dict[str, np.ndarray]:
    """Noise, brighter from class to class, uint8 [images, 96, 96, 3] for each split; image i has class i % 10."""
    random = np.random.default_rng(0)
    brightness = np.arange(0, 130, 13, dtype=np.uint8)[:, None, None, None]
    noise = {split: random.integers(120, size=(n, 10, 96, 96, 3), dtype=np.uint8) for split, n in COUNTS.items()}
    return {split: (images + brightness).reshape(-1, 96, 96, 3) for split, images in noise.items()}


@pytest.fixture
def root(pixels: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a small STL-10 in its own layout, which is still checked, against the md5 of these files."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    hashes = {}
    for split, images in pixels.items():
        labels = np.arange(len(images), dtype=np.uint8) % 10 + 1
        content = {f"{split}_X.bin": images.transpose(0, 3, 2, 1).tobytes(), f"{split}_y.bin": labels.tobytes()}
        for name, data in content.items():
            (folder / name).write_bytes(data)
            hashes[name] = hashlib.md5(data).hexdigest()
    (folder / "class_names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    monkeypatch.setattr(stl10, "HASHES", hashes)
    return tmp_path


def load(root: Path) -> Dataset:
    return load_dataset("stl10", root, download=False)


def test_the_images_and_their_classes_are_those_of_the_files(root: Path, pixels: dict[str, np.ndarray]) -> None:
    dataset = load(root)
    assert (dataset.name, dataset.classes, dataset.image_size) == ("stl10", NAMES, 32)
    assert isinstance(dataset.train, ShownSmall)
    assert dataset.train.labels.tolist() == [label for label in range(10) for _ in range(3)]
    ours = {image.tobytes() for image in dataset.train.images[dataset.train.labels == 4].numpy()}
    assert ours == {image.tobytes() for image in pixels["train"][4::10]}


def test_torchvision_reads_the_same(root: Path, pixels: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = import_torchvision("datasets").STL10
    for name in ("train_list", "test_list"):
        files = [[file, stl10.HASHES[file]] for file, _ in getattr(theirs, name) if file in stl10.HASHES]
        monkeypatch.setattr(theirs, name, files)
    source = theirs(str(root), split="train")
    assert np.array_equal(source.data.transpose(0, 2, 3, 1), pixels["train"])
    assert source.labels.tolist() == [position % 10 for position in range(30)]


def test_the_hashes_are_torchvisions() -> None:
    theirs = import_torchvision("datasets").STL10
    assert f"md5:{theirs.tgz_md5}" == stl10.HASH
    assert theirs.url == stl10.URL
    labelled = dict(entry for entry in (*theirs.train_list, *theirs.test_list) if entry[0] != "unlabeled_X.bin")
    assert labelled == stl10.HASHES


def test_evaluation_shows_the_whole_image_scaled(root: Path, pixels: dict[str, np.ndarray]) -> None:
    resize = import_torchvision("transforms").Resize(32)
    expected = {np.asarray(resize(Image.fromarray(image))).tobytes() for image in pixels["test"]}
    assert {image.tobytes() for images, _ in load(root).test.batches(7) for image in images.numpy()} == expected


def test_training_shows_random_boxes_of_the_right_image(root: Path) -> None:
    dataset = load(root)
    recipe = Recipe(0, flip=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    source = training_source(dataset.train, recipe, 8, "cpu", ("test",))
    plan = source.epoch(0)
    batch = source.batch(plan, 1)
    assert batch.view("plain").shape == (8, 3, 32, 32)
    position = int(batch.index[2])
    torch.manual_seed(int(plan.offsets[position, 0]))
    crop = import_torchvision("transforms").RandomResizedCrop(32)
    assert isinstance(dataset.train, ShownSmall)
    theirs = np.asarray(crop(Image.fromarray(dataset.train.images[position].numpy())))
    assert torch.equal((batch.view("plain")[2] * 255).round().byte().permute(1, 2, 0), torch.tensor(theirs))


def test_the_cache_is_used_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(root).fingerprint
    monkeypatch.setattr(stl10, "_read", lambda folder: pytest.fail("read again"))
    assert load(root).fingerprint == first


@pytest.mark.parametrize("name", ["train_X.bin", "test_y.bin"])
def test_a_damaged_file_is_refused(root: Path, name: str) -> None:
    path = root / "stl10_binary" / name
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError, match=f"{name} fails torchvision's checksum; delete .* and get STL-10 again"):
        load(root)


def test_a_missing_file_or_folder_is_named(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (root / "stl10_binary" / "train_y.bin").unlink()
    with pytest.raises(UserError, match=r"train_y\.bin is missing"):
        load(root)
    with pytest.raises(UserError, match=r"no STL-10 in .*: stl10_binary/ is not there, and downloading"):
        load(tmp_path_factory.mktemp("empty"))


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_a_student_of_other_images_is_probed_on_it_by_the_command(root: Path, tmp_path: Path, solver: str) -> None:
    learnt, runs = load_dataset("digits-0-4"), tmp_path / "runs"
    place = RunFactory("digits-0-4", learnt.fingerprint, SHORT, Scale(name="test", factor=1 / 25), torch.device("cpu"))
    student = place.run("Baseline", "ResNet8", None, 0)
    assert run_until_done([student], TrainSettings(runs=runs, dataset="digits-0-4"))
    options = ["--solver", solver, "--data-root", str(root), "--runs", str(runs)]
    ended = run_here(student.id, "--dataset", "stl10", *options, module="benchmark.probe")
    assert ended.returncode == 0, ended.stderr
    (record,) = [record for record in Store(runs).read_all()[0] if record["run"]["dataset"] == "stl10"]
    assert record["run"]["start"]["method"] == "Baseline"
    assert f"{record['final']['top1']:.2f}" in ended.stdout
    assert solver == "sgd" or record["final"]["top1"] > 30
