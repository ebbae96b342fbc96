"""A cluster from the making of its folder to the removal."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmark.core.errors import UserError
from tests.devcluster.configuration import Layout, write_configuration
from tests.devcluster.daemons import Cluster
from tests.devcluster.processes import missing

ATTEMPTS = 3
"""How often a cluster is begun anew if another process has taken one of its ports meanwhile."""
TAKEN = "Address already in use"


@contextlib.contextmanager
def devcluster(
    nodes: int = 4, cpus: int = 2, options: Mapping[str, str | int] | None = None, **layout: int
) -> Iterator[Cluster]:
    """A cluster in a folder of its own, up and idle, while the context lasts; nothing of it is left afterwards.

    `options` are those of slurm.conf; `layout` are further fields of `Layout`: memory, gpus, grace, short.

    Raises:
        UserError: no cluster can be made here, or its daemons do not come up, with the end of their log.
    """
    if (reason := missing()) is not None:
        raise UserError(f"no SLURM cluster can be made here: {reason}")
    chosen = Layout(nodes=nodes, cpus=cpus, options=options or {}, **layout)
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="devcluster-")), f"dev{secrets.token_hex(4)}", chosen.names)
    try:
        _begin(cluster, chosen)
        yield cluster
    finally:
        cluster.down()


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
