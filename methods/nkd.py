"""Normalised KD: the teacher's trust in the label weighs the label, the other classes are compared among themselves."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchmark.method import Method, MethodOptions, Step, full_precision
from methods.baseline import label_loss
from methods.dkd import is_class, log_softmax_over


@full_precision
def normalised_by_row(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, label_kept: bool = False
) -> Tensor:
    """Cross entropy of the label's class and T^2 times the one among the others, of each row: [2, rows].

    logits: [rows, classes]; labels: [rows]. The first is -p log q of the label at temperature 1, p the teacher's and q
    the student's probability; the second is that of the other classes' probabilities among themselves at temperature T,
    or, with label_kept, among all classes. They are no divergences: of equal logits they are not 0. (Yang et al., ICCV
    2023, section 3.)
    """
    label = is_class(student_logits, labels)
    own, trust = F.log_softmax(student_logits, dim=1), F.softmax(teacher_logits, dim=1)
    target = -torch.where(label, trust * own, 0.0).sum(1)
    kept = torch.ones_like(label) if label_kept else ~label
    among = [log_softmax_over(logits / temperature, kept) for logits in (student_logits, teacher_logits)]
    others = -torch.where(kept, among[1].exp() * among[0], 0.0).sum(1)
    return torch.stack((target, others * temperature**2))


class NKD(Method):
    """The label as much as the teacher trusts it, and the other classes' probabilities made to sum to 1.

    Yang, Zeng, Li, Zhang, Yuan and Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach
    with Normalized Loss and Customized Soft Labels", ICCV 2023, section 3.
    """

    name = "NKD"
    paper = "Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023"
    equation = "L = CE - p(label) log q(label) + gamma T² H(others, normalised), gamma = 3.5, T = 3 (section 3)"
    golden = "nkd"
    needs_teacher = True
    differences: ClassVar = {
        "settings": (
            "not read",
            "T = 3, gamma = 3.5 for CIFAR-100, with other networks; T = 1, gamma = 1.5 for ImageNet",
            "T = 3, gamma = 3.5; under protocol imagenet T = 1, gamma = 1.5 (ledger R35)",
        ),
        "mixed images": (
            "not read",
            "the class with the larger share is the label",
            "the loss counts for both labels, by their shares",
        ),
        "recipe": (
            "not read",
            "settings in a format that its runner does not read, so that others may have held",
            "the protocol's",
        ),
    }

    class Options(MethodOptions):
        ce_weight: float = Field(1.0, ge=0, description="weight of the cross entropy with the labels")
        target_weight: float = Field(1.0, ge=0, description="weight of the label's class")
        others_weight: float = Field(3.5, ge=0, description="weight gamma of the other classes, T^2 included")
        temperature: float = Field(3.0, gt=0, description="temperature T of the other classes")

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        options = self.options
        return {"ce": options.ce_weight, "target": options.target_weight, "others": options.others_weight}

    def forward(self, step: Step) -> dict[str, Tensor]:
        student, teacher = step.student("plain").logits, step.teacher("plain").logits
        target, others = step.over_images(
            lambda labels, _: normalised_by_row(student, teacher, labels, self.options.temperature).mean(1)
        )
        return {"ce": label_loss(student, step), "target": target, "others": others}
