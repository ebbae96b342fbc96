"""The command `python -m benchmark.speed`."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import typer
from rich.console import Console

from benchmark.cli.app import run_app, split_names
from benchmark.cli.options import DeviceName
from benchmark.core.devices import cpu_count, device_name, make_deterministic, resolve_device
from benchmark.core.errors import unknown_name
from benchmark.core.spec import Precision, TeacherOutputs
from benchmark.core.text import counted
from benchmark.planning.overrides import parse_pair
from benchmark.plugins.registry import method_class, method_names
from benchmark.speed import training

PAIR = "WRN-40-2>WRN-16-2"
ROUNDS = 7


def main(
    what: Annotated[Literal["training"], typer.Option(help="What is timed: training steps.", hidden=True)] = "training",
    pairs: Annotated[str, typer.Option(help="Teacher>student pairs, comma-separated.")] = PAIR,
    methods: Annotated[str | None, typer.Option(help="Methods, comma-separated. [the default grid's]")] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16, or both as fp32,bf16.")] = "fp32,bf16",
    device: DeviceName = "auto",
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="Threads. [all processors]")] = None,
    image_size: Annotated[
        int, typer.Option(min=8, max=1024, help="Height and width of the images.")
    ] = training.IMAGE_SIZE,
    teacher_outputs: Annotated[
        TeacherOutputs, typer.Option(help="atlas: time methods also with logits that are read (docs/atlas.md).")
    ] = "live",
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Timed rounds; the median counts.")] = ROUNDS,
) -> int:
    """Print images per second of each method alone and in a cohort, and the ratios to the bare student step."""
    console = Console()
    target, used = resolve_device(device), threads or cpu_count()
    both = [parse_pair(pair) for pair in split_names(pairs, "--pairs")]
    chosen = split_names(methods, "--methods")
    chosen = chosen or [name for name in method_names() if method_class(name).in_default_grid]
    for name in chosen:
        method_class(name)
    precisions = _parse_precisions(precision)
    make_deterministic(target, used)
    console.print(f"{device_name(target)}, {counted(used, 'thread')}, torch {torch.__version__}", highlight=False)
    training.measure(console, both, chosen, target, used, precisions, image_size, rounds, teacher_outputs)
    return 0


def _parse_precisions(text: str) -> list[Precision]:
    known: dict[str, Precision] = {"fp32": "fp32", "bf16": "bf16"}
    names = split_names(text, "--precision")
    for name in names:
        if name not in known:
            raise unknown_name("precision", name, known)
    return [known[name] for name in names]


if __name__ == "__main__":
    run_app(main, "python -m benchmark.speed")
