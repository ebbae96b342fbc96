"""Write a trained student for a small device: `python -m benchmark.export RUN --onnx`.

The student, without whatever trained it, becomes two ONNX files, in float32 and in int8. They are checked against the
network that was trained, counted against the network of that name, and measured on this processor (docs/export.md).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

import benchmark
from benchmark.backbones import build_network
from benchmark.backbones.cost import multiply_adds, parameters
from benchmark.backbones.network import Network
from benchmark.command_line import command, run_app
from benchmark.data import dataset_names, load_dataset
from benchmark.data.augmentation import Recipe, evaluation_batches
from benchmark.data.dataset import Dataset, Images
from benchmark.data.subsets import stratified_fraction
from benchmark.edge import (
    FIGURES,
    FORMAT,
    INPUT,
    OPSET,
    OUTPUT,
    TIMED_BATCHES,
    TOLERANCE,
    Accuracy,
    Edge,
    WrongFile,
    compare,
    latencies,
    logits_of,
    multiply_adds_in,
    open_session,
    parameters_in,
    quantised,
    scaled,
    to_onnx,
    with_notes,
)
from benchmark.errors import UserError
from benchmark.files import check_writable, replacing, write_text
from benchmark.finished import Finished, finished_run, trained_network
from benchmark.options import DataRoot, Runs, Threads
from benchmark.provenance import provenance
from benchmark.spec import Run
from benchmark.training.devices import device_name, make_deterministic
from benchmark.training.evaluation import BATCH_SIZE
from benchmark.training.material import recipe_for, training_material

CPU = torch.device("cpu")
CHECKED_IMAGES = 500
CALIBRATION_IMAGES = 500
CHECK_FAILED = 1
FILE = "student.onnx"

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Shown:
    """What a file is checked, calibrated and measured on: images of the run's dataset, brought to `size`."""

    dataset: Dataset
    recipe: Recipe
    size: int
    train: Images
    evaluation: Images

    def batches(self, images: Images) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images [batch, 3, size, size] and labels [batch]."""
        return scaled(evaluation_batches(images, self.recipe, BATCH_SIZE, CPU), self.size)

    def some(self, images: Images, count: int, purpose: str) -> Tensor:
        """About `count` normalised images, the same share of each class, drawn from a stream of that name."""
        share = min(1.0, count / len(images))
        index = stratified_fraction(images.labels, share, self.dataset.name, "export", purpose)
        # Every class has at least one; of more classes than that, every second or third has none.
        index = index[:: math.ceil(len(index) / (2 * count))]
        return torch.cat([batch for batch, _ in self.batches(images.subset(index))])


@app.command()
def main(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A finished run: its folder, its record.json, or the start of its id.")
    ],
    onnx_format: Annotated[bool, typer.Option("--onnx", help="As ONNX files, the one format there is.")] = False,
    output: Annotated[Path | None, typer.Option(help="The file to write. [student.onnx in the run's folder]")] = None,
    dataset: Annotated[str, typer.Option(help="The run's dataset, where it is a TOML file of your own.")] = "",
    data_root: DataRoot = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, max=1024, help="Height and width of the images. [those of the dataset]")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, max=600, help="Time that each latency is measured for.")] = 2.0,
    threads: Threads = 1,
    runs: Runs = Path("runs"),
) -> int:
    """Write the student of a run as ONNX files in float32 and int8, check them, and measure them on this processor."""
    if not onnx_format:
        raise UserError("which format? pass --onnx, the one that there is")
    console = Console()
    finished = finished_run(run, runs)
    target = output or finished.folder / FILE
    check_writable(finished.folder, "--runs")
    check_target(target)
    make_deterministic(CPU, threads)
    images = images_of(finished.run, dataset, data_root, image_size)
    network = trained_network(finished, images.dataset.num_classes)
    try:
        edge = export(finished, network, images, target, seconds, threads, console)
    except WrongFile as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", markup=False, soft_wrap=True)
        return CHECK_FAILED
    show(edge, console)
    for path in (target, int8_file(target), finished.folder / FIGURES):
        console.print(f"written: {path}", highlight=False, markup=False, soft_wrap=True)
    return 0


def check_target(target: Path) -> None:
    """Refuse a file that could not be written, or that is no ONNX file by its name, before any work is done.

    Raises:
        UserError: it ends otherwise than in .onnx, is a folder, or its folder may not be written.
    """
    if target.suffix != ".onnx" or target.is_dir():
        raise UserError(f"--output {target} is no name of an ONNX file; name one that ends in .onnx, such as {FILE}")
    check_writable(target.parent, "--output")


def images_of(run: Run, dataset: str, data_root: Path | None, image_size: int | None) -> Shown:
    """The images of a run's dataset: those that it learned from, and those that it was evaluated on.

    Raises:
        UserError: the dataset is not there, or is not the one that the run was trained on.
    """
    if not dataset and run.dataset not in dataset_names():
        raise UserError(f"{run.id} was trained on {run.dataset!r}, a dataset of your own; pass --dataset FILE.toml")
    loaded = load_dataset(dataset or run.dataset, data_root, download=False)
    if loaded.name != run.dataset:
        raise UserError(f"{run.id} was trained on {run.dataset!r}, not on {loaded.name!r}; pass the right --dataset")
    if loaded.fingerprint != run.fingerprint:
        raise UserError(
            f"dataset {loaded.name} is not the one that {run.id} was trained on: its images or its normalisation have "
            "changed; pass the right one with --data-root or --dataset"
        )
    material = training_material(run, loaded)
    recipe = recipe_for(run.protocol, loaded)
    return Shown(loaded, recipe, image_size or loaded.image_size, material.train, material.evaluation)


def int8_file(target: Path) -> Path:
    """Where the int8 file goes."""
    return target.with_name(f"{target.stem}-int8{target.suffix}")


def export(
    finished: Finished, network: Network, images: Shown, target: Path, seconds: float, threads: int, console: Console
) -> Edge:
    """Make, check and measure both files, write them and their figures; returns the figures.

    Raises:
        WrongFile: the file is not the network that was trained; nothing was written.
        UserError: a file cannot be written.
    """
    notes = notes_on(finished, images)
    name = finished.run.student
    with console.status(f"checking {name}"):
        plain = to_onnx(network, images.size)
        counts = counted(plain, name, images)
        content = {"fp32": with_notes(plain, notes | {"precision": "fp32"}).SerializeToString()}
        some = images.some(images.evaluation, CHECKED_IMAGES, "check")
        checked = compare(network, open_session(content["fp32"], threads), some)
    with console.status(f"quantising {name}"):
        calibration = images.some(images.train, CALIBRATION_IMAGES, "calibration")
        small = quantised(plain, calibration.numpy())
        content["int8"] = with_notes(small, notes | {"precision": "int8"}).SerializeToString()
    with console.status(f"measuring {name}"):
        measured = measurements(content, images, some.numpy(), seconds, threads)
    for kind, path in (("fp32", target), ("int8", int8_file(target))):
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
        **identity(finished, images),
        **counts,
        "logits": dataclasses.asdict(checked),
        "calibration_images": len(calibration),
        **measured,
        "loss": {key: measured["fp32"][key] - measured["int8"][key] for key in ("top1", "top5")},
        **surroundings(threads),
    }
    write_text(finished.folder / FIGURES, json.dumps(edge, indent=1) + "\n")
    return edge


def counted(model: onnx.ModelProto, name: str, images: Shown) -> dict[str, int]:
    """Parameters and multiply-adds of one image: those in the file, which are those of the Baseline network `name`.

    Raises:
        WrongFile: they are not.
    """
    baseline = build_network(name, images.dataset.num_classes)
    in_file = {"parameters": parameters_in(model), "multiply_adds": multiply_adds_in(model, images.size)}
    expected = {
        "parameters": parameters(baseline),
        "multiply_adds": multiply_adds(baseline, torch.zeros(1, 3, images.size, images.size)),
    }
    for key, count in in_file.items():
        if count != expected[key]:
            what = key.replace("_", "-")
            raise WrongFile(
                f"the ONNX file has {count:,} {what}, and {name} has {expected[key]:,}; nothing was written"
            )
    return in_file


def measurements(
    content: Mapping[str, bytes], images: Shown, batch: np.ndarray, seconds: float, threads: int
) -> dict[str, dict[str, Any]]:
    """Accuracy of each file over all evaluation images, and its latencies on `batch`, repeated as often as needed."""
    sessions = {kind: open_session(model, threads) for kind, model in content.items()}
    accuracy = {kind: Accuracy() for kind in sessions}
    for inputs, labels in images.batches(images.evaluation):
        for kind, session in sessions.items():
            accuracy[kind].add(logits_of(session, inputs.numpy()), labels)
    timed = {size: latencies(sessions, np.resize(batch, (size, *batch.shape[1:])), seconds) for size in TIMED_BATCHES}
    return {
        kind: {**accuracy[kind].figures, "latency": {str(size): timed[size][kind] for size in TIMED_BATCHES}}
        for kind in sessions
    }


def notes_on(finished: Finished, images: Shown) -> dict[str, Any]:
    """What goes into the metadata of a file: all that its user must know to feed it and to read its answer."""
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


def identity(finished: Finished, images: Shown) -> dict[str, Any]:
    """What was exported, and what it was measured on."""
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


def surroundings(threads: int) -> dict[str, Any]:
    """On what and with what it was measured."""
    return {
        "processor": device_name(CPU),
        "threads": threads,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "opset": OPSET,
        "provenance": provenance(command(), CPU),
    }


def within(logits: Mapping[str, float]) -> str:
    """How a difference of logits that has passed stands to what is allowed."""
    if logits["difference"] <= TOLERANCE:
        return f"allowed: {TOLERANCE:.0e}"
    return (
        f"more than {TOLERANCE:.0e}, but the latter are {logits['rounding']:.1e} from what they are in float64, so "
        f"{logits['allowed']:.1e} is allowed (docs/export.md)"
    )


def milliseconds(time: float) -> str:
    """A positive time to three digits, and all of those before the point."""
    return f"{time:,.{max(0, 2 - math.floor(math.log10(time)))}f}"


def show(edge: Edge, console: Console) -> None:
    """Print the figures."""

    def line(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    size, logits = edge["image_size"], edge["logits"]
    mean, std = (", ".join(f"{value:.4f}" for value in edge[key]) for key in ("mean", "std"))
    line(f"{edge['run']}: {edge['network']}, {edge['num_classes']} classes of {edge['dataset']}")
    line(f"{INPUT}: float32 [batch, 3, {size}, {size}], pixels scaled to 0..1, less ({mean}), over ({std})")
    line(f"{OUTPUT}: float32 [batch, {edge['num_classes']}]")
    line(f"parameters: {edge['parameters']:,} in the file, exactly as in the Baseline {edge['network']}")
    line(f"multiply-adds of an image: {edge['multiply_adds']:,} in the file, exactly as in the Baseline's")
    line(
        f"logits: at most {logits['difference']:.1e} from the training network's, on {logits['images']} "
        f"{edge['evaluated_on']}; {within(logits)}"
    )
    screen = Table("", "fp32", "int8", box=None, pad_edge=False)
    kinds = [edge["fp32"], edge["int8"]]
    screen.add_row("file, bytes", *(f"{kind['bytes']:,}" for kind in kinds))
    for key, title in (("top1", "top-1, %"), ("top5", "top-5, %")):
        screen.add_row(title, f"{kinds[0][key]:.2f}", f"{kinds[1][key]:.2f} ({0 - edge['loss'][key]:+.2f})")
    for batch in map(str, TIMED_BATCHES):
        times = [kind["latency"][batch] for kind in kinds]
        spans = [[milliseconds(time[f"{part}_ms"]) for part in ("median", "p10", "p90")] for time in times]
        cells = [f"{median} ({low} to {high})" for median, low, high in spans]
        screen.add_row(f"{batch} image{'s' * (batch != '1')}, ms", *cells)
    console.print(screen)
    scaled_from = edge["image_size_of_dataset"]
    resized = "" if size == scaled_from else f", scaled from {scaled_from}x{scaled_from}"
    line(
        f"Accuracy of this one run (scale {edge['scale']}, seed {edge['seed']}) on all {edge['evaluation_images']} "
        f"{edge['evaluated_on']}{resized}."
    )
    line(
        f"Times: median (10th to 90th percentile) on {edge['processor']}, {edge['threads']} "
        f"{'thread' if edge['threads'] == 1 else 'threads'}, onnxruntime {edge['onnxruntime']}; int8 calibrated on "
        f"{edge['calibration_images']} training images."
    )


if __name__ == "__main__":
    run_app(app, "python -m benchmark.export")
