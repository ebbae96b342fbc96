"""Fetch datasets: one process fetches while others wait, and a failure is one line that leaves nothing behind.

pooch downloads, compares the archive with its pinned hash and unpacks it. The lock between processes, the limit on what
a server may send and the rename that makes a dataset appear whole are here, because pooch has none of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from benchmark.core.errors import UserError
from benchmark.io.untrusted import sized

DEFAULT_DATA_ROOT = Path("data")
"""Where datasets are looked for, and fetched to, if the user names no other folder."""
NETWORK_TIMEOUT = 30.0
"""Seconds without an answer after which a download is given up."""
CHUNK_BYTES = 1 << 20
MAX_ARCHIVE_BYTES = 2**30
"""Bytes that are fetched at most; Tiny-ImageNet's archive has a quarter of that."""

log = logging.getLogger(__name__)


def fetch_folder(
    root: Path,
    folder: str,
    url: str,
    known_hash: str,
    needed: str,
    error_line: Callable[[str], str],
    allowed: bool,
    members: list[str] | None = None,
    largest: int | None = None,
) -> None:
    """Fetch a dataset's archive and put its top folder `folder` into the data folder `root`, unless it is there.

    The folder appears whole or not at all. One process fetches while others wait. An intact archive of that name in
    `root` is unpacked without fetching it.

    url: of a .zip or .tar.gz archive; known_hash: of the archive, such as "md5:90528d7c..."; needed: a file that the
    folder must hold; error_line: makes the line for the user from the reason why there is no folder;
    allowed: whether it may be fetched; members: the files of the archive that are unpacked, None for all;
    largest: bytes that are fetched at most, instead of `MAX_ARCHIVE_BYTES`.

    Raises:
        UserError: something else is in its place, it may not be fetched, or that failed.
    """
    path = root / folder
    if path.is_dir():
        return
    if os.path.lexists(path):
        raise UserError(f"{path} is no folder, or leads to none; it must be the folder inside {url}")
    if not allowed:
        raise UserError(error_line("downloading is switched off"))
    existed = root.is_dir()
    lock_path = root / f".{folder}.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_path):
            # Whoever waited for the lock finds what another process has fetched.
            if not path.is_dir():
                _fetch_unpacked(root, folder, url, known_hash, needed, members, largest or MAX_ARCHIVE_BYTES)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            lock_path.unlink(missing_ok=True)
            if not existed:
                root.rmdir()
        raise UserError(error_line(f"downloading it failed ({_describe(error)})")) from error


def _describe(error: BaseException) -> str:
    """Describe an error in a few words; by its type where its text repeats bytes of a server."""
    # requests wraps what the system said several times; a RuntimeError is this module's own line.
    while not isinstance(error, RuntimeError) and (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text if text and text.isprintable() else type(error).__name__


def _fetch_unpacked(
    root: Path, folder: str, url: str, known_hash: str, needed: str, members: list[str] | None, largest: int
) -> None:
    """Fetch and unpack an archive under the lock of `fetch_folder`, whose arguments these are.

    Raises:
        OSError, RuntimeError: the archive cannot be fetched or unpacked, or is not the one of that hash.
    """
    # Imported here, since nothing else needs it and most commands fetch nothing.
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    prefix, suffix = f".{folder}.", ".tmp"
    for leftover in root.glob(f"{prefix}*{suffix}"):
        # Left by a process that was killed; the lock excludes every other one.
        shutil.rmtree(leftover, ignore_errors=True)
    name = url.rpartition("/")[2]
    unpack = pooch.Unzip if name.endswith(".zip") else pooch.Untar
    # In the data folder itself, because a folder can only be renamed into place on its own disk.
    with tempfile.TemporaryDirectory(prefix=prefix, suffix=suffix, dir=root, ignore_cleanup_errors=True) as temporary:
        content = Path(temporary, "content").absolute()
        path = root if (root / name).is_file() else temporary
        download = partial(_download, largest=largest)
        processor = unpack(members=members, extract_dir=str(content))
        try:
            pooch.retrieve(url, known_hash, name, path, processor, download)
        except ValueError as error:
            raise RuntimeError(f"the checksum of what came from {url} is wrong") from error
        if not (content / folder / needed).is_file():
            raise RuntimeError(f"what came from {url} has no {folder}/{needed}")
        os.rename(content / folder, root / folder)


def fetch_file(url: str, known_hash: str, folder: Path) -> Path:
    """Fetch a file into a folder, whole or not at all, unless the file of that hash is there, and return its path.

    known_hash: such as "sha256:d0fb..."; the file is named by it.

    Raises:
        UserError: it cannot be fetched or written, or is another one.
    """
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    name = f"{known_hash.rpartition(':')[2][:16]}-{url.rpartition('/')[2]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(
            pooch.retrieve(url, known_hash, name, folder, downloader=partial(_download, largest=MAX_ARCHIVE_BYTES))
        )
    except ValueError as error:
        raise UserError(
            f"the checksum of what came from {url} is wrong; give the right one, or another address"
        ) from error
    except (OSError, RuntimeError) as error:
        raise UserError(f"{url} cannot be fetched ({_describe(error)}); check the address and the network") from error


class _LimitedFile:
    """Passes what is written on to a file, and refuses more than so many bytes."""

    def __init__(self, file: IO[bytes], largest: int) -> None:
        self.file, self.largest = file, largest

    def write(self, data: bytes) -> None:
        if self.file.tell() + len(data) > self.largest:
            raise RuntimeError(f"more than {sized(self.largest)} came")
        self.file.write(data)

    def flush(self) -> None:
        """Leave it to the file when it writes."""


def _download(url: str, output_file: Any, _: Any, largest: int) -> None:
    import pooch

    log.warning("fetching %s", url)
    with open(output_file, "wb") as file:
        pooch.HTTPDownloader(chunk_size=CHUNK_BYTES, timeout=NETWORK_TIMEOUT)(url, _LimitedFile(file, largest), None)
