"""How long runs take on a GPU: by records of a GPU that trained their kind, else by an assumed speed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.planning.cost import training_convolutions, training_multiply_adds
from benchmark.planning.timed import Kind, kind_of, measure_kinds, select_timed
from benchmark.results.store import Store, load

if TYPE_CHECKING:
    import pandas as pd

ASSUMED_GPU = "NVIDIA A100"
MULTIPLY_ADDS_PER_SECOND = 2e12
"""A fifth of an A100's peak in float32: what small images and small networks leave of it. Nobody has measured it."""
SECONDS_PER_CONVOLUTION = 1e-4
"""What launching a convolution with its norm costs in a step, forward or backward, whatever its size. Assumed too."""


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
        with contextlib.suppress(UserError):
            return cls.from_records(load(store.root))
        return cls()

    @classmethod
    def from_records(cls, records: pd.DataFrame) -> GpuSpeed:
        """Take the median of each kind of run; records: as `benchmark.results.load` gives them."""
        timed = select_timed(records, "cuda")
        if timed.empty:
            return cls()
        names = timed["provenance_device_name"].map(str)
        name = str(names.mode()[0])
        return cls(name, measure_kinds(timed[names == name]))

    def is_measured(self, run: Run, image_size: int) -> bool:
        """Whether records tell how fast runs of this kind are."""
        return kind_of(run, image_size) in self.measured

    def seconds(self, run: Run, image_size: int, images: int) -> float:
        """Estimate the seconds of a run; images: how many the dataset has for training."""
        shown = round(run.fraction * images) * run.schedule.epochs
        if (measured := self.measured.get(kind_of(run, image_size))) is not None:
            return shown * measured
        steps = shown / run.batch_size
        return (
            shown * training_multiply_adds(run, image_size) / MULTIPLY_ADDS_PER_SECOND
            + steps * training_convolutions(run, image_size) * SECONDS_PER_CONVOLUTION
        )
