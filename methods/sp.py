"""Similarity-preserving distillation: the student keeps which images of a batch its teacher finds alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchmark.method import Method, Step, outside_autocast
from methods.kd import CompanionOptions, companion_terms, companion_weights

NEGLIGIBLE = 1e-12
"""A row of similarities of this length or less is left at zero: the bound of the public code's normalisation."""


def similarities(maps: Tensor) -> Tensor:
    """Inner products of the maps of a batch, each row divided by its length: [batch, batch], float32 or wider.

    maps: [batch, channels, height, width]. The row of a map of zeros is zero and passes no gradient on. (Tung and Mori,
    ICCV 2019, section 3.)
    """
    # In channels_last, as the engine has them, this order of the elements is a view; any order gives the same products.
    rows = maps.permute(0, 2, 3, 1).flatten(1)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    products = rows @ rows.T
    lengths = torch.linalg.vector_norm(products, dim=1, keepdim=True)
    # Divided by so small a bound, a zero would pass its gradient on a million million times larger.
    return torch.where(lengths > NEGLIGIBLE, products / lengths.clamp_min(NEGLIGIBLE), 0.0)


@outside_autocast
def similarity_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of the row-normalised similarities between the images of a batch: a scalar.

    Maps [batch, channels, height, width], of any two sizes; the teacher's gets no gradient. (Tung and Mori, ICCV 2019,
    section 3.)
    """
    with torch.no_grad():
        target = similarities(teacher_map)
    return F.mse_loss(similarities(student_map), target)


class SP(Method):
    """Images that the teacher's last stage finds alike are alike to the student's, beside labels and conventional KD.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, section 3, at the last stage alone.
    """

    name = "SP"
    paper = "Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019"
    equation = "L = CE + KD + 3000 |G(student) - G(teacher)|² / batch², G of rows of length 1, last stage (section 3)"
    golden = "sp"
    compares_images = True
    needs_teacher = True

    class Options(CompanionOptions):
        similarity_weight: float = Field(3000.0, ge=0, description="weight of the similarity loss")

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        return companion_weights(self.options) | {"similarity": self.options.similarity_weight}

    def forward(self, step: Step) -> dict[str, Tensor]:
        student = step.student("plain")
        similarity = similarity_loss(student.stages[-1], step.teacher("plain").stages[-1])
        return companion_terms(self.options, student, step) | {"similarity": similarity}
