"""The inputs of a cohort: its images, and the teacher and heads from earlier runs or files."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmark.backbones import AuxiliaryBranches, build_network
from benchmark.backbones.network import Network
from benchmark.backbones.released import apply_to, load_released
from benchmark.core.devices import placed
from benchmark.core.errors import UserError
from benchmark.core.spec import Augmentation, Protocol, ReleasedTeacher, Run
from benchmark.data import load_dataset
from benchmark.data.augmentation import Recipe
from benchmark.data.dataset import Dataset, Images
from benchmark.data.mixing import HOLE, MIXED_BATCHES
from benchmark.data.subsets import split_held_out, stratified_fraction
from benchmark.method.contract import Method
from benchmark.plugins.registry import method_class
from benchmark.results.store import Store
from benchmark.training.atlas import Atlas
from benchmark.training.learner import build_method, head_key
from benchmark.training.settings import TrainSettings
from benchmark.training.teacher import Teacher


@dataclass(frozen=True)
class TrainingData:
    """The images that a cohort learns from and is evaluated on."""

    dataset: Dataset
    train: Images
    evaluation: Images


@functools.lru_cache(maxsize=2)
def load_run_dataset(name: str, data_root: Path | None) -> Dataset:
    """Load a dataset, once in a process."""
    return load_dataset(name, data_root)


def select_training_data(run: Run, dataset: Dataset) -> TrainingData:
    """Select the images that the fraction and the held-out share of a run leave.

    Raises:
        UserError: the dataset has changed since the run was planned.
    """
    if dataset.fingerprint != run.fingerprint:
        raise UserError(f"dataset {dataset.name} has changed since {run.id} was planned; start again")
    train, evaluation = dataset.train, dataset.test
    if run.validation:
        kept, held = split_held_out(train.labels, run.validation, run.dataset, "validation", run.validation_seed)
        train, evaluation = train.subset(kept), train.subset(held)
    if run.fraction < 1:
        index = stratified_fraction(train.labels, run.fraction, run.dataset, "fraction", run.fraction_seed)
        train = train.subset(index)
    return TrainingData(dataset, train, evaluation)


def recipe_for(protocol: Protocol, dataset: Dataset, augmentation: Augmentation = "standard") -> Recipe:
    """Choose the augmentation and normalisation of a protocol on a dataset."""
    # The constants of a protocol are those of CIFAR images; any other dataset has its own.
    of_protocol = dataset.name == "cifar100"
    return Recipe(
        padding=dataset.padding,
        flip=dataset.flip,
        mean=(protocol.mean if of_protocol else None) or dataset.mean,
        std=(protocol.std if of_protocol else None) or dataset.std,
        rotated_crop=protocol.rotated_crop,
        cutout=round(HOLE * dataset.image_size) if "cutout" in augmentation else 0,
        cutmix=MIXED_BATCHES if "cutmix" in augmentation else 0.0,
    )


def first_weights(run: Run, settings: TrainSettings) -> dict[str, Tensor] | None:
    """Load the weights that the student of a run starts from; None if it starts from random ones."""
    return None if run.start is None else Store(settings.runs).weights(run.start)


def load_teacher(
    runs: Iterable[Run], data: TrainingData, settings: TrainSettings, device: torch.device
) -> Teacher | None:
    """Load the teacher that runs share, with every head and the atlas that they read; None if no run has a teacher.

    Where all of them read the atlas, the teacher's network is not loaded.
    """
    taught = [run for run in runs if run.teacher is not None]
    if not taught:
        return None
    first = taught[0]
    heads: dict[str, Method] = {}
    for run in taught:
        if run.head is not None and head_key(run) not in heads:
            heads[head_key(run)] = placed(_load_head(run, data, settings), device)
    live = [run for run in taught if run.teacher_outputs == "live"]
    network = placed(teacher_network(first, data.dataset.num_classes, settings), device) if live else None
    reader = next((run for run in taught if run.teacher_outputs == "atlas"), None)
    atlas = None
    if reader is not None:
        atlas = find_atlas(reader, data, settings).open(recipe_for(reader.protocol, data.dataset), device)
    assert first.teacher_precision is not None
    return Teacher(
        network,
        heads,
        first.teacher_precision,
        preactivations=any(method_class(run.method).needs_preactivations for run in taught),
        atlas=atlas,
    )


def find_atlas(run: Run, data: TrainingData, settings: TrainSettings) -> Atlas:
    """Find where the atlas is that a run reads, or will be.

    Raises:
        CorruptRun: the record of its teacher is damaged or has gone.
    """
    recipe = recipe_for(run.protocol, data.dataset)
    return Atlas.of(run, recipe, len(data.train), data.dataset.num_classes, Store(settings.runs))


def teacher_network(run: Run, num_classes: int, settings: TrainSettings) -> Network:
    """Load the trained network of a run's teacher, on the CPU."""
    assert run.teacher is not None
    assert run.teacher_network is not None
    network = build_network(run.teacher_network, num_classes)
    if isinstance(run.teacher, Run):
        network.load_state_dict(Store(settings.runs).weights(run.teacher))
    else:
        apply_to(network, load_released(released_file(run.teacher, settings)), run.teacher_network)
    return network


def released_file(teacher: ReleasedTeacher, settings: TrainSettings) -> Path:
    """Find the file of a released teacher.

    Raises:
        UserError: the user has not named it.
    """
    for sha256, path in settings.released:
        if sha256 == teacher.sha256:
            return path
    raise UserError(
        f"the file of teacher {teacher.network} is not named; pass --teacher-checkpoint {teacher.network}=FILE"
    )


def _load_head(run: Run, data: TrainingData, settings: TrainSettings) -> Method:
    """Load the trained head that a run reads: from a run of its own, a joint teacher, or a released file."""
    dataset = data.dataset
    if isinstance(run.head, Run):
        labels = torch.zeros(0, dtype=torch.int64)
        head = build_method(run.head, dataset.num_classes, dataset.image_size, labels)
        head.load_state_dict(Store(settings.runs).weights(run.head, "method"))
        return head
    assert run.head is not None
    head = build_method(
        head_run_for_checkpoint(run), dataset.num_classes, dataset.image_size, torch.zeros(0, dtype=torch.int64)
    )
    branches = head.get_submodule("branches")
    assert isinstance(branches, AuxiliaryBranches)
    apply_to(branches, load_released(released_file(run.head, settings)), run.head.network)
    return head


def head_run_for_checkpoint(run: Run) -> Run:
    """The run that would have trained the head which came from a file."""
    name = method_class(run.method).teacher_head
    assert name is not None
    assert isinstance(run.head, ReleasedTeacher)
    return run.replace(method=name, student=run.head.network, options={})
