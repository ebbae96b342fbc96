"""Pretrained teachers from files of the user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from benchmark.backbones import build_branches, build_network, check_network
from benchmark.backbones.released import apply_to, load_released
from benchmark.core.devices import placed
from benchmark.core.errors import UserError, unknown_name
from benchmark.core.spec import Protocol, ReleasedTeacher
from benchmark.data.augmentation import evaluation_batches
from benchmark.data.dataset import Dataset
from benchmark.method.contract import ROTATIONS
from benchmark.planning.request import PretrainedFile
from benchmark.plugins.registry import method_class, method_names
from benchmark.training.evaluation import BATCH_SIZE, evaluate
from benchmark.training.inputs import recipe_for
from tables.specification import Table


@dataclass(frozen=True)
class Teachers:
    """Teachers from files, by network: the file, what planning needs to know of it, and its metrics if measured."""

    files: Mapping[str, Path] = field(default_factory=dict)
    released: Mapping[str, PretrainedFile] = field(default_factory=dict)
    accuracy: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def by_hash(self) -> tuple[tuple[str, Path], ...]:
        """The files by the sha256 of their content."""
        return tuple((item.teacher.sha256, self.files[network]) for network, item in self.released.items())

    def merge(self, other: Teachers) -> Teachers:
        """Combine these teachers with others."""
        return Teachers(
            {**self.files, **other.files}, {**self.released, **other.released}, {**self.accuracy, **other.accuracy}
        )


def parse_teacher_files(assignments: Sequence[str], tables: Iterable[Table]) -> dict[str, Path]:
    """Parse `NETWORK=FILE` assignments, each for a teacher of one of the tables.

    Raises:
        UserError: an assignment is malformed, or a network is unknown or teaches in none of the tables.
    """
    files = parse_file_assignments(list(assignments), "--teacher-checkpoint")
    tables = list(tables)
    teachers: dict[str, None] = {}
    for table in tables:
        teachers |= dict.fromkeys(column.teacher for column in table.columns if column.teacher)
        if any(row.method in method_names() and method_class(row.method).teaches_itself for row in table.rows):
            teachers |= dict.fromkeys(column.student for column in table.columns)
    called = f"table {', '.join(table.name for table in tables)}" if tables else "a figure"
    if files and not teachers:
        raise UserError(f"--teacher-checkpoint: {called} takes none; choose a table of pairs")
    for network in files:
        check_network(network)
        if network not in teachers:
            raise unknown_name(f"teacher of {called}", network, teachers)
    return files


def load_teachers(
    files: Mapping[str, Path],
    dataset: Dataset,
    protocol: Protocol,
    device: torch.device,
    console: Console,
    measured: bool = True,
) -> Teachers:
    """Read the files and, if `measured`, evaluate each teacher on the test images; prints a line on each.

    Raises:
        UserError: a file cannot be read, or does not fit its network or the dataset.
    """
    released: dict[str, PretrainedFile] = {}
    accuracy: dict[str, dict[str, float]] = {}
    for name, path in files.items():
        weights = load_released(path)
        network = build_network(name, dataset.num_classes)
        apply_to(network, weights, name)
        if weights.auxiliary is not None:
            apply_to(build_branches(name, ROTATIONS * dataset.num_classes), weights, name)
        line = f"teacher {name} from {path} ({weights.summary})"
        if measured:
            placed(network, device)
            batches = evaluation_batches(dataset.test, recipe_for(protocol, dataset), BATCH_SIZE, device)
            accuracy[name] = evaluate(network, batches, "fp32")
            line += f": {accuracy[name]['top1']:.2f} % on the test images of {dataset.name}"
        console.print(line, highlight=False, soft_wrap=True)
        released[name] = PretrainedFile(
            ReleasedTeacher(network=name, sha256=weights.sha256), weights.auxiliary is not None
        )
    return Teachers(files, released, accuracy)


def parse_file_assignments(assignments: list[str], option: str) -> dict[str, Path]:
    """Parse `NAME=FILE` assignments.

    Raises:
        UserError: an assignment is malformed, or a name has two files.
    """
    files = {}
    for assignment in assignments:
        name, equals, path = assignment.partition("=")
        if not (equals and name and path):
            raise UserError(f"{option} {assignment!r} is not of the form NETWORK=FILE, such as WRN-40-2=teacher.pth")
        if name in files:
            raise UserError(f"{option} names a file for {name} twice; give one")
        files[name] = Path(path)
    return files
