"""Datasets that are fetched: one process fetches while others wait, and a failure is one line that leaves nothing."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import shutil
import socket
import stat
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from filelock import FileLock

from benchmark.core.errors import UserError
from benchmark.io.untrusted import sized

DEFAULT_DATA_ROOT = Path("data")
"""Where datasets are looked for, and fetched to, if the user names no other folder."""
NETWORK_TIMEOUT = 30.0
"""Seconds without an answer after which a download is given up."""
PIECE = 1 << 20
"""Bytes that are read and written at a time."""
LARGEST_ARCHIVE = 2**30
"""Bytes that are fetched, and that an archive may unpack to; Tiny-ImageNet's has a quarter of that."""
MOST_FILES = 200_000
"""In an archive; Tiny-ImageNet's has 120,000 and some."""
FAILURES = (
    OSError,
    RuntimeError,
    EOFError,
    http.client.HTTPException,
    zipfile.BadZipFile,
    zlib.error,
)
"""What a failed download raises: the system, urllib (whose errors are OSErrors), torchvision, or a damaged archive."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def downloading(root: Path, name: str, refusal: Callable[[str], str]) -> Iterator[None]:
    """Hold the data folder `root`, which is made if need be, against other downloads of the dataset `name`.

    refusal: the line for the user, given why the download failed.

    Raises:
        UserError: what is done within it failed, or the folder cannot be written.
    """
    existed = root.is_dir()
    lock_path = root / f".{name}.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_path):
            yield
    except FAILURES as error:
        with contextlib.suppress(OSError):
            lock_path.unlink(missing_ok=True)
            if not existed:
                root.rmdir()
        raise UserError(refusal(f"downloading it failed ({_reason(error)})")) from error


def _reason(error: Exception) -> str:
    """Why it failed, in a few words; the name of the error where it only repeats what a server sent."""
    cause = getattr(error, "reason", error)
    words = " ".join(str(getattr(cause, "strerror", None) or cause).split())
    return words if words and words.isprintable() else type(error).__name__


@contextlib.contextmanager
def network_timeout() -> Iterator[None]:
    """Within it, connections are given up after `NETWORK_TIMEOUT`, also where the caller cannot say so."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def fetch_unpacked(url: str, root: Path, folder: str, needed: str) -> None:
    """Fetch a zip archive and put its top folder `folder` into `root`, whole or not at all.

    needed: a file that the folder must hold. Every file of the archive is compared with the checksum that the archive
    has for it. To be called within `downloading`.

    Raises:
        OSError, RuntimeError, EOFError, HTTPException, BadZipFile, zlib.error: it cannot be fetched or unpacked.
    """
    prefix, suffix = f".{folder}.", ".tmp"
    for leftover in root.glob(f"{prefix}*{suffix}"):
        # Of a process that was killed; whoever holds the lock is alone here.
        shutil.rmtree(leftover, ignore_errors=True)
    # In the data folder itself, because a folder can only be renamed into place on its own disk.
    with tempfile.TemporaryDirectory(prefix=prefix, suffix=suffix, dir=root, ignore_cleanup_errors=True) as place:
        archive = Path(place, "archive.zip")
        _fetch(url, archive)
        with zipfile.ZipFile(archive) as opened:
            _check_archive(opened)
            opened.extractall(Path(place, "content"))
        unpacked = Path(place, "content", folder)
        if not (unpacked / needed).is_file():
            raise RuntimeError(f"what came from {url} has no {folder}/{needed}")
        os.rename(unpacked, root / folder)


def _check_archive(archive: zipfile.ZipFile) -> None:
    """Refuse an archive that would fill the disk, or that has files elsewhere than in its own folder.

    Raises:
        RuntimeError: it does.
    """
    entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > LARGEST_ARCHIVE or len(entries) > MOST_FILES:
        raise RuntimeError(f"the archive has {len(entries):,} files that unpack to {sized(unpacked)}")
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in entry.filename:
            raise RuntimeError("the archive has a file whose path leads out of it")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise RuntimeError("the archive has a link in it")


def _fetch(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=NETWORK_TIMEOUT) as answer, path.open("wb") as written:
        expected: int | None = answer.length
        size = "" if expected is None else f" ({expected / 1e6:.0f} MB)"
        log.warning("fetching %s%s", url, size)
        while piece := answer.read(PIECE):
            written.write(piece)
            if written.tell() > LARGEST_ARCHIVE:
                raise RuntimeError(f"more than {sized(LARGEST_ARCHIVE)} came")
        received = written.tell()
    if expected is not None and received != expected:
        raise RuntimeError(f"the connection ended after {received} of {expected} bytes")
