"""The options of a command, and the factory that makes runs of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

from benchmark.backbones import uses_grouped_convolutions
from benchmark.core.devices import supports_bf16
from benchmark.core.errors import UserError
from benchmark.core.protocols import PROBES, PROTOCOLS, base_scale, default_seed_count, get_protocol, select_scale
from benchmark.core.spec import Augmentation, Precision, Protocol, ReleasedTeacher, Run, Scale, TeacherOutputs
from benchmark.core.text import counted
from benchmark.data.dataset import Dataset
from benchmark.planning.atlas import check_views
from benchmark.planning.cost import training_multiply_adds
from benchmark.planning.overrides import parse_settings
from benchmark.plugins.registry import method_class, resolve_options
from benchmark.training.cost import reads_plain_logits_only

TEACHER_SEED = 0
SELF_TEACHER_SEED = 1000
"""Seed offset for teachers of the student's architecture, so that teacher and student never share first weights and the
order of batches."""

PROBE = "Probe"
"""The method of runs that probe the student of another run."""

Artifact = Run | ReleasedTeacher
"""A teacher, or the head of one, that was trained here or came from a file."""
Share = tuple[float, int]
"""A share of the training images, and the seed that selects them."""
ALL_IMAGES: Share = (1.0, 0)
SIZE_FOR_LENGTH = 32
"""Image size at which the costs of two methods are compared, so that the length of a run depends on no dataset."""


@dataclass(frozen=True)
class PretrainedFile:
    """What planning needs to know of the file of a teacher."""

    teacher: ReleasedTeacher
    has_branches: bool


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How all runs of a command are trained: what its options and the factory of its runs have in common."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    validation: float = 0.0
    augmentation: Augmentation = "standard"
    """Of the students; teachers and their heads are always trained with the protocol's own."""
    teacher_seeds: Literal["shared", "paired"] = "shared"
    processes: int = 1
    """How many processes share each batch of a run."""
    teacher_data: Literal["all", "same"] = "all"
    """Whether teachers and their heads are trained on all images or on the student's."""
    teacher_outputs: TeacherOutputs = "live"
    """With `atlas`, methods that need nothing of their teacher but the logits of the plain view read these."""
    bf16: bool | None = None
    """Whether the device supports bf16; None: it belongs to this machine and is queried."""


@dataclass(frozen=True)
class RunFactory(TrainingOptions):
    """Makes the runs of a plan from what they have in common."""

    dataset: str
    fingerprint: str
    protocol: Protocol
    scale: Scale
    device: torch.device
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options that the user set, by method."""
    fraction: float = 1.0
    """Share of the training images; the student's seed selects them, the same for every method."""
    released: Mapping[str, PretrainedFile] = field(default_factory=dict)
    """Teachers that come from files, by network."""
    probed: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Name and fingerprint of the datasets that students are probed on, by source (see `load_dataset`)."""
    _siblings: dict[tuple[Any, ...], Run] = field(default_factory=dict, init=False, repr=False, compare=False)
    """A run for everything that tells runs apart but their seeds and their exact teacher."""
    _artifacts: dict[tuple[Any, ...], Run] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Teachers, heads and first stages, each made once for all runs."""

    def precision_of(self, network: str) -> Precision:
        """Choose the precision of a network: bf16 if it was measured to be faster and the scale allows it."""
        if self.precision != "auto":
            return self.precision
        supported = supports_bf16(self.device) if self.bf16 is None else self.bf16
        fast = supported and (self.device.type == "cuda" or not uses_grouped_convolutions(network))
        # The demo's networks and images are too small for bf16 to pay: its casts cost more than they save.
        return "bf16" if fast and base_scale(self.scale.name) == "quick" else "fp32"

    def run(
        self, method: str, student: str, teacher: str | None, seed: int, augmentation: Augmentation | None = None
    ) -> Run:
        """Make the run of a cell. The run of a teacher-free method has no teacher, whatever the column.

        Raises:
            UserError: a name is unknown, an option is refused, or a method that needs a teacher has none.
        """
        cls = method_class(method)
        augmentation = augmentation or self.augmentation
        own = (self.fraction, seed)
        artifact: Artifact | None = None
        head: Artifact | None = None
        start: Run | None = None
        if cls.needs_teacher:
            network = student if cls.teaches_itself else teacher
            if network is None:
                raise UserError(f"{method} needs a teacher and {student} has none; choose it in a table of pairs")
            teacher_seed = self.teacher_seed(student, network, seed)
            # A teacher that is the student itself learns from the student's images.
            share = own if self.teacher_data == "same" or cls.teaches_itself else ALL_IMAGES
            artifact = self._teacher(cls.teacher_method, network, teacher_seed, share)
            if cls.teacher_head is not None:
                head = self._head(cls.teacher_head, cls.teacher_method, artifact, teacher_seed, share)
        if cls.start is not None:
            start = self._artifact(cls.start, student, seed, own, artifact, augmentation)
        return self._run(method, student, seed, own, artifact, head, start, augmentation)

    def probe(self, run: Run, source: str, protocol: str, fraction: float = 1.0, seed: int | None = None) -> Run:
        """Make the run that probes the student of a run on another dataset.

        source: one of `probed`; protocol: one of `PROBES`; seed: the student's own unless another is given.
        """
        seed = run.seed if seed is None else seed
        dataset, fingerprint = self.probed[source]
        cls, recipe = method_class(PROBE), PROBES[protocol]
        return Run(
            dataset=dataset,
            fingerprint=fingerprint,
            fraction=fraction,
            fraction_seed=seed if fraction < 1 else 0,
            student=run.student,
            method=cls.name,
            method_version=cls.version,
            options=resolve_options(cls, recipe, run.student, self.options.get(cls.name, {})).model_dump(),
            start=run,
            protocol=recipe.without_tables(cls.name),
            scale=self.scale,
            precision="fp32",
            seed=seed,
        )

    def teacher_seed(self, student: str, teacher: str, seed: int) -> int:
        """Choose the seed of the teacher of a student with this seed."""
        own = TEACHER_SEED if self.teacher_seeds == "shared" else seed
        return own + SELF_TEACHER_SEED if teacher == student else own

    def _teacher(self, method: str, network: str, seed: int, share: Share) -> Artifact:
        released = self.released.get(network)
        if released and (method == "Baseline" or released.has_branches):
            return released.teacher
        return self._artifact(method, network, seed, share)

    def _head(self, head: str, teacher_method: str, teacher: Artifact, seed: int, share: Share) -> Artifact:
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
        teacher: Artifact | None = None,
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
        teacher: Artifact | None = None,
        head: Artifact | None = None,
        start: Run | None = None,
        augmentation: Augmentation = "standard",
    ) -> Run:
        share = share if share[0] < 1 else ALL_IMAGES
        teacher_network = None
        if teacher is not None:
            teacher_network = teacher.student if isinstance(teacher, Run) else teacher.network
        key = (method, student, teacher_network, share[0], augmentation)
        if key not in self._siblings:
            cls = method_class(method)
            chosen = self.options.get(method, {})
            first = Run(
                dataset=self.dataset,
                fingerprint=self.fingerprint,
                fraction=share[0],
                fraction_seed=share[1],
                validation=self.validation,
                student=student,
                method=method,
                method_version=cls.version,
                options=resolve_options(cls, self.protocol, student, chosen, teacher=teacher_network).model_dump(),
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
            # Mixed images and images with holes have no place in an atlas.
            if self.teacher_outputs == "atlas" and augmentation == "standard" and reads_plain_logits_only(first):
                first = first.replace(teacher_outputs="atlas")
            self._siblings[key] = first
        return self._siblings[key].replace(seed=seed, fraction_seed=share[1], teacher=teacher, head=head, start=start)


def match_compute(runs: Sequence[Run], other: Run) -> tuple[Run, ...]:
    """Stretch the main schedule of a cell's runs, so that training one takes the multiply-adds of another run.

    runs: of one factory, equal but for their seeds. The length of a schedule does not depend on an atlas.
    """
    first, schedule = runs[0], runs[0].protocol.schedule
    own, others = (
        training_multiply_adds(run.replace(teacher_outputs="live"), SIZE_FOR_LENGTH) for run in (first, other)
    )
    protocol = first.protocol.replace(schedule=schedule.scaled(others / own))
    return tuple(run.replace(protocol=protocol) for run in runs)


def collect_dependencies(runs: Iterable[Run]) -> list[Run]:
    """Collect the runs and everything that they depend on, each once and dependencies first."""
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
    """Name the method of a run, with what differs from its protocol: `LSSKD (alpha=0.3)`."""
    protocol = (PROTOCOLS | PROBES).get(run.protocol.name, run.protocol)
    usual = resolve_options(method_class(run.method), protocol, run.student, teacher=run.teacher_network).model_dump()
    changed: list[str] = [] if run.augmentation == "standard" else [run.augmentation]
    changed += [] if run.teacher_outputs == "live" else [run.teacher_outputs]
    if run.fraction < 1:
        share = f"{run.fraction:.0%}" if run.fraction >= 0.01 else f"{run.fraction:.1%}"
        changed.append(f"{share} of the images")
    if run.protocol.schedule != protocol.schedule:
        changed.append(counted(run.schedule.epochs, "epoch"))
    changed += [f"{name}={value}" for name, value in run.options.items() if usual.get(name) != value]
    name = run.method if run.method != PROBE or not run.start else f"{run.protocol.name} of {describe_run(run.start)}"
    return f"{name} ({', '.join(changed)})" if changed else name


@dataclass(frozen=True)
class RunOptions(TrainingOptions):
    """The options of a command that hold for all its tables and figures; an empty value leaves the choice to these."""

    scale: str
    device: torch.device
    protocol: str = ""
    epochs: int | None = None
    settings: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    seeds: int | None = None
    dataset: str = ""

    def make_factory(
        self, protocol: str, images: Dataset, released: Mapping[str, PretrainedFile] | None = None
    ) -> RunFactory:
        """Make the factory of runs on these images; protocol: that of the table or figure, if the user names none.

        Raises:
            UserError: the protocol, an option or the number of epochs is refused.
        """
        recipe, options = parse_settings(list(self.settings), get_protocol(self.protocol or protocol))
        if self.teacher_outputs == "atlas":
            check_views(images.name, recipe, self.augmentation)
        return RunFactory(
            dataset=images.name,
            fingerprint=images.fingerprint,
            protocol=recipe,
            scale=select_scale(self.scale, self.epochs, recipe),
            device=self.device,
            options=options,
            released=released or {},
            **{shared.name: getattr(self, shared.name) for shared in fields(TrainingOptions)},
        )

    @property
    def seed_numbers(self) -> range:
        """The seeds of each cell."""
        return range(self.seeds or default_seed_count(self.scale))


@dataclass(frozen=True)
class RunGroup:
    """The runs of a table or of a panel, which are on one dataset. source: see `load_dataset`."""

    title: str
    source: str
    images: Dataset
    runs: tuple[Run, ...]
