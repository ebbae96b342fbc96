"""How fast images on disk are decoded and learned from: `python -m benchmark.speed --what images`.

The images are JPEGs of ImageNet's usual size, made for the measurement. Decoding and learning are timed apart and then
together, which tells whether one waits for the other.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmark.core.protocols import protocol_named
from benchmark.core.spec import Precision, Run, Scale
from benchmark.data import imagenet
from benchmark.data.dataset import Dataset
from benchmark.data.decoding import WORKERS, decode_workers
from benchmark.data.streamed import ImageFiles
from benchmark.data.streaming import training_source
from benchmark.planning.request import RunFactory
from benchmark.training.cohort import Cohort
from benchmark.training.dummies import dummy_teacher
from benchmark.training.failures import RunsFailed
from benchmark.training.inputs import TrainingData, recipe_for
from benchmark.training.settings import TrainSettings

WIDTH, HEIGHT = 500, 375
"""Of an image in pixels: what most of ImageNet's have."""
QUALITY = 95
"""Of the JPEGs: with it they are about as large as ImageNet's, 110 kB."""
GRAIN = 12.0
"""Standard deviation of the noise on an otherwise smooth image, in levels: decoding takes longer, the more detail."""
CLASSES = ("n00000001", "n00000002")
PAIR = "ImageNet-ResNet34>ImageNet-ResNet18"
METHODS = "Baseline,KD"
SCALE = Scale(name="speed", factor=1)


def measure(
    console: Console,
    pairs: Sequence[tuple[str, str]],
    methods: Sequence[str],
    device: torch.device,
    threads: int,
    precisions: Sequence[Precision],
    size: int,
    rounds: int,
    count: int,
    batch: int,
) -> None:
    """Print images a second of decoding and learning, apart and together, the median of so many passes.

    pairs: of teacher and student; size: of the square crops, in pixels; count: images that are made, one pass.
    """
    with tempfile.TemporaryDirectory() as place:
        dataset = made_images(Path(place), count, size)
        weight = statistics.median(path.stat().st_size for path in Path(place).glob("*/*")) / 1000
        console.print(
            f"{count} JPEGs of {WIDTH}x{HEIGHT} ({weight:.0f} kB), crops of {size}x{size}, batches of {batch}; "
            f"median of {rounds} passes",
            highlight=False,
        )
        screen = Table(box=None, pad_edge=False)
        screen.add_column("", no_wrap=True, overflow="fold")
        screen.add_column("images/s", justify="right")
        for workers in dict.fromkeys((0, decode_workers())):
            decoding = _loading(dataset, device, batch, rounds, workers)
            by = f"by {workers} process{'es' * (workers > 1)}" if workers else "in the process that asks"
            screen.add_row(f"decoding {by}", f"{decoding:.0f}")
        protocol = protocol_named("imagenet").replace(batch_size=batch)
        for (teacher, student), precision, method in itertools.product(pairs, precisions, methods):
            request = RunFactory(dataset.name, dataset.fingerprint, protocol, SCALE, device, precision)
            run = request.run(method, student, teacher, 0).replace(start=None)
            alone, together = _learning(dataset, run, device, threads, rounds)
            name = f"{method}, {student}, {precision}"
            screen.add_row(f"{name}: one batch over and over", f"{alone:.1f}")
            screen.add_row(f"{name}: decoding as it goes", f"{together:.1f}")
            screen.add_row("  of the slower of learning and decoding", f"{together / min(alone, decoding):.2f}")
        console.print(screen)


def made_images(folder: Path, count: int, size: int) -> Dataset:
    """So many JPEGs in two class folders, half each: smooth, with the grain of a photograph, each another one."""
    stream = np.random.default_rng(0)
    names: dict[str, list[str]] = {name: [] for name in CLASSES}
    for number in range(count):
        label = CLASSES[number % len(CLASSES)]
        coarse = Image.fromarray(stream.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = (smooth + GRAIN * stream.standard_normal(smooth.shape, dtype=np.float32)).clip(0, 255).astype(np.uint8)
        (folder / label).mkdir(exist_ok=True)
        names[label].append(f"{number}.JPEG")
        Image.fromarray(pixels).save(folder / label / names[label][-1], "JPEG", quality=QUALITY)
    labels = [label for label, name in enumerate(CLASSES) for _ in names[name]]
    everything = np.array([name.encode() for found in names.values() for name in found], dtype=np.bytes_)
    files = ImageFiles(folder, CLASSES, everything, torch.tensor(labels), size)
    return Dataset("imagenet", CLASSES, files, files, imagenet.MEAN, imagenet.STD, 0, True, "made")


def _loading(dataset: Dataset, device: torch.device, batch: int, rounds: int, workers: int) -> float:
    """Images a second that so many decoding processes give while nothing is learned."""
    recipe = recipe_for(protocol_named("imagenet"), dataset)
    with _decoding_by(workers):
        source = training_source(dataset.train, recipe, batch, device, ("speed",))

        def load(epoch: int) -> None:
            plan = source.epoch(epoch)
            for step in range(source.batches):
                source.batch(plan, step).view("plain")

        return len(dataset.train) / _median_seconds(load, rounds, device)


def _learning(dataset: Dataset, run: Run, device: torch.device, threads: int, rounds: int) -> tuple[float, float]:
    """Images a second that a run learns from: always the same batch, and batches that are decoded as it goes."""
    teacher = dummy_teacher([run], dataset.num_classes, dataset.image_size, device)
    place = TrainSettings(runs=Path("runs"), dataset=dataset.name, device=str(device), threads=threads)
    cohort = Cohort([run], TrainingData(dataset, dataset.train, dataset.test), teacher, place)
    source, (learner,) = cohort.source, cohort.learners
    batch = source.batch(source.epoch(0), 0)

    def learn(number: int) -> None:
        learner.step(batch, teacher.on(batch) if teacher else None, 0, 0)

    def learn_an_epoch(number: int) -> None:
        plan = source.epoch(cohort.epoch)
        while cohort.step < source.batches:
            cohort.one_step(plan)
        cohort.next_epoch()
        if cohort.broken:
            raise RunsFailed("; ".join(cohort.broken))

    alone = len(batch.labels) / _median_seconds(learn, rounds, device)
    return alone, len(dataset.train) / _median_seconds(learn_an_epoch, rounds, device)


def _median_seconds(work: Callable[[int], None], rounds: int, device: torch.device) -> float:
    """What the call takes that is numbered 1, 2, ...; the one before them warms up."""
    seconds = []
    for number in range(rounds + 1):
        started = time.perf_counter()
        work(number)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


@contextmanager
def _decoding_by(workers: int) -> Iterator[None]:
    """So many processes decode images meanwhile."""
    before = os.environ.get(WORKERS)
    os.environ[WORKERS] = str(workers)
    try:
        yield
    finally:
        if before is None:
            del os.environ[WORKERS]
        else:
            os.environ[WORKERS] = before
