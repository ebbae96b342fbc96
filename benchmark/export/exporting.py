"""Exports a student: writes, checks and measures its files, and collects the figures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from rich.console import Console
from torch import Tensor, nn

import benchmark
from benchmark.backbones import build_network
from benchmark.backbones.cost import multiply_adds, parameters
from benchmark.backbones.network import Network
from benchmark.core.devices import device_name
from benchmark.core.spec import Run
from benchmark.data.augmentation import Recipe, evaluation_batches
from benchmark.data.dataset import Dataset, Images
from benchmark.data.subsets import stratified_fraction
from benchmark.export import FIGURES, FORMAT, Edge
from benchmark.export.edge import (
    INPUT,
    OPSET,
    OUTPUT,
    TIMED_BATCHES,
    Accuracy,
    WrongFile,
    add_notes,
    compare,
    compute_logits,
    count_multiply_adds,
    count_parameters,
    measure_latencies,
    open_session,
    quantise,
    to_onnx,
)
from benchmark.export.finished import FinishedRun, load_dataset_of
from benchmark.io.files import replacing, write_text
from benchmark.results.provenance import anonymise, provenance
from benchmark.training.evaluation import BATCH_SIZE
from benchmark.training.inputs import recipe_for, select_training_data

PROGRAM = "python -m benchmark.export"
CPU = torch.device("cpu")
CHECKED_IMAGES = 500
CALIBRATION_IMAGES = 500


@dataclass(frozen=True)
class ExportSubject:
    """The images on which a file is checked, calibrated and measured: of the run's dataset, scaled to `size`."""

    dataset: Dataset
    recipe: Recipe
    size: int
    train: Images
    evaluation: Images

    def batches(self, images: Images) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised, contiguous images [batch, 3, size, size] and labels [batch].

        Images of another size are scaled, bilinearly, with antialiasing if they get smaller.
        """
        for batch, labels in evaluation_batches(images, self.recipe, BATCH_SIZE, CPU):
            if batch.shape[-1] != self.size:
                size = (self.size, self.size)
                batch = nn.functional.interpolate(batch, size, mode="bilinear", antialias=True)
            yield batch.contiguous(), labels

    def some(self, images: Images, count: int, purpose: str) -> Tensor:
        """Draw about `count` normalised images, the same share of each class; `purpose` names the random stream."""
        share = min(1.0, count / len(images))
        index = stratified_fraction(images.labels, share, self.dataset.name, "export", purpose)
        # Every class has at least one image; if that is too many, only every second or third image is taken.
        index = index[:: math.ceil(len(index) / (2 * count))]
        return torch.cat([batch for batch, _ in self.batches(images.subset(index))])


def select_images(run: Run, dataset: str, data_root: Path | None, image_size: int | None) -> ExportSubject:
    """Load the images that a run was trained and evaluated on.

    Raises:
        UserError: the dataset is not there, or is not the one that the run was trained on.
    """
    loaded = load_dataset_of(run, dataset, data_root)
    data = select_training_data(run, loaded)
    recipe = recipe_for(run.protocol, loaded)
    return ExportSubject(loaded, recipe, image_size or loaded.image_size, data.train, data.evaluation)


def name_int8_file(target: Path) -> Path:
    """The path of the int8 file."""
    return target.with_name(f"{target.stem}-int8{target.suffix}")


def export(
    finished: FinishedRun,
    network: nn.Module,
    images: ExportSubject,
    target: Path,
    seconds: float,
    threads: int,
    console: Console,
) -> Edge:
    """Make, check and measure both files, write them and their figures; returns the figures.

    Raises:
        WrongFile: the file is not the network that was trained; nothing was written.
        UserError: a file cannot be written.
    """
    notes = make_notes(finished, images)
    name = finished.run.student
    with console.status(f"checking {name}"):
        plain = to_onnx(network, images.size)
        counts = check_counts(plain, network, name, images)
        content = {"fp32": add_notes(plain, notes | {"precision": "fp32"}).SerializeToString()}
        some = images.some(images.evaluation, CHECKED_IMAGES, "check")
        checked = compare(network, open_session(content["fp32"], threads), some)
    with console.status(f"quantising {name}"):
        calibration = images.some(images.train, CALIBRATION_IMAGES, "calibration")
        small = quantise(plain, calibration.numpy())
        content["int8"] = add_notes(small, notes | {"precision": "int8"}).SerializeToString()
    with console.status(f"measuring {name}"):
        measured = measure_files(content, images, some.numpy(), seconds, threads)
    for kind, path in (("fp32", target), ("int8", name_int8_file(target))):
        with replacing(path) as file:
            file.temporary.write_bytes(content[kind])
        beside = path.parent.resolve() == finished.folder.resolve()
        measured[kind] = {
            "file": path.name if beside else str(path),
            "bytes": len(content[kind]),
            "sha256": hashlib.sha256(content[kind]).hexdigest(),
            **measured[kind],
        }
    edge: Edge = {
        **describe_identity(finished, images),
        **counts,
        "logits": dataclasses.asdict(checked),
        "calibration_images": len(calibration),
        **measured,
        "loss": {key: measured["fp32"][key] - measured["int8"][key] for key in ("top1", "top5")},
        **describe_surroundings(threads),
    }
    write_text(finished.folder / FIGURES, json.dumps(edge, indent=1) + "\n")
    return edge


def check_counts(model: onnx.ModelProto, network: nn.Module, name: str, images: ExportSubject) -> dict[str, Any]:
    """Count the parameters and the multiply-adds of one image in the file.

    They must be those of the Baseline network `name`, or of what predicts where that is more than the student; the
    Baseline's are then in `baseline`.

    Raises:
        WrongFile: they are not.
    """

    def count(module: nn.Module) -> dict[str, int]:
        image = torch.zeros(1, 3, images.size, images.size)
        return {"parameters": parameters(module), "multiply_adds": multiply_adds(module, image)}

    baseline = count(build_network(name, images.dataset.num_classes))
    plain = isinstance(network, Network)
    owner, expected = (name, baseline) if plain else (f"what predicts with {name}", count(network))
    in_file = {"parameters": count_parameters(model), "multiply_adds": count_multiply_adds(model, images.size)}
    for key, found in in_file.items():
        if found != expected[key]:
            what = key.replace("_", "-")
            raise WrongFile(
                f"the ONNX file has {found:,} {what}, and {owner} has {expected[key]:,}; nothing was written"
            )
    return in_file if plain else {**in_file, "baseline": baseline}


def measure_files(
    content: Mapping[str, bytes], images: ExportSubject, batch: np.ndarray, seconds: float, threads: int
) -> dict[str, dict[str, Any]]:
    """Measure each file's accuracy on all evaluation images, and its latencies on `batch`, repeated as needed."""
    sessions = {kind: open_session(model, threads) for kind, model in content.items()}
    accuracy = {kind: Accuracy() for kind in sessions}
    for inputs, labels in images.batches(images.evaluation):
        for kind, session in sessions.items():
            accuracy[kind].add(compute_logits(session, inputs.numpy()), labels)
    timed = {
        size: measure_latencies(sessions, np.resize(batch, (size, *batch.shape[1:])), seconds) for size in TIMED_BATCHES
    }
    return {
        kind: {**accuracy[kind].figures, "latency": {str(size): timed[size][kind] for size in TIMED_BATCHES}}
        for kind in sessions
    }


def make_notes(finished: FinishedRun, images: ExportSubject) -> dict[str, Any]:
    """Collect the metadata of a file: how to prepare its input and how to read its output."""
    run, dataset = finished.run, images.dataset
    return {
        "input": f"{INPUT}: float32 [batch, 3, {images.size}, {images.size}], red, green, blue; "
        "pixels scaled to 0..1, less mean, divided by std",
        "mean": images.recipe.mean,
        "std": images.recipe.std,
        "image_size": images.size,
        "output": f"{OUTPUT}: float32 [batch, {dataset.num_classes}], before softmax, in the order of classes",
        "num_classes": dataset.num_classes,
        "classes": dataset.classes,
        "network": run.student,
        "dataset": run.dataset,
        "run": run.id,
        "weights": finished.record["weights"]["student"],
        "suite": f"kd-benchmark {benchmark.__version__}",
    }


def describe_identity(finished: FinishedRun, images: ExportSubject) -> dict[str, Any]:
    """Collect which run was exported, and on which images it was measured."""
    run = finished.run
    return {
        "format": FORMAT,
        "run": run.id,
        "weights": finished.record["weights"]["student"],
        "network": run.student,
        "method": run.method,
        "dataset": run.dataset,
        "scale": run.scale.name,
        "seed": run.seed,
        "num_classes": images.dataset.num_classes,
        "image_size": images.size,
        "image_size_of_dataset": images.dataset.image_size,
        "mean": images.recipe.mean,
        "std": images.recipe.std,
        "evaluated_on": "images held out of the training set" if run.validation else "test images",
        "evaluation_images": len(images.evaluation),
        "top1_in_record": finished.record["final"].get("top1"),
    }


def describe_surroundings(threads: int) -> dict[str, Any]:
    """Collect the processor and the versions of the measurement."""
    return {
        "processor": device_name(CPU),
        "threads": threads,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "opset": OPSET,
        # The file is meant for others.
        "provenance": anonymise(provenance(shlex.join([*PROGRAM.split(), *sys.argv[1:]]), CPU)),
    }
