"""The inputs of a cohort: its images, and the teacher and heads from earlier runs or files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

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
from benchmark.training.atlas import Atlas, AtlasReader
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


def load_teacher(
    runs: Iterable[Run], data: TrainingData, settings: TrainSettings, device: torch.device
) -> Teacher | None:
    """Load the teacher that runs share, with every head and the atlas that they read; None if no run has a teacher.

    Where all of them read the atlas, the teacher's network is not loaded.
    """
    dataset = data.dataset
    return share_teacher(
        runs,
        network=lambda run: teacher_network(run, dataset.num_classes, settings),
        head=lambda run: _load_head(run, dataset, settings),
        atlas=lambda run: find_atlas(run, data, settings).open(recipe_for(run.protocol, dataset), device),
        device=device,
    )


def share_teacher(
    runs: Iterable[Run],
    network: Callable[[Run], Network],
    head: Callable[[Run], Method],
    atlas: Callable[[Run], AtlasReader],
    device: torch.device,
) -> Teacher | None:
    """Make the teacher that runs share, of what they read; None if no run has a teacher.

    network, head, atlas: make what a run reads, on the CPU; each is called once for all runs that read the same.
    """
    taught = [run for run in runs if run.teacher is not None]
    if not taught:
        return None
    heads: dict[str, Method] = {}
    for run in taught:
        if run.head is not None and head_key(run) not in heads:
            heads[head_key(run)] = placed(head(run), device)
    live = next((run for run in taught if run.teacher_outputs == "live"), None)
    reader = next((run for run in taught if run.teacher_outputs == "atlas"), None)
    precision = taught[0].teacher_precision
    assert precision is not None
    return Teacher(
        None if live is None else placed(network(live), device),
        heads,
        precision,
        preactivations=any(method_class(run.method).needs_preactivations for run in taught),
        atlas=None if reader is None else atlas(reader),
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


def _load_head(run: Run, dataset: Dataset, settings: TrainSettings) -> Method:
    """Load the trained head that a run reads: from a run of its own, a joint teacher, or a released file."""
    head = build_head(run, dataset.num_classes, dataset.image_size)
    if isinstance(run.head, Run):
        head.load_state_dict(Store(settings.runs).weights(run.head, "method"))
        return head
    assert run.head is not None
    branches = head.get_submodule("branches")
    assert isinstance(branches, AuxiliaryBranches)
    apply_to(branches, load_released(released_file(run.head, settings)), run.head.network)
    return head


def build_head(run: Run, num_classes: int, image_size: int) -> Method:
    """Build the head that a run reads, as it is before training."""
    head_run = run.head
    if isinstance(head_run, ReleasedTeacher):
        # The run that would have trained the head in the file.
        name = method_class(run.method).teacher_head
        assert name is not None
        head_run = run.replace(method=name, student=head_run.network, options={})
    assert head_run is not None
    return build_method(head_run, num_classes, image_size, torch.zeros(0, dtype=torch.int64))
