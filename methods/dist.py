"""DIST: the student's probabilities correlate with the teacher's, within an image and within a class."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from benchmark.method import Method, MethodOptions, Step, full_precision
from methods.baseline import label_loss

SMALLEST = 1e-8
"""Added to the product of two lengths before it divides, as in the public code: constant vectors correlate by 0."""


def correlations(one: Tensor, other: Tensor) -> Tensor:
    """Pearson correlation of each row of one matrix with that row of another, both [rows, columns]: [rows]."""
    one, other = (values - values.mean(1, keepdim=True) for values in (one, other))
    lengths = torch.linalg.vector_norm(one, dim=1) * torch.linalg.vector_norm(other, dim=1)
    return (one * other).sum(1) / (lengths + SMALLEST)


@full_precision
def relation_losses(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 times 1 less the mean correlation of the probabilities of an image, and of those of a class: two scalars.

    logits: [batch, classes]. The first relates the classes of each image, the second the images of the batch in each
    class. (Huang et al., NeurIPS 2022, section 4.)
    """
    student, teacher = ((logits / temperature).softmax(1) for logits in (student_logits, teacher_logits))
    inter = 1 - correlations(student, teacher).mean()
    intra = 1 - correlations(student.T, teacher.T).mean()
    return inter * temperature**2, intra * temperature**2


class DIST(Method):
    """The student need not match the teacher's probabilities, only their linear relations.

    Huang, You, Wang, Qian and Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, section 4:
    correlations between the classes of an image and between the images of a batch.
    """

    name = "DIST"
    paper = "Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022"
    equation = "L = CE + 2 T² [(1 - mean r of an image) + (1 - mean r of a class)], T = 4, r: correlation (section 4)"
    golden = "dist"
    compares_images = True
    needs_teacher = True
    differences: ClassVar = {
        "factor T²": ("none, as far as known", "T²", "T²"),
        "last batch of an epoch": ("not read", "dropped", "learnt from, as by every method (ledger R37)"),
        "learning rate": (
            "not read",
            "divided after epochs 150, 180 and 210, one step late",
            "the protocol's",
        ),
        "epoch reported": ("not read", "checkpoints kept by best on test", "last"),
    }

    class Options(MethodOptions):
        ce_weight: float = Field(1.0, ge=0, description="weight of the cross entropy with the labels")
        dist_weight: float = Field(2.0, ge=0, description="weight of both relations, T^2 included")
        inter_weight: float = Field(1.0, ge=0, description="weight beta of the classes of an image among them")
        intra_weight: float = Field(1.0, ge=0, description="weight gamma of the images of a class among them")
        temperature: float = Field(4.0, gt=0, description="temperature T of the probabilities; 1 for ImageNet")

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        both, options = self.options.dist_weight, self.options
        return {"ce": options.ce_weight, "inter": both * options.inter_weight, "intra": both * options.intra_weight}

    def forward(self, step: Step) -> dict[str, Tensor]:
        student = step.student("plain").logits
        inter, intra = relation_losses(student, step.teacher("plain").logits, self.options.temperature)
        return {"ce": label_loss(student, step), "inter": inter, "intra": intra}
