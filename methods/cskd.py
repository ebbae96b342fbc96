"""CS-KD: the network says of an image what it says of another image of its class."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from benchmark.method import Method, MethodOptions, Step
from methods.baseline import label_loss
from methods.kd import distillation_loss


class CSKD(Method):
    """The softened prediction for each image follows that for a random training image of the same class.

    Yun, Park, Lee and Shin, "Regularizing Class-wise Predictions via Self-knowledge Distillation", CVPR 2020,
    section 2. The partners are run in training mode, after the images themselves and without a graph, as in the public
    code: each forward has its own batch statistics, and the running ones move twice a step.
    """

    name = "CS-KD"
    paper = "Yun et al., Regularizing Class-wise Predictions via Self-knowledge Distillation, CVPR 2020"
    equation = "L = CE + λ T² KL(partner, image), λ = 1, T = 4, no gradient through the partner (section 2)"
    golden = "cskd"
    student_passes = 4 / 3

    class Options(MethodOptions):
        class_weight: float = Field(1.0, ge=0, description="weight λ of the divergence from the partner, beside T^2")
        temperature: float = Field(4.0, gt=0, description="temperature T of both predictions")

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        return {"ce": 1.0, "class": self.options.class_weight}

    def forward(self, step: Step) -> dict[str, Tensor]:
        logits = step.student("plain").logits
        with torch.no_grad():
            partner = step.student("same_class").logits
        return {
            "ce": label_loss(logits, step),
            "class": distillation_loss(logits, partner, self.options.temperature),
        }
