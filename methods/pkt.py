"""PKT: how likely images are neighbours of each other, by the student's pooled features as by the teacher's."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from benchmark.method import Method, Step, full_precision
from methods.kd import CompanionOptions, companion_terms, companion_weights

SMALLEST = 1e-7
"""Added to lengths and probabilities, as in the public code."""
BATCH = 64
"""The batch size that the published weight belongs to."""


def neighbour_probabilities(features: Tensor) -> Tensor:
    """Cosine similarities, brought to 0..1, of the images of a batch, each row divided by its sum: [batch, batch].

    features: [batch, width]. A vector of zeros has no direction: its cosines are 0, and it gets no gradient. (The
    formula's derivative there is 1 / `SMALLEST`, ten million times the usual size, and the public code's is nan.)
    """
    lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    directions = torch.where(lengths > 0, features / (torch.where(lengths > 0, lengths, 1.0) + SMALLEST), 0.0)
    similarities = (directions @ directions.T + 1) / 2
    return similarities / similarities.sum(1, keepdim=True)


@full_precision
def neighbour_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Divergence of the student's neighbours from the teacher's, a mean over all pairs of images: a scalar.

    features: [batch, width] of any two widths; the teacher's get no gradient. A mean over batch^2 entries, so that it
    shrinks as batches grow. (Passalis and Tefas, ECCV 2018, section 3, with cosines.)
    """
    with torch.no_grad():
        target = neighbour_probabilities(teacher_features)
    own = neighbour_probabilities(student_features)
    return (target * torch.log((target + SMALLEST) / (own + SMALLEST))).mean()


class PKT(Method):
    """Images that are neighbours to the teacher are neighbours to the student, beside labels and conventional KD.

    Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, section 3:
    with the cosine kernel, on pooled features.
    """

    name = "PKT"
    paper = "Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018"
    equation = "L = CE + KD + 30000 mean of P(teacher) log [P(teacher) / P(student)], P of cosines (section 3)"
    golden = "pkt"
    compares_images = True
    needs_teacher = True
    differences: ClassVar = {
        "a vector of zeros": ("not read", "nan in its gradient", "no gradient"),
        "batch size": (
            "not read",
            "a mean over batch² entries: weight 30000 belongs to batches of 64",
            "the same; `reduction` = rows keeps the weight's size in other batches (ledger R38)",
        ),
    }

    class Options(CompanionOptions):
        pkt_weight: float = Field(30000.0, ge=0, description="weight of the divergence of neighbours")
        reduction: Literal["entries", "rows"] = Field(
            "entries",
            description="a mean over all entries, as published; or over the rows, over 64: equal in batches of 64",
        )

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        return companion_weights(self.options) | {"neighbours": self.options.pkt_weight}

    def forward(self, step: Step) -> dict[str, Tensor]:
        student = step.student("plain")
        neighbours = neighbour_loss(student.pooled, step.teacher("plain").pooled)
        if self.options.reduction == "rows":
            neighbours = neighbours * (len(student.pooled) / BATCH)
        return companion_terms(self.options, student, step) | {"neighbours": neighbours}
