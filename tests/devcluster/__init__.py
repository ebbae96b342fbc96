"""A real SLURM on this one machine, for tests and trials: `python -m tests.devcluster up`, then `down`.

slurmctld, a slurmd per node and a munged of its own run as plain daemons of the present user in one folder; nothing of
the system is touched, and clusters side by side do not meet. `devcluster()` is the same as a context manager.
"""

from tests.devcluster.configuration import Layout
from tests.devcluster.daemons import Cluster
from tests.devcluster.lifetime import cluster_in, devcluster, up
from tests.devcluster.processes import missing, processes_of

__all__ = ["Cluster", "Layout", "cluster_in", "devcluster", "missing", "processes_of", "up"]
