"""A cluster from the making of its folder to the removal."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmark.core.errors import UserError
from tests.devcluster.configuration import Layout, munge_socket, write_configuration
from tests.devcluster.daemons import Cluster
from tests.devcluster.processes import missing

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
