"""The options that several command lines share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

ScaleName = Annotated[str, typer.Option(help="demo, quick or paper: how much of the protocol is spent.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Scale to so many epochs instead.")]
ProtocolName = Annotated[str, typer.Option(help="The training recipe (docs/protocols.md).")]
DatasetName = Annotated[str, typer.Option(help="A dataset by name or TOML file. [that of the table at this scale]")]
DataRoot = Annotated[Path | None, typer.Option(help="The folder that holds the dataset.")]
DeviceName = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
PrecisionName = Annotated[Literal["auto", "fp32", "bf16"], typer.Option(help="Precision of forwards.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes. [CPU: one a core; CUDA: 1]")]
Threads = Annotated[int, typer.Option(min=1, max=256, help="Threads of each process.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="LSSKD.alpha=0.3 or protocol.weight_decay=1e-4 (repeatable).")
]
Runs = Annotated[Path, typer.Option(help="Where the records are kept.")]
Reports = Annotated[Path, typer.Option(help="Where tables and rankings are written.")]
