"""The specification of a run: frozen, validated, hashable values.

A `Run` is one student trained once. It determines the result (on the same kind of device, with the same number of
threads and versions of libraries). Its id is a hash of all of it, so that two runs that differ have two ids.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["fp32", "bf16"]
Augmentation = Literal["standard", "cutout", "cutmix", "cutout+cutmix"]
TeacherOutputs = Literal["live", "atlas"]


class Frozen(BaseModel):
    """A value: immutable, hashable by content, without unknown fields.

    A field of a later version than the first is left out of what is written while it has its default (`exclude_if`), so
    that no digest changes and an earlier version reads the value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def content(self) -> str:
        """The whole value as canonical JSON: the keys sorted, nothing between the tokens."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """The identity of the value: sha256 of its content, in hex."""
        return hashlib.sha256(self.content.encode()).hexdigest()

    def replace(self, **updates: Any) -> Self:
        """Make a validated copy with other values. It shares the frozen parts of this one, and nothing cached."""
        return type(self).model_validate({name: getattr(self, name) for name in type(self).model_fields} | updates)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and self.digest == other.digest)


def scaled_count(count: int, factor: float) -> int:
    """Multiply a number of epochs or images by a factor, rounded to the nearest, at least 1."""
    return max(1, math.floor(count * factor + 0.5))


class LRSchedule(Frozen):
    """Epochs, and the epochs (counted from 0) from which the learning rate is multiplied by the decay."""

    epochs: int = Field(ge=1)
    milestones: tuple[int, ...] = ()

    def scaled(self, factor: float) -> LRSchedule:
        """Multiply every count by `factor`, rounded to the nearest, at least 1.

        Equal milestones are moved one epoch apart; those after the last epoch are dropped.
        """
        milestones: list[int] = []
        for milestone in self.milestones:
            after = milestones[-1] + 1 if milestones else 1
            milestones.append(max(after, scaled_count(milestone, factor)))
        epochs = scaled_count(self.epochs, factor)
        return LRSchedule(epochs=epochs, milestones=tuple(milestone for milestone in milestones if milestone < epochs))


class Protocol(Frozen):
    """A named recipe: everything about training except the method."""

    name: str
    schedule: LRSchedule
    learning_rate: float = Field(gt=0)
    mobile_learning_rate: float | None = Field(None, gt=0)
    """The rate for MobileNets and ShuffleNets; None: `learning_rate`."""
    decay: float = Field(0.1, gt=0, lt=1)
    warmup_epochs: int = Field(0, ge=0)
    batch_size: int = Field(64, ge=2)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    nesterov: bool = False
    rotated_crop: Literal["shared", "per_rotation"] = "shared"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    """Normalisation of pixels scaled to 0..1; None: the dataset's own."""
    method_schedules: dict[str, LRSchedule] = {}
    """Schedules of the methods that do not follow the main one (heads of a teacher)."""
    method_options: dict[str, dict[str, Any]] = {}
    """Options of methods that the recipe's authors set differently from the defaults."""

    def without_tables(self, method: str | None = None) -> Protocol:
        """Copy what determines a run of `method` with resolved options; without a method, what determines a cohort.

        Schedules and options of other methods are left out, so that adding one changes no run's digest.
        """
        own = {name: schedule for name, schedule in self.method_schedules.items() if name == method}
        return self.replace(method_schedules=own, method_options={})

    @cached_property
    def cohort_digest(self) -> str:
        """The digest of what determines a cohort."""
        return self.without_tables().digest

    def changes_from(self, other: Protocol) -> dict[str, Any]:
        """Find the fields in which this protocol differs from another, with its own values."""
        # Iterating over the model itself would also yield what is cached on it.
        fields = type(self).model_fields
        return {name: getattr(self, name) for name in fields if getattr(self, name) != getattr(other, name)}


class Scale(Frozen):
    """How much of a protocol is trained: every number of epochs and milestone is multiplied by one factor.

    The learning rate may have its own factor and warm-up epochs (linear, by steps), for schedules so short that deep
    networks would not recover from a start at the protocol's full rate. Smaller batches make more steps of an epoch.
    """

    name: str
    factor: float = Field(gt=0, le=1)
    learning_rate_factor: float = Field(1.0, gt=0, le=1)
    warmup_epochs: int = Field(0, ge=0)
    batch_factor: float = Field(1.0, gt=0, le=1, exclude_if=lambda factor: factor == 1)


class ReleasedTeacher(Frozen):
    """A teacher that came from a file."""

    network: str
    sha256: str


class Run(Frozen):
    """One student trained once (or a teacher, or the head of a teacher: they are runs too)."""

    dataset: str
    fingerprint: str
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training images of each class that it learns from."""
    fraction_seed: int = Field(0, ge=0)
    """Decides which images these are; 0 if they are all."""
    validation: float = Field(0.0, ge=0, lt=1)
    """Share of the training images held out, on which the run is then evaluated instead of the test set."""
    validation_seed: int = 0
    student: str
    method: str
    method_version: int
    options: dict[str, Any]
    teacher: Run | ReleasedTeacher | None = None
    head: Run | ReleasedTeacher | None = None
    teacher_precision: Precision | None = None
    start: Run | None = None
    """The run that gives the student its first weights."""
    augmentation: Augmentation = "standard"
    """The protocol's own, or Cutout or CutMix or both in addition."""
    protocol: Protocol
    scale: Scale
    precision: Precision = "fp32"
    processes: int = Field(1, ge=1)
    """How many processes share each batch (data parallelism); the norms of each use its own rows only."""
    seed: int = Field(0, ge=0)
    teacher_outputs: TeacherOutputs = Field("live", exclude_if=lambda outputs: outputs == "live")
    """Whether each step runs the teacher, or reads its logits from an atlas (`benchmark.training.atlas`)."""

    def require_data(self) -> Run:
        """Return the run itself if it can be recorded.

        Raises:
            ValueError: its images were never read, so that it can only be planned (`benchmark.data.stubs`).
        """
        if not self.fingerprint:
            raise ValueError(f"{self.id} is of images that were never read; nothing of it is kept")
        return self

    @cached_property
    def id(self) -> str:
        """A readable, unique name, fit for a folder."""
        augmented = "" if self.augmentation == "standard" else f"_{self.augmentation}"
        from_teacher = "" if self.teacher_network is None else f"_from_{self.teacher_network}"
        part = "" if self.fraction == 1 else f"_{self.fraction:g}"
        readable = f"{self.method}{augmented}_{self.student}{from_teacher}{part}_{self.scale.name}"
        return f"{re.sub(r'[^A-Za-z0-9._-]', '+', readable)}_seed{self.seed}-{self.digest[:12]}"

    @property
    def teacher_network(self) -> str | None:
        """Name of the teacher's network."""
        if self.teacher is None:
            return None
        return self.teacher.student if isinstance(self.teacher, Run) else self.teacher.network

    @cached_property
    def schedule(self) -> LRSchedule:
        """The epochs and milestones of this run, scaled."""
        return self.protocol.method_schedules.get(self.method, self.protocol.schedule).scaled(self.scale.factor)

    @property
    def batch_size(self) -> int:
        """Images of a whole batch: the protocol's, scaled, at least 2."""
        return max(2, scaled_count(self.protocol.batch_size, self.scale.batch_factor))

    @property
    def warmup_epochs(self) -> int:
        """Epochs of linear warm-up: the protocol's, scaled, or the scale's own; at most a third of the schedule."""
        of_protocol = self.protocol.warmup_epochs
        scaled = scaled_count(of_protocol, self.scale.factor) if of_protocol else 0
        return min(max(scaled, self.scale.warmup_epochs), self.schedule.epochs // 3)

    def dependencies(self) -> tuple[Run, ...]:
        """List the runs whose weights this one needs."""
        parts = (self.teacher, self.head, self.start)
        return tuple(dict.fromkeys(part for part in parts if isinstance(part, Run)))

    def learning_rate(self, epoch: int, step: int, steps: int, mobile_network: bool) -> float:
        """Compute the learning rate of a step (counted from 0) of an epoch of `steps` steps."""
        protocol = self.protocol
        base = protocol.learning_rate
        if mobile_network and protocol.mobile_learning_rate is not None:
            base = protocol.mobile_learning_rate
        base *= self.scale.learning_rate_factor
        warmup_epochs = self.warmup_epochs
        if epoch < warmup_epochs:
            return base * (epoch * steps + step + 1) / (warmup_epochs * steps)
        return base * protocol.decay ** sum(epoch >= milestone for milestone in self.schedule.milestones)


def cohort_key(run: Run) -> str:
    """Make a key; runs with equal keys (and the same teacher or none) can share one pass over the data."""
    data = (run.dataset, run.fingerprint, run.fraction, run.fraction_seed, run.validation, run.validation_seed)
    recipe = (run.protocol.cohort_digest, run.scale.digest)
    return repr((*data, run.augmentation, run.processes, *recipe, run.seed))


def teacher_key(run: Run) -> str | None:
    """Name the teacher of a run and its precision; None for a run without a teacher."""
    return None if run.teacher is None else f"{run.teacher.digest} {run.teacher_precision}"
