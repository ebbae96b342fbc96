"""Reading checkpoints of strangers: tensors, containers and numbers, and no code.

A pickle names the classes and functions that its objects need. PyTorch's own are the only ones that are called here,
and only those that PyTorch allows for files that nobody trusts. Every other name gets a stand-in that does nothing, so
that the weights beside a training script's arguments can be read; a name of the standard library, which no training
script needs to store, makes the file refused. So is a file that takes more room than a network could need.
"""

from __future__ import annotations

import contextlib
import io
import re
import stat
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING  # The standard library's names in Python 2, which pickles use.
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from benchmark.core.errors import UserError
from benchmark.io.untrusted import escape_control_chars, sized

LARGEST = 2 * 2**30
"""Bytes of a file, and of its tensors: that of the largest network with branches and an optimiser's state has 1 GiB."""
MOST_ENTRIES = 100_000
"""Files in a checkpoint's archive: one for each tensor."""
LARGEST_PICKLE = 2**24
"""Bytes of the part of an archive that is no tensor; that of the largest network has 0.2 MiB."""
WORKING_MEMORY = 2**30
"""Bytes that reading a file may take beside three times its size."""
MOST_STAND_INS = 32
"""Names in one file that get a stand-in. Each costs one more attempt to read the file."""
_HARMLESS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|collections\.defaultdict|datetime\.\w+|pathlib\.[\w.]+|uuid\.UUID"
    r"|builtins\.(list|dict|int|float|str|tuple|bool|object)"
)
"""Names of the standard library that training scripts do store."""
_MAPPING = re.compile(r"dict$|CfgNode$|Munch$", re.IGNORECASE)
"""Names of classes whose objects a pickle fills as dictionaries."""


class StandIn:
    """Takes the place of any class or function that a file names, and of its objects. It does nothing."""

    def __new__(cls, *arguments: object) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        """Ignore what the object was made from."""

    def __setstate__(self, state: object) -> None:
        """Ignore what the object consisted of."""


class StandInMapping:
    """Takes the place of a class of dictionaries; its objects are plain ones."""

    def __new__(cls, *arguments: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def read_checkpoint(path: Path) -> tuple[bytes, Any, tuple[str, ...]]:
    """Read the bytes of a file, the object that it holds, and the names of the classes that had a stand-in.

    Raises:
        UserError: there is no such file, it is no checkpoint, it needs code or too much memory to be loaded.
    """
    content = _read_bytes(path)
    if is_safetensors(path):
        try:
            return content, safetensors.torch.load(content), ()
        except Exception as error:  # The parser's errors have no common base but this one.
            raise UserError(f"{path} is no safetensors file, or is damaged; fetch it again") from error
    return content, *_unpickle(content, path)


def is_safetensors(path: Path) -> bool:
    """Tell whether a file's name says that it holds bare tensors."""
    return path.suffix.lower() == ".safetensors"


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"{path} is a directory; give the checkpoint file inside it")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is no plain file; give a checkpoint file")
        if status.st_size > LARGEST:
            raise UserError(f"{path} has {sized(status.st_size)}; a checkpoint has at most {sized(LARGEST)}")
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}; check the path") from None
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}") from error


def _unpickle(content: bytes, path: Path) -> tuple[Any, tuple[str, ...]]:
    """Make the file's object from PyTorch's harmless parts and from stand-ins, and name what these stand for."""
    stand_ins: dict[str, Any] = {}
    try:
        with bounded_memory(3 * len(content) + WORKING_MEMORY):
            whole = _repack(content, path) if content.startswith(b"PK") else content
            while True:
                try:
                    with torch.serialization.safe_globals([(kind, name) for name, kind in stand_ins.items()]):
                        stored = torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
                    return stored, tuple(stand_ins)
                except Exception as error:
                    name = _find_refused_name(error)
                    if name is None or name in stand_ins:
                        raise
                    if not _may_be_ignored(name) or len(stand_ins) == MOST_STAND_INS:
                        raise needs_code(path, name) from error
                    stand_ins[name] = StandInMapping if _MAPPING.search(name) else StandIn
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path} takes more memory than a checkpoint of its size may; use another file") from error
    except Exception as error:  # Damaged bytes make an unpickler raise almost anything.
        raise UserError(
            f"{path} is no checkpoint that can be read safely, or is damaged; allowed: files of torch.save "
            "that hold tensors, and .safetensors"
        ) from error


def needs_code(path: Path, name: str) -> UserError:
    """Make the error for a file of which nothing can be used without the class or function of this name."""
    return UserError(
        f"{path} needs code ({escape_control_chars(name, 80)}) to be loaded and is refused; "
        "save its state dict (tensors only) and give that file"
    )


def _find_refused_name(error: Exception) -> str | None:
    """Find the class or function that PyTorch's unpickler does not know, in its message."""
    found = re.search(
        r"nsupported (?:global: )?GLOBAL (.+?) (?:was not an allowed|whose module)", str(error), re.DOTALL
    )
    if found is None:
        return None
    # The message leaves out the module of built-in names.
    return found[1] if "." in found[1] else f"builtins.{found[1]}"


def _may_be_ignored(name: str) -> bool:
    root = name.partition(".")[0]
    return _HARMLESS.fullmatch(name) is not None or not (root in sys.stdlib_module_names or root in IMPORT_MAPPING)


def _repack(content: bytes, path: Path) -> bytes:
    """Write an archive of torch.save anew from what was checked, so that torch's reader sees nothing else in it.

    Raises:
        UserError: it is compressed, which torch.save never does, or its parts overlap, or are too many or too large.
        Exception: it is damaged.
    """
    # Every entry of the directory begins like this; counted before each is made an object.
    if content.count(b"PK\x01\x02") > MOST_ENTRIES:
        raise UserError(f"{path} is an archive of more than {MOST_ENTRIES:,} files; a checkpoint has fewer")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        uncompressed = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not uncompressed or sum(entry.file_size for entry in entries) > len(content):
            raise UserError(f"{path} unpacks to more than its own size; save it by torch.save, which does not compress")
        if any(entry.file_size > LARGEST_PICKLE for entry in entries if entry.filename.endswith(".pkl")):
            raise UserError(
                f"{path} holds more than {sized(LARGEST_PICKLE)} that are no tensors; save the weights alone"
            )
        if len({entry.filename for entry in entries}) < len(entries):
            raise UserError(f"{path} is an archive with two files of one name; save it by torch.save")
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as written:
            for entry in entries:
                written.writestr(zipfile.ZipInfo(entry.filename), archive.read(entry))
    return buffer.getvalue()


@contextlib.contextmanager
def bounded_memory(count: int) -> Iterator[None]:
    """Raise MemoryError within it where this process asks for more than `count` further bytes.

    Where the system has no such limit, nothing is bounded. A few bytes can tell an unpickler to make the same large
    thing again and again.
    """
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, OSError):
        yield
        return
    allowed = [limit for limit in (used + count, *before) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(allowed), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
