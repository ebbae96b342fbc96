"""Reading the teachers that other projects have released.

Four layouts are known: a dictionary with the weights under `model` (RepDistiller, SemCKD, mdistiller), `state_dict`
(SSKD, Tf-KD, HSAKD's backbones) or `net` (HSAKD's teachers, PS-KD), and a bare state dict (torchvision); a
`.safetensors` file is a bare state dict too. A checkpoint comes from strangers, so only its tensors are read: a file
that needs code to be loaded is refused.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from benchmark.backbones.auxiliary import AuxiliaryBranches
from benchmark.backbones.network import Network
from benchmark.errors import UserError

WRAPPING_KEYS = ("model", "state_dict", "net")
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
        UserError: there is no such file, it is no checkpoint, it needs code to be loaded, or it holds weights that
            are not finite floating-point numbers.
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
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}; check the path")
    try:
        return path.read_bytes()
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
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
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


def _numpy_scalars() -> list[Any]:
    """What unpickling a NumPy number takes: trainers store the accuracy as one, and such a number runs no code."""
    kinds = (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_)
    scalar = np.float64(0).__reduce__()[0]
    # NumPy 2 renamed its core package; files keep the name that wrote them.
    scalars = [(scalar, f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")]
    return [np.dtype, *scalars, *(type(np.dtype(kind)) for kind in kinds)]


def _find_weights(stored: Any, path: Path) -> tuple[str, dict[str, Tensor]]:
    """The layout and the state dict of a loaded object."""
    if isinstance(stored, Mapping):
        for key in WRAPPING_KEYS:
            if _is_state_dict(stored.get(key)):
                return key, dict(stored[key])
        if _is_state_dict(stored):
            return "state dict", dict(stored)
    raise UserError(
        f"{path} holds no weights of a network; allowed: a state dict, bare or under {', '.join(WRAPPING_KEYS)}"
    )


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items())
    )


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
            raise UserError(f"{path} holds {key!r} twice, with and without a prefix; keep one of them")
        part[key] = tensor
    return parts


def _unwrapped(key: str) -> str:
    while key.startswith("module."):
        key = key.removeprefix("module.")
    return key


def _check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    for key, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise UserError(f"{path}: {key!r} is a sparse or quantised tensor; only dense weights are allowed")
        if key.rpartition(".")[2] == _COUNTER:
            continue
        if not tensor.is_floating_point():
            raise UserError(f"{path}: {key!r} is {tensor.dtype}; only floating-point weights are allowed")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {key!r} holds values that are not finite; fetch the file again or use another")


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
    names = list(names)
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return f"{kind}: {', '.join(names[:_NAMED_AT_MOST])}{more}" if names else ""
