"""The profile of a cluster, a TOML file; `slurm/profiles/example.toml` documents every field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from benchmark.cli.options import A_DAY, MOST_PROCESSES
from benchmark.core.spec import Frozen
from benchmark.io.toml import load_toml
from benchmark.planning.jobs import Grouping

EXAMPLE = Path(__file__).parent / "profiles" / "example.toml"
TIME = re.compile(r"(?:([0-9]{1,9})-)?([0-9]{1,9})(?::([0-9]{1,2}))?(?::([0-9]{1,2}))?")
A_YEAR = 366 * 24 * 60
"""In minutes."""
WATCHDOG_MINUTES = 10
MOST_JOBS = 1_000_000
"""With the cluster at once; a SLURM takes 4,000,001 in one array at most, and 10,000 in all by default."""
MOST_MULTIPLY_ADDS = 1e18
"""In a second; a GPU of 2024 reaches 1e15."""
LARGEST = 2**31 - 1
"""Of the numbers of other options of sbatch."""
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


def parse_duration(text: str) -> int | None:
    """The seconds of a duration as SLURM writes it; None if it is none (`UNLIMITED`, `INVALID`).

    `90` (minutes), `90:00` (minutes and seconds), `1:30:00`, `2-12` (days and hours), `2-12:00`, `2-12:00:00`.
    """
    match = TIME.fullmatch(text.strip())
    if match is None:
        return None
    parts = [int(part) for part in match.groups()[1:] if part is not None]
    if match[1] is None and len(parts) < 3:
        parts.insert(0, 0)
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return ((24 * int(match[1] or 0) + hours) * 60 + minutes) * 60 + seconds


def minutes(value: object) -> object:
    """A duration as SLURM writes it in minutes, rounded up."""
    if not isinstance(value, str):
        return value
    seconds = parse_duration(value)
    if seconds is None:
        raise ValueError("give minutes, hours:minutes:seconds, or days-hours[:minutes[:seconds]]")
    return (seconds + 59) // 60


def amount(value: str) -> str:
    """An amount of memory as SLURM writes it."""
    if not re.fullmatch(r"[0-9]{1,12}[KMGT]?B?", value):
        raise ValueError("give a number of at most 12 digits and K, M, G or T, such as 16G")
    return value


class Profile(Frozen):
    """What each job of a sweep asks of the cluster, and how many jobs there may be."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    exclude: tuple[str, ...] = ()
    """Nodes to avoid."""
    time: Annotated[int, BeforeValidator(minutes), Field(ge=1, le=A_YEAR)] = 240
    """Minutes after which the cluster ends a job; it goes on in the next one."""
    gpus: int = Field(1, ge=0, le=MOST_PROCESSES)
    """Graphics cards of each job; 0 trains on the processors."""
    gres: str = ""
    """How the cluster wants graphics cards to be requested, if not by `gpus`: `gpu:a100:1`."""
    cpus: int = Field(4, ge=1, le=MOST_PROCESSES)
    memory: Annotated[str, AfterValidator(amount)] | None = None
    array: int = Field(64, ge=1, le=MOST_JOBS)
    """How many jobs of one array run at once."""
    max_submitted: int = Field(1000, ge=1, le=MOST_JOBS)
    """How many jobs of a sweep may be in the queue at once; the others are submitted as jobs end."""
    setup: tuple[str, ...] = ()
    """Lines of shell that each job begins with."""
    shared: str = ""
    """The folder that every node sees under the same name; runs and data must lie in it."""
    python: str = ""
    """How jobs start Python; empty: as the command that submits was started."""
    grouping: Grouping = "student"
    """What one job trains: one run; all methods of a student network; or all runs that share a pass over the data."""
    grace_seconds: int = Field(120, ge=5, le=A_DAY)
    """How long before its time limit a job writes a checkpoint and asks to be started again."""
    resubmissions: int = Field(3, ge=0, le=1000)
    """How often a job that ended without progress is submitted again."""
    submit_from_jobs: bool = True
    """Whether jobs may submit others when they end: ready jobs and lost ones."""
    keeper_partition: str = ""
    """Where the watchdog runs; empty: as the other jobs."""
    bf16: bool = True
    """Whether the graphics cards compute in bf16 (Ampere and later)."""
    multiply_adds_per_second: float = Field(2e12, gt=0, le=MOST_MULTIPLY_ADDS)
    """The speed of a job, to estimate the cost of runs of which no similar one was timed."""
    options: dict[str, str | int | bool] = Field(default_factory=dict)
    """Any other option of sbatch, by its long name: `mail-type = "FAIL"`."""

    @model_validator(mode="after")
    def _check(self) -> Profile:
        if 2 * self.grace_seconds > 60 * self.time:
            raise ValueError(
                f"grace_seconds = {self.grace_seconds} is more than half of time = {self.time} min; "
                "give jobs more time, or less grace"
            )
        for name, value in self.options.items():
            if isinstance(value, int) and abs(value) > LARGEST:
                raise ValueError(f"options.{name} is a number beyond {LARGEST:,}; give a smaller one, or a text")
            if name.replace("_", "-") in RESERVED:
                raise ValueError(f"options.{name} is set by the suite itself; leave it out")
        return self

    @property
    def device(self) -> str:
        """The device that jobs train on."""
        return "cuda" if self.gpus else "cpu"

    def parameters(self) -> dict[str, Any]:
        """What submitit is told about the jobs of a sweep."""
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
            # submitit's default is refused by clusters that check these keys.
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
