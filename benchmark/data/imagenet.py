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
from benchmark.data.cache import CacheLocation, locate_cache
from benchmark.data.dataset import Dataset
from benchmark.data.decoding import MARGIN, RATIO, SCALE
from benchmark.data.download import DEFAULT_DATA_ROOT
from benchmark.data.streamed import ImageFiles
from benchmark.io.files import replacing

NAME = "imagenet"
IMAGE_SIZE = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SPLITS = ("train", "val")
SUFFIXES = (b".jpeg", b".jpg", b".png")
WHOLE = {"train": 1_281_167, "val": 50_000}
"""Images of each split."""
NUM_CLASSES = 1000

SCANNERS = 16
"""Folders that are read at a time: on a network disk each answer is waited for."""
SETTLED = 10.0
"""Seconds after which a folder's time of change is trusted to be followed by another one at the next change."""

log = logging.getLogger(__name__)


def load(data_root: Path | None = None, cache_root: Path | None = None, download: bool = True) -> Dataset:
    """ImageNet from `data_root` (`data` by default). Only the list of its files is read; it cannot be fetched.

    Classes are named by their WordNet ids and stand in the ids' order.

    Raises:
        UserError: there is no dataset, its splits differ in their classes, or a class has no images.
    """
    root = DEFAULT_DATA_ROOT if data_root is None else data_root
    folder = root / NAME
    _check_layout(root, folder)
    found = _listing(folder, locate_cache(root, cache_root))
    if multiprocessing.parent_process() is None:
        _warn_of_a_part(folder, found)
    train, val = (
        ImageFiles(
            folder / split,
            found.classes,
            found.names[split],
            torch.arange(len(found.classes)).repeat_interleave(torch.from_numpy(found.counts[split])),
            IMAGE_SIZE,
        )
        for split in SPLITS
    )
    return Dataset(
        name=NAME,
        classes=found.classes,
        train=train,
        test=val,
        mean=MEAN,
        std=STD,
        padding=0,
        flip=True,
        fingerprint=fingerprint(found),
    )


@dataclass(frozen=True)
class Listing:
    """The files of both splits, by class and then by name.

    counts: files of each class, int64 [classes]; names: bytes [files]; sizes: in bytes, int64 [files].
    """

    classes: tuple[str, ...]
    counts: dict[str, np.ndarray]
    names: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]


def fingerprint(listing: Listing) -> str:
    """The sha256, in hex, of the list of files and of how images are cropped and normalised."""
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


def _warn_of_a_part(folder: Path, found: Listing) -> None:
    whole = len(found.classes) == NUM_CLASSES and all(len(found.names[split]) == WHOLE[split] for split in SPLITS)
    if not whole:
        train, val = (len(found.names[split]) for split in SPLITS)
        log.warning(
            "%s is a part of ImageNet: %d classes, %d training and %d validation images (of 1000, 1281167 and 50000)",
            folder,
            len(found.classes),
            train,
            val,
        )


def _listing(folder: Path, place: CacheLocation) -> Listing:
    """The files of both splits: as they were listed before, if no folder has changed since.

    Raises:
        UserError: a folder cannot be read, the splits differ in their classes, or a class has no images.
    """
    folders = {split: _class_folders(folder / split) for split in SPLITS}
    classes = {split: tuple(name for name, _ in found) for split, found in folders.items()}
    _check_classes(folder, classes["train"], classes["val"])
    # A folder's time changes when a file in it appears, disappears or is renamed, but not when one is overwritten.
    state = hashlib.sha256(json.dumps([str(folder.resolve()), folders]).encode()).hexdigest()
    kept = [where / f"{NAME}-files.npz" for where in (place.preferred, place.fallback) if where is not None]
    for path in kept:
        listing = _read_listing(path, state, classes["train"])
        if listing is not None:
            return listing
    listing = _scanned(folder, classes["train"])
    newest = max(changed for found in folders.values() for _, changed in found)
    if time.time() - newest / 1e9 > SETTLED:
        _keep_listing(kept, state, listing)
    return listing


def _class_folders(folder: Path) -> list[tuple[str, int]]:
    """Name and time of change, in ns, of each class folder, by name."""
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


def _check_classes(folder: Path, train: Sequence[str], val: Sequence[str]) -> None:
    if train != val:
        only_one = sorted(set(train) ^ set(val))
        split = "train" if only_one[0] in train else "val"
        raise UserError(
            f"train and val classes of {folder} differ: {only_one[0]!r} is only in {split} ({len(only_one)} such); "
            "both need the same class folders"
        )
    if len(train) < 2:
        raise UserError(f"{folder} has {len(train)} classes; there must be two or more to tell apart")


def _scanned(folder: Path, classes: tuple[str, ...]) -> Listing:
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
    """Name and size in bytes of each image file, by name."""
    found = []
    try:
        with os.scandir(os.fsencode(folder)) as entries:
            for entry in entries:
                if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(b".") and entry.is_file():
                    found.append((entry.name, entry.stat().st_size))
    except OSError as error:
        raise UserError(f"cannot read folder {folder}: {error.strerror}") from error
    if not found:
        allowed = ", ".join(suffix.decode()[1:] for suffix in SUFFIXES)
        raise UserError(f"class folder {folder} has no images; it needs at least one ({allowed})")
    return sorted(found)


def _read_listing(path: Path, state: str, classes: tuple[str, ...]) -> Listing | None:
    """A listing that was kept of this state of the folders; None if there is none, or it is damaged."""
    damage = (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, zipfile.BadZipFile)
    with contextlib.suppress(*damage):
        if not _is_stored(path):
            return None
    with contextlib.suppress(*damage), np.load(path, allow_pickle=False) as arrays:
        if str(arrays["state"]) == state:
            counts, names, sizes = (
                {split: arrays[f"{split}-{part}"] for split in SPLITS} for part in ("counts", "names", "sizes")
            )
            listing = Listing(classes, counts, names, sizes)
            return listing if _is_sound(listing) else None
    return None


def _is_stored(path: Path) -> bool:
    """Whether a file is an archive that does not grow when it is read."""
    if not path.is_file():
        return False
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist()) <= path.stat().st_size


def _is_sound(listing: Listing) -> bool:
    """Whether a listing that was kept says as many things of each file, and no name leads out of its class's folder."""
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
    """Write a listing to the first place that can be written, if there is one: it only saves time."""
    arrays = {"state": np.array(state)}
    for split in SPLITS:
        arrays[f"{split}-counts"] = listing.counts[split]
        arrays[f"{split}-names"] = listing.names[split]
        arrays[f"{split}-sizes"] = listing.sizes[split]
    for path in paths:
        with contextlib.suppress(UserError):
            with replacing(path) as replacement, replacement.temporary.open("wb") as opened:
                np.savez(opened, **arrays)  # type: ignore[arg-type]
            return
