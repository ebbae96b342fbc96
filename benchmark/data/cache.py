"""The cache of decoded datasets on disk: memory-mapped, and checked every time that it is read.

A cached dataset is a folder of arrays, each named by its content, and an index that is written last. A process that
reads the index sees arrays that are whole and belong together, whatever another process is doing meanwhile. A file of
safetensors would give the mapping, but neither this nor the checksums, and every user's caches would be built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from benchmark.core.errors import UserError
from benchmark.data.dataset import (
    Colour,
    Dataset,
    ImageSet,
    content_hash,
    fingerprint_of,
    measured_normalisation,
    splits_hashes,
)
from benchmark.io.files import replacing, write_text
from benchmark.io.untrusted import UntrustedInputError, read_text_limited

FOLDER = ".kd-cache"
INDEX = "index.json"
FORMAT = 1
SPLITS = ("train", "test")
LARGEST_INDEX = 2**24
"""Bytes of an index, of which nearly all are names of classes."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Content:
    """The content of a dataset's source: class names and both splits, in canonical order."""

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class CachedContent:
    """A source's content from the cache: memory-mapped, with its hashes and measured normalisation."""

    content: Content
    hashes: dict[str, str]
    mean: Colour
    std: Colour


def make_dataset(
    name: str, cached: CachedContent, padding: int, flip: bool, mean: Colour | None = None, std: Colour | None = None
) -> Dataset:
    """Make the dataset of a cached source; its normalisation is the measured one unless another is given.

    Raises:
        UserError: a channel's standard deviation is 0.
    """
    content, mean, std = cached.content, mean or cached.mean, std or cached.std
    if min(std) <= 0:
        raise UserError(
            f"dataset {name}: a colour channel has the same value in every training image, so its measured standard "
            "deviation is 0; set mean and std yourself"
        )
    return Dataset(
        name=name,
        classes=content.classes,
        train=content.train,
        test=content.test,
        mean=mean,
        std=std,
        padding=padding,
        flip=flip,
        fingerprint=fingerprint_of(cached.hashes, content.classes, mean, std, padding, flip),
    )


class CorruptCache(Exception):
    """A cache whose index or arrays are not what was written."""


def locate_cache(data_root: Path, cache_root: Path | None) -> tuple[Path, ...]:
    """List the folders for the caches of a data folder; the first that can be written is used.

    It is `cache_root` if that is given, and else one beside the data, or the user's.
    """
    if cache_root is not None:
        return (cache_root,)
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    # Data folders share the user's cache folder, so each has a part of its own there.
    own = hashlib.sha256(str(data_root.resolve()).encode()).hexdigest()[:12]
    return (data_root / FOLDER, home / "kd-benchmark" / own)


def state_of_files(folder: Path, names: Iterable[str], dataset: str) -> str:
    """Compute a hash of the sizes and times of files, which changes when one of them does.

    Raises:
        UserError: a file is missing.
    """
    status = []
    for name in names:
        try:
            found = (folder / name).stat()
        except OSError as error:
            raise UserError(f"{folder / name} is missing; delete {folder} and get {dataset} again") from error
        status.append((name, found.st_size, found.st_mtime_ns))
    return hashlib.sha256(json.dumps(status).encode()).hexdigest()


def read_or_build(caches: Sequence[Path], key: str, source: str, build: Callable[[], Content]) -> CachedContent:
    """Read the content cached under `key`; build it first if it is missing or was built from another source.

    caches: see `locate_cache`; source: the state of what it is built from, such as `folders.ClassFolders.state`.
    One process builds while others wait. A damaged cache is built again.

    Raises:
        UserError: what was written cannot be read back, or no folder can be written.
    """
    for folder in caches:
        # Reading needs no lock, so a finished cache also serves from a disk that cannot be written. A cache that is
        # being replaced can look damaged for a moment; the second look below is under the lock.
        with contextlib.suppress(CorruptCache):
            cached = _read(folder / key, source)
            if cached is not None:
                return cached
    with _locked(caches, key) as folder:
        try:
            cached = _read(folder, source)
        except CorruptCache as error:
            log.warning("the dataset cache %s is damaged (%s); it is built again", folder, error)
            cached = None
        if cached is None:
            _write(folder, source, build())
            try:
                cached = _read(folder, source)
            except CorruptCache as error:
                raise UserError(
                    f"the dataset cache {folder} is damaged as it is written ({error}); check that disk"
                ) from error
    assert cached is not None
    return cached


@contextlib.contextmanager
def _locked(caches: Sequence[Path], key: str) -> Iterator[Path]:
    """Lock the first folder for `key` that can be written against other processes."""
    refusals = []
    for folder in caches:
        lock = FileLock(folder / f"{key}.lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            refusals.append(f"{folder} ({error.strerror or error})")
            continue
        if refusals:
            log.warning("the dataset cache cannot be written to %s; it is kept in %s", refusals[0], folder)
        try:
            yield folder / key
        finally:
            lock.release()
        return
    raise UserError(f"the dataset cache cannot be written to {' or '.join(refusals)}; make a folder there writable")


def _write(folder: Path, source: str, content: Content) -> None:
    mean, std = measured_normalisation(content.train.images)
    arrays = {}
    for split in SPLITS:
        image_set: ImageSet = getattr(content, split)
        arrays[f"{split}-images"], arrays[f"{split}-labels"] = image_set.images.numpy(), image_set.labels.numpy()
    hashes = splits_hashes(content.train, content.test)
    files = {name: _file_name(name, hashes[name]) for name in arrays}
    for name, array in arrays.items():
        with replacing(folder / files[name]) as replacement, replacement.temporary.open("wb") as opened:
            np.save(opened, array)
    index = {
        "format": FORMAT,
        "source": source,
        "classes": content.classes,
        "mean": mean,
        "std": std,
        "sha256": hashes,
        "files": files,
    }
    write_text(folder / INDEX, json.dumps({"sha256": _index_hash(index), "index": index}, indent=1))
    _remove_all_but(folder, {INDEX, *files.values()})


def _index_hash(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _remove_all_but(folder: Path, names: set[str]) -> None:
    """Remove what an older source or a killed process left; it only takes room."""
    for path in folder.iterdir():
        if path.name not in names and path.suffix in (".npy", ".tmp"):
            with contextlib.suppress(OSError):
                path.unlink()


def _read(folder: Path, source: str) -> CachedContent | None:
    """Read the cached content; None if there is none of this source.

    Raises:
        CorruptCache: it is not what was written.
    """
    try:
        checked: dict[str, Any] = json.loads(read_text_limited(folder / INDEX, LARGEST_INDEX))
        index = checked["index"]
        if _index_hash(index) != checked["sha256"]:
            raise CorruptCache(f"{INDEX} does not match its sha256")
        if index["format"] != FORMAT or index["source"] != source:
            return None
        # A data folder may come from elsewhere: what is a path in it is not used as one.
        arrays = {
            name: _map_array(folder / _file_name(name, sha256), sha256) for name, sha256 in index["sha256"].items()
        }
        train, test = (ImageSet(arrays[f"{split}-images"], arrays[f"{split}-labels"]) for split in SPLITS)
        content = Content(tuple(index["classes"]), train, test)
        if not all(0 <= label < len(content.classes) for part in (train, test) for label in part.labels.unique()):
            raise CorruptCache("its labels are not those of its classes")
        return CachedContent(content, index["sha256"], tuple(index["mean"]), tuple(index["std"]))
    except (FileNotFoundError, NotADirectoryError) as error:
        if Path(error.filename).name == INDEX:
            return None
        raise CorruptCache(f"{Path(error.filename).name} is missing") from error
    except PermissionError:
        # It belongs to somebody else; another folder is used.
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UntrustedInputError) as error:
        raise CorruptCache(f"{INDEX} cannot be read") from error


def _file_name(name: str, sha256: str) -> str:
    """Name the file of an array by its content.

    Raises:
        ValueError: these are not the names of an array and its content.
    """
    if not re.fullmatch("(train|test)-(images|labels)", name) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError("not the name of an array")
    return f"{name}-{sha256[:16]}.npy"


def _map_array(path: Path, sha256: str) -> torch.Tensor:
    """Map an array into memory as a tensor, after comparing its content with its sha256."""
    if path.exists() and not path.is_file():
        raise CorruptCache(f"{path.name} is no plain file")
    try:
        # Copy-on-write pages: torch wants memory that may be written, and the file must not change if someone does.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:
        # The header is a Python literal; damaged, it can fail in any of the ways in which one can be read.
        raise CorruptCache(f"{path.name} is no whole array") from error
    if content_hash(array) != sha256:
        raise CorruptCache(f"{path.name} does not match its sha256")
    return torch.from_numpy(array)
