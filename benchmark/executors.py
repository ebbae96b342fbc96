"""Choose an executor by name: processes of this machine, this process alone, or a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from benchmark.core.devices import cpu_count, resolve_device
from benchmark.core.errors import UserError
from benchmark.execution.executor import Executor
from benchmark.execution.local import Local

ExecutorName = Literal["local", "debug", "slurm"]


def make_executor(
    name: ExecutorName, device: str, workers: int | None, processes: int, profile: Path | None, waits: bool
) -> Executor:
    """Make the executor that a command's options describe. processes: how many share each batch of a run.

    Raises:
        UserError: an option belongs to another executor, the device is missing, or the profile cannot be read.
    """
    if name == "slurm":
        # Its library would make every other command start later.
        from slurm.executor import Slurm
        from slurm.profile import EXAMPLE, load_profile

        if workers is not None:
            raise UserError(
                "--workers does not apply to --executor slurm, where the profile says what jobs get; remove --workers"
            )
        if profile is None:
            raise UserError(f"--executor slurm needs --profile FILE; {EXAMPLE} documents every field of one")
        cluster = Slurm(load_profile(profile), waits)
        if device not in ("auto", str(cluster.device)):
            raise UserError(
                f"--device {device}: the jobs of this profile train on {cluster.device}; change its gpus, or leave "
                "--device out"
            )
        return cluster
    if profile is not None:
        raise UserError(
            f"--profile only applies to --executor slurm, not to {name}; pass --executor slurm, or remove --profile"
        )
    if not waits:
        raise UserError(
            f"--no-wait only applies to --executor slurm, not to {name}; pass --executor slurm, or remove --no-wait"
        )
    if name == "debug" and (workers or 1) > 1:
        raise UserError("--executor debug trains in this process; leave --workers out, or use --executor local")
    here = resolve_device(device)
    usual = 1 if here.type == "cuda" or processes > 1 else cpu_count()
    return Local(here, 1 if name == "debug" else workers or usual)
