"""torchvision's released weights for ImageNet, as pretrained teachers."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock

from benchmark.core.errors import UserError
from benchmark.data.download import DEFAULT_DATA_ROOT, NETWORK_TIMEOUT
from benchmark.io.files import compute_sha256

FOLDER = "weights"
URLS = {
    "ImageNet-ResNet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "ImageNet-ResNet34": "https://download.pytorch.org/models/resnet34-b627a593.pth",
}
"""`IMAGENET1K_V1` of torchvision: 69.76 and 73.31% top-1. A file's name ends with the first digits of its sha256."""

log = logging.getLogger(__name__)


def torchvision_teacher(
    network: str, data_root: Path | None, say: Callable[[str], None] = log.warning, download: bool = True
) -> Path | None:
    """Find or fetch the file of torchvision's weights for a network; None if there is none or it cannot be fetched.

    It is searched for in `weights/` of the data folder (`data` by default) and in the user's cache folder, and fetched
    to the first of them that can be written. `say` gets a line on what is fetched, or why the teacher will be trained.

    Raises:
        UserError: the file exists, but is damaged.
    """
    url = URLS.get(network)
    if url is None:
        return None
    name = url.rpartition("/")[2]
    folders = _list_folders(DEFAULT_DATA_ROOT if data_root is None else data_root)
    for path in (folder / name for folder in folders):
        if path.is_file():
            return _check_hash(path)
    if not download:
        say(f"{network}: torchvision's weights ({name}) are not in {folders[0]}; its teacher would be trained")
        return None
    reasons = []
    for path in (folder / name for folder in folders):
        lock = FileLock(path.with_name(f".{name}.lock"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            reasons.append(f"{path.parent}: {error.strerror or error}")
            continue
        try:
            # Whoever waited for the lock finds what another process has fetched.
            if not path.is_file():
                say(f"fetching {url} to {path.parent}")
                _fetch(url, path)
            return _check_hash(path)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            reasons = [str(getattr(cause, "strerror", None) or cause)]
            break
        finally:
            lock.release()
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)
                path.parent.rmdir()
    say(f"{network}: torchvision's weights cannot be fetched ({'; '.join(reasons)}); the teacher is trained instead")
    return None


def _fetch(url: str, path: Path) -> None:
    """Fetch a file, whole or not at all, and compare it with the digits in its name.

    Raises:
        OSError, RuntimeError, HTTPException: it cannot be fetched or written, or is another one.
    """
    # torch.hub takes no timeout of its own. pooch cannot be used: only the first digits of the sha256 are published.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        torch.hub.download_url_to_file(url, str(path), _hash_digits(path.name), progress=False)
    finally:
        socket.setdefaulttimeout(before)


def _list_folders(data_root: Path) -> tuple[Path, Path]:
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return data_root / FOLDER, home / "kd-benchmark" / FOLDER


def _hash_digits(name: str) -> str:
    found = re.search(r"-([0-9a-f]{8,})\.", name)
    assert found
    return found[1]


def _check_hash(path: Path) -> Path:
    """Check that the file's sha256 begins as its name says.

    Raises:
        UserError: it begins otherwise, or the file cannot be read.
    """
    try:
        whole = compute_sha256(path).startswith(_hash_digits(path.name))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not whole:
        raise UserError(f"{path} is damaged: its sha256 does not begin as its name says; delete it to have it fetched")
    return path
