"""Reading files that somebody else wrote: nothing in them is run, no link is followed, and nothing is without bound."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal
from unicodedata import category

MOST_ENTRIES = 1_000_000
"""Names in one folder: ten times the runs of the largest sweep that is planned for."""
DEEPEST = 64
"""Levels of JSON. A run holds its teacher and its head, which hold theirs: a record has about ten."""
MOST_VALUES = 1_000_000
"""Values in one JSON text; a record of 240 epochs has about 5,000."""
LONGEST = 20_000
"""Characters of one string, such as a command."""
LARGEST_NUMBER = 2**63

_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")

Kind = Literal["folder", "file", "link", "special"]


class UntrustedInputError(Exception):
    """Says in a few words why a file from elsewhere is refused."""


def escape_control_chars(text: object, most: int = 200) -> str:
    """A text from elsewhere as a terminal may show it: what does not print is escaped, what is too long is cut."""
    text = str(text)
    cut = text if len(text) <= most else f"{text[:most]}..."
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode() for letter in cut
    )


def read_text_limited(path: Path, most: int) -> str:
    """The content of a text file that the user has named, with at most `most` bytes; it may be a link.

    Raises:
        UntrustedInputError: it is no plain file (a pipe would be waited for), or is larger.
        OSError: it cannot be read. UnicodeDecodeError: it is not UTF-8.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise UntrustedInputError("is no plain file")
    if status.st_size > most:
        raise UntrustedInputError(f"has {sized(status.st_size)}, at most {sized(most)} are read")
    with path.open("rb") as opened:
        content = opened.read(most + 1)
    if len(content) > most:
        # Files of /proc and /sys say that they hold nothing.
        raise UntrustedInputError(f"has more than {sized(most)}, which is all that is read")
    return content.decode("utf-8")


@dataclass(frozen=True)
class DirEntry:
    """A name in a folder, and what it stands for; links are told of and not followed."""

    name: str
    kind: Kind


class ForeignFolder:
    """A folder of somebody else's, held open by its descriptor, so that what is below it is reached through no link."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    @contextlib.contextmanager
    def at(cls, path: Path) -> Iterator[ForeignFolder]:
        """The folder of a path that the user has named, which may lead through links.

        Raises:
            UntrustedInputError: it cannot be read.
        """
        with _descriptor(os.fspath(path.resolve()), os.O_DIRECTORY, None) as descriptor:
            yield cls(descriptor)

    @contextlib.contextmanager
    def folder(self, name: str) -> Iterator[ForeignFolder]:
        """A folder in this one.

        Raises:
            UntrustedInputError: it is a link, no folder, or cannot be read.
        """
        with _descriptor(name, os.O_DIRECTORY, self._descriptor) as descriptor:
            yield ForeignFolder(descriptor)

    @contextlib.contextmanager
    def file(self, name: str, most: int) -> Iterator[BinaryIO]:
        """A file in this folder, open for reading.

        Raises:
            UntrustedInputError: it is missing, a link, no plain file, has more than `most` bytes, or cannot be read.
        """
        # The mode is read first: opening a pipe waits for its writer, and opening a device may do anything.
        try:
            mode = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mode
        except (OSError, ValueError) as error:
            raise UntrustedInputError(f"{name} {_reason(error)}") from error
        if not stat.S_ISREG(mode):
            raise UntrustedInputError(f"{name} is {'a link' if stat.S_ISLNK(mode) else 'no plain file'}")
        with _descriptor(name, os.O_NONBLOCK, self._descriptor) as descriptor:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UntrustedInputError(f"{name} is no plain file")
            if status.st_size > most:
                raise UntrustedInputError(f"{name} has {sized(status.st_size)}, at most {sized(most)} are read")
            with os.fdopen(os.dup(descriptor), "rb") as opened:
                yield opened

    def text(self, name: str, most: int) -> str:
        """The content of a file of UTF-8 text with at most `most` bytes.

        Raises:
            UntrustedInputError: see `file`; or it is no such text.
        """
        with self.file(name, most) as opened:
            try:
                content = opened.read(most + 1)
            except OSError as error:
                raise UntrustedInputError(f"{name} {_reason(error)}") from error
        if len(content) > most:
            raise UntrustedInputError(f"{name} grew while it was read")
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UntrustedInputError(f"{name} is no UTF-8 text") from error

    def entries(self) -> list[DirEntry]:
        """What is in the folder, by name.

        Raises:
            UntrustedInputError: it cannot be read, or has too many entries.
        """
        found: list[DirEntry] = []
        try:
            with os.scandir(self._descriptor) as entries:
                for entry in entries:
                    if len(found) == MOST_ENTRIES:
                        raise UntrustedInputError(f"has more than {MOST_ENTRIES:,} entries")
                    found.append(DirEntry(entry.name, _kind(entry.stat(follow_symlinks=False).st_mode)))
        except OSError as error:
            raise UntrustedInputError(_reason(error)) from error
        return sorted(found, key=lambda entry: entry.name)


@contextlib.contextmanager
def _descriptor(name: str, flags: int, parent: int | None) -> Iterator[int]:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=parent)
    except (OSError, ValueError) as error:
        raise UntrustedInputError(f"{name} {_reason(error)}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return "cannot be read"


def _kind(mode: int) -> Kind:
    if stat.S_ISLNK(mode):
        return "link"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "special"


def sized(count: int) -> str:
    """A number of bytes for people."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def parse_json_limited(text: str, deepest: int = DEEPEST) -> Any:
    """What a JSON text says: finite numbers, printable strings, no name twice, and not too much of anything.

    How deep it goes is counted before it is parsed, because parsers call themselves for every level.

    Raises:
        UntrustedInputError: it is no JSON, or goes beyond one of the bounds.
    """
    check_depth(_STRING.sub("", text), deepest)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unrepeated,
            parse_float=_finite,
            parse_int=_whole,
            parse_constant=_constant,
        )
    except (ValueError, RecursionError) as error:
        raise UntrustedInputError("is no JSON") from error
    check_strings(value)
    return value


def check_depth(bare: str, deepest: int = DEEPEST) -> None:
    """Count brackets and values in a text of JSON or TOML without its strings.

    Raises:
        UntrustedInputError: there are more than allowed.
    """
    if bare.count(",") + bare.count("[") + bare.count("{") > MOST_VALUES:
        raise UntrustedInputError(f"has more than {MOST_VALUES:,} values")
    depth = 0
    for bracket in _BRACKET.finditer(bare):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > deepest:
            raise UntrustedInputError(f"is nested deeper than {deepest} levels")


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UntrustedInputError("names something twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise UntrustedInputError("holds a number that is not finite")
    return number


def _whole(text: str) -> int:
    if len(text) > 20 or abs(number := int(text)) > LARGEST_NUMBER:
        raise UntrustedInputError("holds a whole number beyond 2^63")
    return number


def _constant(text: str) -> float:
    raise UntrustedInputError(f"holds {text}, which is no finite number")


def check_strings(value: Any) -> None:
    """Refuse texts, anywhere in a value of lists and dictionaries, that are too long or that do not print.

    Raises:
        UntrustedInputError: there is one.
    """
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if len(item) > LONGEST:
                raise UntrustedInputError(f"holds a text of {len(item):,} characters, at most {LONGEST:,} are taken")
            # A line may be broken; all else that does not print could tell a terminal or a page what to do.
            if any(category(letter)[0] == "C" and letter not in "\n\t" for letter in item if not letter.isprintable()):
                raise UntrustedInputError("holds text with control characters")
        elif isinstance(item, dict):
            waiting += item
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
