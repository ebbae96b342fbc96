"""Reading the teachers that other projects have released.

Four layouts are known: a dictionary with the weights under `model` (RepDistiller, SemCKD, mdistiller), `state_dict`
(SSKD, Tf-KD, HSAKD's backbones) or `net` (HSAKD's teachers, PS-KD), and a bare state dict (torchvision); a
`.safetensors` file is a bare state dict too. A checkpoint comes from strangers, so only its tensors are read: a file
that needs code to be loaded is refused, and so is one that takes more room than a network could need.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import pickle
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from benchmark.backbones.auxiliary import AuxiliaryBranches
from benchmark.backbones.network import Network
from benchmark.core.errors import UserError
from benchmark.io.untrusted import escape_control_chars, sized

WRAPPING_KEYS = ("model", "state_dict", "net")
LARGEST = 2 * 2**30
"""Bytes of a file, and of its tensors: that of the largest network with branches and an optimiser's state has 1 GiB."""
MOST_ENTRIES = 100_000
"""Files in a checkpoint's archive: one for each tensor."""
LARGEST_PICKLE = 2**24
"""Bytes of the part of an archive that is no tensor; that of the largest network has 0.2 MiB."""
WORKING_MEMORY = 2**30
"""Bytes that reading a file may take beside three times its size."""
_NAMED_AT_MOST = 4
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class ReleasedWeights:
    """The weights found in a checkpoint, under the names that networks and branches use.

    auxiliary: of HSAKD's branches, or None if the file has none;
    layout: the key the weights were under, or `state dict` or `safetensors` for a bare one;
    sha256: of the whole file, in hexadecimal; ignored: names of tensors that belong to neither (SSKD's projection).
    """

    backbone: dict[str, Tensor]
    auxiliary: dict[str, Tensor] | None
    layout: str
    sha256: str
    ignored: tuple[str, ...] = ()


def load_released(path: Path | str) -> ReleasedWeights:
    """Read a released checkpoint without running any code in it.

    The prefixes `module.` (of a parallel wrapper) and `backbone.` are removed, `auxiliary_classifier.*` is split off.

    Raises:
        UserError: there is no such file, it is no checkpoint, it needs code or too much memory to be loaded, or it
            holds weights that are not finite floating-point numbers.
    """
    path = Path(path)
    content = _read(path)
    stored = _safetensors(content, path) if path.suffix == ".safetensors" else _unpickle(content, path)
    layout, tensors = _find_weights(stored, path)
    parts = _split(tensors, path)
    for part in (parts.backbone, parts.auxiliary):
        _check_values(part, path)
    return ReleasedWeights(
        backbone=parts.backbone,
        auxiliary=parts.auxiliary or None,
        layout="safetensors" if path.suffix == ".safetensors" else layout,
        sha256=hashlib.sha256(content).hexdigest(),
        ignored=tuple(parts.ignored),
    )


def apply_to(network: Network | AuxiliaryBranches, weights: ReleasedWeights, name: str) -> None:
    """Copy the weights into a network, or their auxiliary part into its branches; all of them or none.

    name: the network's name, for the error. A last layer stored as `classifier.0` fits one called `classifier`, and
    the other way round; counters of batches that old files lack start at 0.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    wanted = network.state_dict()
    if isinstance(network, AuxiliaryBranches):
        if weights.auxiliary is None:
            raise UserError(f"the checkpoint has no auxiliary branches for {name}; use that of a teacher with branches")
        given = dict(weights.auxiliary)
    else:
        given = _rename_classifier(weights.backbone, wanted)
    for key, tensor in wanted.items():
        if key.endswith(f".{_COUNTER}"):
            given.setdefault(key, torch.zeros_like(tensor))
    problems = [
        _listed("missing", [key for key in wanted if key not in given]),
        _listed("unexpected", [key for key in given if key not in wanted]),
        _listed(
            "of another shape",
            [
                f"{key} {list(given[key].shape)} instead of {list(tensor.shape)}"
                for key, tensor in wanted.items()
                if key in given and given[key].shape != tensor.shape
            ],
        ),
    ]
    found = "; ".join(problem for problem in problems if problem)
    if found:
        raise UserError(f"the checkpoint does not fit {name}: {found}. Use a checkpoint of {name}, or name its network")
    network.load_state_dict(given)


def _read(path: Path) -> bytes:
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


def _safetensors(content: bytes, path: Path) -> Any:
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # The parser's errors have no common base but this one.
        raise UserError(f"{path} is no safetensors file, or is damaged; fetch it again") from error


def _unpickle(content: bytes, path: Path) -> Any:
    """The file's object, made of tensors, containers and numbers only."""
    try:
        with bounded_memory(3 * len(content) + WORKING_MEMORY), torch.serialization.safe_globals(_numpy_scalars()):
            whole = _repacked(content, path) if content.startswith(b"PK") else content
            return torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path} takes more memory than a checkpoint of its size may; use another file") from error
    except Exception as error:  # Damaged bytes make an unpickler raise almost anything.
        refused = re.search(r"nsupported (?:global: )?GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise UserError(
                f"{path} needs code ({refused.group(1)}) to be loaded and is refused; "
                "save its state dict (tensors only) and give that file"
            ) from error
        raise UserError(
            f"{path} is no checkpoint that can be read safely, or is damaged; allowed: files of torch.save "
            "that hold tensors, and .safetensors"
        ) from error


def _repacked(content: bytes, path: Path) -> bytes:
    """An archive of torch.save, written anew from what was checked, so that torch's reader sees nothing else in it.

    Raises:
        UserError: it is compressed, which torch.save never does, or its parts overlap, or are too many or too large.
        Exception: it is damaged.
    """
    # Every entry of the directory begins like this; counted before each is made an object.
    if content.count(b"PK\x01\x02") > MOST_ENTRIES:
        raise UserError(f"{path} is an archive of more than {MOST_ENTRIES:,} files; a checkpoint has fewer")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > len(content):
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
    """Within it this process can get so many bytes more, where the system has such a limit, and else a MemoryError.

    A few bytes can tell an unpickler to make the same large thing again and again.
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


def _numpy_scalars() -> list[Any]:
    """What unpickling a NumPy number takes: trainers store the accuracy as one, and such a number runs no code."""
    # NumPy 2 renamed its core package; files keep the name that wrote them.
    scalars = [(_number, f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")]
    return [(_kind, "numpy.dtype"), *scalars, *(type(np.dtype(kind)) for kind in KINDS)]


KINDS = {np.dtype(kind).str[1:]: kind for kind in ("f8", "f4", "f2", "i8", "i4", "u1", "b1")}
"""NumPy's names of the kinds of number that are read."""


def _kind(name: str, *flags: object) -> np.dtype[Any]:
    """A kind of number. NumPy's own would make one of any size, and hand out the one that all arrays share."""
    return np.dtype(KINDS[name], copy=True)


def _number(kind: np.dtype[Any], content: bytes | str) -> Any:
    """A number of a kind from its bytes, which Python 2 wrote as a text."""
    raw = content.encode("latin1") if isinstance(content, str) else content
    (value,) = np.frombuffer(raw, kind)
    return value


def _find_weights(stored: Any, path: Path) -> tuple[str, dict[str, Tensor]]:
    """The layout and the state dict of a loaded object."""
    if isinstance(stored, dict):
        # What was loaded may have been given attributes that hide its methods, so the type's own are called.
        found = dict(dict.items(stored))
        for key in WRAPPING_KEYS:
            if (tensors := _state_dict(found.get(key))) is not None:
                return key, tensors
        if (tensors := _state_dict(found)) is not None:
            return "state dict", tensors
    raise UserError(
        f"{path} holds no weights of a network; allowed: a state dict, bare or under {', '.join(WRAPPING_KEYS)}"
    )


def _state_dict(value: Any) -> dict[str, Tensor] | None:
    """The tensors by name, if the value is made of nothing else, without what may have been attached to them."""
    if not isinstance(value, dict):
        return None
    items = dict(dict.items(value))
    if not items or not all(type(key) is str and isinstance(tensor, Tensor) for key, tensor in items.items()):
        return None
    return {key: Tensor.detach(tensor) for key, tensor in items.items()}


@dataclass(frozen=True)
class _Parts:
    backbone: dict[str, Tensor]
    auxiliary: dict[str, Tensor]
    ignored: dict[str, Tensor]


def _split(tensors: Mapping[str, Tensor], path: Path) -> _Parts:
    """The tensors by what they belong to, without prefixes."""
    parts = _Parts({}, {}, {})
    prefixes = {"backbone.": parts.backbone, "auxiliary_classifier.": parts.auxiliary, "proj_head.": parts.ignored}
    for stored_key, tensor in tensors.items():
        key = _unwrapped(stored_key)
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
        part = prefixes.get(prefix, parts.backbone)
        if part is not parts.ignored:
            key = _unwrapped(key.removeprefix(prefix))
        if key in part:
            raise UserError(
                f"{path} holds '{escape_control_chars(key, 80)}' twice, with and without a prefix; keep one of them"
            )
        part[key] = tensor
    return parts


def _unwrapped(key: str) -> str:
    while key.startswith("module."):
        key = key.removeprefix("module.")
    return key


def _check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    for key, tensor in tensors.items():
        ordinary = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
        if not ordinary or tensor.is_quantized:
            raise UserError(
                f"{path}: '{escape_control_chars(key, 80)}' is a sparse or quantised tensor; give dense weights"
            )
    # A tensor may be a view that repeats one number without end.
    if sum(math.prod(tensor.shape) * tensor.element_size() for tensor in tensors.values()) > LARGEST:
        raise UserError(f"{path} holds tensors of more than {sized(LARGEST)}; no network here is so large")
    for key, tensor in tensors.items():
        if key.rpartition(".")[2] == _COUNTER:
            continue
        if not tensor.is_floating_point():
            raise UserError(
                f"{path}: '{escape_control_chars(key, 80)}' is {tensor.dtype}; only floating-point weights are allowed"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: '{escape_control_chars(key, 80)}' has values that are not finite; fetch it again")


def _rename_classifier(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with a last layer called `classifier` or `classifier.0`, whichever is wanted."""
    renamed = {}
    for key, tensor in tensors.items():
        for ours, theirs in (("classifier.", "classifier.0."), ("classifier.0.", "classifier.")):
            other = ours + key.removeprefix(theirs)
            if key not in wanted and key.startswith(theirs) and other in wanted and other not in tensors:
                key = other
                break
        renamed[key] = tensor
    return renamed


def _listed(kind: str, names: Iterable[str]) -> str:
    """The first few names and a count of the rest; empty if there are none."""
    names = [escape_control_chars(name, 80) for name in names]
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return f"{kind}: {', '.join(names[:_NAMED_AT_MOST])}{more}" if names else ""
