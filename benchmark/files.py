"""Files that are either whole or not there: written beside, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmark.errors import UserError


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


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
