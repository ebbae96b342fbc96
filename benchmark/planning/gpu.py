"""How long runs take on a GPU: by records of a GPU that trained their kind, else by an assumed speed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.planning.cost import training_convolutions, training_multiply_adds
from benchmark.results.store import Store, load

if TYPE_CHECKING:
    import pandas as pd

ASSUMED_GPU = "NVIDIA A100"
MULTIPLY_ADDS_PER_SECOND = 2e12
"""A fifth of an A100's peak in float32: what small images and small networks leave of it. Nobody has measured it."""
SECONDS_PER_CONVOLUTION = 1e-4
"""What launching a convolution with its norm costs in a step, forward or backward, whatever its size. Assumed too."""

Kind = tuple[str, str, str | None, int, str]
"""What decides how long an image takes: method, student, teacher, image size, precision."""
KIND_COLUMNS = ["method", "student", "teacher", "cost_image_size", "precision"]


@dataclass(frozen=True)
class GpuSpeed:
    """The speed of a GPU. measured: seconds for an image by kind of run, where records tell."""

    name: str = ASSUMED_GPU
    measured: Mapping[Kind, float] = field(default_factory=dict)

    @classmethod
    def from_store(cls, store: Store) -> GpuSpeed:
        """Find what the records of a store tell of GPUs; of several kinds of GPU, the one with most records counts."""
        if next(store.root.glob("*/*/record.json"), None) is None:
            return cls()
        with contextlib.suppress(UserError, KeyError):
            return cls.from_records(load(store.root))
        return cls()

    @classmethod
    def from_records(cls, records: pd.DataFrame) -> GpuSpeed:
        """Take the median of each kind of run; records: as `benchmark.results.load` gives them.

        Raises:
            KeyError: no run has finished, so that columns are missing.
        """
        rows = records[(records["status"] == "finished") & (records["provenance_device"] == "cuda")]
        if rows.empty:
            return cls()
        name = str(rows["provenance_device_name"].mode()[0])
        rows = rows[rows["provenance_device_name"] == name]
        # The host's clock cannot tell the runs of a cohort apart on a GPU, so each gets an equal share.
        seconds = rows["provenance_seconds"] / rows["provenance_cohort"].map(lambda ids: len(json.loads(ids)))
        per_image = (seconds / (rows["cost_images"] * rows["epochs"])).groupby(
            [rows[column] for column in KIND_COLUMNS], dropna=False
        )
        return cls(
            name,
            {
                (method, student, teacher if isinstance(teacher, str) else None, int(size), precision): each
                for method, student, teacher, size, precision, each in per_image.median()
                .reset_index()
                .itertuples(index=False)
            },
        )

    def is_measured(self, run: Run, image_size: int) -> bool:
        """Whether records tell how fast runs of this kind are."""
        return _kind(run, image_size) in self.measured

    def seconds(self, run: Run, image_size: int, images: int) -> float:
        """Estimate the seconds of a run; images: how many the dataset has for training."""
        shown = round(run.fraction * images) * run.schedule.epochs
        if (measured := self.measured.get(_kind(run, image_size))) is not None:
            return shown * measured
        steps = shown / run.protocol.batch_size
        return (
            shown * training_multiply_adds(run, image_size) / MULTIPLY_ADDS_PER_SECOND
            + steps * training_convolutions(run, image_size) * SECONDS_PER_CONVOLUTION
        )


def _kind(run: Run, image_size: int) -> Kind:
    return (run.method, run.student, run.teacher_network, image_size, run.precision)
