"""Accuracy of a network on images it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.backbones.network import Network
from benchmark.method import Method
from benchmark.spec import Precision
from benchmark.training.devices import autocast

BATCH_SIZE = 250
TOP = 5


@torch.no_grad()
def evaluate(
    network: Network,
    batches: Iterable[tuple[Tensor, Tensor]],
    precision: Precision,
    method: Method | None = None,
) -> dict[str, Any]:
    """Top-1 and top-5 accuracy (in %) and mean negative log-likelihood (in nats) over all images.

    With a method that has auxiliary classifiers, also the top-1 accuracy of each, from the first stage on, as `stages`.
    Network and method are put in evaluation mode, so that they learn nothing from these images, not even statistics.
    """
    network.eval()
    if method is not None:
        method.eval()
    correct, correct_top, nll, images = 0, 0, 0.0, 0
    stages: list[int] = []
    for inputs, labels in batches:
        with autocast(inputs.device, precision):
            outputs = network(inputs)
            scores = () if method is None else method.stage_scores(outputs)
        logits = outputs.logits.float()
        ranked = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
        hits = ranked == labels[:, None]
        correct += int(hits[:, 0].sum())
        correct_top += int(hits.sum())
        nll += float(F.cross_entropy(logits, labels, reduction="sum"))
        images += len(labels)
        right = [int((score.argmax(dim=1) == labels).sum()) for score in scores]
        stages = [sum(pair) for pair in zip(stages, right, strict=True)] if stages else right
    figures: dict[str, Any] = {
        "top1": 100 * correct / images,
        f"top{TOP}": 100 * correct_top / images,
        "nll": nll / images,
    }
    if stages:
        figures["stages"] = [100 * count / images for count in stages]
    return figures
