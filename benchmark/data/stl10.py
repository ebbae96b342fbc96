"""STL-10: 5,000 labelled training and 8,000 test images of 96x96 in 10 classes, shown to networks at 32x32.

A. Coates, H. Lee and A. Y. Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning", AISTATS 2011.
It is read from its own binary layout, which is torchvision's too:

    stl10_binary/train_X.bin, test_X.bin     uint8 [images, 3, width, height]
    stl10_binary/train_y.bin, test_y.bin     uint8 [images], the class counted from 1
    stl10_binary/class_names.txt             a name a line

The 100,000 images without labels are neither read nor unpacked. Networks that learnt from CIFAR-100 are probed on it,
so its images are shown at CIFAR's size (see `benchmark.data.shown_small`), as HSSAKD's authors do.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from benchmark.core.errors import UserError
from benchmark.data.cache import Content, locate_cache, read_or_build, state_of_files
from benchmark.data.dataset import Dataset, ImageSet
from benchmark.data.download import DEFAULT_DATA_ROOT, fetch_folder
from benchmark.data.folders import canonical
from benchmark.data.shown_small import show_small

NAME = "stl10"
FOLDER = "stl10_binary"
URL = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
HASH = "md5:91f7769df0f17e558f3565bffb0c7dfb"
"""Of the archive, as torchvision checks it (`torchvision.datasets.STL10.tgz_md5`)."""
ARCHIVE_BYTES = 3 * 2**30
"""Bytes that are fetched at most: the archive has 2.6 GB, nearly all of it images without labels."""
CLASS_NAMES = "class_names.txt"
HASHES = {
    "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
    "train_y.bin": "5a34089d4802c674881badbb80307741",
    "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
    "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
}
"""The md5 of each file, as torchvision checks it (`train_list`, `test_list`)."""
NUM_CLASSES = 10
STORED_SIZE = 96
IMAGE_SIZE = 32
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
"""The values that HSSAKD's authors normalise with."""


def load(data_root: Path | None = None, cache_root: Path | None = None, download: bool = True) -> Dataset:
    """Load STL-10 from `data_root` (`data` by default), through its cache. Its files are compared with their md5.

    Where there is no `stl10_binary/` and `download` allows it, the archive is fetched.

    Raises:
        UserError: there is no dataset, it is damaged or incomplete, or its cache is damaged or cannot be written.
    """
    root = DEFAULT_DATA_ROOT if data_root is None else data_root
    folder = root / FOLDER
    files = (*HASHES, CLASS_NAMES)
    members = [f"{FOLDER}/{name}" for name in files]
    fetch_folder(
        root, FOLDER, URL, HASH, CLASS_NAMES, lambda why: _not_found(root, why), download, members, ARCHIVE_BYTES
    )
    state = state_of_files(folder, files, "STL-10")
    cached = read_or_build(locate_cache(root, cache_root), NAME, state, lambda: _read(folder))
    return show_small(NAME, cached.content, cached.hashes, IMAGE_SIZE, MEAN, STD)


def _not_found(root: Path, why: str) -> str:
    parent = " (did you mean its parent?)" if root.name == FOLDER else ""
    return (
        f"no STL-10 in {root}{parent}: {FOLDER}/ is not there, and {why}; unpack stl10_binary.tar.gz there (or run "
        "once with a network)"
    )


def _read(folder: Path) -> Content:
    """Read both splits; labels are in alphabetical order of the class names."""
    for name, expected in HASHES.items():
        with open(folder / name, "rb") as opened:
            if hashlib.file_digest(opened, "md5").hexdigest() != expected:
                raise UserError(f"{folder / name} fails torchvision's checksum; delete {folder} and get STL-10 again")
    names = (folder / CLASS_NAMES).read_text(encoding="utf-8", errors="replace").split()
    if len(set(names)) != NUM_CLASSES:
        raise UserError(f"{folder / CLASS_NAMES} has {len(set(names))} names; STL-10 has {NUM_CLASSES} classes")
    classes = tuple(sorted(names))
    alphabetical = np.array([classes.index(name) for name in names], dtype=np.int64)
    return Content(classes, *(_read_split(folder, split, alphabetical) for split in ("train", "test")))


def _read_split(folder: Path, split: str, alphabetical: np.ndarray) -> ImageSet:
    columns_first = np.fromfile(folder / f"{split}_X.bin", dtype=np.uint8).reshape(-1, 3, STORED_SIZE, STORED_SIZE)
    labels = np.fromfile(folder / f"{split}_y.bin", dtype=np.uint8).astype(np.int64) - 1
    return canonical(np.ascontiguousarray(columns_first.transpose(0, 3, 2, 1)), alphabetical[labels])
