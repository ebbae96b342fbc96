"""The teachers that other projects have released, whatever the layout of their files.

The weights are a state dict, bare (torchvision, a `.safetensors` file) or under a key: `model` (RepDistiller, SemCKD,
mdistiller, torchvision's training), `state_dict` (SSKD, Tf-KD, HSAKD's backbones, Lightning, timm), `net` (HSAKD's
teachers, PS-KD), `model_state_dict` or `state`. What wraps a network while it is trained puts a prefix before its keys,
which is removed; of a distiller that was saved whole, the student is taken. `checkpoint_reader` reads the file and runs
no code in it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.backbones.auxiliary import AuxiliaryBranches
from benchmark.backbones.checkpoint_reader import LARGEST, is_safetensors, needs_code, read_checkpoint
from benchmark.backbones.network import Network
from benchmark.core.errors import UserError
from benchmark.io.untrusted import escape_control_chars, sized

WRAPPING_KEYS = ("model", "state_dict", "net", "model_state_dict", "state")
WRAPPER = "module."
"""Prefix of parallel wrappers."""
COMPILED = "_orig_mod."
"""What torch.compile puts before the keys of the module that it wraps, wherever that is in the network."""
STUDENT = "student."
BACKBONE, AUXILIARY, PROJECTION = "backbone.", "auxiliary_classifier.", "proj_head."
"""Prefixes of HSAKD's and SSKD's parts."""
COUNTERS = ("total_ops", "total_params", "n_averaged")
"""Buffers that are no part of a network: thop's, in every module whose cost it has counted, and AveragedModel's."""
_NAMED_AT_MOST = 4
_BATCHES = "num_batches_tracked"


@dataclass(frozen=True)
class ReleasedWeights:
    """The weights found in a checkpoint, under the names that networks and branches use.

    auxiliary: of HSAKD's branches, or None if the file has none;
    layout: the key the weights were under, or `state dict` or `safetensors` for a bare one;
    sha256: of the whole file, in hexadecimal;
    prefix: what all keys began with and what was removed; student: whether they are the student of a whole distiller;
    ignored: what is in the file but belongs to neither: entries of the state dict (SSKD's projection, a distiller's
    teacher, thop's counters), and classes whose objects were not read.
    """

    backbone: dict[str, Tensor]
    auxiliary: dict[str, Tensor] | None
    layout: str = ""
    sha256: str = ""
    prefix: str = ""
    student: bool = False
    ignored: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """Describe for the user what was found and how it was read."""
        parts = [
            self.layout,
            "with branches" if self.auxiliary is not None else "",
            "the student of a distiller" if self.student else "",
            f"without the prefix {escape_control_chars(self.prefix, 80)}" if self.prefix else "",
            _listed("ignored", self.ignored),
        ]
        return ", ".join(filter(None, parts))


def load_released(path: Path | str) -> ReleasedWeights:
    """Read a released checkpoint without running any code in it.

    Raises:
        UserError: there is no such file, it is no checkpoint, it needs code or too much memory to be loaded, or it
            holds weights that are not finite floating-point numbers.
    """
    path = Path(path)
    content, stored, unread = read_checkpoint(path)
    # What an optimiser or NumPy wrote beside the weights is in almost every file.
    unread = tuple(name for name in unread if not name.startswith("numpy."))
    found = _find_weights(stored)
    if found is None:
        if unread:
            raise needs_code(path, unread[0])
        raise UserError(
            f"{path} holds no weights of a network; allowed: a state dict, bare or under {', '.join(WRAPPING_KEYS)}"
        )
    layout, entries = found
    weights = _sort_entries(entries, path)
    for part in (weights.backbone, weights.auxiliary or {}):
        _check_values(part, path)
    return replace(
        weights,
        layout="safetensors" if is_safetensors(path) else layout,
        sha256=hashlib.sha256(content).hexdigest(),
        ignored=(*weights.ignored, *unread),
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
        if key.endswith(f".{_BATCHES}"):
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


def _find_weights(stored: Any) -> tuple[str, dict[Any, Any]] | None:
    """Find the layout and the entries of the state dict in a loaded object."""
    # What was loaded may have been given attributes that hide its methods, so the type's own are called.
    whole = dict(dict.items(stored)) if isinstance(stored, dict) else {}
    for layout, candidate in (*((key, whole.get(key)) for key in WRAPPING_KEYS), ("state dict", whole)):
        if isinstance(candidate, dict):
            entries = dict(dict.items(candidate))
            if any(type(key) is str and isinstance(value, Tensor) for key, value in entries.items()):
                return layout, entries
    return None


def _sort_entries(entries: Mapping[Any, Any], path: Path) -> ReleasedWeights:
    """Sort the entries of a state dict, and remove what stands before the names that networks use."""
    ignored: list[str] = []
    tensors: dict[str, Tensor] = {}
    for key, value in entries.items():
        if type(key) is str and isinstance(value, Tensor) and key.rpartition(".")[2] not in COUNTERS:
            # Without what may have been attached to it.
            tensors[key] = Tensor.detach(value)
        else:
            ignored.append(key if type(key) is str else type(key).__name__)
    removed, student = "", False
    while True:
        if any(key.startswith(STUDENT) for key in tensors):
            student = True
            others = (key.partition(".")[0] for key in tensors if not key.startswith(STUDENT))
            ignored += [f"{name}.*" for name in dict.fromkeys(others)]
            tensors = {key: tensor for key, tensor in tensors.items() if key.startswith(STUDENT)}
        prefix = _find_shared_prefix(tensors)
        if not prefix:
            break
        removed += prefix
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    backbone: dict[str, Tensor] = {}
    auxiliary: dict[str, Tensor] = {}
    for stored_key, tensor in tensors.items():
        key = _unwrap(stored_key)
        if key.startswith(PROJECTION):
            ignored.append(key)
            continue
        part = auxiliary if key.startswith(AUXILIARY) else backbone
        key = _unwrap(key.removeprefix(AUXILIARY).removeprefix(BACKBONE))
        if key in part:
            raise UserError(
                f"{path} holds '{escape_control_chars(key, 80)}' twice, with and without a prefix; keep one of them"
            )
        part[key] = tensor
    return ReleasedWeights(backbone, auxiliary or None, prefix=removed, student=student, ignored=tuple(ignored))


def _find_shared_prefix(tensors: Mapping[str, Tensor]) -> str:
    """Find what all keys begin with, up to a dot, if more than the name of one layer's tensor is left behind it."""
    first = next(iter(tensors), "")
    prefix = first[: first.find(".") + 1]
    if prefix in (AUXILIARY, PROJECTION) or not all(
        key.startswith(prefix) and "." in key.removeprefix(prefix) for key in tensors
    ):
        return ""
    return prefix


def _unwrap(key: str) -> str:
    while key.startswith(WRAPPER):
        key = key.removeprefix(WRAPPER)
    return key.replace(COMPILED, "")


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
        if key.rpartition(".")[2] == _BATCHES:
            continue
        if not tensor.is_floating_point():
            raise UserError(
                f"{path}: '{escape_control_chars(key, 80)}' is {tensor.dtype}; only floating-point weights are allowed"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: '{escape_control_chars(key, 80)}' has values that are not finite; fetch it again")


def _rename_classifier(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the last layer to `classifier` or `classifier.0`, whichever the network has."""
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
    """List the first few names and count the rest; an empty text if there are none."""
    names = [escape_control_chars(name, 80) for name in names]
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return f"{kind}: {', '.join(names[:_NAMED_AT_MOST])}{more}" if names else ""
