"""The command line: `python -m benchmark.export RUN --onnx`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmark.cli.app import run_app
from benchmark.cli.options import DataRoot, Runs, Threads
from benchmark.core.devices import make_deterministic
from benchmark.core.errors import UserError
from benchmark.export import FIGURES, Edge
from benchmark.export.edge import INPUT, OUTPUT, TIMED_BATCHES, TOLERANCE, WrongFile
from benchmark.export.exporting import CPU, PROGRAM, export, name_int8_file, select_images
from benchmark.export.finished import load_dataset_of, load_finished_run, load_predictor
from benchmark.export.hub import write_hub_folder
from benchmark.io.files import check_writable

CHECK_FAILED = 1
FILE = "student.onnx"


def main(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A finished run: its folder, its record.json, or the start of its id.")
    ],
    onnx_format: Annotated[bool, typer.Option("--onnx", help="As ONNX files.")] = False,
    hub: Annotated[
        Path | None,
        typer.Option(help="A folder to write for a model hub: safetensors, config.json and a card. Uploads nothing."),
    ] = None,
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
    """Write the student of a run as ONNX files, checked and measured on this processor, or as a model hub's folder."""
    if not onnx_format and hub is None:
        raise UserError("which format? pass --onnx, or --hub DIR for the folder of a model hub")
    console = Console()
    finished = load_finished_run(run, runs)
    if hub is not None:
        check_writable(hub, "--hub")
        own = load_dataset_of(finished.run, dataset, data_root)
        student = load_predictor(finished, own.num_classes, own.image_size)
        for path in write_hub_folder(finished, student, own, hub):
            console.print(f"written: {path}", highlight=False, markup=False, soft_wrap=True)
        if not onnx_format:
            return 0
    target = output or finished.folder / FILE
    check_writable(finished.folder, "--runs")
    check_target(target)
    make_deterministic(CPU, threads)
    images = select_images(finished.run, dataset, data_root, image_size)
    network = load_predictor(finished, images.dataset.num_classes, images.dataset.image_size)
    try:
        edge = export(finished, network, images, target, seconds, threads, console)
    except WrongFile as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", markup=False, soft_wrap=True)
        return CHECK_FAILED
    print_edge(edge, console)
    for path in (target, name_int8_file(target), finished.folder / FIGURES):
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


def format_agreement(logits: Mapping[str, float]) -> str:
    """Describe the limit that a difference of logits has passed."""
    if logits["difference"] <= TOLERANCE:
        return f"allowed: {TOLERANCE:.0e}"
    return (
        f"more than {TOLERANCE:.0e}, but the latter are {logits['rounding']:.1e} from what they are in float64, so "
        f"{logits['allowed']:.1e} is allowed (docs/export.md)"
    )


def format_milliseconds(time: float) -> str:
    """Format a positive time with three digits, or with all digits before the point."""
    return f"{time:,.{max(0, 2 - math.floor(math.log10(time)))}f}"


def print_edge(edge: Edge, console: Console) -> None:
    """Print the figures."""

    def line(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    size, logits = edge["image_size"], edge["logits"]
    mean, std = (", ".join(f"{value:.4f}" for value in edge[key]) for key in ("mean", "std"))
    line(f"{edge['run']}: {edge['network']}, {edge['num_classes']} classes of {edge['dataset']}")
    line(f"{INPUT}: float32 [batch, 3, {size}, {size}], pixels scaled to 0..1, less ({mean}), over ({std})")
    line(f"{OUTPUT}: float32 [batch, {edge['num_classes']}]")
    for key, title in (("parameters", "parameters"), ("multiply_adds", "multiply-adds of an image")):
        baseline = f"the Baseline {edge['network']}"
        # Where more than the student predicts, the file holds all of it.
        whose = f"{edge['baseline'][key]:,} in {baseline}" if "baseline" in edge else f"exactly as in {baseline}"
        line(f"{title}: {edge[key]:,} in the file, {whose}")
    line(
        f"logits: at most {logits['difference']:.1e} from the training network's, on {logits['images']} "
        f"{edge['evaluated_on']}; {format_agreement(logits)}"
    )
    screen = Table("", "fp32", "int8", box=None, pad_edge=False)
    kinds = [edge["fp32"], edge["int8"]]
    screen.add_row("file, bytes", *(f"{kind['bytes']:,}" for kind in kinds))
    for key, title in (("top1", "top-1, %"), ("top5", "top-5, %")):
        screen.add_row(title, f"{kinds[0][key]:.2f}", f"{kinds[1][key]:.2f} ({0 - edge['loss'][key]:+.2f})")
    for batch in map(str, TIMED_BATCHES):
        times = [kind["latency"][batch] for kind in kinds]
        spans = [[format_milliseconds(time[f"{part}_ms"]) for part in ("median", "p10", "p90")] for time in times]
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
    run_app(main, PROGRAM)
