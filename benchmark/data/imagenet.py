"""ImageNet: 1,281,167 training and 50,000 validation images in 1000 classes (ILSVRC 2012), which stay on disk.

O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015. It is read from class folders:

    imagenet/train/<wnid>/*.JPEG
    imagenet/val/<wnid>/*.JPEG

Evaluation is on the validation images: nobody outside has the labels of the test images. A part of the dataset is read
as well, with two classes or more and any number of images of each, at least one in each split.

The fingerprint is one of the list of files: class, name and size in bytes of each. To hash the 140 GB themselves would
take hours. Thus a file that was replaced by another of the same name and size is not noticed; one that is damaged is
found when it is decoded. How a JPEG is decoded is left to the installed Pillow: another libjpeg may give pixels that
differ by a level here and there, and hence slightly other results, under the same fingerprint.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmark.core.errors import UserError
from benchmark.data.cache import locate_cache
from benchmark.data.dataset import Dataset
from benchmark.data.decoding import MARGIN, RATIO, SCALE
from benchmark.data.download import DEFAULT_DATA_ROOT
from benchmark.data.folders import check_same_classes, images_of_class
from benchmark.data.streamed import ImageFiles
from benchmark.io.files import replacing

NAME = "imagenet"
IMAGE_SIZE = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SPLITS = ("train", "val")
SUFFIXES = (".jpeg", ".jpg", ".png")
WHOLE = {"train": 1_281_167, "val": 50_000}
"""Images of each split."""
NUM_CLASSES = 1000

SCANNERS = 16
"""Folders that are read at a time: on a network disk each answer is waited for."""
SETTLED = 10.0
"""Seconds after which the next change of a folder surely gives it another time of change."""

log = logging.getLogger(__name__)


def load(data_root: Path | None = None, cache_root: Path | None = None, download: bool = True) -> Dataset:
    """Load ImageNet from `data_root` (`data` by default). Only the list of its files is read; it cannot be fetched.

    Classes are named by their WordNet ids and stand in the ids' order.

    Raises:
        UserError: there is no dataset, its splits differ in their classes, or a class has no images.
    """
    root = DEFAULT_DATA_ROOT if data_root is None else data_root
    folder = root / NAME
    _check_layout(root, folder)
    listing = _list_files(folder, locate_cache(root, cache_root))
    if multiprocessing.parent_process() is None:
        _warn_of_a_part(folder, listing)
    train, val = (
        ImageFiles(
            folder / split,
            listing.classes,
            listing.names[split],
            torch.arange(len(listing.classes)).repeat_interleave(torch.from_numpy(listing.counts[split])),
            IMAGE_SIZE,
        )
        for split in SPLITS
    )
    return Dataset(
        name=NAME,
        classes=listing.classes,
        train=train,
        test=val,
        mean=MEAN,
        std=STD,
        padding=0,
        flip=True,
        fingerprint=fingerprint(listing),
    )


@dataclass(frozen=True)
class Listing:
    """The files of both splits, sorted by class and then by name.

    counts: files of each class, int64 [classes]; names: bytes [files]; sizes: in bytes, int64 [files].
    """

    classes: tuple[str, ...]
    counts: dict[str, np.ndarray]
    names: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]


def fingerprint(listing: Listing) -> str:
    """Compute the sha256, in hex, of the list of files and of how images are cropped and normalised."""
    settings = [listing.classes, IMAGE_SIZE, MEAN, STD, SCALE, RATIO, MARGIN, "flip"]
    digest = hashlib.sha256(json.dumps(settings, separators=(",", ":")).encode())
    for split in SPLITS:
        digest.update(f"\n{split}\n".encode())
        digest.update(listing.counts[split].astype("<i8").tobytes())
        digest.update(listing.sizes[split].astype("<i8").tobytes())
        # A byte that no file name can hold keeps the names apart.
        digest.update(b"\0".join(listing.names[split].tolist()))
    return digest.hexdigest()


def _check_layout(root: Path, folder: Path) -> None:
    layout = f"{NAME}/{{train,val}}/<wnid>/*.JPEG"
    if not folder.is_dir():
        misplaced = root.name == NAME or (root / "train").is_dir()
        parent = " (did you mean its parent, with the folder named imagenet?)" if misplaced else ""
        raise UserError(
            f"no ImageNet in {root}{parent}: {layout} is not there; get ILSVRC 2012 from image-net.org, which asks for "
            "a registration, and unpack it there"
        )
    for split in SPLITS:
        if not (folder / split).is_dir():
            raise UserError(f"no folder {folder / split}; images belong in {layout}")


def _warn_of_a_part(folder: Path, listing: Listing) -> None:
    found = (len(listing.classes), *(len(listing.names[split]) for split in SPLITS))
    whole = (NUM_CLASSES, *WHOLE.values())
    if found != whole:
        line = "%s is a part of ImageNet: %d classes, %d training and %d validation images (of %d, %d and %d)"
        log.warning(line, folder, *found, *whole)


def _list_files(folder: Path, caches: Sequence[Path]) -> Listing:
    """List the files of both splits; take the kept list if no folder has changed since.

    Raises:
        UserError: a folder cannot be read, the splits differ in their classes, or a class has no images.
    """
    folders = {split: _class_folders(folder / split) for split in SPLITS}
    classes = {split: tuple(name for name, _ in found) for split, found in folders.items()}
    check_same_classes(folder, classes)
    if len(classes["train"]) < 2:
        raise UserError(f"{folder} has {len(classes['train'])} classes; there must be two or more to tell apart")
    # A folder's time changes when a file in it appears, disappears or is renamed, but not when one is overwritten.
    state = hashlib.sha256(json.dumps([str(folder.resolve()), folders]).encode()).hexdigest()
    kept = [root / f"{NAME}-files.npz" for root in caches]
    for path in kept:
        listing = _read_listing(path, state, classes["train"])
        if listing is not None:
            return listing
    listing = _scan(folder, classes["train"])
    newest = max(changed for found in folders.values() for _, changed in found)
    if time.time() - newest / 1e9 > SETTLED:
        _keep_listing(kept, state, listing)
    return listing


def _class_folders(folder: Path) -> list[tuple[str, int]]:
    """List name and time of change, in ns, of each class folder, in the order of the names."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
            folders = sorted((entry.name, entry.stat().st_mtime_ns) for entry in found if entry.is_dir())
    except OSError as error:
        raise UserError(f"cannot read folder {folder}: {error.strerror}") from error
    if not folders and found:
        raise UserError(
            f"{folder} holds files but no class folders; move each image into the folder of its class, "
            f"{folder}/<wnid>/ (for the validation images there are well-known scripts that do)"
        )
    return folders


def _scan(folder: Path, classes: tuple[str, ...]) -> Listing:
    counts, names, sizes = {}, {}, {}
    with ThreadPoolExecutor(SCANNERS) as threads:
        for split in SPLITS:
            found = list(threads.map(_images, [folder / split / name for name in classes]))
            counts[split] = np.array([len(images) for images in found], dtype=np.int64)
            everything = list(itertools.chain.from_iterable(found))
            names[split] = np.array([name for name, _ in everything], dtype=np.bytes_)
            sizes[split] = np.array([size for _, size in everything], dtype=np.int64)
    return Listing(classes, counts, names, sizes)


def _images(folder: Path) -> list[tuple[bytes, int]]:
    """List name and size in bytes of each image file, in the order of the names' bytes."""
    return sorted((os.fsencode(name), size) for name, size, _ in images_of_class(folder, SUFFIXES))


def _read_listing(path: Path, state: str, classes: tuple[str, ...]) -> Listing | None:
    """Read the list that was kept of this state of the folders; None if there is none, or it is damaged."""
    damage = (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, zipfile.BadZipFile)
    with contextlib.suppress(*damage):
        if not _is_stored(path):
            return None
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["state"]) == state:
                counts, names, sizes = (
                    {split: arrays[f"{split}-{part}"] for split in SPLITS} for part in ("counts", "names", "sizes")
                )
                listing = Listing(classes, counts, names, sizes)
                return listing if _is_sound(listing) else None
    return None


def _is_stored(path: Path) -> bool:
    """Tell whether a file is an archive that does not grow when it is read."""
    if not path.is_file():
        return False
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist()) <= path.stat().st_size


def _is_sound(listing: Listing) -> bool:
    """Tell whether the parts of a kept list have equal lengths, and no name leads out of its class's folder."""
    for split in SPLITS:
        counts, names, sizes = listing.counts[split], listing.names[split], listing.sizes[split]
        if (counts.shape, counts.dtype.kind) != ((len(listing.classes),), "i") or (counts < 1).any():
            return False
        if names.dtype.kind != "S" or names.shape != (counts.sum(),) or sizes.shape != names.shape:
            return False
        if b"/" in names.tobytes():
            return False
    return True


def _keep_listing(paths: Sequence[Path], state: str, listing: Listing) -> None:
    """Write a list to the first folder that can be written, if there is one: it only saves time."""
    parts = {"counts": listing.counts, "names": listing.names, "sizes": listing.sizes}
    arrays = {f"{split}-{part}": found[split] for part, found in parts.items() for split in SPLITS}
    for path in paths:
        with contextlib.suppress(UserError):
            with replacing(path) as replacement, replacement.temporary.open("wb") as opened:
                np.savez(opened, state=np.array(state), **arrays)  # type: ignore[arg-type]
            return
