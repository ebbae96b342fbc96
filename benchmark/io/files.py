"""Files that are either whole or not there: written beside, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from benchmark.core.errors import UserError


@dataclass
class Replacement:
    """A file being written: to `temporary` first, which takes the place of `target` when all of it is on disk."""

    temporary: Path
    target: Path


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Replacement]:
    """Write to `temporary`; on success it takes `target`'s place, on any failure it is removed.

    The target may be renamed while the file is written (to a name that holds its checksum, say).

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    replacement = Replacement(target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"), target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield replacement
        with replacement.temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(replacement.temporary, replacement.target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {target}: {reason}; free some space there or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            replacement.temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    with replacing(path) as replacement:
        replacement.temporary.write_text(text, encoding="utf-8")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Write tensors, on whatever device, as one safetensors file with notes in its header.

    Raises:
        OSError: the disk is full or the file cannot be written.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(contiguous, path, dict(notes) if notes else None)
    except safetensors.SafetensorError as error:
        # The library wraps the system's error in its own and leaves the number in the text only.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise OSError(None, str(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder. Nobody else may be writing there."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def quarantine_file(path: Path) -> Path | None:
    """Rename a file to `damaged-<name>-<n>` beside it, n being free; None where it has gone, or cannot be renamed."""
    for number in itertools.count(1):
        target = path.with_name(f"damaged-{path.name}-{number}")
        try:
            # The process that makes the file owns the number; a rename alone could replace what another put aside.
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            continue
        except OSError:
            return None
        try:
            os.replace(path, target)
            return target
        except OSError:
            with contextlib.suppress(OSError):
                target.unlink()
            return None
    raise AssertionError("numbers do not end")


def restore(moved: Path, path: Path) -> None:
    """Rename a file back, unless there is another one by now; then it stays where it is."""
    try:
        # Unlike a renaming, a link never takes the place of a file.
        os.link(moved, path)
    except FileExistsError:
        return
    except OSError:
        # A folder without hard links.
        if not path.exists():
            os.replace(moved, path)
        return
    with contextlib.suppress(OSError):
        moved.unlink()


def check_writable(folder: Path, option: str) -> None:
    """Refuse a folder that could not be made or written, and leave nothing there; `option` is what names it.

    Raises:
        UserError: a part of its path is no folder, may not be written or has too long a name.
    """
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise UserError(f"cannot write {folder}: {existing} is no folder; choose another folder with {option}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {folder}: {existing} may not be written; choose another folder with {option}")
    try:
        longest = max((len(os.fsencode(part)) for part in folder.relative_to(existing).parts), default=0)
        if longest > os.pathconf(existing, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        # The file system may refuse what the rights allow, above all to an administrator.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = f"cannot write {folder}: nothing can be made in {existing} ({error.strerror})"
        raise UserError(f"{reason}; choose another folder with {option}") from error


def compute_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex.

    Raises:
        OSError: it cannot be read, or is no plain file: a pipe would be waited for.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is no plain file", str(path))
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
