"""What a cluster is asked for: a TOML file, `slurm/profiles/example.toml` documents every field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from benchmark.core.spec import Frozen
from benchmark.io.toml import load_toml
from benchmark.planning.jobs import Grouping

EXAMPLE = Path(__file__).parent / "profiles" / "example.toml"
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?")
RESERVED = (
    "array",
    "begin",
    "cpus-per-task",
    "dependency",
    "error",
    "exclude",
    "job-name",
    "nodes",
    "ntasks",
    "ntasks-per-node",
    "open-mode",
    "output",
    "requeue",
    "signal",
    "time",
    "wrap",
)
"""Options of sbatch that the suite sets itself."""


def minutes(value: object) -> object:
    """A time as SLURM writes it as minutes, rounded up.

    `90`, `90:00` (minutes and seconds), `1:30:00`, `2-12`, `2-12:00`, `2-12:00:00`.
    """
    if not isinstance(value, str):
        return value
    match = TIME.fullmatch(value.strip())
    if match is None:
        raise ValueError("give minutes, hours:minutes:seconds, or days-hours[:minutes[:seconds]]")
    parts = [int(part) for part in match.groups()[1:] if part is not None]
    if match[1] is not None:
        hours, of_hour, seconds = [*parts, 0, 0][:3]
        hours += 24 * int(match[1])
    else:
        # Without days a single number is of minutes, and two are of minutes and seconds.
        hours, of_hour, seconds = [*([] if len(parts) == 3 else [0]), *parts, 0][:3]
    return hours * 60 + of_hour + (seconds + 59) // 60


def amount(value: str) -> str:
    """An amount of memory as SLURM writes it."""
    if not re.fullmatch(r"\d+[KMGT]?B?", value):
        raise ValueError("give a number and K, M, G or T, such as 16G")
    return value


class Profile(Frozen):
    """What each job of a sweep asks of the cluster, and how many there may be."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    exclude: tuple[str, ...] = ()
    """Nodes that no job is to run on."""
    time: Annotated[int, BeforeValidator(minutes), Field(ge=1)] = 240
    """Minutes after which the cluster ends a job; it goes on in the next one."""
    gpus: int = Field(1, ge=0)
    """Of each job; 0 trains on the processors."""
    gres: str = ""
    """How the graphics cards are asked for where `gpus` alone is not understood: `gpu:a100:1`."""
    cpus: int = Field(4, ge=1)
    memory: Annotated[str, AfterValidator(amount)] | None = None
    array: int = Field(64, ge=1)
    """How many jobs of one array run at once."""
    max_submitted: int = Field(1000, ge=1)
    """How many jobs of a sweep may be with the cluster at once; the others are submitted as room appears."""
    setup: tuple[str, ...] = ()
    """Lines of shell that each job begins with."""
    shared: str = ""
    """The folder that every node sees under the same name; runs and data must lie in it."""
    python: str = ""
    """How jobs start Python; empty: as the command that submits was started."""
    grouping: Grouping = "student"
    """What one job trains: one run; all methods of a student network; or all runs that share a pass over the data."""
    grace_seconds: int = Field(120, ge=5)
    """So long before its time is over a job writes a checkpoint and asks to be started again."""
    resubmissions: int = Field(3, ge=0)
    """How often a job that ended without getting further is submitted again."""
    submit_from_jobs: bool = True
    """Whether jobs may submit others: what became ready when they end, and what was lost."""
    keeper_partition: str = ""
    """Where the short job runs that looks after the sweep when no command does; empty: as the others."""
    bf16: bool = True
    """Whether the graphics cards compute in bf16 (Ampere and later); a scale may use it."""
    multiply_adds_per_second: float = Field(2e12, gt=0)
    """What a job achieves, for the estimate of the cost of what has never been measured."""
    options: dict[str, str | int | bool] = Field(default_factory=dict)
    """Any other option of sbatch, by its long name: `mail-type = "FAIL"`."""

    @model_validator(mode="after")
    def _check(self) -> Profile:
        if 2 * self.grace_seconds > 60 * self.time:
            raise ValueError(
                f"grace_seconds = {self.grace_seconds} is more than half of time = {self.time} min; "
                "give jobs more time, or less grace"
            )
        for name in self.options:
            if name.replace("_", "-") in RESERVED:
                raise ValueError(f"options.{name} is set by the suite itself; leave it out")
        return self

    @property
    def device(self) -> str:
        """What jobs train on."""
        return "cuda" if self.gpus else "cpu"

    def parameters(self) -> dict[str, Any]:
        """What submitit is told of all jobs of a sweep."""
        more: dict[str, Any] = {name.replace("_", "-"): value for name, value in self.options.items()}
        more = {name: value for name, value in more.items() if value is not False}
        if self.reservation:
            more["reservation"] = self.reservation
        if self.memory:
            more["mem"] = self.memory
        given: dict[str, Any] = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gres": self.gres,
            "gpus_per_node": None if self.gres else self.gpus,
        }
        return {
            **{name: value for name, value in given.items() if value},
            "time": self.time,
            "cpus_per_task": self.cpus,
            "array_parallelism": self.array,
            "setup": list(self.setup),
            # Since 22.05 a step no longer takes it from its job.
            "srun_args": [f"--cpus-per-task={self.cpus}"],
            "signal_delay_s": self.grace_seconds,
            # By default submitit sets one, which clusters that check them refuse.
            "wckey": None,
            # A job that was preempted, or whose node died, starts again by itself.
            "additional_parameters": {"requeue": True, **more},
        }


def load_profile(path: Path) -> Profile:
    """The profile in a TOML file.

    Raises:
        UserError: it cannot be read, or a field of it is refused.
    """
    return load_toml(path, "profile", Profile, str(EXAMPLE))


WATCHDOG_MINUTES = 10
