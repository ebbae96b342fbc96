"""What a network is worth on images it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.backbones.network import Network
from benchmark.data.augmentation import rotations
from benchmark.method import Method, class_scores, joint_labels
from benchmark.spec import Precision
from benchmark.training.devices import autocast

BATCH_SIZE = 250
TOP = 5
BINS = 15
"""Of confidence, for the calibration error."""


@torch.no_grad()
def evaluate(
    network: Network,
    batches: Iterable[tuple[Tensor, Tensor]],
    precision: Precision,
    method: Method | None = None,
    rotated: bool = False,
) -> dict[str, Any]:
    """Figures over all images: top-1 and top-5 accuracy in %, negative log-likelihood in nats, calibration error in %.

    With a method that has auxiliary classifiers also the top-1 accuracy of each, from the first stage on: `stages`, its
    class scores on upright images (the four joint logits of a class summed); and with `rotated`, which costs four
    forwards more, `stages_joint`, the accuracy of class and rotation at once over the four rotated views.
    Network and method are put in evaluation mode, so that they learn nothing from these images, not even statistics.
    """
    network.eval()
    if method is not None:
        method.eval()
    sums = dict.fromkeys(("top1", f"top{TOP}", "nll"), 0.0)
    calibration, images = Calibration(), 0
    stages: list[int] = []
    joint: list[int] = []
    for inputs, labels in batches:
        with autocast(inputs.device, precision):
            outputs = network(inputs)
            branches = () if method is None else method.stage_logits(outputs)
        logits = outputs.logits.float()
        hits = logits.topk(min(TOP, logits.shape[1]), dim=1).indices == labels[:, None]
        sums["top1"] += int(hits[:, 0].sum())
        sums[f"top{TOP}"] += int(hits.sum())
        sums["nll"] += float(F.cross_entropy(logits, labels, reduction="sum"))
        calibration.add(logits, labels)
        images += len(labels)
        stages = _added(stages, [_right(class_scores(scores), labels) for scores in branches])
        if rotated and branches and method is not None:
            with autocast(inputs.device, precision):
                turned = method.stage_logits(network(rotations(inputs)))
            joint = _added(joint, [_right(scores, joint_labels(labels)) for scores in turned])
    figures: dict[str, Any] = {
        "top1": 100 * sums["top1"] / images,
        f"top{TOP}": 100 * sums[f"top{TOP}"] / images,
        "nll": sums["nll"] / images,
        "ece": 100 * calibration.error,
    }
    if stages:
        figures["stages"] = [100 * count / images for count in stages]
    if joint:
        figures["stages_joint"] = [100 * count / (4 * images) for count in joint]
    return figures


class Calibration:
    """Expected calibration error: how far confidence and accuracy are apart, over bins of confidence.

    (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3, with 15 bins of equal width. It is
    torchmetrics' `MulticlassCalibrationError`, against which it is tested; importing that takes seconds in every
    worker process.)
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(3, BINS, dtype=torch.float64)
        """Of each bin: images, confidence, images that were right."""

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count in logits [batch, classes] and their labels [batch]."""
        confidence, said = logits.double().softmax(dim=1).max(dim=1)
        edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=logits.device)
        place = torch.bucketize(confidence, edges, right=True).sub_(1).clamp_(max=BINS - 1).cpu()
        columns = (torch.ones_like(confidence), confidence, (said == labels).double())
        for sums, values in zip(self._sums, columns, strict=True):
            # On the CPU, where adding by index has one order and so the same bits each time.
            sums.index_add_(0, place, values.cpu())

    @property
    def error(self) -> float:
        """Mean over the images of the gap between a bin's confidence and its accuracy, 0..1."""
        images, confidence, right = self._sums
        return float((confidence - right).abs().sum() / images.sum())


def _right(scores: Tensor, labels: Tensor) -> int:
    return int((scores.argmax(dim=1) == labels).sum())


def _added(counts: list[int], more: list[int]) -> list[int]:
    return [sum(pair) for pair in zip(counts, more, strict=True)] if counts else more
