"""Training on the labels alone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from benchmark.method import Method, Step, full_precision


@full_precision
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the rows of the cross entropy of logits [rows, classes] against labels [rows]: a scalar."""
    return F.cross_entropy(logits, labels)


class Baseline(Method):
    """The student learns from the labels and from nothing else; so do the teachers."""

    name = "Baseline"
    paper = "supervised training with cross entropy"

    @property
    def weights(self) -> dict[str, float]:
        return {"ce": 1.0}

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {"ce": cross_entropy(step.student("plain").logits, step.labels)}
