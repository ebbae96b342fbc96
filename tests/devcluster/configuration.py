"""The configuration of a one-machine cluster: slurm.conf and gres.conf for quick and hard tests (SLURM 22.05).

Every daemon runs on this host. The nodes differ in name, port and spool folder only, which needs a slurmd that was
built with multiple-slurmd, as Debian's is; their processors, memory and GPUs are made up.

What was seen of such a cluster, and what a test must reckon with:

- scancel, requeue and a time limit send SIGCONT and SIGTERM to the steps and the batch script, then SIGKILL. Preemption
  tells the steps (`srun ...`) alone when the grace begins; the batch script hears of it at its end.
- proctrack/linuxproc follows parents: what a batch script left running when it died of SIGTERM lives on, unknown to
  SLURM. A step (`srun`) or the script's own process (`exec`) is followed.
- Time limits and grace times are looked at now and then: a limit of 1 minute ended a job after 88 s, and 5 s of grace
  lasted up to 12. A job's --signal may come earlier than asked (by up to a minute, says the manual).
- A killed step daemon is never missed: its job stays RUNNING, its process goes on. A killed slurmd is missed after two
  to three times SlurmdTimeout, and its jobs start elsewhere while their processes go on.
- A controller that is killed forgets the starts of its last seconds: such a job is PENDING again, its process is killed
  and started anew, and SLURM_RESTART_COUNT does not count it. After every start of the controller the nodes are
  `unknown` for some seconds.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.core.errors import UserError

LOWEST_PORT = 10_000
HIGHEST_PORT = 32_000
"""Linux gives connections ports from 32768 on, so a port from below is not lost between choosing it and using it."""
LONGEST_SOCKET = 100
"""Bytes of a Unix socket's path: 108 less what munged adds for its lock."""

CREDENTIAL_SECONDS = 5
"""How long a requeued job waits before it starts again; SLURM takes no less than 5."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
"""What passes for GPUs: with a device file SLURM hands out numbers, and a job has CUDA_VISIBLE_DEVICES."""

OPTIONS: dict[str, str] = {
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "SwitchType": "switch/none",
    "MpiDefault": "none",
    "JobAcctGatherType": "jobacct_gather/none",
    # No accounting: sacct fails, as on many clusters, and nothing may depend on it.
    "AccountingStorageType": "accounting_storage/none",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_CPU_Memory",
    # The nodes have the processors that slurm.conf says, whatever the machine has.
    "SlurmdParameters": "config_overrides",
    "SchedulerType": "sched/backfill",
    # A job starts within a second of its submission, instead of within a minute of the next cycle.
    "SchedulerParameters": "batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2",
    "PriorityType": "priority/basic",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "JobRequeue": "1",
    # SIGKILL follows SIGTERM after 5 s (30 by default), for scancel and the time limit; preemption has its GraceTime.
    "KillWait": "5",
    "CompleteWait": "0",
    # A node whose slurmd is gone is DOWN some seconds after this, and idle as soon as it registers again.
    "SlurmdTimeout": "6",
    "SlurmctldTimeout": "6",
    "ReturnToService": "2",
    "MessageTimeout": "5",
    "TCPTimeout": "2",
    # Seconds for which squeue and scontrol still know a job that has ended; 2 is the least SLURM takes.
    "MinJobAge": "300",
    "InactiveLimit": "0",
    "MaxArraySize": "1001",
    "MaxJobCount": "10000",
    # The limits of the daemons' starter (a test runner, say) are nobody's wish for the jobs.
    "PropagateResourceLimits": "NONE",
    # There is no mail here, and slurmctld complains about a program that is not there.
    "MailProg": "/bin/true",
    "GresTypes": "gpu",
    "SlurmctldDebug": "debug",
    "SlurmdDebug": "debug",
}


@dataclass(frozen=True)
class Layout:
    """What a cluster is made of.

    `cpus`, `memory` (MB) and `gpus` are per node, `grace` is what a preempted job gets between SIGTERM and SIGKILL
    (seconds), `short` the time limit of the partition of that name (minutes). `options` add to slurm.conf or replace
    what `OPTIONS` says.
    """

    nodes: int = 4
    cpus: int = 2
    memory: int = 64_000
    gpus: int = 1
    grace: int = 5
    short: int = 1
    options: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The nodes' names: n1, n2 and so on."""
        return [f"n{number + 1}" for number in range(self.nodes)]


def write_configuration(folder: Path, layout: Layout, cluster: str, user: str) -> None:
    """Write slurm.conf and gres.conf of a cluster named `cluster` into `folder`, on ports that are free now.

    Raises:
        UserError: the folder's path is too long for a socket, or no port is free.
    """
    ports = free_ports(layout.nodes + 1)
    own = {
        "ClusterName": cluster,
        "SlurmctldHost": f"{socket.gethostname()}(127.0.0.1)",
        "SlurmctldPort": ports[0],
        "SlurmUser": user,
        "SlurmdUser": user,
        "AuthType": "auth/munge",
        # A requeued job waits until the credential of its last start has expired: 120 s by default.
        "AuthInfo": f"socket={munge_socket(folder)},cred_expire={CREDENTIAL_SECONDS}",
        "CredType": "cred/munge",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool" / "%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd-%n.pid",
        "SlurmctldLogFile": folder / "log" / "slurmctld.log",
        "SlurmdLogFile": folder / "log" / "%n.log",
    }
    replaced = {key.lower() for key in layout.options}
    usual = {key: value for key, value in OPTIONS.items() if key.lower() not in replaced}
    lines = [f"{key}={value}" for key, value in {**own, **usual, **layout.options}.items()]
    lines += [
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port}"
        f" CPUs={layout.cpus} RealMemory={layout.memory}" + (f" Gres=gpu:{layout.gpus}" if layout.gpus else "")
        for name, port in zip(layout.names, ports[1:], strict=True)
    ]
    lines += partitions(layout)
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "gres.conf").write_text(_gpus(layout), encoding="utf-8")


def partitions(layout: Layout) -> list[str]:
    """The partitions' lines: `main`, `high` that takes nodes from it, and `short` with a time limit."""
    common = f"Nodes=ALL State=UP DefMemPerCPU={min(100, layout.memory)} GraceTime={layout.grace}"
    return [
        f"PartitionName=main {common} Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE",
        f"PartitionName=high {common} MaxTime=INFINITE DefaultTime=60 PriorityTier=10 PreemptMode=OFF",
        f"PartitionName=short {common} MaxTime={layout.short} PriorityTier=1 PreemptMode=REQUEUE",
    ]


def _gpus(layout: Layout) -> str:
    nodes = ",".join(layout.names)
    return "".join(f"NodeName={nodes} Name=gpu File={device}\n" for device in DEVICES[: layout.gpus])


def munge_socket(folder: Path) -> Path:
    """The socket of a cluster's own munged.

    Raises:
        UserError: its path would be longer than a socket's may be.
    """
    path = folder / "munge.socket"
    if len(str(path).encode()) > LONGEST_SOCKET:
        raise UserError(f"{folder} is too long a path for a socket; choose one of under {LONGEST_SOCKET - 14} letters")
    if any(letter.isspace() or letter in "#,=\\%" for letter in str(path)):
        raise UserError(f"slurm.conf cannot hold the path {folder}; choose one without spaces and # , = \\ %")
    return path


def free_ports(count: int) -> Sequence[int]:
    """`count` different ports that nobody listens on now, in no order that another cluster would try too.

    Raises:
        UserError: there are not as many.
    """
    chosen: list[int] = []
    for port in random.SystemRandom().sample(range(LOWEST_PORT, HIGHEST_PORT), HIGHEST_PORT - LOWEST_PORT):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("", port))
            except OSError:
                continue
        chosen.append(port)
        if len(chosen) == count:
            return chosen
    raise UserError(f"only {len(chosen)} ports of {LOWEST_PORT} to {HIGHEST_PORT} are free; {count} are needed")
