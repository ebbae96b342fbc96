"""Tiny-ImageNet is read from its own layout, whole or in part, and what is wrong with it is said in one line."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark.core.errors import UserError
from benchmark.core.protocols import get_protocol
from benchmark.data import Dataset, folders, load_dataset
from benchmark.data.tiny_imagenet import list_images
from benchmark.training.inputs import recipe_for

WNIDS = [f"n{number:08}" for number in range(1440, 1640)]
FIRST, LAST = WNIDS[0], WNIDS[-1]


def picture(seed: int) -> Image.Image:
    """Blocks of colour, which JPEG does not keep exactly, so that another decoding would show."""
    blocks = np.random.default_rng(seed).integers(256, size=(8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(8, 0).repeat(8, 1))


def training_images(label: int) -> int:
    """Classes have different numbers of images, as a part of the dataset may."""
    return 1 + label % 3


def write_dataset(root: Path) -> Path:
    """The layout with 200 classes of 1 to 3 training images and a validation image each, in no order; its folder."""
    folder = root / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    order = np.random.default_rng(0).permutation(200).tolist()
    for label, wnid in enumerate(WNIDS):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        names = [f"{wnid}_{number}.JPEG" for number in range(training_images(label))]
        for number, name in enumerate(names):
            picture(label * 10 + number).save(images / name)
        boxes = "".join(f"{name}\t0\t0\t63\t63\n" for name in names)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes)
    (folder / "wnids.txt").write_text("".join(f"{WNIDS[place]}\n" for place in order))
    (folder / "words.txt").write_text("".join(f"{wnid}\tword\n" for wnid in WNIDS))
    annotations = []
    for place, label in enumerate(order):
        picture(label * 10 + 9).save(folder / "val" / "images" / f"val_{place}.JPEG")
        annotations.append(f"val_{place}.JPEG\t{WNIDS[label]}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(annotations))
    (folder / "test" / "images").mkdir(parents=True)
    picture(0).save(folder / "test" / "images" / "test_0.JPEG")
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the dataset, its cache already made; not to be changed."""
    root = tmp_path_factory.mktemp("original")
    write_dataset(root)
    load(root)
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    """A data folder of its own, with no cache yet, that a test may spoil."""
    shutil.copytree(original / "tiny-imagenet-200", tmp_path / "data" / "tiny-imagenet-200")
    return tmp_path / "data"


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "tiny-imagenet-200"


def load(root: Path) -> Dataset:
    return load_dataset("tiny-imagenet", root, download=False)


def edit(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before


def test_every_image_has_the_class_of_its_folder_or_of_its_annotation(original: Path) -> None:
    folder, dataset = original / "tiny-imagenet-200", load(original)
    annotations = (folder / "val" / "val_annotations.txt").read_text().splitlines()
    named = {
        "train": [(path, path.parent.parent.name) for path in folder.glob("train/*/images/*.JPEG")],
        "test": [(folder / "val" / "images" / line.split("\t")[0], line.split("\t")[1]) for line in annotations],
    }
    assert dataset.classes == tuple(WNIDS)
    for split, images in named.items():
        expected = Counter((wnid, np.asarray(Image.open(path)).tobytes()) for path, wnid in images)
        found = getattr(dataset, split)
        pairs = zip(found.labels.tolist(), found.images.numpy(), strict=True)
        assert Counter((WNIDS[label], pixels.tobytes()) for label, pixels in pairs) == expected
    assert dataset.train.labels.bincount().tolist() == [training_images(label) for label in range(200)]
    assert dataset.test.labels.tolist() == list(range(200))


def test_its_augmentation_and_normalisation_are_its_own(original: Path) -> None:
    dataset = load(original)
    assert (dataset.name, dataset.num_classes, dataset.image_size) == ("tiny-imagenet", 200, 64)
    recipe = recipe_for(get_protocol("lsskd"), dataset)
    assert (recipe.padding, recipe.flip) == (8, True)
    pixels = dataset.train.images.double() / 255
    assert recipe.mean == pytest.approx(pixels.mean(dim=(0, 1, 2)).tolist(), rel=1e-12)
    assert recipe.std == pytest.approx(pixels.std(dim=(0, 1, 2), correction=0).tolist(), rel=1e-12)


def test_a_grey_image_becomes_colour(root: Path, folder: Path) -> None:
    path = folder / "train" / FIRST / "images" / f"{FIRST}_0.JPEG"
    picture(1).convert("L").save(path)
    (image,) = load(root).train.images[:1]
    assert image.shape == (64, 64, 3)
    assert all(np.array_equal(image[..., channel], np.asarray(Image.open(path))) for channel in range(3))


def test_what_has_no_part_in_the_images_and_labels_has_none_in_the_fingerprint(
    original: Path, root: Path, folder: Path
) -> None:
    edit(folder / "wnids.txt", lambda text: "\r\n".join(sorted(text.split())) + "\r\n\r\n")
    edit(folder / "val" / "val_annotations.txt", lambda text: "\n".join(text.splitlines()[::-1]))
    images = folder / "train" / WNIDS[2] / "images"
    (images / f"{WNIDS[2]}_0.JPEG").rename(images / "zz.jpg")
    (images / "._notes.JPEG").write_text("no image")
    (folder / "words.txt").unlink()
    shutil.rmtree(folder / "test")
    for path in folder.glob("train/*/*_boxes.txt"):
        path.unlink()
    assert load(root).fingerprint == load(original).fingerprint


def test_another_part_of_the_dataset_is_another_dataset(original: Path, root: Path, folder: Path) -> None:
    whole = load(original)
    (folder / "train" / WNIDS[1] / "images" / f"{WNIDS[1]}_1.JPEG").unlink()
    part = load(root)
    assert len(part.train) == len(whole.train) - 1
    assert part.fingerprint != whole.fingerprint


def test_a_changed_annotation_is_noticed_though_no_image_changed(root: Path, folder: Path) -> None:
    before = load(root)
    swapped = {FIRST: LAST, LAST: FIRST}

    def swap(text: str) -> str:
        lines = [line.split("\t") for line in text.splitlines()]
        return "".join("\t".join([name, swapped.get(wnid, wnid), *box]) + "\n" for name, wnid, *box in lines)

    edit(folder / "val" / "val_annotations.txt", swap)
    after = load(root)
    assert after.fingerprint != before.fingerprint
    assert np.array_equal(after.test.images[0], before.test.images[199])


def test_the_second_load_decodes_nothing_until_a_file_is_touched(root: Path, folder: Path, monkeypatch) -> None:
    first = load(root)

    def never(files: list[str], image_size: int) -> np.ndarray:
        raise AssertionError("decoded although it was cached")

    monkeypatch.setattr(folders, "decode_images", never)
    assert load(root).fingerprint == first.fingerprint
    picture(3).save(folder / "train" / FIRST / "images" / "another.JPEG")
    with pytest.raises(AssertionError, match="decoded although"):
        load(root)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_image_is_named(root: Path, folder: Path, split: str) -> None:
    path = sorted(folder.glob(f"{split}/**/*.JPEG"))[7]
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"<html>"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"image {path} is damaged or no image"):
            load(root)
    Image.new("RGB", (64, 63)).save(path)
    with pytest.raises(UserError, match=f"image {path} is 64x63 pixels; it must be 64x64"):
        load(root)


@pytest.mark.parametrize("part", ["wnids.txt", "train", "val/images", "val/val_annotations.txt"])
def test_a_missing_part_is_named_with_where_to_get_it(root: Path, folder: Path, part: str) -> None:
    (folder / part).rename(root / "elsewhere")
    with pytest.raises(
        UserError, match=rf"{folder / part} is missing; complete it from https://cs231n\.stanford\.edu/"
    ):
        load(root)


def first_line(change: Callable[[list[str]], str]) -> Callable[[str], str]:
    """A change of the first line of a text, given its fields."""
    return lambda text: change(text.split("\n", 1)[0].split("\t")) + text[text.index("\n") :]


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("wnids.txt", lambda text: text[10:], r"wnids\.txt has 199 lines with 199 classes; Tiny-ImageNet has 200"),
        ("wnids.txt", lambda text: text + text[:10], r"wnids\.txt has 201 lines with 200 classes"),
        ("wnids.txt", first_line(lambda fields: "../../n0"), r"wnids\.txt, line 1: '\.\./\.\./n0' is no class id"),
        ("val/val_annotations.txt", first_line(lambda fields: fields[0]), r"line 1: 'val_0\.JPEG' names no class of"),
        (
            "val/val_annotations.txt",
            first_line(lambda fields: f"{fields[0]}\tn99999999\t0\t0\t1\t1"),
            r"annotations\.txt, line 1: 'val_0\.JPEG\\tn99999999.*' names no class of wnids\.txt; a line has",
        ),
        (
            "val/val_annotations.txt",
            lambda text: text + text.split("\n", 1)[0],
            r"line 201: val_0\.JPEG has a second line; keep one",
        ),
        (
            "val/val_annotations.txt",
            lambda text: text.split("\n", 1)[1],
            r"images/val_0\.JPEG has no line in val_annotations\.txt \(1 such\); add one or remove the image",
        ),
        (
            "val/val_annotations.txt",
            lambda text: text + f"val_x.JPEG\t{FIRST}\nval_y.JPEG\t{FIRST}\n",
            r"images/val_x\.JPEG is missing although val_annotations\.txt names it \(2 such\); add the image or",
        ),
        (
            "val/val_annotations.txt",
            lambda text: text.replace(LAST, FIRST),
            rf"val/images has no image of class {LAST} \(1 such\); each class needs at least one",
        ),
    ],
)
def test_lists_that_do_not_match_are_refused(
    folder: Path, file: str, change: Callable[[str], str], complaint: str
) -> None:
    edit(folder / file, change)
    with pytest.raises(UserError, match=complaint) as raised:
        list_images(folder)
    assert "\n" not in str(raised.value)


def test_a_list_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "wnids.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"wnids\.txt is damaged; get it again from https:"):
        list_images(folder)


def test_a_class_without_training_images_is_refused(folder: Path) -> None:
    images = folder / "train" / LAST / "images"
    for path in images.iterdir():
        path.unlink()
    complaint = rf"{images} has no images; each class of wnids\.txt needs at least one there"
    with pytest.raises(UserError, match=complaint):
        list_images(folder)
    shutil.rmtree(folder / "train" / LAST)
    with pytest.raises(UserError, match=complaint):
        list_images(folder)


def test_a_folder_of_an_unlisted_class_is_refused(folder: Path) -> None:
    (folder / "train" / "n99999999" / "images").mkdir(parents=True)
    with pytest.raises(UserError, match=r"train/n99999999 is no class of wnids\.txt \(1 such\); remove it"):
        list_images(folder)


def test_a_missing_dataset_says_where_it_was_looked_for_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        load(tmp_path / "nothing")
    message = str(raised.value)
    assert "\n" not in message
    url = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
    for part in (str(tmp_path / "nothing"), "tiny-imagenet-200/ is not there", "switched off", url):
        assert part in message
    assert not (tmp_path / "nothing").exists()


def test_the_dataset_itself_in_place_of_its_parent_is_recognised(folder: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean its parent\?"):
        load(folder)


def test_a_link_that_leads_nowhere_is_not_replaced_by_a_download(tmp_path: Path) -> None:
    (tmp_path / "tiny-imagenet-200").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match=r"tiny-imagenet-200 is no folder, or leads to none"):
        load_dataset("tiny-imagenet", tmp_path, download=True)
