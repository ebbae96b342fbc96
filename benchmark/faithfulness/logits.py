"""Computes the test logits of a finished run, and keeps them beside its record if the user wants that."""

from __future__ import annotations

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from benchmark.core.devices import placed
from benchmark.core.errors import UserError
from benchmark.data.augmentation import evaluation_batches
from benchmark.data.dataset import Dataset
from benchmark.export.finished import FinishedRun, load_predictor
from benchmark.io.files import replacing, save_tensors
from benchmark.training.evaluation import BATCH_SIZE
from benchmark.training.inputs import recipe_for, select_training_data

FILE = "logits.safetensors"
"""In the folder of a run."""


def read_logits(finished: FinishedRun, images: int, classes: int) -> Tensor | None:
    """Read the test logits that a run has kept, float16 [images, classes].

    None if there are none, or none that can be used: they are of other weights, of other images, or cannot be read.
    """
    path = finished.folder / FILE
    # A pipe would be waited for.
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("weights") != describe_weights(finished):
                return None
            logits: Tensor = file.get_tensor("logits")
    except (OSError, ValueError, safetensors.SafetensorError):
        return None
    fits = logits.shape == (images, classes) and logits.dtype == torch.float16
    return logits if fits and bool(logits.isfinite().all()) else None


def describe_weights(finished: FinishedRun) -> str:
    """Name the weights that predict, by the checksums of their files."""
    return " ".join(f"{part}={sha256}" for part, sha256 in sorted(finished.record["weights"].items()))


@torch.no_grad()
def compute_logits(finished: FinishedRun, dataset: Dataset, device: torch.device, keep: bool) -> Tensor:
    """Compute a run's logits on the images that it was evaluated on, float16 [images, classes], or read what it kept.

    The network runs in float32, so that another machine computes nearly the same. In bf16 the largest logits of an
    image are often equal, so the accuracy of a run that was evaluated in bf16 may differ from its record's by a few
    images.

    Raises:
        UserError: the weights are of another network or method, or a logit is too large for float16.
    """
    images = select_training_data(finished.run, dataset).evaluation
    kept = read_logits(finished, len(images), dataset.num_classes)
    if kept is not None:
        return kept
    network = placed(load_predictor(finished, dataset.num_classes, dataset.image_size), device)
    recipe = recipe_for(finished.run.protocol, dataset)
    parts = []
    for batch, _ in evaluation_batches(images, recipe, BATCH_SIZE, device):
        parts.append(network(batch).logits.float().cpu())
    logits = torch.cat(parts).half()
    if not logits.isfinite().all():
        raise UserError(f"{finished.run.id} has logits beyond 65,504, the largest number of float16; leave it out")
    if keep:
        with replacing(finished.folder / FILE) as file:
            save_tensors(file.temporary, {"logits": logits}, {"weights": describe_weights(finished)})
    return logits
