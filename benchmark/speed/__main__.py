"""The command `python -m benchmark.speed`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console

from benchmark.cli.app import run_app, split_names
from benchmark.cli.options import DeviceName
from benchmark.core.devices import cpu_count, device_name, make_deterministic, resolve_device
from benchmark.core.errors import UserError, unknown_name
from benchmark.core.spec import Precision
from benchmark.core.text import counted
from benchmark.data.imagenet import IMAGE_SIZE as CROP_SIZE
from benchmark.planning.overrides import parse_pair
from benchmark.plugins.registry import method_class, method_names
from benchmark.speed import images, planning, training

What = Literal["training", "images", "planning"]
ROUNDS = 7

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    what: Annotated[
        What, typer.Option(help="Training steps; images on disk; or planning a sweep and loading its records.")
    ] = "training",
    pairs: Annotated[
        str | None,
        typer.Option(help="Teacher>student pairs, comma-separated. [WRN-40-2>WRN-16-2; images: that of Table I]"),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods, comma-separated. [the default grid's; images: Baseline,KD]")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16, or both as fp32,bf16. [both; images: fp32]")
    ] = None,
    device: DeviceName = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. [all processors]")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Height and width of the images. [32; images: crops of 224]")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="With images: those of a batch. [32]")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Timed rounds; the median counts. [7; images: 3]")] = None,
    count: Annotated[
        int | None, typer.Option(min=2, help="Images that are made [256], or runs that are planned [100000].")
    ] = None,
) -> int:
    """Print images per second of each method alone and in a cohort, and the ratios to the bare student step.

    With --what images, those of decoding JPEGs and of learning from them, apart and together. With --what planning,
    seconds and memory of planning a large sweep of all tables and of loading its records. What is needed for these two
    is made in the folder for temporary files.
    """
    console = Console()
    of_training = {"pairs": pairs, "methods": methods, "precision": precision, "threads": threads, "rounds": rounds}
    if what == "planning":
        _refuse(what, {**of_training, "image-size": image_size, "batch": batch})
        planning.measure(console, count or planning.RUNS, workers=1)
        return 0
    if what == "training":
        _refuse(what, {"batch": batch, "count": count})
    target, used = resolve_device(device), threads or cpu_count()
    usual_pair, usual_methods = (images.PAIR, images.METHODS) if what == "images" else ("WRN-40-2>WRN-16-2", None)
    both = [parse_pair(pair) for pair in split_names(pairs, "--pairs") or [usual_pair]]
    chosen = split_names(methods if methods is not None else usual_methods, "--methods")
    chosen = chosen or [name for name in method_names() if method_class(name).in_default_grid]
    for name in chosen:
        method_class(name)
    kinds = _precisions(precision if precision is not None else "fp32" if what == "images" else "fp32,bf16")
    make_deterministic(target, used)
    console.print(f"{device_name(target)}, {counted(used, 'thread')}, torch {torch.__version__}", highlight=False)
    if what == "images":
        size = image_size or CROP_SIZE
        images.measure(console, both, chosen, target, used, kinds, size, rounds or 3, count or 256, batch or 32)
    else:
        size = image_size or training.IMAGE_SIZE
        training.measure(console, both, chosen, target, used, kinds, size, rounds or ROUNDS)
    return 0


def _refuse(what: What, options: Mapping[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"--{given[0]} says nothing with --what {what}; leave it out")


def _precisions(text: str) -> list[Precision]:
    known: dict[str, Precision] = {"fp32": "fp32", "bf16": "bf16"}
    asked = split_names(text, "--precision")
    for name in asked:
        if name not in known:
            raise unknown_name("precision", name, known)
    return [known[name] for name in asked]


if __name__ == "__main__":
    run_app(app, "python -m benchmark.speed")
