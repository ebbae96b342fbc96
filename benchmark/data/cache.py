"""Decoded datasets on disk: read once, memory-mapped from then on, and checked every time.

A cached dataset is a folder of arrays, each named by its content, and an index that is written last. Whoever reads
the index sees arrays that are whole and belong together, whatever another process is doing meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from benchmark.core.errors import UserError
from benchmark.data.dataset import Colour, ImageSet, content_hash, measured_normalisation, splits_hashes
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
    """What a dataset's source holds: class names and both splits, in canonical order."""

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class CachedContent:
    """A source's content as the cache gives it: memory-mapped, with its hashes and measured normalisation."""

    content: Content
    hashes: dict[str, str]
    mean: Colour
    std: Colour


@dataclass(frozen=True)
class CacheLocation:
    """Where caches are kept: in `preferred`, or in `fallback` (if there is one) where `preferred` cannot be written."""

    preferred: Path
    fallback: Path | None


class CorruptCache(Exception):
    """A cache whose index or arrays are not what was written."""


def locate_cache(data_root: Path, cache_root: Path | None) -> CacheLocation:
    """The caches of a data folder: in `cache_root` if given, else beside the data or in the user's cache folder."""
    if cache_root is not None:
        return CacheLocation(cache_root, None)
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    # Data folders share the user's cache folder, so each has a part of its own there.
    own = hashlib.sha256(str(data_root.resolve()).encode()).hexdigest()[:12]
    return CacheLocation(data_root / FOLDER, home / "kd-benchmark" / own)


def read_or_build(place: CacheLocation, key: str, source: str, build: Callable[[], Content]) -> CachedContent:
    """The content cached under `key`, built first if it is not there or was built from another source.

    `source` identifies the state of what it is built from (see `folders.ClassFolders.state`). One process builds while
    others wait. A damaged cache is built again: the source is the truth.

    Raises:
        UserError: what was written cannot be read back, or no folder can be written.
    """
    for folder in filter(None, (place.preferred, place.fallback)):
        # Reading needs no lock, so a finished cache also serves from a disk that cannot be written. A cache that is
        # being replaced can look damaged for a moment; the second look below is under the lock.
        with contextlib.suppress(CorruptCache):
            found = _read(folder / key, source)
            if found is not None:
                return found
    with _locked(place, key) as folder:
        try:
            found = _read(folder, source)
        except CorruptCache as error:
            log.warning("the dataset cache %s is damaged (%s); it is built again", folder, error)
            found = None
        if found is None:
            _write(folder, source, build())
            try:
                found = _read(folder, source)
            except CorruptCache as error:
                raise UserError(
                    f"the dataset cache {folder} is damaged as it is written ({error}); mend that disk"
                ) from error
    assert found is not None
    return found


@contextlib.contextmanager
def _locked(place: CacheLocation, key: str) -> Iterator[Path]:
    """The first folder for `key` that can be written, held against other processes."""
    refusals = []
    for folder in filter(None, (place.preferred, place.fallback)):
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
    """The cached content; None if there is none of this source.

    Raises:
        DamagedCache: it is not what was written.
    """
    try:
        checked: dict[str, Any] = json.loads(read_text_limited(folder / INDEX, LARGEST_INDEX))
        index = checked["index"]
        if _index_hash(index) != checked["sha256"]:
            raise CorruptCache(f"{INDEX} does not match its sha256")
        if index["format"] != FORMAT or index["source"] != source:
            return None
        # A data folder may come from elsewhere: what is a path in it is not used as one.
        arrays = {name: _mapped(folder / _file_name(name, sha256), sha256) for name, sha256 in index["sha256"].items()}
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
        # Somebody else's: as good as none, and another place is found for one's own.
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UntrustedInputError) as error:
        raise CorruptCache(f"{INDEX} cannot be read") from error


def _file_name(name: str, sha256: str) -> str:
    """The file of an array, named by its content.

    Raises:
        ValueError: these are not the names of an array and its content.
    """
    if not re.fullmatch("(train|test)-(images|labels)", name) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError("not the name of an array")
    return f"{name}-{sha256[:16]}.npy"


def _mapped(path: Path, sha256: str) -> torch.Tensor:
    """An array as a tensor on memory-mapped pages, after its content was compared with its sha256."""
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
