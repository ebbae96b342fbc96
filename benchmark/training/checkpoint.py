"""Checkpoints of a cohort: written atomically, verified by checksum, the two latest kept.

A checkpoint is one safetensors file named `checkpoint-<epoch>-<step>-<sha256>.safetensors`; its header holds what is no
tensor, as JSON. Nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from pydantic import BaseModel
from torch import Tensor

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.io.files import compute_sha256, quarantine_file, replacing, save_tensors
from benchmark.results.record import Amount, Count
from benchmark.results.store import Store

FILE_NAME = re.compile(r"checkpoint-([0-9]{6})-([0-9]{8})-([0-9a-f]{64})\.safetensors")
KEPT = 2
KEEP = "keep"
"""Name of the file that marks checkpoints which no command removes."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a cohort after `step` steps of `epoch`, both counted from 0.

    tensors: by run id and name; notes: everything else.
    """

    epoch: int
    step: int
    tensors: dict[str, dict[str, Tensor]]
    notes: dict[str, Any]


class _RunNotes(BaseModel):
    """What a checkpoint notes of a run."""

    figures: list[dict[str, Any]]
    seconds: Amount
    teacher_seconds: Amount
    code: str = ""


class _Notes(BaseModel):
    """The notes of a checkpoint, as far as training goes on from them."""

    runs: dict[str, _RunNotes]
    seconds: Amount
    images: Count
    resumed: Count
    pieces: list[dict[str, Any]] = []


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint atomically, and remove all but the latest two.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    flat = {
        f"{run_id}/{name}": tensor for run_id, tensors in checkpoint.tensors.items() for name, tensor in tensors.items()
    }
    stem = f"checkpoint-{checkpoint.epoch:06d}-{checkpoint.step:08d}"
    with replacing(folder / stem) as file:
        save_tensors(file.temporary, flat, {"notes": json.dumps(checkpoint.notes)})
        file.target = folder / f"{stem}-{compute_sha256(file.temporary)}.safetensors"
    for _, _, _, old in _files(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return file.target


def read_checkpoint(folder: Path, run_ids: Collection[str] | None = None) -> Checkpoint | None:
    """Read the latest intact checkpoint (of the named runs only); None if there is none.

    A corrupt file is reported by a warning and quarantined, and the one before it is read.
    """
    for epoch, step, digest, path in _files(folder):
        try:
            if compute_sha256(path) != digest:
                raise ValueError("its checksum does not match its name")
            return _read(path, epoch, step, run_ids)
        except FileNotFoundError:
            # Another process has finished these runs, or has quarantined the file.
            continue
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
            if not path.exists():
                # torch opens the file again, and raises RuntimeError if it has gone in between.
                continue
            warnings.warn(f"damaged checkpoint {path}: {error}; falling back to the one before it", stacklevel=2)
            # Under its old name it would count as one of the two that are kept.
            quarantine_file(path)
    return None


def latest_position(folder: Path) -> tuple[int, int] | None:
    """Return epoch and step of the latest checkpoint by its name, without reading it."""
    files = _files(folder)
    return files[0][:2] if files else None


def members(folder: Path) -> tuple[str, ...]:
    """Read the run ids in the latest readable checkpoint from its header."""
    for _, _, _, path in _files(folder):
        try:
            # With "pt", torch would open the file again, which may have gone by then.
            with safetensors.safe_open(path, "np") as opened:
                return tuple(json.loads((opened.metadata() or {})["notes"])["runs"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError):
            continue
    return ()


def keep_checkpoints(folder: Path) -> None:
    """Mark the checkpoints of a cohort, so that no later command removes them."""
    if folder.is_dir():
        (folder / KEEP).touch()


def _files(folder: Path) -> list[tuple[int, int, str, Path]]:
    """List epoch, step, digest and path of each checkpoint, latest first."""
    try:
        paths = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        # Another process that has finished the cohort may remove it at any moment.
        return []
    matched = ((FILE_NAME.fullmatch(path.name), path) for path in paths)
    found = [(int(match[1]), int(match[2]), match[3], path) for match, path in matched if match]
    return sorted(found, key=lambda entry: entry[:3], reverse=True)


def _read(path: Path, epoch: int, step: int, run_ids: Collection[str] | None) -> Checkpoint:
    tensors: dict[str, dict[str, Tensor]] = {}
    with safetensors.safe_open(path, "pt") as opened:
        notes = json.loads((opened.metadata() or {})["notes"])
        for key in opened.keys():  # noqa: SIM118 (not a mapping)
            run_id, _, name = key.partition("/")
            if run_ids is None or run_id in run_ids:
                tensors.setdefault(run_id, {})[name] = opened.get_tensor(key)
    _Notes.model_validate(notes)
    if run_ids is not None and not set(run_ids) <= set(notes["runs"]):
        raise UserError(f"checkpoint {path} does not hold all of {', '.join(run_ids)}")
    if missing := set(run_ids or notes["runs"]) - tensors.keys():
        raise ValueError(f"it holds no weights of {min(missing)}")
    return Checkpoint(epoch, step, tensors, notes)


def cohort_name(runs: Sequence[Run]) -> str:
    """Name a set of runs, whatever their order."""
    return hashlib.sha256("".join(sorted(run.digest for run in runs)).encode()).hexdigest()[:16]


def cohort_folder(store: Store, runs: Sequence[Run]) -> Path:
    """Return the folder of a cohort's checkpoints."""
    return store.cohorts(runs[0].dataset) / cohort_name(runs)


def folders_by_progress(store: Store, dataset: str) -> list[Path]:
    """List the folders of cohorts that have a checkpoint, the most advanced last."""
    cohorts = store.cohorts(dataset)
    folders = list(cohorts.iterdir()) if cohorts.is_dir() else []
    positions = {folder: position for folder in folders if (position := latest_position(folder)) is not None}
    return sorted(positions, key=lambda folder: (positions[folder], folder))


def resume_folders(store: Store, runs: Sequence[Run]) -> list[Path]:
    """List the folders of checkpoints that hold all of the runs, the most advanced first."""
    wanted = {run.id for run in runs}
    return [folder for folder in folders_by_progress(store, runs[0].dataset)[::-1] if wanted <= set(members(folder))]
