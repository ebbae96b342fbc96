"""A teacher's atlas: its logits of every plain view of every training image, computed once for all runs of a store.

`<root>/<dataset>/atlases/<teacher>-<identity>/` has a folder for each view (see `benchmark.data.views`) with one file,
`logits-<sha256>.npy`: float16 [images, classes], in the order of the training set. `atlas.json`, written last, says
what they are of. A file is whole or not there, and one that does not match its name is never used; so whatever ends the
making of an atlas, the files that are there stay good. Files are mapped into memory, not read as a whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.core.errors import UserError
from benchmark.core.spec import ReleasedTeacher, Run
from benchmark.data.augmentation import Batch, EpochPlan, Recipe
from benchmark.data.views import count_views, number_views
from benchmark.io.files import compute_sha256, quarantine_file, replacing
from benchmark.results.record import CorruptRun
from benchmark.results.store import Store

FORMAT = 1
FILE_NAME = re.compile(r"logits-([0-9a-f]{64})\.npy")

_verified: dict[Path, tuple[int, int, int]] = {}
"""Size, time and inode of the files whose checksum this process has compared."""


@dataclass(frozen=True)
class Atlas:
    """The files of an atlas; content: what it is of, as `atlas.json` says it; shape: of a view, images and classes."""

    folder: Path
    content: dict[str, Any]
    shape: tuple[int, int]

    @classmethod
    def of(cls, run: Run, recipe: Recipe, images: int, classes: int, store: Store) -> Atlas:
        """Identify the atlas that a run reads. recipe: of its images; images: how many it learns from.

        The weights of its teacher belong to the identity: those of a teacher that was trained again on another machine
        may differ in their last bits.

        Raises:
            CorruptRun: the teacher's record is damaged or has gone.
            UserError: the teacher left no weights.
        """
        assert run.teacher is not None
        content = {
            "format": FORMAT,
            "teacher": run.teacher.digest,
            "teacher_network": run.teacher_network,
            "weights": _find_weights(run.teacher, store),
            "precision": run.teacher_precision,
            "fingerprint": run.fingerprint,
            "fraction": [run.fraction, run.fraction_seed],
            "validation": [run.validation, run.validation_seed],
            "mean": recipe.mean,
            "std": recipe.std,
            "padding": recipe.padding,
            "flip": recipe.flip,
        }
        identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        name = re.sub(r"[^A-Za-z0-9._-]", "+", f"{run.teacher_network}-{identity}")
        return cls(store.folder(run).parent / "atlases" / name, content, (images, classes))

    @property
    def views(self) -> int:
        """The number of views."""
        return count_views(self.content["padding"], self.content["flip"])

    def view_folder(self, view: int) -> Path:
        """Name the folder of a view's file; whoever makes the file holds the lease on it."""
        return self.folder / f"view-{view:04d}"

    def list_missing(self) -> list[int]:
        """List the views without a file, without reading any."""
        return [view for view in range(self.views) if not _files_in(self.view_folder(view))]

    def find(self, view: int) -> np.ndarray | None:
        """Map the file of a view, float16 [images, classes], verified by its checksum; None if there is none."""
        return next((self._map(path) for path in _files_in(self.view_folder(view)) if self.is_intact(path)), None)

    def is_intact(self, path: Path) -> bool:
        """Tell whether a file has the checksum in its name and the shape of this atlas; read once by a process."""
        try:
            stat = path.stat()
            seen = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
            if _verified.get(path) != seen:
                match = FILE_NAME.fullmatch(path.name)
                if match is None or compute_sha256(path) != match[1]:
                    return False
                found = self._map(path)
                if found.dtype != np.float16 or found.shape != self.shape:
                    return False
                _verified[path] = seen
        except (OSError, ValueError):
            return False
        return True

    def put_aside_damaged(self, view: int) -> list[str]:
        """Rename the damaged files of a view and return a line on each; only the holder of its lease may."""
        damaged = [path for path in _files_in(self.view_folder(view)) if not self.is_intact(path)]
        moved = [(path, quarantine_file(path)) for path in damaged]
        return [f"{path} is damaged; it was put aside, and the view is computed again" for path, new in moved if new]

    def write(self, view: int, logits: np.ndarray) -> None:
        """Write the file of a view; logits: float16 [images, classes].

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        folder = self.view_folder(view)
        with replacing(folder / "logits.npy") as file:
            with file.temporary.open("wb") as opened:
                np.save(opened, logits, allow_pickle=False)
            file.target = folder / f"logits-{compute_sha256(file.temporary)}.npy"

    @staticmethod
    def _map(path: Path) -> np.ndarray:
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def open(self, recipe: Recipe, device: torch.device) -> AtlasReader:
        """Open all views for reading.

        Raises:
            UserError: a view is missing or damaged.
        """
        found = [self.find(view) for view in range(self.views)]
        whole = [each for each in found if each is not None]
        if len(whole) < len(found):
            bad = next(view for view, each in enumerate(found) if each is None)
            raise UserError(f"{self.view_folder(bad)} has no intact file; give the same command again to make it")
        return AtlasReader(whole, recipe, device)


class AtlasReader:
    """Reads the logits of the views that augmentation draws, those of an epoch at once, so that no step waits."""

    def __init__(self, views: Sequence[np.ndarray], recipe: Recipe, device: torch.device) -> None:
        """views: of each view by number the logits, float16 [images, classes]."""
        self._views, self._recipe, self._device = views, recipe, device
        self._plan: EpochPlan | None = None
        self._epoch = torch.empty(0)

    def logits(self, batch: Batch) -> Tensor:
        """Get the teacher's logits of the batch's plain view, float32 [batch, classes]."""
        if batch.plan is not self._plan:
            self._epoch, self._plan = self.read_epoch(batch.plan), batch.plan
        return self._epoch.index_select(0, batch.index).float()

    def read_epoch(self, plan: EpochPlan) -> Tensor:
        """Read the logits of the view that an epoch draws of each image, float16 [images, classes], by position."""
        numbers = number_views(self._recipe, plan).cpu().numpy()
        logits = np.empty(self._views[0].shape, np.float16)
        for view, of_view in enumerate(self._views):
            rows = np.flatnonzero(numbers == view)
            logits[rows] = of_view[rows]
        return torch.from_numpy(logits).to(self._device)


def _files_in(folder: Path) -> list[Path]:
    """List the files of a view."""
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in names if FILE_NAME.fullmatch(name)]


def _find_weights(teacher: Run | ReleasedTeacher, store: Store) -> str:
    """Find the sha256 of a teacher's weights."""
    if isinstance(teacher, ReleasedTeacher):
        return teacher.sha256
    record = store.record(teacher)
    if record is None:
        raise CorruptRun(teacher, f"{teacher.id} has no record; call the command that trains it again")
    if "student" not in record["weights"]:
        raise UserError(f"{teacher.id} left no weights, so it cannot teach; give the command again with --retry-failed")
    return str(record["weights"]["student"])
