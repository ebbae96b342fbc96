"""The command line: `python -m tests.devcluster up` and `down`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from benchmark.core.errors import UserError
from tests.devcluster.configuration import Layout
from tests.devcluster.lifetime import cluster_in, default_folder, up

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="A SLURM of one machine, made of its own daemons, for tests of sweeps.",
)
Folder = Annotated[Path | None, typer.Option(help="The cluster's folder; by default one under the temporary folder.")]


@app.command("up")
def up_command(
    nodes: Annotated[int, typer.Option(help="How many nodes.")] = 4,
    cpus_per_node: Annotated[int, typer.Option(help="Processors of a node; they need not exist.")] = 2,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of a node; they do not exist.")] = 1,
    memory: Annotated[int, typer.Option(help="Memory of a node in MB; it need not exist.")] = 64_000,
    grace: Annotated[int, typer.Option(help="Seconds between SIGTERM and SIGKILL of a preempted job.")] = 5,
    folder: Folder = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of slurm.conf (repeatable).")] = None,
) -> None:
    """Start a cluster, wait until it is idle, and print the line for a shell that shall use it."""
    options = {}
    for assignment in settings or []:
        key, equals, value = assignment.partition("=")
        if not (key and equals):
            raise UserError(f"--set {assignment!r} is not of the form KEY=VALUE, such as MaxArraySize=10")
        options[key] = value
    layout = Layout(nodes, cpus_per_node, memory, gpus_per_node, grace, options=options)
    cluster = up(folder or default_folder(), layout)
    path = shlex.quote(str(cluster.folder / "slurm.conf"))
    typer.echo(f"export SLURM_CONF={path}  # {nodes} nodes, idle; folder {cluster.folder}")


@app.command("down")
def down_command(folder: Folder = None) -> None:
    """End a cluster, with all its daemons and jobs, and remove its folder."""
    cluster_in(folder or default_folder()).down()


if __name__ == "__main__":
    from benchmark.cli.app import run_app

    run_app(app, "python -m tests.devcluster")
