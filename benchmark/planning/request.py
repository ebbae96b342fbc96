"""What a command asks for, and how a cell of a table becomes a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from benchmark.backbones import uses_grouped_convolutions
from benchmark.core.devices import supports_bf16
from benchmark.core.errors import UserError
from benchmark.core.protocols import PROTOCOLS, base_scale, default_seed_count, get_protocol, select_scale
from benchmark.core.spec import Augmentation, Precision, Protocol, ReleasedTeacher, Run, Scale, Siblings
from benchmark.core.text import counted
from benchmark.data.dataset import Dataset
from benchmark.planning.cost import training_multiply_adds
from benchmark.planning.overrides import parse_settings
from benchmark.plugins.registry import method_class, resolve_options

TEACHER_SEED = 0


SELF_TEACHER_SEED = 1000
"""Added to the seed of a teacher that is a network like the student, be it the method's choice or the table's: from the
same seed it would have had the student's first weights and batches, for some seeds and not for others."""


Share = tuple[float, int]
"""A share of the training images, and the seed that names which."""


ALL_IMAGES: Share = (1.0, 0)


SIZE_FOR_LENGTH = 32
"""Image size at which two methods' costs are compared, so that how long a run is depends on no dataset."""


@dataclass(frozen=True)
class PretrainedFile:
    """A teacher's file as the planner needs to know it."""

    teacher: ReleasedTeacher
    has_branches: bool


@dataclass(frozen=True)
class RunFactory:
    """What all runs of a plan have in common, and how a cell becomes a run."""

    dataset: str
    fingerprint: str
    protocol: Protocol
    scale: Scale
    device: torch.device
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    validation: float = 0.0
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options that the user changed, by method."""
    augmentation: Augmentation = "standard"
    """Of the students; teachers and their heads are always trained with the protocol's own."""
    teacher_seeds: Literal["shared", "paired"] = "shared"
    processes: int = 1
    """How many share each batch of a run."""
    fraction: float = 1.0
    """Share of the training images; which these are is named by the student's seed, the same for every method."""
    teacher_data: Literal["all", "same"] = "all"
    """Whether teachers and their heads are trained on all images or on the student's."""
    released: Mapping[str, PretrainedFile] = field(default_factory=dict)
    """Teachers that come from files, by network."""
    bf16: bool | None = None
    """Whether the device computes in bf16, where it is not one of this machine; None: it is asked."""
    _siblings: dict[tuple[Any, ...], Siblings] = field(default_factory=dict, init=False, repr=False, compare=False)
    """By what tells a run from others, apart from its seeds and what exactly taught it."""
    _artifacts: dict[tuple[Any, ...], Run] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What runs depend on, made once for all of them."""

    def precision_of(self, network: str) -> Precision:
        """The precision in which a network is run: bf16 where it was measured to be faster and the scale allows it."""
        if self.precision != "auto":
            return self.precision
        able = supports_bf16(self.device) if self.bf16 is None else self.bf16
        fast = able and (self.device.type == "cuda" or not uses_grouped_convolutions(network))
        return "bf16" if fast and base_scale(self.scale.name) != "paper" else "fp32"

    def run(
        self, method: str, student: str, teacher: str | None, seed: int, augmentation: Augmentation | None = None
    ) -> Run:
        """The run of a cell. A teacher-free method's run has no teacher in it, whatever the column.

        Raises:
            UserError: an unknown name, an option that is refused, or no teacher for a method that needs one.
        """
        cls = method_class(method)
        augmentation = augmentation or self.augmentation
        artifact: Run | ReleasedTeacher | None = None
        head: Run | ReleasedTeacher | None = None
        start: Run | None = None
        if cls.needs_teacher:
            network = student if cls.teaches_itself else teacher
            if network is None:
                raise UserError(f"{method} needs a teacher and {student} has none; choose it in a table of pairs")
            teacher_seed = self.teacher_seed(student, network, seed)
            # A teacher that is the student itself has nothing else to learn from than the student has.
            share = (self.fraction, seed) if self.teacher_data == "same" or cls.teaches_itself else ALL_IMAGES
            artifact = self._teacher(cls.teacher_method, network, teacher_seed, share)
            if cls.teacher_head is not None:
                head = self._head(cls.teacher_head, cls.teacher_method, artifact, teacher_seed, share)
        own = (self.fraction, seed)
        if cls.start is not None:
            start = self._artifact(cls.start, student, seed, own, artifact, augmentation)
        return self._run(method, student, seed, own, artifact, head, start, augmentation)

    def teacher_seed(self, student: str, teacher: str, seed: int) -> int:
        """The seed of the teacher of a student with this seed."""
        own = TEACHER_SEED if self.teacher_seeds == "shared" else seed
        return own + SELF_TEACHER_SEED if teacher == student else own

    def _teacher(self, method: str, network: str, seed: int, share: Share) -> Run | ReleasedTeacher:
        released = self.released.get(network)
        if released and (method == "Baseline" or released.has_branches):
            return released.teacher
        return self._artifact(method, network, seed, share)

    def _head(
        self, head: str, teacher_method: str, teacher: Run | ReleasedTeacher, seed: int, share: Share
    ) -> Run | ReleasedTeacher:
        if head == teacher_method:
            return teacher
        if isinstance(teacher, Run):
            return self._artifact(head, teacher.student, seed, share, teacher)
        if head == "HSSAKD-branches" and self.released[teacher.network].has_branches:
            return teacher
        return self._artifact(head, teacher.network, seed, share, teacher)

    def _artifact(
        self,
        method: str,
        student: str,
        seed: int,
        share: Share,
        teacher: Run | ReleasedTeacher | None = None,
        augmentation: Augmentation = "standard",
    ) -> Run:
        key = (method, student, seed, share, teacher, augmentation)
        if key not in self._artifacts:
            self._artifacts[key] = self._run(method, student, seed, share, teacher, augmentation=augmentation)
        return self._artifacts[key]

    def _run(
        self,
        method: str,
        student: str,
        seed: int,
        share: Share,
        teacher: Run | ReleasedTeacher | None = None,
        head: Run | ReleasedTeacher | None = None,
        start: Run | None = None,
        augmentation: Augmentation = "standard",
    ) -> Run:
        share = share if share[0] < 1 else ALL_IMAGES
        teacher_network = None
        if teacher is not None:
            teacher_network = teacher.student if isinstance(teacher, Run) else teacher.network
        key = (method, student, teacher_network, share[0], augmentation)
        if key not in self._siblings or seed < 0:
            cls = method_class(method)
            first = Run(
                dataset=self.dataset,
                fingerprint=self.fingerprint,
                fraction=share[0],
                fraction_seed=share[1],
                validation=self.validation,
                student=student,
                method=method,
                method_version=cls.version,
                options=resolve_options(cls, self.protocol, student, self.options.get(method, {})).model_dump(),
                teacher=teacher,
                head=head,
                start=start,
                augmentation=augmentation,
                teacher_precision=self.precision_of(teacher_network) if teacher_network else None,
                protocol=self.protocol.without_tables(method),
                scale=self.scale,
                precision=self.precision_of(student),
                processes=self.processes,
                seed=seed,
            )
            self._siblings[key] = Siblings(first)
        return self._siblings[key].run(seed, share[1], teacher, head, start)


def match_compute(runs: Sequence[Run], other: Run) -> tuple[Run, ...]:
    """The runs of a cell with their main schedule stretched, so that training one takes the multiply-adds of another.

    runs: of one request, and the same but for their seeds.
    """
    first, schedule = runs[0], runs[0].protocol.schedule
    factor = training_multiply_adds(other, SIZE_FOR_LENGTH) / training_multiply_adds(first, SIZE_FOR_LENGTH)
    stretched = first.replace_unchecked(protocol=first.protocol.replace(schedule=schedule.scaled(factor)))
    siblings = Siblings(stretched)
    return tuple(siblings.run(run.seed, run.fraction_seed, run.teacher, run.head, run.start) for run in runs)


def collect_dependencies(runs: Iterable[Run]) -> list[Run]:
    """The runs and all that they depend on, dependencies first, each once."""
    ordered: dict[str, Run] = {}

    def visit(run: Run) -> None:
        if run.digest not in ordered:
            for dependency in run.dependencies():
                visit(dependency)
            ordered[run.digest] = run

    for run in runs:
        visit(run)
    return list(ordered.values())


def describe_run(run: Run) -> str:
    """The method of a run, with its augmentation and options where they are not its protocol's: `LSSKD (alpha=0.3)`."""
    protocol = PROTOCOLS.get(run.protocol.name, run.protocol)
    usual = resolve_options(method_class(run.method), protocol, run.student).model_dump()
    changed: list[str] = [] if run.augmentation == "standard" else [run.augmentation]
    changed += [] if run.fraction == 1 else [f"{run.fraction:.0%} of the images"]
    if run.protocol.schedule != protocol.schedule:
        changed.append(counted(run.schedule.epochs, "epoch"))
    changed += [f"{name}={value}" for name, value in run.options.items() if usual.get(name) != value]
    return f"{run.method} ({', '.join(changed)})" if changed else run.method


@dataclass(frozen=True)
class RunOptions:
    """What a command asks of all that it regenerates; an empty value leaves the choice to the table or figure."""

    scale: str
    device: torch.device
    protocol: str = ""
    epochs: int | None = None
    settings: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    seeds: int | None = None
    dataset: str = ""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    augmentation: Augmentation = "standard"
    teacher_seeds: Literal["shared", "paired"] = "shared"
    teacher_data: Literal["all", "same"] = "all"
    processes: int = 1
    validation: float = 0.0
    bf16: bool | None = None
    """Whether the device computes in bf16, where it is not one of this machine."""

    def make_factory(
        self, protocol: str, images: Dataset, released: Mapping[str, PretrainedFile] | None = None
    ) -> RunFactory:
        """How the cells of a target with this protocol become runs on these images.

        Raises:
            UserError: the protocol, an option or the number of epochs is refused.
        """
        recipe, options = parse_settings(list(self.settings), get_protocol(self.protocol or protocol))
        return RunFactory(
            dataset=images.name,
            fingerprint=images.fingerprint,
            protocol=recipe,
            scale=select_scale(self.scale, self.epochs, recipe),
            device=self.device,
            precision=self.precision,
            validation=self.validation,
            options=options,
            augmentation=self.augmentation,
            teacher_seeds=self.teacher_seeds,
            teacher_data=self.teacher_data,
            processes=self.processes,
            released=released or {},
            bf16=self.bf16,
        )

    @property
    def seed_numbers(self) -> range:
        """The seeds of each cell."""
        return range(self.seeds or default_seed_count(self.scale))


@dataclass(frozen=True)
class RunGroup:
    """Runs on one dataset: those of a table, or of a panel of a figure. source: as `load_dataset` takes it."""

    title: str
    source: str
    images: Dataset
    runs: tuple[Run, ...]
