"""Transformed teacher matching: the teacher's probabilities are flattened by a power, the student's are not."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchmark.method import Method, MethodOptions, Step, full_precision
from methods.baseline import label_loss


@full_precision
def transformed_by_row(student_logits: Tensor, teacher_logits: Tensor, exponent: float) -> Tensor:
    """Divergence of the student's probabilities from a power of the teacher's, normalised, of each row: [rows].

    logits: [rows, classes]. The power of a softmax is the softmax of `exponent` times the logits, so that no
    probability need be computed that is too small for a number. (Zheng and Yang, ICLR 2024, section 3.)
    """
    own, other = F.log_softmax(student_logits, dim=1), F.log_softmax(exponent * teacher_logits, dim=1)
    return F.kl_div(own, other, reduction="none", log_target=True).sum(1)


@full_precision
def power_sum(teacher_logits: Tensor, exponent: float) -> Tensor:
    """Sum over the classes of a power of the probabilities, [rows], from logits [rows, classes].

    1 for a teacher that is sure, up to classes^(1 - exponent) for one that knows nothing. (Zheng and Yang, ICLR 2024,
    section 4.)
    """
    return (exponent * F.log_softmax(teacher_logits, dim=1)).logsumexp(1).exp()


class TTM(Method):
    """KD whose student has no temperature, which rewards it for being unsure (a Rényi entropy).

    Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, section 3.
    """

    name = "TTM"
    paper = "Zheng and Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024"
    equation = "L = CE + 45 KL(teacher^g normalised, student), g = 0.1 (section 3)"
    golden = "wttm"
    needs_teacher = True
    differences: ClassVar = {
        "settings": (
            "for each pair, in appendix A.4, which was not read",
            "one example for TTM (VGG13 teaches VGG8: exponent 0.1, weight 45), one for WTTM beside CRD (0.2, 4)",
            "those of the examples for every pair; tune them before you compare (ledger R34)",
        ),
        "the power": (
            "of the probabilities",
            "of the probabilities, which may be 0 where logits are far apart",
            "as a softmax of scaled logits: the same, and never 0",
        ),
        "epoch reported": ("not read", "best on test", "last"),
    }

    class Options(MethodOptions):
        ce_weight: float = Field(1.0, ge=0, description="weight of the cross entropy with the labels")
        ttm_weight: float = Field(45.0, ge=0, description="weight of the divergence, without a factor T^2")
        exponent: float = Field(0.1, gt=0, le=1, description="power of the teacher's probabilities, 1 / T")

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        return {"ce": self.options.ce_weight, "ttm": self.options.ttm_weight}

    def forward(self, step: Step) -> dict[str, Tensor]:
        student, teacher = step.student("plain").logits, step.teacher("plain").logits
        divergences = transformed_by_row(student, teacher, self.options.exponent) * self.image_weights(teacher)
        return {"ce": label_loss(student, step), "ttm": divergences.mean()}

    def image_weights(self, teacher_logits: Tensor) -> Tensor | float:
        """How much each image counts, [batch], or all of them, by the teacher's logits [batch, classes]."""
        return 1.0


class WTTM(TTM):
    """TTM in which an image counts the more, the less sure the teacher is of it.

    Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, section 4.
    """

    name = "WTTM"
    equation = "L = CE + 4 mean of u KL(teacher^g / u, student), u = Σ_classes teacher^g, g = 0.2 (section 4)"

    class Options(TTM.Options):
        ttm_weight: float = Field(4.0, ge=0, description="weight of the divergence, without a factor T^2")
        exponent: float = Field(0.2, gt=0, le=1, description="power of the teacher's probabilities, 1 / T")

    options: Options

    def image_weights(self, teacher_logits: Tensor) -> Tensor | float:
        return power_sum(teacher_logits, self.options.exponent)
