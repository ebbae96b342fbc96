"""A real SLURM on this one machine, for tests and trials: `python -m slurm.devcluster up`, then `down`.

slurmctld, a slurmd per node and a munged of its own run as plain daemons of the present user in one folder; nothing of
the system is touched, and clusters side by side do not meet. `devcluster()` is the same as a context manager.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from benchmark.errors import UserError
from slurm.devcluster_conf import Layout, munge_socket, write_configuration
from slurm.devcluster_daemons import Cluster
from slurm.devcluster_processes import missing

__all__ = ["Cluster", "Layout", "cluster_in", "devcluster", "missing", "up"]

STATE = "devcluster.json"
"""The file that says a folder is a cluster's; `down` removes no folder without it."""
ATTEMPTS = 3
"""How often a cluster is begun anew where another process has taken one of its ports meanwhile."""
TAKEN = "Address already in use"


@contextlib.contextmanager
def devcluster(
    nodes: int = 4, cpus: int = 2, options: Mapping[str, str | int] | None = None, **layout: int
) -> Iterator[Cluster]:
    """A cluster of its own folder, up and idle, while the context lasts; nothing of it is left afterwards.

    `options` are those of slurm.conf; `layout` are further fields of `Layout`: memory, gpus, grace, short.

    Raises:
        UserError: no cluster can be made here, or its daemons do not come up, with the end of their log.
    """
    folder = Path(tempfile.mkdtemp(prefix="devcluster-"))
    try:
        cluster = up(folder, Layout(nodes=nodes, cpus=cpus, options=options or {}, **layout))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        yield cluster
    finally:
        cluster.down()


def up(folder: Path, layout: Layout) -> Cluster:
    """Start a cluster in an empty or new folder and wait until all its nodes are idle.

    Raises:
        UserError: the folder holds something, SLURM is not installed, or the daemons do not come up.
    """
    if (reason := missing()) is not None:
        raise UserError(f"no SLURM cluster can be made here: {reason}")
    folder = folder.absolute()
    munge_socket(folder)
    if (folder / STATE).exists():
        raise UserError(f"{folder} has a cluster already; end it with down, or name another folder with --folder")
    cluster = Cluster(folder, f"dev{secrets.token_hex(4)}", layout.names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; a cluster needs a folder of its own, name it with --folder")
        # Written before any daemon starts, so that `down` can clean up whatever happens from here on.
        with (folder / STATE).open("x") as state:
            json.dump({"name": cluster.name, "nodes": cluster.nodes}, state)
        try:
            _begin(cluster, layout)
        except BaseException:
            cluster.down()
            raise
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another with --folder") from error
    return cluster


def _begin(cluster: Cluster, layout: Layout) -> None:
    for attempt in range(ATTEMPTS):
        for name in ("log", "state", "spool"):
            shutil.rmtree(cluster.folder / name, ignore_errors=True)
            (cluster.folder / name).mkdir()
        for node in cluster.nodes:
            (cluster.folder / "spool" / node).mkdir()
        try:
            write_configuration(cluster.folder, layout, cluster.name, pwd.getpwuid(os.getuid()).pw_name)
            cluster.begin()
            return
        except UserError:
            logs = [path.read_text(errors="replace") for path in (cluster.folder / "log").iterdir()]
            if attempt + 1 == ATTEMPTS or not any(TAKEN in text for text in logs):
                raise
            cluster.end()


def cluster_in(folder: Path) -> Cluster:
    """The cluster that `up` has made, or begun to make, in a folder.

    Raises:
        UserError: there is none.
    """
    folder = folder.absolute()
    try:
        state = json.loads((folder / STATE).read_text())
        return Cluster(folder, state["name"], state["nodes"])
    except ValueError:
        # An `up` that was killed while it wrote this has started nothing yet.
        return Cluster(folder, "", [])
    except OSError:
        raise UserError(f"no cluster in {folder}; start one with up, or name its folder with --folder") from None


def default_folder() -> Path:
    """Where the command line makes its cluster: one for each user, under the temporary folder."""
    return Path(tempfile.gettempdir()) / f"devcluster-of-{pwd.getpwuid(os.getuid()).pw_name}"


app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, help=__doc__)
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
    from benchmark.command_line import run_app  # it reads the networks, which takes longer than a cluster does

    run_app(app, "python -m slurm.devcluster")
