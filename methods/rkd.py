"""Relational KD: how far apart the images of a batch lie, and at which angles they see each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchmark.method import Method, Step, full_precision
from methods.kd import CompanionOptions, companion_terms, companion_weights

SHORTEST = 1e-6
"""Two images count as at least so far apart; the public code bounds the square by 1e-12."""
EQUAL = 1e-13
"""Two images whose squared distance is at most this share of their own are equal, as far as float32 can tell."""


def relations(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """What the vectors of a batch are to each other, in float64.

    Distances [batch, batch] over their mean off the diagonal, and cosines [batch, batch, batch], where entry i, j, k is
    that of the angle at which vector i sees vectors j and k.

    embeddings: [batch, width], two or more. Equal vectors are `SHORTEST` apart and see each other in no direction
    (cosine 0), both without a gradient. (Park et al., CVPR 2019, section 3.2.)
    """
    batch = len(embeddings)
    # All follows from the inner products, without the differences of all pairs, [batch, batch, width]. What cancels in
    # them asks for float64, and for vectors near the origin.
    vectors = embeddings.double()
    vectors = vectors - vectors.mean(0)
    products = vectors @ vectors.T
    norms = products.diagonal()
    squares = norms[:, None] + norms - 2 * products
    apart = squares > EQUAL * (norms[:, None] + norms)
    lengths = torch.where(apart, squares, 0.0).clamp_min(SHORTEST**2).sqrt()
    distances = lengths * (1 - torch.eye(batch, dtype=lengths.dtype, device=lengths.device))
    distances = distances / (distances.sum() / (batch * (batch - 1)))
    # The public code divides equal vectors' difference, which is zero, by 1e-12, and its gradient with it.
    inverse = torch.where(apart, torch.where(apart, squares, 1.0).rsqrt(), 0.0)
    inner = products - products[:, :, None] - products[:, None, :] + norms[:, None, None]
    return distances, inner * inverse[:, :, None] * inverse[:, None, :]


@full_precision
def relation_losses(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Huber losses between the distances and between the cosines of two batches of embeddings: two scalars.

    student, teacher: [batch, width] of any two widths; the teacher's get no gradient. The Huber loss is quadratic up to
    1; both losses are means over all entries of `relations`, those of an image with itself included.
    (Park et al., CVPR 2019, sections 3.2.1 and 3.2.2.)
    """
    with torch.no_grad():
        teacher_distances, teacher_cosines = relations(teacher)
    distances, cosines = relations(student)
    distance, angle = F.smooth_l1_loss(distances, teacher_distances), F.smooth_l1_loss(cosines, teacher_cosines)
    return distance.to(student.dtype), angle.to(student.dtype)


class RKD(Method):
    """The student's pooled vectors keep the distances and the angles between the teacher's.

    Park, Kim, Lu and Cho, "Relational Knowledge Distillation", CVPR 2019, section 3.2: the distance-wise and the
    angle-wise loss together. Beside labels and conventional KD.
    """

    name = "RKD"
    paper = "Park et al., Relational Knowledge Distillation, CVPR 2019"
    equation = "L = CE + KD + 25 huber(distances) + 50 huber(cosines) of pooled vectors, means (section 3.2)"
    golden = "rkd"
    compares_images = True
    needs_teacher = True

    class Options(CompanionOptions):
        relation_weight: float = Field(1.0, ge=0, description="weight of both relational losses")
        distance_weight: float = Field(25.0, ge=0, description="weight of the distances among them")
        angle_weight: float = Field(50.0, ge=0, description="weight of the angles among them")

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        relation, options = self.options.relation_weight, self.options
        own = {"distance": relation * options.distance_weight, "angle": relation * options.angle_weight}
        return companion_weights(options) | own

    def forward(self, step: Step) -> dict[str, Tensor]:
        student = step.student("plain")
        distance, angle = relation_losses(student.pooled, step.teacher("plain").pooled)
        return companion_terms(self.options, student, step) | {"distance": distance, "angle": angle}
