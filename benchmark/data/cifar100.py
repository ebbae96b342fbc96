"""CIFAR-100: 50,000 training and 10,000 test images of 32x32 in 100 classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. It is read from either of two layouts,
with the same result: the archive as torchvision unpacks it, or class folders.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmark.core.errors import UserError
from benchmark.data.cache import Content, locate_cache, make_dataset, read_or_build, state_of_files
from benchmark.data.dataset import Dataset
from benchmark.data.download import DEFAULT_DATA_ROOT, fetch_folder
from benchmark.data.folders import canonical, list_class_folders, read_class_folders
from benchmark.data.torchvision_operators import import_torchvision

NAME = "cifar100"
ARCHIVE_FOLDER = "cifar-100-python"
ARCHIVE_FILES = ("train", "test", "meta")
URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
HASH = "md5:eb9058c3a382ffc7106e4002c42a8d85"
"""Of the archive, as published beside it and as torchvision checks it."""
NUM_CLASSES = 100
IMAGE_SIZE = 32
PADDING = 4
# The values that the published implementations normalise with, most of which take them from RepDistiller.
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)


def load(data_root: Path | None = None, cache_root: Path | None = None, download: bool = True) -> Dataset:
    """Load CIFAR-100 from `data_root` (`data` by default), through its cache.

    If both exist, class folders `cifar100/` are preferred to torchvision's `cifar-100-python/`, because they were made
    on purpose. If neither exists and `download` allows it, the archive is fetched.

    Raises:
        UserError: there is no dataset, it is damaged or incomplete, or its cache is damaged or cannot be written.
    """
    root = DEFAULT_DATA_ROOT if data_root is None else data_root
    state, build = _source(root, download)
    cached = read_or_build(locate_cache(root, cache_root), NAME, state, build)
    return make_dataset(NAME, cached, PADDING, flip=True, mean=MEAN, std=STD)


def _source(root: Path, download: bool) -> tuple[str, Callable[[], Content]]:
    """Find the source, and return its state and a function that reads it."""
    if (root / NAME).is_dir():
        folders = list_class_folders(root / NAME)
        _check_classes(root / NAME, folders.classes)
        return folders.state, lambda: read_class_folders(folders, IMAGE_SIZE)
    fetch_folder(root, ARCHIVE_FOLDER, URL, HASH, "meta", lambda why: _not_found(root, why), download)
    return state_of_files(root / ARCHIVE_FOLDER, ARCHIVE_FILES, "CIFAR-100"), lambda: _read_archive(root)


def _not_found(root: Path, why: str) -> str:
    parent = " (did you mean its parent?)" if root.name in (NAME, ARCHIVE_FOLDER) else ""
    return (
        f"no CIFAR-100 in {root}{parent}: neither {NAME}/{{train,test}}/<class>/*.png nor {ARCHIVE_FOLDER}/ is there, "
        f"and {why}; put class folders there, or unpack cifar-100-python.tar.gz there (or run once with a network)"
    )


def _check_classes(folder: Path, classes: tuple[str, ...]) -> None:
    if len(classes) != NUM_CLASSES:
        raise UserError(f"{folder} has {len(classes)} classes; CIFAR-100 has {NUM_CLASSES}, so complete it")


def _read_archive(root: Path) -> Content:
    """Read both splits of the unpacked archive; labels are in alphabetical order of the class names."""
    cifar = import_torchvision("datasets").CIFAR100
    splits = []
    classes: tuple[str, ...] = ()
    for train in (True, False):
        try:
            source = cifar(str(root), train=train, download=False)
        except RuntimeError as error:
            folder = root / ARCHIVE_FOLDER
            raise UserError(f"{folder} fails torchvision's checksums; delete it and get CIFAR-100 again") from error
        classes = tuple(sorted(source.classes))
        alphabetical = np.array([classes.index(name) for name in source.classes], dtype=np.int64)
        splits.append(canonical(source.data, alphabetical[np.asarray(source.targets)]))
    _check_classes(root / ARCHIVE_FOLDER, classes)
    return Content(classes, *splits)
