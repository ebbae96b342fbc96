"""The options that several command lines share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from benchmark.core.errors import UserError

MOST_PROCESSES = 1024
"""Of one command or job; also of its GPUs and its processor cores."""
A_DAY = 86_400
"""The longest time, in seconds, between two things that one command does."""
ScaleName = Annotated[str, typer.Option(help="demo, quick or paper: how much of the protocol is spent.")]
Epochs = Annotated[int | None, typer.Option(min=1, max=10_000, help="Scale to so many epochs instead.")]
ProtocolName = Annotated[str, typer.Option(help="The training recipe (docs/protocols.md).")]
DatasetName = Annotated[str, typer.Option(help="A dataset by name or TOML file. [that of the table at this scale]")]
DataRoot = Annotated[Path | None, typer.Option(help="The folder that holds the dataset.")]
DeviceName = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
PrecisionName = Annotated[Literal["auto", "fp32", "bf16"], typer.Option(help="Precision of forwards.")]
Workers = Annotated[int | None, typer.Option(min=1, max=MOST_PROCESSES, help="Processes. [CPU: one a core; CUDA: 1]")]
Threads = Annotated[int, typer.Option(min=1, max=256, help="Threads of each process.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="LSSKD.alpha=0.3 or protocol.weight_decay=1e-4 (repeatable).")
]
Runs = Annotated[Path, typer.Option(help="Where the records are kept.")]
DEFAULT_RUNS = Path("runs")
WithoutHost = Annotated[
    bool,
    typer.Option(
        "--without-host/--with-host",
        help="Leave the host's name and absolute paths out of what is written, so that it can be published.",
    ),
]
Reports = Annotated[Path, typer.Option(help="Where tables, figures and rankings are written.")]
Pages = Annotated[Path, typer.Option(help="Where what this command makes is written.")]


def check_exists(runs: Path) -> None:
    """Refuse a named folder of records that does not exist. The default folder may be missing.

    Raises:
        UserError: it does not exist.
    """
    if runs != DEFAULT_RUNS and not runs.is_dir():
        raise UserError(f"--runs {runs} is no folder; give the one that holds the records, or leave --runs out")
