"""Evaluates networks on images that they were not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.backbones.network import Network
from benchmark.core.devices import autocast
from benchmark.core.spec import Precision
from benchmark.data.augmentation import rotations
from benchmark.method.contract import ROTATIONS, Method, class_scores, joint_labels

BATCH_SIZE = 250
TOP = 5
BINS = 15
"""Of confidence, for the calibration error."""


class Evaluation:
    """Collects the metrics of one network batch by batch, so that several networks can share a pass over the images.

    top-1 and top-5 accuracy in %, negative log-likelihood in nats, calibration error in %. With a method that has
    auxiliary classifiers also the top-1 accuracy of each, from the first stage on: `stages`, its class scores on
    upright images (the four joint logits of a class summed); and with `rotated`, which costs four forwards more,
    `stages_joint`, the accuracy of class and rotation at once over the four rotated views.
    """

    def __init__(
        self, network: nn.Module, precision: Precision, method: Method | None = None, rotated: bool = False
    ) -> None:
        """Put network and method in evaluation mode, so that they learn nothing, not even statistics.

        network: gives `Outputs` of images.
        """
        self.network = network.eval()
        self.method = None if method is None else method.eval()
        self.precision = precision
        self.rotated = rotated
        self._images, self._shown_rotated = 0, False
        self._counts: list[Tensor] = []
        """For each batch, float64 on its device: correct top-1 and top-5 predictions, the sum of the negative
        log-likelihoods, and correct predictions of each stage, upright and then rotated."""
        self._confidence: list[Tensor] = []
        self._right: list[Tensor] = []
        """For each batch, the confidence of the predictions and whether they are right, [batch]."""

    @torch.no_grad()
    def add(self, images: Tensor, labels: Tensor) -> None:
        """Evaluate normalised images [batch, 3, height, width] with labels [batch], without waiting for the device."""
        with autocast(images.device, self.precision):
            outputs = self.network(images)
            branches = () if self.method is None else self.method.stage_logits(outputs)
        logits = outputs.logits.float()
        hits = logits.topk(min(TOP, logits.shape[1]), dim=1).indices == labels[:, None]
        counts = [hits[:, 0].sum(), hits.sum(), F.cross_entropy(logits, labels, reduction="sum")]
        counts += [_right(class_scores(scores), labels) for scores in branches]
        if self.rotated and branches and self.method is not None:
            with autocast(images.device, self.precision):
                turned = self.method.stage_logits(self.network(rotations(images)))
            counts += [_right(scores, joint_labels(labels)) for scores in turned]
            self._shown_rotated = True
        self._counts.append(torch.stack([count.double() for count in counts]))
        confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
        self._confidence.append(confidence)
        self._right.append(predicted == labels)
        self._images += len(labels)

    @property
    def figures(self) -> dict[str, Any]:
        """The metrics over all images so far (the one place that waits for the device)."""
        # Not `sum`, which rounds differently from Python 3.12 on.
        right, right_in_top, nll, *stages = map(math.fsum, torch.stack(self._counts).T.tolist())
        figures: dict[str, Any] = {
            "top1": 100 * right / self._images,
            f"top{TOP}": 100 * right_in_top / self._images,
            "nll": nll / self._images,
            "ece": 100 * calibration_error(torch.cat(self._confidence), torch.cat(self._right)),
        }
        upright = stages[: len(stages) // 2] if self._shown_rotated else stages
        if upright:
            figures["stages"] = [100 * count / self._images for count in upright]
        if self._shown_rotated:
            figures["stages_joint"] = [100 * count / (ROTATIONS * self._images) for count in stages[len(upright) :]]
        return figures


def evaluate(network: Network, batches: Iterable[tuple[Tensor, Tensor]], precision: Precision) -> dict[str, Any]:
    """Compute the metrics of one network over all images (see `Evaluation`)."""
    evaluation = Evaluation(network, precision)
    for images, labels in batches:
        evaluation.add(images, labels)
    return evaluation.figures


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Compute the expected calibration error, 0..1: how far confidence and accuracy are apart, over bins of confidence.

    confidence: float64 [images], of each prediction; right: whether it is right, bool [images].

    (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3, with 15 bins of equal width. It is
    torchmetrics' `MulticlassCalibrationError`, against which it is tested; importing that takes seconds in every
    worker process.)
    """
    # On the CPU, adding by index has a fixed order and so gives the same bits each time.
    confidence, right = confidence.cpu(), right.cpu()
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    place = torch.bucketize(confidence, edges, right=True).sub_(1).clamp_(max=BINS - 1)
    sums = torch.zeros(2, BINS, dtype=torch.float64)
    for total, values in zip(sums, (confidence, right.double()), strict=True):
        total.index_add_(0, place, values)
    return float((sums[0] - sums[1]).abs().sum() / len(place))


def _right(scores: Tensor, labels: Tensor) -> Tensor:
    return (scores.argmax(dim=1) == labels).sum()
