"""How fast methods train, alone and as a cohort: `python -m benchmark.speed`.

Every number is the median over rounds in which all contestants take turns, so that a shared machine or a changing clock
slows all of them alike and the ratios stay right.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from benchmark.core.devices import autocast, placed
from benchmark.core.protocols import get_protocol
from benchmark.core.rng import generator
from benchmark.core.spec import Precision, Run, Scale, TeacherOutputs, teacher_key
from benchmark.core.text import counted
from benchmark.data.dataset import Dataset
from benchmark.planning.request import RunFactory
from benchmark.plugins.registry import method_class
from benchmark.training.cohort import Cohort
from benchmark.training.cost import reads_plain_logits_only
from benchmark.training.dummies import CLASSES, dummy_teacher, random_images
from benchmark.training.inputs import TrainingData
from benchmark.training.learner import fresh_network
from benchmark.training.settings import TrainSettings

IMAGES = 50_000
IMAGE_SIZE = 32
FROM_ATLAS = " from an atlas"
CHEAP = ("KD", "FitNet", "AT", "CRD")
"""The methods that train on plain images from a teacher: docs/usage.md states the saving of their cohort."""


@dataclass
class Contestant:
    """A function that handles one batch per call, and the seconds that each call took."""

    name: str
    precision: Precision
    images: int
    call: Callable[[], None]
    seconds: list[float] = field(default_factory=list)
    members: tuple[str, ...] = ()
    """The methods of a cohort."""

    @property
    def images_per_second(self) -> float:
        """Images per second in the median round."""
        return self.images / statistics.median(self.seconds)


def measure(
    console: Console,
    pairs: Sequence[tuple[str, str]],
    methods: Sequence[str],
    device: torch.device,
    threads: int,
    precisions: Sequence[Precision],
    size: int,
    rounds: int,
    teacher_outputs: TeacherOutputs = "live",
) -> None:
    """Print images per second of each method alone and in a cohort, and the ratios to the bare student step.

    pairs: of teacher and student; size: of the images, in pixels; teacher_outputs: with `atlas`, methods that can read
    their teacher's atlas are timed with it too.
    """
    dataset = random_images(IMAGES, size)
    console.print(
        f"batch {get_protocol('lsskd').batch_size}, {size}x{size}, {CLASSES} classes; "
        f"median of {counted(rounds, 'round')}",
        highlight=False,
    )
    for teacher, student in pairs:
        contestants: list[Contestant] = []
        for precision in precisions:
            contestants += _contestants(dataset, teacher, student, methods, precision, device, threads, teacher_outputs)
        _race(contestants, device, rounds)
        _print(console, f"{teacher}>{student}", contestants)


def _contestants(
    dataset: Dataset,
    teacher: str,
    student: str,
    methods: Sequence[str],
    precision: Precision,
    device: torch.device,
    threads: int,
    teacher_outputs: TeacherOutputs,
) -> list[Contestant]:
    scale = Scale(name="speed", factor=1)
    factory = RunFactory(dataset.name, dataset.fingerprint, get_protocol("lsskd"), scale, device, precision=precision)
    runs = [factory.run(method, student, teacher, 0) for method in methods]
    batch = factory.protocol.batch_size
    contestants = _bare_networks(teacher, student, batch, dataset.image_size, precision, device)
    cohorts = [(run.method, [run]) for run in runs]
    if teacher_outputs == "atlas":
        reading = [run.replace(teacher_outputs="atlas") for run in runs if reads_plain_logits_only(run)]
        cohorts += [(f"{run.method}{FROM_ATLAS}", [run]) for run in reading]
    cheap = [run for run in runs if run.method in CHEAP]
    if len(cheap) > 1:
        cohorts.append((f"cohort {'+'.join(run.method for run in cheap)}", cheap))
    shared = _of_one_teacher(runs)
    if len(shared) > max(1, len(cheap)):
        cohorts.append(("cohort of all", shared))
    for name, members in cohorts:
        call = _cohort_step(members, dataset, device, threads)
        contestants.append(Contestant(name, precision, batch, call, members=tuple(run.method for run in members)))
    return contestants


def _of_one_teacher(runs: Sequence[Run]) -> list[Run]:
    """Select the runs that can share one cohort: those from the pair's teacher, and those from none."""
    first = next((run for run in runs if run.teacher and not method_class(run.method).teaches_itself), None)
    return [run for run in runs if run.teacher is None or (first and teacher_key(run) == teacher_key(first))]


def _bare_networks(
    teacher: str, student: str, batch: int, size: int, precision: Precision, device: torch.device
) -> list[Contestant]:
    """Make the simplest training step (cross entropy, SGD) and the teacher's forward, both on one fixed batch."""
    images = torch.randn(batch, 3, size, size, generator=generator("speed", "batch"))
    images = images.to(device, memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % CLASSES
    trained = placed(fresh_network(student, CLASSES, 0), device)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    frozen = placed(fresh_network(teacher, CLASSES, 0), device).eval().requires_grad_(False)

    def step() -> None:
        with autocast(device, precision):
            logits = trained(images).logits
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def forward() -> None:
        with torch.no_grad(), autocast(device, precision):
            frozen(images)

    return [
        Contestant("bare student step", precision, batch, step),
        Contestant("bare teacher forward", precision, batch, forward),
    ]


def _cohort_step(runs: Sequence[Run], dataset: Dataset, device: torch.device, threads: int) -> Callable[[], None]:
    """Make a step of the engine's own loop, with a teacher and heads that are not trained (which costs the same)."""
    runs = [run.replace(start=None) for run in runs]
    # The logits of an epoch are read from an atlas at once, before its first step, which is one of those that warm up.
    settings = TrainSettings(runs=Path("runs"), dataset=dataset.name, device=str(device), threads=threads)
    teacher = dummy_teacher(runs, dataset.num_classes, dataset.image_size, device, dataset)
    cohort = Cohort(runs, TrainingData(dataset, dataset.train, dataset.test), teacher, settings)
    plan = cohort.source.epoch(0)
    return lambda: cohort.one_step(plan)


def _race(contestants: Sequence[Contestant], device: torch.device, rounds: int) -> None:
    for number in range(rounds + 2):
        for contestant in contestants:
            started = time.perf_counter()
            contestant.call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            # The first two rounds warm up: memory is touched, kernels are chosen.
            if number >= 2:
                contestant.seconds.append(time.perf_counter() - started)


def _print(console: Console, pair: str, contestants: Sequence[Contestant]) -> None:
    screen = Table(box=None, pad_edge=False)
    screen.add_column("", no_wrap=True, overflow="fold")
    kinds = list(dict.fromkeys(contestant.precision for contestant in contestants))
    for kind in kinds:
        screen.add_column(f"{kind} images/s", justify="right")
        screen.add_column(f"of bare {kind} step", justify="right")
    by_name = {(contestant.name, contestant.precision): contestant for contestant in contestants}
    for name in dict.fromkeys(contestant.name for contestant in contestants):
        row = [name]
        for kind in kinds:
            speed = by_name[name, kind].images_per_second
            row += [f"{speed:.0f}", f"{speed / by_name['bare student step', kind].images_per_second:.2f}"]
        screen.add_row(*row)
    console.print(f"\n{pair}", highlight=False)
    console.print(screen)
    for name, kind in by_name:
        if name.endswith(FROM_ATLAS):
            live = by_name[name.removesuffix(FROM_ATLAS), kind]
            gain = by_name[name, kind].images_per_second / live.images_per_second
            console.print(f"{name}, {kind}: {gain:.2f} times as fast as with its teacher live", highlight=False)
    for name in dict.fromkeys(contestant.name for contestant in contestants if contestant.name.startswith("cohort")):
        for kind in kinds:
            members = by_name[name, kind].members
            alone = sum(1 / by_name[method, kind].images_per_second for method in members)
            saving = alone * by_name[name, kind].images_per_second
            console.print(
                f"{name}, {kind}: {saving:.2f} times cheaper than its {len(members)} methods alone", highlight=False
            )
