"""From what a user asks for to runs, and from runs to jobs in dependency order, with their cost."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from benchmark.backbones import uses_grouped_convolutions
from benchmark.data.dataset import Dataset
from benchmark.errors import UserError
from benchmark.estimate import cohort_seconds, training_multiply_adds
from benchmark.grouping import Cohort, Place, depths_of, joined_teacher_free, split_for
from benchmark.method_files import check_weights, explained
from benchmark.protocols import PROTOCOLS, base_scale
from benchmark.registry import method_class, resolve_options
from benchmark.results import Store
from benchmark.spec import (
    Augmentation,
    Precision,
    Protocol,
    ReleasedTeacher,
    Run,
    Scale,
    Siblings,
    cohort_key,
    teacher_key,
)
from benchmark.training import checkpoint as checkpoints
from benchmark.training.devices import supports_bf16
from benchmark.training.learner import build_method
from benchmark.words import counted

TEACHER_SEED = 0
SELF_TEACHER_SEED = 1000
"""Added to the seed of a teacher that is a network like the student, be it the method's choice or the table's: from the
same seed it would have had the student's first weights and batches, for some seeds and not for others."""

Share = tuple[float, int]
"""A share of the training images, and the seed that names which."""
ALL_IMAGES: Share = (1.0, 0)
Grouping = Literal["run", "student", "cohort"]
"""What one job of a cluster trains: one run; all runs of a student network that can share a pass over the data; all
runs that can, of whatever network."""
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


def as_long_as(runs: Sequence[Run], other: Run) -> tuple[Run, ...]:
    """The runs of a cell with their main schedule stretched, so that training one takes the multiply-adds of another.

    runs: of one request, and the same but for their seeds.
    """
    first, schedule = runs[0], runs[0].protocol.schedule
    factor = training_multiply_adds(other, SIZE_FOR_LENGTH) / training_multiply_adds(first, SIZE_FOR_LENGTH)
    stretched = first.with_parts(protocol=first.protocol.changed(schedule=schedule.scaled(factor)))
    siblings = Siblings(stretched)
    return tuple(siblings.run(run.seed, run.fraction_seed, run.teacher, run.head, run.start) for run in runs)


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
        changed.append(counted(run.schedule.epochs, "epoch"))
    changed += [f"{name}={value}" for name, value in run.options.items() if usual.get(name) != value]
    return f"{run.method} ({', '.join(changed)})" if changed else run.method


def check_methods(runs: Iterable[Run], dataset: Dataset) -> None:
    """Build the method of every run and what it depends on, once for each kind, before anything is trained.

    Raises:
        UserError: a method refuses its options, the networks or the dataset, or what it is made of cannot be made.
    """
    kinds: dict[tuple[str | None, ...], Run] = {}
    texts: dict[int, str] = {}
    for run in with_dependencies(runs):
        # Runs that differ in their seed share their options.
        text = texts.get(id(run.options)) or json.dumps(run.options, sort_keys=True)
        texts[id(run.options)] = text
        kinds[run.method, run.student, run.teacher_network, text] = run
    for run in kinds.values():
        with explained(method_class(run.method), "be built"):
            method = build_method(run, dataset.num_classes, dataset.image_size, dataset.train.labels, fill=False)
            check_weights(method)


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


def longest_chains(jobs: Sequence[Job]) -> list[float]:
    """Of each job its seconds and those of the longest row of jobs that waits for it."""
    makers = {run.digest: place for place, job in enumerate(jobs) for run in job.runs}
    followers: dict[int, set[int]] = defaultdict(set)
    for place, job in enumerate(jobs):
        for maker in {makers.get(digest, place) for digest in job.needs} - {place}:
            followers[maker].add(place)

    @functools.cache
    def chain(place: int) -> float:
        return jobs[place].seconds + max(map(chain, followers[place]), default=0.0)

    return [chain(place) for place in range(len(jobs))]


def jobs_for(
    runs: Sequence[Run], store: Store, workers: int, image_size: int, images: int, retry_failed: bool = False
) -> list[Job]:
    """Group the runs that have no record yet (or, with `retry_failed`, no record of success) into jobs.

    Runs share a cohort where they can; with several workers a cohort holds one student network only, and is split
    further where workers would otherwise be idle. At scale `paper` it always does: a job of all students would have no
    record before the last epoch of all of them, and gigabytes in each checkpoint (six tables of LSSKD's). Runs that
    stand at different checkpoints are kept apart.
    """
    missing = store.untrained(with_dependencies(runs), retry_failed)
    depths = depths_of(missing)
    long = any(base_scale(run.scale.name) == "paper" for run in missing)
    groups = _groups(missing, store, depths, "student" if workers > 1 or long else "cohort")
    cohorts = [Cohort(tuple(group), cohort_seconds(group, image_size, images)) for group in groups]
    return [_job(cohort) for cohort in split_for(cohorts, depths, workers, image_size, images)]


def jobs_of_all(runs: Iterable[Run], store: Store, grouping: Grouping, image_size: int, images: int) -> list[Job]:
    """Group the runs, also those that have records, with what they depend on into jobs: the plan of a cluster's sweep.

    It is the same whatever of it is done, apart from runs that stand at different checkpoints, which are kept apart.
    """
    everything = with_dependencies(runs)
    groups = [[run] for run in everything]
    if grouping != "run":
        groups = _groups(everything, store, depths_of(everything), grouping)
    return [_job(Cohort(tuple(group), cohort_seconds(group, image_size, images))) for group in groups]


def _groups(runs: Sequence[Run], store: Store, depths: Mapping[str, int], grouping: Grouping) -> list[list[Run]]:
    """Runs that are trained together."""
    needed = {dependency.digest for run in runs for dependency in run.dependencies()}
    folders = {dataset: _folders_to_resume(store, dataset) for dataset in {run.dataset for run in runs}}
    apart = grouping != "cohort"
    groups: dict[Place, list[Run]] = defaultdict(list)
    for run in runs:
        folder = folders[run.dataset].get(run.id) if folders[run.dataset] else None
        # What others wait for is trained apart, so that they need not wait for anything else; and where there are
        # others to do it, what can start earlier is not held up by what must wait for a head.
        depth = depths[run.digest] if apart else 0
        student = run.student if apart else None
        place = Place(depth, run.digest in needed, cohort_key(run), folder, teacher_key(run), student)
        groups[place].append(run)
    return list(groups.values()) if apart else list(joined_teacher_free(groups).values())


def _job(cohort: Cohort) -> Job:
    needs = frozenset(dependency.digest for run in cohort.runs for dependency in run.dependencies())
    return Job(cohort.runs, needs, cohort.seconds)


def _folders_to_resume(store: Store, dataset: str) -> dict[str, Path]:
    """By run id, the folder of the most advanced checkpoint that holds the run."""
    cohorts = store.cohorts(dataset)
    found: list[tuple[tuple[int, int], Path]] = []
    for folder in cohorts.iterdir() if cohorts.is_dir() else []:
        position = checkpoints.latest_position(folder)
        if position is not None:
            found.append((position, folder))
    return {run_id: folder for _, folder in sorted(found) for run_id in checkpoints.members(folder)}
