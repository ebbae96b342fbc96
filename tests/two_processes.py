"""What two processes do that share batches, and settings that disturb them.

They are forked, which costs nothing; those that the engine starts itself take seconds to import everything anew. With
`exactly`, networks have no batch norm and all is reckoned in float64, so that what they do must be what one does, but
for the order of sums.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.backbones.shapes import trace_network
from benchmark.core.errors import UserError
from benchmark.core.spec import LRSchedule, Protocol, Run
from benchmark.data.augmentation import TrainingSource
from benchmark.method import all_gather_rows, all_reduce_mean
from benchmark.method.collectives import SINGLE_PROCESS, ProcessGroup
from benchmark.plugins.registry import all_methods
from benchmark.training import cohort as cohort_module
from benchmark.training.cohort import train
from benchmark.training.ddp import init_process_group
from benchmark.training.dummies import dummy_teacher, random_images
from benchmark.training.inputs import recipe_for
from benchmark.training.learner import Learner
from benchmark.training.settings import TrainSettings
from tests.engine import request, settings, shrunk, train_dependencies

CPU = torch.device("cpu")
CLASSES, SIZE = 4, 8
BATCH, IMAGES = 9, 12
"""Of the single steps: a batch that goes into 5 and 4 rows, and one of 3, too small to be shared."""
EVERY_NEGATIVE = {"negatives_from": "all_images", "replacement": False}
SMALL_OPTIONS: dict[str, dict[str, Any]] = {
    # What is drawn at random would be drawn anew by each process: here nothing is left to choose.
    "CRD": EVERY_NEGATIVE,
    "MOKD": {
        "prototypes": 32,
        "hidden": 32,
        "bottleneck": 16,
        "blocks": 1,
        "attention_heads": 2,
        "width": 16,
        "local_crops": 2,
        "local_size": 1.0,
    },
}
TOGETHER = ("Baseline", "KD", "LSSKD")
"""Methods that are trained as a cohort over several epochs."""
GENTLE = Protocol(
    name="gentle", schedule=LRSchedule(epochs=3, milestones=(2,)), learning_rate=0.02, batch_size=26, momentum=0.5
)
TEACHING = GENTLE.replace(schedule=LRSchedule(epochs=1))
FEW = {"validation": 0.05}
"""Evaluated on so many of the digits, which leaves 133 images to learn from."""

Work = Callable[[ProcessGroup, Path], Any]


class Scaled(nn.Module):
    """Stands where a batch norm was, without its statistics: a factor and a shift for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), 0.5))
        self.bias = nn.Parameter(torch.zeros(channels))

    def fill(self, streams: Callable[[str], torch.Generator]) -> None:
        """Stay as it is."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.weight[:, None, None] + self.bias[:, None, None]


def in_two_processes(folder: Path, *work: Work) -> dict[str, list[Any]]:
    """What each work gives in each of two processes, by its name; the folder is theirs."""
    # Their first step imports it (by DistributedDataParallel), which would take seconds of each process.
    importlib.import_module("torch._dynamo")
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_enter, args=(rank, work, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        while running := [process for process in processes if process.exitcode is None]:
            wait([process.sentinel for process in running])
            for process in running:
                process.join(0.1)
            assert {process.exitcode for process in processes} <= {None, 0}, "a process failed: see what it printed"
    finally:
        for process in processes:
            process.kill()
            process.join()
    results = [torch.load(folder / f"results-{rank}.pt", weights_only=False) for rank in range(2)]
    return {name: [result[name] for result in results] for name in results[0]}


def _enter(rank: int, work: Sequence[Work], folder: Path) -> None:
    torch.set_num_threads(1)
    with init_process_group(rank, 2, CPU, folder / "meeting") as group:
        results = {getattr(each, "__name__", ""): each(group, folder) for each in work}
    torch.save(results, folder / f"results-{rank}.pt")


def exactly(group: ProcessGroup, folder: Path) -> None:
    """From now on, have no batch norm and float64 in this process."""
    trace_network.cache_clear()
    nn.BatchNorm2d = Scaled  # type: ignore[misc]
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]


def run_of_method(method: str, processes: int, **changes: Any) -> Run:
    """A run of the single steps."""
    protocol = GENTLE.replace(batch_size=BATCH, learning_rate=1e-3, weight_decay=0.1)
    options = {"table_dtype": "float64"} if "table_dtype" in all_methods()[method].Options.model_fields else {}
    options |= SMALL_OPTIONS.get(method, {})
    student, teacher = ("ResNet8", "ResNet8x4") if all_methods()[method].trains_student else ("ResNet8x4", "ResNet8x4")
    run = request(protocol=protocol, options={method: options}, **changes).run(method, student, teacher, 0)
    return run.replace(processes=processes)


def methods_to_compare() -> list[str]:
    """All methods but those that are another one with other options or another teacher."""
    classes = all_methods()
    return [name for name, cls in classes.items() if not issubclass(cls, tuple({*classes.values()} - {cls}))]


def states_of(group: ProcessGroup, folder: Path) -> dict[str, dict[str, Any]]:
    """Of each method, after two steps: its state shared, and what of it the processes do not agree on.

    One of the processes, each in turn, adds the state that the method has alone.
    """
    states: dict[str, dict[str, Any]] = {}
    for method in methods_to_compare():
        shared = _after_two_steps(run_of_method(method, group.size), group)
        states[method] = {
            "shared": shared.state(),
            "differing": group.mismatched(shared.state()),
            "remark": shared.remark,
        }
    for place, method in enumerate(methods_to_compare()):
        if place % group.size == group.rank:
            states[method]["alone"] = _after_two_steps(run_of_method(method, 1), SINGLE_PROCESS).state()
    return states


def failures_of(group: ProcessGroup, folder: Path) -> dict[str, str]:
    """What is said of a loss that only the second process finds infinite, and of what only a process knows."""
    learner = _after_two_steps(run_of_method("Baseline", group.size), group, spoil=group.rank == 1)
    said = {"loss": f"not finite at step {learner.find_bad_step(1)}"}
    learner = _after_two_steps(run_of_method("Baseline", group.size), group)
    learner.method.register_buffer("own", torch.tensor(group.rank))
    try:
        learner.end_epoch(0)
    except UserError as error:
        said["state"] = str(error)
    return said


def _after_two_steps(run: Run, group: ProcessGroup, spoil: bool = False) -> Learner:
    dataset = random_images(IMAGES, SIZE, CLASSES)
    source = TrainingSource(dataset.train, recipe_for(run.protocol, dataset), BATCH, CPU, ("two processes",))
    learner = Learner(run, CLASSES, SIZE, source.labels, source.batches, CPU, group=group)
    if group.size > 1:
        source.rows = group.rows
    teacher = dummy_teacher([run], CLASSES, SIZE, CPU)
    plan = source.epoch(0)
    for step in range(source.batches):
        batch = source.batch(plan, step)
        if spoil:
            batch.view("plain").fill_(float("inf"))
        with group.shared_batch(len(source.whole(plan, step))):
            learner.step(batch, teacher.on(batch) if teacher else None, 0, step)
    return learner


def runs_of_cohort(processes: int) -> list[Run]:
    """The runs that are trained over several epochs, from one teacher."""
    asked = request(protocol=GENTLE, options={"LSSKD": {"table_dtype": "float64"}}, **FEW)
    teacher = request(protocol=TEACHING, **FEW).run("Baseline", "ResNet20", None, 0)
    runs = [asked.run(name, "ResNet8", "ResNet20", 0).replace(processes=processes) for name in TOGETHER]
    return [shrunk(run.replace(teacher=teacher.model_dump()) if run.teacher else run) for run in runs]


def place_of(folder: Path) -> TrainSettings:
    """Where the cohort's records are."""
    return settings(folder / "runs")


def cohort_of(group: ProcessGroup, folder: Path) -> bool:
    """Train the cohort shared by two processes, and before that alone by one of them; whether it is finished."""
    if group.is_main:
        train_dependencies(runs_of_cohort(1), place_of(folder))
        assert train(runs_of_cohort(1), place_of(folder))
    group.broadcast_int(0)
    return train(runs_of_cohort(group.size), place_of(folder), group=group)


def gatherings_of(group: ProcessGroup, folder: Path) -> dict[str, Any]:
    """What `gathered` and `averaged` make of 5 and 4 rows, of a batch that all have, and of no shared batch."""
    whole = {
        "half": torch.arange(36, dtype=torch.float16).view(9, 2, 2),
        "position": torch.arange(9),
        "flag": torch.arange(9) % 2 == 0,
    }
    rows = group.rows(9)
    found: dict[str, Any] = {}
    with group.shared_batch(9):
        found["gathered"] = all(torch.equal(all_gather_rows(values[rows]), values) for values in whole.values())
        found["averaged"] = float(all_reduce_mean(whole["position"][rows].double().mean()))
        try:
            all_gather_rows(whole["half"])
        except ValueError as error:
            found["refused"] = str(error)
    with group.shared_batch(3):
        found["small"] = (all_gather_rows(torch.arange(3)).tolist(), float(all_reduce_mean(torch.tensor(2.0))))
    found["outside"] = all_gather_rows(torch.tensor([group.rank])).tolist()
    found["decided"] = (group.broadcast_int(group.rank + 7), group.broadcast_object({"rank": group.rank}))
    found["differing"] = group.mismatched({"same": torch.ones(3), "other": torch.full((2, 2), group.rank + 1.0)})
    return found


class EagerSettings(TrainSettings):
    """Settings at whose arrival in a process a checkpoint is made to follow every step."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if _in_a_started_process():
            cohort_module.COST_OF_A_CHECKPOINT = 0


def _in_a_started_process() -> bool:
    """Also while it is handed its arguments, when it does not know its parent yet."""
    return multiprocessing.current_process().name.startswith("SpawnProcess")


def out_of_memory() -> None:
    """What may happen to a process, which it can tell."""
    raise MemoryError("no room")


def killed() -> None:
    """What may happen to a process, which it cannot tell: as for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted_by(happening: Callable[[], None]) -> Callable[..., None]:
    """A learner's step during which this happens in the second process, at the second batch."""
    step = Learner.step

    def interrupted(learner: Learner, batch: Any, teacher: Any, epoch: int, number: int) -> None:
        if number == 1 and learner.group.rank == 1:
            happening()
        step(learner, batch, teacher, epoch, number)

    return interrupted
