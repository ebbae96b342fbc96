"""From what a user asks for to runs, and from runs to jobs in dependency order, with their cost."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from benchmark.backbones import build_branches, build_network, uses_grouped_convolutions
from benchmark.backbones.cost import multiply_adds
from benchmark.data.dataset import Dataset
from benchmark.errors import UserError
from benchmark.method import ROTATIONS
from benchmark.protocols import PROTOCOLS, base_scale
from benchmark.registry import method_class, resolve_options
from benchmark.results import Store
from benchmark.spec import Augmentation, Precision, Protocol, ReleasedTeacher, Run, Scale, cohort_key, teacher_key
from benchmark.training.cohort import resume_folder
from benchmark.training.devices import supports_bf16
from benchmark.training.learner import build_method

TEACHER_SEED = 0
SELF_TEACHER_SEED = 1000
"""Added to the seed of a teacher that is a network like the student: from the same seed it would have had the student's
first weights and batches, for some seeds and not for others."""

# Rough costs of one thread of a current processor, for ordering jobs and for the estimate of a dry run:
# arithmetic, and what each convolution with its norm costs whatever its size.
MULTIPLY_ADDS_PER_SECOND = 8e10
SECONDS_PER_CONVOLUTION = 3e-4


Share = tuple[float, int]
"""A share of the training images, and the seed that names which."""
ALL_IMAGES: Share = (1.0, 0)
SIZE_FOR_LENGTH = 32
"""Image size at which two methods' costs are compared, so that how long a run is depends on no dataset."""


@dataclass(frozen=True)
class ReleasedFile:
    """A teacher's file as the planner needs to know it."""

    teacher: ReleasedTeacher
    has_branches: bool


@dataclass(frozen=True)
class Request:
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
    released: Mapping[str, ReleasedFile] = field(default_factory=dict)
    """Teachers that come from files, by network."""

    def precision_of(self, network: str) -> Precision:
        """The precision in which a network is run: bf16 where it was measured to be faster and the scale allows it."""
        if self.precision != "auto":
            return self.precision
        fast = supports_bf16(self.device) and (self.device.type == "cuda" or not uses_grouped_convolutions(network))
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
            teacher_seed = TEACHER_SEED if self.teacher_seeds == "shared" else seed
            if cls.teaches_itself:
                teacher_seed += SELF_TEACHER_SEED
            # A teacher that is the student itself has nothing else to learn from than the student has.
            share = (self.fraction, seed) if self.teacher_data == "same" or cls.teaches_itself else ALL_IMAGES
            artifact = self._teacher(cls.teacher_method, network, teacher_seed, share)
            if cls.teacher_head is not None:
                head = self._head(cls.teacher_head, cls.teacher_method, artifact, teacher_seed, share)
        own = (self.fraction, seed)
        if cls.start is not None:
            start = self._run(cls.start, student, seed, own, artifact, augmentation=augmentation)
        return self._run(method, student, seed, own, artifact, head, start, augmentation)

    def _teacher(self, method: str, network: str, seed: int, share: Share) -> Run | ReleasedTeacher:
        released = self.released.get(network)
        if released and (method == "Baseline" or released.has_branches):
            return released.teacher
        return self._run(method, network, seed, share)

    def _head(
        self, head: str, teacher_method: str, teacher: Run | ReleasedTeacher, seed: int, share: Share
    ) -> Run | ReleasedTeacher:
        if head == teacher_method:
            return teacher
        if isinstance(teacher, Run):
            return self._run(head, teacher.student, seed, share, teacher)
        if head == "HSSAKD-branches" and self.released[teacher.network].has_branches:
            return teacher
        return self._run(head, teacher.network, seed, share, teacher)

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
        cls = method_class(method)
        teacher_network = teacher.student if isinstance(teacher, Run) else teacher.network if teacher else None
        return Run(
            dataset=self.dataset,
            fingerprint=self.fingerprint,
            fraction=share[0],
            fraction_seed=share[1] if share[0] < 1 else 0,
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


def as_long_as(run: Run, other: Run) -> Run:
    """The run with its main schedule stretched, so that training it takes the multiply-adds of the other one."""
    factor = training_multiply_adds(other, SIZE_FOR_LENGTH) / training_multiply_adds(run, SIZE_FOR_LENGTH)
    return run.changed(protocol=run.protocol.changed(schedule=run.protocol.schedule.scaled(factor)))


def with_dependencies(runs: Iterable[Run]) -> list[Run]:
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


def label(run: Run) -> str:
    """The method of a run, with its augmentation and options where they are not its protocol's: `LSSKD (alpha=0.3)`."""
    protocol = PROTOCOLS.get(run.protocol.name, run.protocol)
    usual = resolve_options(method_class(run.method), protocol, run.student).model_dump()
    changed: list[str] = [] if run.augmentation == "standard" else [run.augmentation]
    changed += [] if run.fraction == 1 else [f"{run.fraction:.0%} of the images"]
    if run.protocol.schedule != protocol.schedule:
        changed.append(f"{run.schedule.epochs} epochs")
    changed += [f"{name}={value}" for name, value in run.options.items() if usual.get(name) != value]
    return f"{run.method} ({', '.join(changed)})" if changed else run.method


def check_methods(runs: Iterable[Run], dataset: Dataset) -> None:
    """Build the method of every run and what it depends on, once for each kind, before anything is trained.

    Raises:
        UserError: a method refuses its options, the networks or the dataset.
    """
    kinds = {
        (run.method, run.student, run.teacher_network, json.dumps(run.options, sort_keys=True)): run
        for run in with_dependencies(runs)
    }
    for run in kinds.values():
        build_method(run, dataset.num_classes, dataset.image_size, dataset.train.labels, fill=False)


@dataclass(frozen=True)
class Job:
    """Runs to be trained as one cohort, and the runs that must be finished before."""

    runs: tuple[Run, ...]
    needs: frozenset[str]
    seconds: float
    """Estimated, on one thread."""

    def with_runs(self, runs: Sequence[Run]) -> Job:
        """The same job with some of its runs only."""
        needs = frozenset(needed.digest for run in runs for needed in run.dependencies())
        return Job(tuple(runs), needs, self.seconds * len(runs) / len(self.runs))

    @property
    def name(self) -> str:
        """A short name for people: what is trained from which teacher, which seed, and by which methods."""
        return f"{self.title}: {', '.join(label(run) for run in self.runs)}"

    @property
    def title(self) -> str:
        """The name without the methods."""
        first = self.runs[0]
        students = ", ".join(dict.fromkeys(run.student for run in self.runs))
        teachers = ", ".join(dict.fromkeys(run.teacher_network for run in self.runs if run.teacher_network))
        what = f"{teachers}>{students}" if teachers else students
        seed = f" seed {first.seed}" if first.seed else ""
        return f"{what}{seed}"


def jobs_for(
    runs: Sequence[Run], store: Store, workers: int, image_size: int, images: int, retry_failed: bool = False
) -> list[Job]:
    """Group the runs that have no record yet (or, with `retry_failed`, no record of success) into jobs.

    Runs share a cohort where they can; with several workers a cohort holds one student network only, and is split
    further where workers would otherwise be idle. Runs that stand at different checkpoints are kept apart.
    """

    def is_missing(run: Run) -> bool:
        return not store.is_finished(run) if retry_failed else store.record(run) is None

    missing = [run for run in with_dependencies(runs) if is_missing(run)]
    needed = {dependency.digest for run in missing for dependency in run.dependencies()}
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in missing:
        folder = resume_folder(store, [run])
        # What others wait for is trained apart, so that they need not wait for anything else; and with several workers
        # what can start earlier is not held up by what must wait for a head.
        depth = _depth(run) if workers > 1 else 0
        place = (depth, run.digest in needed, cohort_key(run), str(folder))
        groups[*place, teacher_key(run), run.student if workers > 1 else None].append(run)
    if workers == 1:
        groups = _join_teacher_free(groups)
    cohorts = _split_for(list(groups.values()), workers, image_size, images)
    return [
        Job(
            runs=tuple(cohort),
            needs=frozenset(dependency.digest for run in cohort for dependency in run.dependencies()),
            seconds=_cohort_seconds(cohort, image_size, images),
        )
        for cohort in cohorts
    ]


def _depth(run: Run) -> int:
    return 1 + max((_depth(dependency) for dependency in run.dependencies()), default=-1)


def _join_teacher_free(groups: dict[tuple[Any, ...], list[Run]]) -> dict[tuple[Any, ...], list[Run]]:
    """Let teacher-free runs that nobody waits for join a cohort with a teacher that is equal in the rest."""
    joined = defaultdict(list, groups)
    for key in groups:
        _, needed, cohort, folder, teacher, _ = key
        if teacher is not None or needed:
            continue
        hosts = [
            other
            for other in groups
            if other[4] is not None
            and other[1:4] == (False, cohort, folder)
            and method_class(groups[other][0].method).listed
        ]
        if hosts:
            joined[hosts[0]] = joined.pop(key) + joined[hosts[0]]
    return joined


def _split_for(cohorts: list[list[Run]], workers: int, image_size: int, images: int) -> list[list[Run]]:
    """Halve the dearest cohorts of a depth until every worker has one (or nothing is left to halve)."""
    by_depth: dict[int, list[list[Run]]] = defaultdict(list)
    for cohort in cohorts:
        by_depth[max(_depth(run) for run in cohort)].append(cohort)
    for level in by_depth.values():
        while len(level) < workers:
            dearest = max(level, key=lambda cohort: (len(cohort) > 1, _cohort_seconds(cohort, image_size, images)))
            if len(dearest) < 2:
                break
            level.remove(dearest)
            halves: list[list[Run]] = [[], []]
            for run in sorted(dearest, key=lambda run: -run_seconds(run, image_size, images)):
                min(halves, key=lambda half: sum(run_seconds(member, image_size, images) for member in half)).append(
                    run
                )
            level.extend([run for run in dearest if run in half] for half in halves)
    return [cohort for level in by_depth.values() for cohort in level]


@functools.cache
def network_cost(name: str, with_branches: bool, image_size: int) -> tuple[int, int]:
    """Multiply-adds of one forward for one image, and the number of convolutions; branches for 4 labels a class."""
    classes = 100
    network = build_network(name, classes)
    modules: list[nn.Module] = [network]
    total = multiply_adds(network, torch.empty(1, 3, image_size, image_size))
    if with_branches:
        branches = build_branches(name, classes * ROTATIONS)
        with torch.device("meta"):
            maps = network.to("meta").eval()(torch.empty(1, 3, image_size, image_size)).branch_maps
        total += multiply_adds(branches, maps)
        modules.append(branches)
    convolutions = sum(isinstance(part, nn.Conv2d) for module in modules for part in module.modules())
    return total, convolutions


def training_multiply_adds(run: Run, image_size: int) -> int:
    """Multiply-adds of training on one image once: three forwards' worth for what learns, one for the teacher."""
    cls = method_class(run.method)
    views = ROTATIONS if cls.view == "rotated" else 1
    total = 0
    if cls.trains_student:
        passes = 3 * cls.student_passes * views
        total += round(passes * network_cost(run.student, cls.student_branches, image_size)[0])
    elif cls.student_branches:
        total += (
            3
            * views
            * (network_cost(run.student, True, image_size)[0] - network_cost(run.student, False, image_size)[0])
        )
    if run.teacher_network:
        total += views * network_cost(run.teacher_network, _reads_branches(run), image_size)[0]
    if run.options.get("past") == "previous_weights":
        # The student of the epoch before, asked once more.
        total += views * network_cost(run.student, cls.student_branches, image_size)[0]
    return total


def run_seconds(run: Run, image_size: int, images: int) -> float:
    """A rough estimate of the seconds that a run takes on one thread, its teacher's forwards included."""
    cls = method_class(run.method)
    layers = 0.0
    if cls.trains_student or cls.student_branches:
        layers += 3 * cls.student_passes * network_cost(run.student, cls.student_branches, image_size)[1]
    if run.teacher_network:
        layers += network_cost(run.teacher_network, _reads_branches(run), image_size)[1]
    images = round(run.fraction * images)
    steps = -(-images // run.protocol.batch_size)
    an_epoch = images * training_multiply_adds(run, image_size) / MULTIPLY_ADDS_PER_SECOND
    return run.schedule.epochs * (an_epoch + steps * layers * SECONDS_PER_CONVOLUTION / 3)


def _reads_branches(run: Run) -> bool:
    head = method_class(run.method).teacher_head
    return head is not None and method_class(head).student_branches


def _cohort_seconds(cohort: Sequence[Run], image_size: int, images: int) -> float:
    """The runs' seconds, with each view's teacher forward counted once."""
    total = sum(run_seconds(run, image_size, images) for run in cohort)
    shared: set[str] = set()
    for run in cohort:
        if run.teacher_network:
            view = method_class(run.method).view
            views = ROTATIONS if view == "rotated" else 1
            if view in shared:
                forward = network_cost(run.teacher_network, _reads_branches(run), image_size)[0]
                total -= run.schedule.epochs * run.fraction * images * views * forward / MULTIPLY_ADDS_PER_SECOND
            shared.add(view)
    return total
