"""NST: the student's neurons are selective as the teacher's are, as distributions of maps over channels."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchmark.method import Method, Step, full_precision
from methods.at import pool_to_height
from methods.kd import CompanionOptions, companion_terms, companion_weights


def channel_directions(maps: Tensor) -> Tensor:
    """Each channel's map as a vector of length 1: [batch, channels, height * width]; a channel of zeros stays 0.

    maps: [batch, channels, height, width].
    """
    return F.normalize(maps.flatten(2), dim=2, eps=1e-12)


def mean_kernel(one: Tensor, other: Tensor) -> Tensor:
    """Mean of (a . b)^2 over the vectors a of one image in `one` and b of the same image in `other`: a scalar.

    one, other: [batch, vectors, size], of any two numbers of vectors.
    """
    pairs = len(one) * one.shape[1] * other.shape[1]
    if one.shape[1] * other.shape[1] <= one.shape[2] ** 2:
        return (one @ other.mT).square().sum() / pairs
    # The same sum by the vectors' products over the places, which is smaller for many channels of small maps.
    return ((one.mT @ one) * (other.mT @ other)).sum() / pairs


@full_precision
def selectivity_loss(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of the channels of two maps, with the kernel (a . b)^2: a scalar.

    maps: [batch, channels, height, width] of any two numbers of channels; the larger one is pooled to the smaller. The
    teacher's get no gradient. (Huang and Wang, 2017.)
    """
    height = min(student_maps.shape[2], teacher_maps.shape[2])
    with torch.no_grad():
        teacher = channel_directions(pool_to_height(teacher_maps, height))
        constant = mean_kernel(teacher, teacher)
    student = channel_directions(pool_to_height(student_maps, height))
    return constant + mean_kernel(student, student) - 2 * mean_kernel(student, teacher)


class NST(Method):
    """At every stage the student's channels react to the same places as the teacher's, beside labels and KD.

    Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv:1707.01219, 2017,
    with the polynomial kernel. Stages without a partner are left out.
    """

    name = "NST"
    paper = "Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017"
    equation = "L = CE + KD + 50 Σ_stages MMD² of the channels' maps, kernel (a·b)², a and b of length 1"
    golden = "nst"
    needs_teacher = True
    differences: ClassVar = {
        "products": (
            "not read",
            "of all pairs of channels at all places, which takes much memory",
            "as matrix products: the same numbers",
        ),
    }

    class Options(CompanionOptions):
        nst_weight: float = Field(50.0, ge=0, description="weight of the discrepancy, the sum over the stages")

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        return companion_weights(self.options) | {"selectivity": self.options.nst_weight}

    def forward(self, step: Step) -> dict[str, Tensor]:
        student, teacher = step.student("plain"), step.teacher("plain")
        pairs = zip(student.stages, teacher.stages, strict=False)
        selectivity = torch.stack([selectivity_loss(own, other) for own, other in pairs]).sum()
        return companion_terms(self.options, student, step) | {"selectivity": selectivity}
