"""What a network is worth on images it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.backbones.network import Network
from benchmark.data.augmentation import rotations
from benchmark.method import ROTATIONS, Method, class_scores, joint_labels
from benchmark.spec import Precision
from benchmark.training.devices import autocast

BATCH_SIZE = 250
TOP = 5
BINS = 15
"""Of confidence, for the calibration error."""


class Evaluation:
    """The figures of one network, gathered batch by batch: several networks can share a pass over the images.

    top-1 and top-5 accuracy in %, negative log-likelihood in nats, calibration error in %. With a method that has
    auxiliary classifiers also the top-1 accuracy of each, from the first stage on: `stages`, its class scores on
    upright images (the four joint logits of a class summed); and with `rotated`, which costs four forwards more,
    `stages_joint`, the accuracy of class and rotation at once over the four rotated views.
    """

    def __init__(
        self, network: Network, precision: Precision, method: Method | None = None, rotated: bool = False
    ) -> None:
        """Puts network and method in evaluation mode, so that they learn nothing, not even statistics."""
        self.network = network.eval()
        self.method = None if method is None else method.eval()
        self.precision = precision
        self.rotated = rotated
        self._images = 0
        self._right, self._right_in_top, self._nll = 0, 0, 0.0
        self._calibration = Calibration()
        self._stages: list[int] = []
        self._joint: list[int] = []

    @torch.no_grad()
    def add(self, images: Tensor, labels: Tensor) -> None:
        """Count in normalised images [batch, 3, height, width] and their labels [batch]."""
        with autocast(images.device, self.precision):
            outputs = self.network(images)
            branches = () if self.method is None else self.method.stage_logits(outputs)
        logits = outputs.logits.float()
        hits = logits.topk(min(TOP, logits.shape[1]), dim=1).indices == labels[:, None]
        self._right += int(hits[:, 0].sum())
        self._right_in_top += int(hits.sum())
        self._nll += float(F.cross_entropy(logits, labels, reduction="sum"))
        self._calibration.add(logits, labels)
        self._images += len(labels)
        self._stages = _added(self._stages, [_right(class_scores(scores), labels) for scores in branches])
        if self.rotated and branches and self.method is not None:
            with autocast(images.device, self.precision):
                turned = self.method.stage_logits(self.network(rotations(images)))
            self._joint = _added(self._joint, [_right(scores, joint_labels(labels)) for scores in turned])

    @property
    def figures(self) -> dict[str, Any]:
        """Of all images so far, by name."""
        figures: dict[str, Any] = {
            "top1": 100 * self._right / self._images,
            f"top{TOP}": 100 * self._right_in_top / self._images,
            "nll": self._nll / self._images,
            "ece": 100 * self._calibration.error,
        }
        if self._stages:
            figures["stages"] = [100 * count / self._images for count in self._stages]
        if self._joint:
            figures["stages_joint"] = [100 * count / (ROTATIONS * self._images) for count in self._joint]
        return figures


def evaluate(network: Network, batches: Iterable[tuple[Tensor, Tensor]], precision: Precision) -> dict[str, Any]:
    """The figures of one network over all images (see `Evaluation`)."""
    evaluation = Evaluation(network, precision)
    for images, labels in batches:
        evaluation.add(images, labels)
    return evaluation.figures


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
