"""Training on the labels alone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from benchmark.method import Method, Step, full_precision


@full_precision
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the rows of the cross entropy of logits [rows, classes] against labels [rows]: a scalar."""
    return F.cross_entropy(logits, labels)


def label_loss(logits: Tensor, step: Step) -> Tensor:
    """Mean cross entropy of logits [batch, classes] with the labels of a step's images, mixed or not: a scalar."""
    return step.over_images(lambda labels, _: cross_entropy(logits, labels))


class Baseline(Method):
    """The student learns from the labels and from nothing else; so do the teachers."""

    name = "Baseline"
    paper = "supervised training with cross entropy"
    equation = "L = CE(p, y)"

    @property
    def weights(self) -> dict[str, float]:
        return {"ce": 1.0}

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {"ce": label_loss(step.student("plain").logits, step)}
