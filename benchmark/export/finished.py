"""Finds a finished run by its folder, its record or the start of its id, and loads the network that it trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmark.backbones import build_network
from benchmark.backbones.network import Network
from benchmark.core.errors import UserError, nearest
from benchmark.core.spec import Run
from benchmark.data import dataset_names, load_dataset
from benchmark.data.dataset import Dataset
from benchmark.io.untrusted import UntrustedInputError, read_text_limited
from benchmark.method.contract import Method
from benchmark.plugins.registry import method_class
from benchmark.results.record import MAX_RECORD_BYTES, Record
from benchmark.results.store import Store
from benchmark.training.learner import build_method

SHOWN = 5
"""A message names so many of the runs that a prefix matches."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run that has a student: its folder, its record and its trained network.

    method_weights: of the method's modules, where the run has kept them.
    """

    folder: Path
    run: Run
    record: Record
    weights: dict[str, Tensor]
    method_weights: dict[str, Tensor] | None = None


def load_finished_run(name: str, root: Path) -> FinishedRun:
    """Load the run that a folder, a record or the start of an id names; its weights are verified.

    Raises:
        UserError: there is no such run, or more than one; it is not finished, failed, is damaged or has no student.
    """
    folder = find_run_folder(name, root)
    run = _specification(folder)
    store = Store(folder.resolve().parent.parent)
    if store.folder(run) != folder.resolve():
        place = Path(run.dataset, run.id)
        raise UserError(
            f"{folder} was renamed or moved, or is of another version of the suite: this run's place is {place} in a "
            "folder of runs; put it there, or train it again"
        )
    record = store.record(run)
    if record is None:
        raise UserError(f"{run.id} is not finished; call the command that trains it again, which goes on with it")
    if record["status"] == "failed":
        raise UserError(f"{run.id} has failed ({record['reason']}) and left no student; choose another run")
    if "student" not in record["weights"]:
        raise UserError(f"{run.id} is a head on a teacher and has no student; choose a run that trains one")
    kept = store.weights(run, "method") if "method" in record["weights"] else None
    return FinishedRun(folder, run, record, store.weights(run), kept)


def find_run_folder(name: str, root: Path) -> Path:
    """Find the folder of the run that a folder, a record or the start of an id under `root` names.

    Raises:
        UserError: there is no such run, or more than one.
    """
    path = Path(name)
    folder = path.parent if path.name in ("record.json", "run.json") and path.is_file() else path
    if _holds_run(folder):
        return folder
    folders = {entry.name: entry for entry in root.glob("*/*") if _holds_run(entry)}
    chosen = [name] if name in folders else sorted(known for known in folders if known.startswith(name))
    if len(chosen) == 1:
        return folders[chosen[0]]
    if not chosen:
        near = nearest(name, folders)
        hint = f" (did you mean {near}?)" if near else ""
        raise UserError(
            f"no run {name!r}{hint}: it is neither a run's folder, nor its record.json, nor the start of the id of one "
            f"of the {len(folders)} runs in {root}; name one, or their folder with --runs"
        )
    more = ", ..." if len(chosen) > SHOWN else ""
    shown = ", ".join(chosen[:SHOWN])
    raise UserError(f"{name!r} is the start of {len(chosen)} runs: {shown}{more}; give more of the id")


def _holds_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("record.json", "run.json"))


def _specification(folder: Path) -> Run:
    """Read the run in a folder from its record or, if there is none yet, from `run.json`."""
    record = folder / "record.json"
    path = record if record.is_file() else folder / "run.json"
    try:
        content = json.loads(read_text_limited(path, MAX_RECORD_BYTES))
        return Run.model_validate(content["run"] if path == record else content)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UntrustedInputError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}); delete its folder to train the run again"
        ) from error


def load_dataset_of(run: Run, dataset: str, data_root: Path | None) -> Dataset:
    """Load the dataset that a run was trained on; `dataset` is a TOML file where it is the user's own.

    Raises:
        UserError: the dataset is not there, or is not the one that the run was trained on.
    """
    if not dataset and run.dataset not in dataset_names():
        raise UserError(f"{run.id} was trained on {run.dataset!r}, a dataset of your own; pass --dataset FILE.toml")
    loaded = load_dataset(dataset or run.dataset, data_root, download=False)
    if loaded.name != run.dataset:
        raise UserError(f"{run.id} was trained on {run.dataset!r}, not on {loaded.name!r}; pass the right --dataset")
    if loaded.fingerprint != run.fingerprint:
        raise UserError(
            f"dataset {loaded.name} is not the one that {run.id} was trained on: its images or its normalisation have "
            "changed; pass the right one with --data-root or --dataset"
        )
    return loaded


def load_trained_network(finished: FinishedRun, num_classes: int) -> Network:
    """Build the plain network of a run's student with its trained weights, in evaluation mode.

    Raises:
        UserError: the weights are of another network than the one of this name.
    """
    network = build_network(finished.run.student, num_classes)
    try:
        network.load_state_dict(finished.weights)
    except RuntimeError as error:
        raise UserError(
            f"the weights of {finished.run.id} are not those of {finished.run.student} for {num_classes} classes; "
            "delete its folder to train the run again"
        ) from error
    return network.eval()


def load_predictor(finished: FinishedRun, num_classes: int, image_size: int) -> nn.Module:
    """Build what predicts after the training of a run, in evaluation mode: the student, or what its method makes of it.

    image_size: of the run's dataset, which the sizes of the method's modules depend on.

    Raises:
        UserError: the weights are of another network or method than those of this name.
    """
    network = load_trained_network(finished, num_classes)
    if finished.method_weights is None or method_class(finished.run.method).predictor is Method.predictor:
        return network
    method = build_method(finished.run, num_classes, image_size, torch.zeros(0, dtype=torch.int64))
    try:
        method.load_state_dict(finished.method_weights)
    except RuntimeError as error:
        raise UserError(
            f"the modules that {finished.run.id} has kept are not those of {finished.run.method} as it is now; delete "
            "its folder to train the run again"
        ) from error
    return method.eval().predictor(network).eval()
