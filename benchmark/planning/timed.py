"""How long runs take, for estimates: by records of runs of their kind, else on a GPU of an assumed speed.

A kind is what decides how long an image takes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.planning.cost import training_convolutions, training_multiply_adds
from benchmark.results.store import Store, load

if TYPE_CHECKING:
    import pandas as pd

Kind = tuple[str, str, str | None, int, str]
"""What decides how long an image takes: method, student, teacher, image size, precision."""
_KIND_COLUMNS = ["method", "student", "teacher", "cost_image_size", "precision"]
_TEXTS = ("method", "student", "teacher", "precision")
_OTHERS = (
    *("status", "epochs", "teacher_outputs", "cost_images", "cost_image_size", "cost_training_multiply_adds"),
    *("provenance_device", "provenance_device_name", "provenance_seconds", "provenance_cohort"),
    *("provenance_seconds_of_its_own", "provenance_seconds_of_its_teacher"),
)
"""The other columns that are read."""
ATLAS_OF = "atlas of "
"""Before the name of a teacher that was not run, because its logits were read."""
LARGEST = 1e18
"""Of a number of seconds, images or multiply-adds. The longest run of the paper has 3e17 multiply-adds."""
ASSUMED_GPU = "NVIDIA A100"
MULTIPLY_ADDS_PER_SECOND = 2e12
"""A fifth of an A100's peak in float32: what small images and small networks leave of it. Nobody has measured it."""
SECONDS_PER_CONVOLUTION = 1e-4
"""What launching a convolution with its norm costs in a step, forward or backward, whatever its size. Assumed too."""


def kind_of(run: Run, image_size: int) -> Kind:
    """The kind of a run: what decides how long an image takes."""
    teacher = run.teacher_network
    if run.teacher_outputs == "atlas":
        teacher = f"{ATLAS_OF}{teacher}"
    return (run.method, run.student, teacher, image_size, run.precision)


def select_timed(records: pd.DataFrame, device: str) -> pd.DataFrame:
    """The finished runs of a device ("cpu" or "cuda") whose times can be used, with two more columns.

    own_seconds: the seconds that a run took on its own, of a GPU an equal share of its cohort's, because the host's
    clock cannot tell its runs apart; shown: the images that it was trained on, repetitions counted.
    records: as `benchmark.results.load` gives them. Rows of records from elsewhere may hold anything; rows with columns
    of another type than training writes are left out, and columns that no record has count as empty.
    """
    rows = records.reindex(columns=[*_TEXTS, *_OTHERS])
    rows = rows[(rows["status"] == "finished") & (rows["provenance_device"] == device)]
    if device == "cuda":
        seconds = to_numbers(rows["provenance_seconds"]) / to_numbers(rows["provenance_cohort"].map(_count_members))
    else:
        seconds = to_numbers(rows["provenance_seconds_of_its_own"]) + to_numbers(
            rows["provenance_seconds_of_its_teacher"]
        )
    rows = rows.assign(
        own_seconds=seconds,
        shown=to_numbers(rows["cost_images"]) * to_numbers(rows["epochs"]),
        cost_image_size=to_numbers(rows["cost_image_size"]),
        **{name: rows[name].map(lambda value: value if isinstance(value, str) else None) for name in _TEXTS},
    )
    read = rows["teacher"].map(lambda teacher: f"{ATLAS_OF}{teacher}")
    rows = rows.assign(teacher=rows["teacher"].where(rows["teacher_outputs"] != "atlas", read))
    return rows[(rows["own_seconds"] > 0) & (rows["shown"] > 0) & (rows["cost_image_size"] > 0)]


def measure_kinds(timed: pd.DataFrame) -> Mapping[Kind, float]:
    """The median seconds for an image of each kind of run. timed: as `select_timed` gives them."""
    by_kind = (timed["own_seconds"] / timed["shown"]).groupby([timed[name] for name in _KIND_COLUMNS], dropna=False)
    return {
        (method, student, teacher if isinstance(teacher, str) else None, int(size), precision): each
        for method, student, teacher, size, precision, each in by_kind.median().reset_index().itertuples(index=False)
    }


def to_numbers(column: pd.Series[Any]) -> pd.Series[float]:
    """A column as floats: what is no number, below 0 or beyond all that training writes becomes nan."""
    return column.map(_to_number).astype(float)


def _to_number(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= LARGEST else float("nan")  # type: ignore[arg-type, operator]


def _count_members(cohort: object) -> float:
    """The number of runs in a cohort, from the JSON list of their ids."""
    try:
        ids = json.loads(cohort)  # type: ignore[arg-type]
    except (TypeError, ValueError, RecursionError):
        return float("nan")
    return float(len(ids)) if isinstance(ids, list) and ids else float("nan")


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
