"""Knowledge distillation (Hinton et al.), alone and as a companion of other losses."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchmark.method import Method, MethodOptions, Outputs, Step, full_precision
from methods.baseline import label_loss


@full_precision
def divergence_by_row(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of each row of logits [rows, classes]: [rows]."""
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1) * temperature**2


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 times the KL divergence of the softened distributions, its mean over the rows [rows, classes]: a scalar.

    The factor T^2 keeps the gradient's size when the temperature changes (Hinton et al., 2015, section 2).
    """
    return divergence_by_row(student_logits, teacher_logits, temperature).mean()


class CompanionOptions(MethodOptions):
    """Options of the methods that add their own loss to cross entropy and conventional KD."""

    ce_weight: float = Field(1.0, ge=0, description="weight of the cross entropy with the labels")
    kd_weight: float = Field(1.0, ge=0, description="weight of conventional KD; 0 leaves it out")
    temperature: float = Field(4.0, gt=0, description="temperature T of conventional KD")


def companion_weights(options: CompanionOptions) -> dict[str, float]:
    """Weights of the terms that `companion_terms` gives."""
    weights = {"ce": options.ce_weight}
    return weights | {"kd": options.kd_weight} if options.kd_weight else weights


def companion_terms(options: CompanionOptions, student: Outputs, step: Step) -> dict[str, Tensor]:
    """Cross entropy with the labels and, unless its weight is 0, conventional KD, on the view `plain`."""
    terms = {"ce": label_loss(student.logits, step)}
    if options.kd_weight:
        terms["kd"] = distillation_loss(student.logits, step.teacher("plain").logits, options.temperature)
    return terms


class KD(Method):
    """The student imitates the teacher's softened class probabilities beside learning the labels.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, 2015, section 2.
    """

    name = "KD"
    paper = "Hinton et al., Distilling the Knowledge in a Neural Network, 2015"
    equation = "L = 0.1 CE + 0.9 T² KL(teacher, student), T = 4 (section 2)"
    golden = "kd"
    needs_teacher = True

    class Options(CompanionOptions):
        ce_weight: float = Field(0.1, ge=0, description="weight of the cross entropy with the labels")
        kd_weight: float = Field(0.9, ge=0, description="weight of the divergence from the teacher, T^2 included")

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        return companion_weights(self.options)

    def forward(self, step: Step) -> dict[str, Tensor]:
        return companion_terms(self.options, step.student("plain"), step)
