"""A real SLURM on this one machine, for tests: `devcluster()` starts it and removes it again.

slurmctld, a slurmd per node and a munged of its own run as plain daemons of the present user in one folder; nothing of
the system is touched, and clusters side by side do not meet.
"""

from tests.devcluster.daemons import Cluster
from tests.devcluster.lifetime import devcluster
from tests.devcluster.processes import missing, processes_of

__all__ = ["Cluster", "devcluster", "missing", "processes_of"]
