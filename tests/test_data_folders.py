"""Class folders of one's own: what is taken, what is refused, and in which words."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import benchmark.data.folders as folders_module
from benchmark.core.errors import UserError
from benchmark.data import Dataset, dataset_names, load_dataset
from benchmark.data.folders import decode_images

SIZE = 8
DESCRIPTION = """
name = "leaves"
folder = "pictures"
image_size = 8
padding = 2
flip = true
"""


def picture(seed: int, size: int = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(size, size, 3), dtype=np.uint8))


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """The description of two classes with three training images and one test image each."""
    seed = 0
    for split, count in (("train", 3), ("test", 1)):
        for name in ("oak", "beech"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture(seed).save(folder / f"{number}.png")
                seed += 1
    path = tmp_path / "leaves.toml"
    path.write_text(DESCRIPTION)
    return path


def load(toml: Path, data_root: Path | None = None) -> Dataset:
    return load_dataset(str(toml), data_root)


def refusal(toml: Path, data_root: Path | None = None) -> str:
    """The one line in which loading is refused."""
    with pytest.raises(UserError) as raised:
        load(toml, data_root)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_described_dataset_is_what_its_folders_hold(toml: Path) -> None:
    dataset = load(toml)
    assert dataset.name == "leaves"
    assert dataset.classes == ("beech", "oak")
    assert (dataset.image_size, dataset.padding, dataset.flip) == (8, 2, True)
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test.labels.tolist() == [0, 1]
    beech = np.asarray(Image.open(toml.parent / "pictures" / "test" / "beech" / "0.png"))
    assert np.array_equal(dataset.test.images[0].numpy(), beech)


def test_the_normalisation_is_measured_where_it_is_not_given(toml: Path) -> None:
    measured = load(toml)
    pixels = measured.train.images.double() / 255
    assert measured.mean == pytest.approx(pixels.mean(dim=(0, 1, 2)).tolist(), rel=1e-12)
    assert measured.std == pytest.approx(pixels.std(dim=(0, 1, 2), correction=0).tolist(), rel=1e-12)
    toml.write_text(DESCRIPTION + "mean = [0.1, 0.2, 0.3]\nstd = [0.4, 0.5, 0.6]\n")
    given = load(toml)
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("old", "new"), [("padding = 2", "padding = 1"), ("true", "false"), ("flip", "mean=[0,0,0]\nstd=[1,1,1]\nflip")]
)
def test_every_setting_that_decides_a_result_is_in_the_fingerprint(toml: Path, old: str, new: str) -> None:
    before = load(toml).fingerprint
    toml.write_text(DESCRIPTION.replace(old, new))
    assert load(toml).fingerprint != before


def test_a_renamed_class_changes_the_fingerprint(toml: Path) -> None:
    before = load(toml).fingerprint
    for split in ("train", "test"):
        (toml.parent / "pictures" / split / "oak").rename(toml.parent / "pictures" / split / "yew")
    assert load(toml).fingerprint != before


def test_the_folder_is_looked_for_in_the_data_folder_and_beside_the_toml(toml: Path, tmp_path: Path) -> None:
    beside = load(toml).fingerprint
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert load(toml, elsewhere).fingerprint == beside
    (toml.parent / "pictures").rename(elsewhere / "pictures")
    assert load(toml, elsewhere).fingerprint == beside
    message = refusal(toml)
    assert f"there is no folder {toml.parent / 'pictures'}" in message


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "bmp", "webp"])
def test_every_listed_format_is_read(toml: Path, suffix: str) -> None:
    path = toml.parent / "pictures" / "test" / "oak" / f"1.{suffix}"
    picture(9).save(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    images = load(toml).test.images
    assert any(np.array_equal(image.numpy(), expected) for image in images)


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_grey_and_palette_images_become_colour(toml: Path, mode: str) -> None:
    path = toml.parent / "pictures" / "test" / "oak" / "0.png"
    converted = picture(9).convert(mode)
    converted.save(path)
    assert np.array_equal(load(toml).test.images[1].numpy(), np.asarray(converted.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16"])
def test_images_that_cannot_become_colour_without_loss_are_refused(toml: Path, mode: str) -> None:
    path = toml.parent / "pictures" / "train" / "oak" / "1.png"
    image = Image.new("I;16", (SIZE, SIZE)) if mode == "I;16" else picture(9).convert(mode)
    image.save(path)
    assert f"image {path} has mode {mode}" in refusal(toml)


def test_an_image_of_another_size_is_refused_with_its_path(toml: Path) -> None:
    path = toml.parent / "pictures" / "train" / "oak" / "1.png"
    picture(9, size=9).save(path)
    assert refusal(toml) == f"image {path} is 9x9 pixels; it must be 8x8"


def test_every_damage_to_a_png_is_found(toml: Path) -> None:
    path = toml.parent / "pictures" / "train" / "oak" / "1.png"
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 16
        for content in (bytes(damaged), whole[:position]):
            path.write_bytes(content)
            with pytest.raises(UserError, match="is damaged or no image"):
                decode_images([str(path)], SIZE)


@pytest.mark.parametrize("suffix", ["jpg", "bmp", "webp"])
def test_an_image_cut_short_is_refused_with_its_path(toml: Path, suffix: str) -> None:
    stream = io.BytesIO()
    picture(9).save(stream, {"jpg": "jpeg"}.get(suffix, suffix))
    path = toml.parent / "pictures" / "train" / "oak" / f"cut.{suffix}"
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    assert f"image {path} is damaged or no image" in refusal(toml)


def test_what_is_no_image_is_passed_over(toml: Path) -> None:
    before = load(toml).fingerprint
    oak = toml.parent / "pictures" / "train" / "oak"
    for name in ("notes.txt", "._0.png", ".DS_Store"):
        (oak / name).write_bytes(b"not an image")
    (oak.parent / ".hidden").mkdir()
    (oak.parent / "list.csv").write_text("a,b")
    assert load(toml).fingerprint == before


def test_several_processes_decode_the_same_in_the_same_order(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(str(path) for path in toml.parent.rglob("*.png"))
    monkeypatch.setattr(folders_module, "cpu_count", lambda: 1)
    alone = decode_images(files, SIZE)
    monkeypatch.setattr(folders_module, "cpu_count", lambda: 2)
    monkeypatch.setattr(folders_module, "CHUNK", 3)
    assert np.array_equal(decode_images(files, SIZE), alone)
    Path(files[5]).write_bytes(b"")
    with pytest.raises(UserError, match=f"image {files[5]} is damaged"):
        decode_images(files, SIZE)


def test_train_and_test_classes_must_be_the_same(toml: Path) -> None:
    (toml.parent / "pictures" / "test" / "yew").mkdir()
    assert "train and test classes" in refusal(toml)
    assert "'yew' is only in test" in refusal(toml)


def test_a_class_without_images_is_refused(toml: Path) -> None:
    (toml.parent / "pictures" / "test" / "oak" / "0.png").rename(toml.parent / "0.png")
    assert f"class folder {toml.parent / 'pictures' / 'test' / 'oak'} has no images" in refusal(toml)


def test_a_missing_split_is_refused(toml: Path) -> None:
    (toml.parent / "pictures" / "test").rename(toml.parent / "pictures" / "val")
    assert f"no folder {toml.parent / 'pictures' / 'test'}" in refusal(toml)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("image_size = 8", "image_size = 0", "field 'image_size' = 0 is refused"),
        ("image_size = 8", "image_size = 'big'", "field 'image_size' = 'big' is refused"),
        ("padding = 2", "", "field 'padding' is missing; add it"),
        ("padding = 2", "pading = 2", "'pading' (did you mean 'padding'?)"),
        ("padding = 2", "padding = 9", "padding 9 is more than the image size 8"),
        ("flip = true", "flip = true\nmean = [0.5, 0.5, 0.5]", "mean and std belong together"),
        ("flip = true", "flip = true\nmean = [0.5, 0.5, 0.5]\nstd = [1, 1, 0]", "is refused"),
        ('"leaves"', '"cifar100"', "the name 'cifar100' is taken"),
        ('"leaves"', '"../leaves"', "is refused"),
        ('"leaves"', '"leaves', "is no valid TOML"),
        ('"pictures"', '"nowhere"', "there is no folder"),
    ],
)
def test_a_wrong_description_is_refused_in_one_line(toml: Path, old: str, new: str, expected: str) -> None:
    toml.write_text(DESCRIPTION.replace(old, new))
    message = refusal(toml)
    assert str(toml) in message
    assert expected in message


def test_images_of_one_colour_need_a_normalisation_of_their_own(toml: Path) -> None:
    for path in (toml.parent / "pictures" / "train").rglob("*.png"):
        Image.new("RGB", (SIZE, SIZE), (1, 2, 3)).save(path)
    assert "set mean and std yourself" in refusal(toml)


def test_a_missing_description_and_an_unknown_name_are_refused(tmp_path: Path) -> None:
    assert f"dataset file {tmp_path / 'x.toml'} cannot be read: No such" in refusal(tmp_path / "x.toml")
    with pytest.raises(UserError, match=r"unknown dataset 'cifar' \(did you mean 'cifar100'\?\)"):
        load_dataset("cifar")


def test_the_digits_need_no_file_and_are_stratified() -> None:
    digits = load_dataset("digits")
    suite = ("digits", "cifar100", "tiny-imagenet", "imagenet", "stl10", "tiny-imagenet-32", "digits-0-4", "digits-5-9")
    assert dataset_names() == suite
    assert (digits.num_classes, digits.image_size, digits.padding, digits.flip) == (10, 8, 1, False)
    assert len(digits.train) + len(digits.test) == 1797
    counts = [torch.bincount(split.labels) for split in (digits.train, digits.test)]
    share = counts[1] / (counts[0] + counts[1])
    assert (share - 0.2).abs().max() < 0.005
    assert (digits.train.images.min(), digits.train.images.max()) == (0, 255)
    for channel in (1, 2):
        assert torch.equal(digits.train.images[..., 0], digits.train.images[..., channel])


def test_the_digits_are_the_same_on_every_machine() -> None:
    digits = load_dataset("digits")
    assert digits.fingerprint == "e21cf873ebc0551620c6b144ac503cb2bcd55c53ebb1375d87f6759eccb99dd5"


def test_the_digits_come_in_two_halves_without_a_class_in_common() -> None:
    digits, lower, upper = map(load_dataset, ("digits", "digits-0-4", "digits-5-9"))
    assert (lower.classes, upper.classes) == (tuple("01234"), tuple("56789"))
    assert len({digits.fingerprint, lower.fingerprint, upper.fingerprint}) == 3
    for split in ("train", "test"):
        whole, low, high = (getattr(dataset, split) for dataset in (digits, lower, upper))
        assert torch.equal(whole.images[whole.labels < 5], low.images)
        assert torch.equal(whole.images[whole.labels >= 5], high.images)
        assert torch.equal(whole.labels[whole.labels >= 5] - 5, high.labels)
