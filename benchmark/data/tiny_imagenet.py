"""Tiny-ImageNet: 100,000 training and 10,000 validation images of 64x64 in 200 classes of ImageNet.

Y. Le and X. Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford CS 231N, 2015. It is read from its own layout:

    tiny-imagenet-200/wnids.txt                      the class ids
    tiny-imagenet-200/train/<wnid>/images/*.JPEG     (a list of boxes beside them is not read)
    tiny-imagenet-200/val/images/*.JPEG
    tiny-imagenet-200/val/val_annotations.txt        file name, class and box of each

Evaluation is on the validation images: `test/` has no labels. A part of the dataset is read as well, with any number of
images of each class, at least one in each split; its fingerprint tells it from the whole.

The fingerprint is one of decoded pixels. JPEG leaves some freedom to the decoder, so another libjpeg than the one
inside the installed Pillow may give other pixels, and with them another fingerprint. Images that are in the cache
already stay as they were decoded.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from benchmark.core.errors import UserError
from benchmark.data import imagenet
from benchmark.data.cache import CachedContent, locate_cache, make_dataset, read_or_build
from benchmark.data.dataset import Dataset
from benchmark.data.download import DEFAULT_DATA_ROOT, fetch_folder
from benchmark.data.folders import ClassFolders, image_files, list_subfolders, read_class_folders
from benchmark.data.shown_small import show_small

NAME = "tiny-imagenet"
FOLDER = "tiny-imagenet-200"
URL = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
"""The archive on the course's own site."""
HASH = "md5:90528d7ca1a48142e341f4ef8d21d0de"
"""The site has published none; this is the one that public loaders of the dataset check."""
WNIDS = "wnids.txt"
ANNOTATIONS = "val_annotations.txt"
NUM_CLASSES = 200
IMAGE_SIZE = 64
SMALL_NAME, SMALL_SIZE = "tiny-imagenet-32", 32
"""The same images as they are shown to networks that learnt from CIFAR-100."""
PADDING = 8
"""As large a share of the image as CIFAR's 4 of 32 pixels."""


def load(data_root: Path | None = None, cache_root: Path | None = None, download: bool = True) -> Dataset:
    """Load Tiny-ImageNet from `data_root` (`data` by default), through its cache.

    Classes are named by their WordNet ids and stand in the ids' order. The normalisation is measured on the training
    images. Where there is no `tiny-imagenet-200/` and `download` allows it, the archive is fetched.

    Raises:
        UserError: there is no dataset, it is damaged or incomplete, or its cache is damaged or cannot be written.
    """
    return make_dataset(NAME, _read_cached(data_root, cache_root, download), PADDING, flip=True)


def load_small(data_root: Path | None = None, cache_root: Path | None = None, download: bool = True) -> Dataset:
    """Load the same images, shown to networks at 32x32 (see `benchmark.data.shown_small`), by ImageNet's normalisation.

    Raises:
        UserError: see `load`.
    """
    cached = _read_cached(data_root, cache_root, download)
    return show_small(SMALL_NAME, cached.content, cached.hashes, SMALL_SIZE, imagenet.MEAN, imagenet.STD)


def _read_cached(data_root: Path | None, cache_root: Path | None, download: bool) -> CachedContent:
    root = DEFAULT_DATA_ROOT if data_root is None else data_root
    fetch_folder(root, FOLDER, URL, HASH, WNIDS, lambda why: _not_found(root, why), download)
    found = list_images(root / FOLDER)
    return read_or_build(
        locate_cache(root, cache_root), NAME, found.state, lambda: read_class_folders(found, IMAGE_SIZE)
    )


def _not_found(root: Path, why: str) -> str:
    parent = " (did you mean its parent?)" if root.name == FOLDER or (root / WNIDS).exists() else ""
    return (
        f"no Tiny-ImageNet in {root}{parent}: {FOLDER}/ is not there, and {why}; "
        f"get {URL} and unpack it there (or run once with a network)"
    )


def list_images(folder: Path) -> ClassFolders:
    """List the images of a folder `tiny-imagenet-200`; its validation images are the split `test`.

    Raises:
        UserError: a file is missing or malformed, a class has no images, or the validation images and their annotations
            do not match.
    """
    for part in (WNIDS, "train", "val/images", f"val/{ANNOTATIONS}"):
        if not (folder / part).exists():
            raise UserError(f"{folder / part} is missing; complete it from {URL}")
    classes = _classes(folder / WNIDS)
    _check_training_folders(folder / "train", classes)
    files: dict[str, list[str]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    # Names, sizes and times of all images, and what says of which class they are.
    listed: list[object] = [classes]
    for label, wnid in enumerate(classes):
        images = folder / "train" / wnid / "images"
        found = image_files(images) if images.is_dir() else []
        if not found:
            raise UserError(f"{images} has no images; each class of {WNIDS} needs at least one there")
        files["train"] += [str(images / name) for name, _, _ in found]
        labels["train"] += [label] * len(found)
        listed.append(found)
    annotated = _annotations(folder / "val" / ANNOTATIONS, classes)
    images = folder / "val" / "images"
    found = image_files(images)
    names = [name for name, _, _ in found]
    _check_annotations(folder / "val", annotated, names, classes)
    files["test"] = [str(images / name) for name in names]
    labels["test"] = [annotated[name] for name in names]
    listed += [found, sorted(annotated.items())]
    state = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    return ClassFolders(folder, classes, files, labels, state)


def _lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines of a text file that are not blank, with their numbers."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged; get it again from {URL}") from error
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def _classes(path: Path) -> tuple[str, ...]:
    """Read the class ids in ascending order."""
    found = []
    for number, line in _lines(path):
        if not re.fullmatch(r"n[0-9]{8}", line):
            raise UserError(f"{path}, line {number}: {line[:40]!r} is no class id; one looks like n01443537")
        found.append(line)
    classes = tuple(sorted(set(found)))
    if len(classes) != len(found) or len(classes) != NUM_CLASSES:
        raise UserError(
            f"{path} has {len(found)} lines with {len(classes)} classes; Tiny-ImageNet has {NUM_CLASSES}, "
            f"a line each, so complete it from {URL}"
        )
    return classes


def _check_training_folders(folder: Path, classes: tuple[str, ...]) -> None:
    """Refuse images of a class that is not listed: they would be left out silently."""
    unlisted = sorted(set(list_subfolders(folder)) - set(classes))
    if unlisted:
        raise UserError(f"{folder / unlisted[0]} is no class of {WNIDS} ({len(unlisted)} such); remove it")


def _annotations(path: Path, classes: tuple[str, ...]) -> dict[str, int]:
    """Read the label of each validation image, by the name of its file."""
    labels = {wnid: label for label, wnid in enumerate(classes)}
    annotated: dict[str, int] = {}
    for number, line in _lines(path):
        name, *rest = line.split("\t")
        wnid = rest[0] if rest else ""
        if wnid not in labels:
            raise UserError(
                f"{path}, line {number}: {line[:60]!r} names no class of {WNIDS}; a line has the file's name, "
                "the class and a box, with tabs between"
            )
        if name in annotated:
            raise UserError(f"{path}, line {number}: {name} has a second line; keep one")
        annotated[name] = labels[wnid]
    return annotated


def _check_annotations(folder: Path, annotated: dict[str, int], images: list[str], classes: tuple[str, ...]) -> None:
    """Refuse validation images and annotations that do not match, and classes without a validation image."""
    missing = sorted(set(annotated) - set(images))
    if missing:
        raise UserError(
            f"{folder / 'images' / missing[0]} is missing although {ANNOTATIONS} names it ({len(missing)} such); "
            "add the image or remove its line"
        )
    unnamed = sorted(set(images) - set(annotated))
    if unnamed:
        raise UserError(
            f"{folder / 'images' / unnamed[0]} has no line in {ANNOTATIONS} ({len(unnamed)} such); "
            "add one or remove the image"
        )
    without = sorted(set(range(len(classes))) - set(annotated.values()))
    if without:
        raise UserError(
            f"{folder / 'images'} has no image of class {classes[without[0]]} ({len(without)} such); "
            "each class needs at least one"
        )
