"""Decoupled KD: the label's class and the other classes are taught apart, each with a weight of its own."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchmark.method import Method, MethodOptions, Step, full_precision
from methods.baseline import label_loss

SCHEDULE = 240
"""Epochs of the recipe that the published warm-up belongs to."""


class WarmUpOptions(MethodOptions):
    """Options of the methods whose loss grows to its full weight in the first epochs."""

    warmup_epochs: float = Field(
        20.0, ge=0, le=10_000, description="epochs over which the distillation's weight grows to its full size"
    )
    warmup_scaled: bool = Field(
        True, description="they are so many of 240 epochs, fewer of a shorter schedule; false: so many of any schedule"
    )


def warmup_factor(options: WarmUpOptions, step: Step) -> float:
    """The share of its full weight that a loss has in a step's epoch, 0 to 1, the same in the whole epoch.

    (Zhao et al.'s code: min(epoch / 20, 1), epochs counted from 1.)
    """
    length = options.warmup_epochs * (step.epochs / SCHEDULE if options.warmup_scaled else 1.0)
    return min((step.epoch + 1) / length, 1.0) if length else 1.0


def is_class(logits: Tensor, classes: Tensor) -> Tensor:
    """Whether an entry of logits [rows, classes] is that of the row's class, from classes [rows]: bool."""
    return torch.arange(logits.shape[1], device=logits.device) == classes[:, None]


def log_odds(logits: Tensor, classes: Tensor) -> Tensor:
    """Logarithm of the odds of one class of each row against all other ones, [rows], for softmax of logits.

    logits: [rows, classes]; classes: [rows].
    """
    chosen = is_class(logits, classes)
    others = logits.masked_fill(chosen, -torch.inf).logsumexp(1)
    return logits.masked_fill(~chosen, 0.0).sum(1) - others


def log_softmax_over(logits: Tensor, kept: Tensor) -> Tensor:
    """Log-probabilities among the classes of each row that are kept; 0 at the others: [rows, classes].

    logits, kept: [rows, classes], of which a row keeps one or more. The others get no gradient.
    """
    return F.log_softmax(logits.masked_fill(~kept, -torch.inf), dim=1).masked_fill(~kept, 0.0)


def binary_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of (p, 1 - p) of the teacher from the student's, from the logarithms of their odds: same shape."""
    sides = [
        F.logsigmoid(sign * teacher).exp() * (F.logsigmoid(sign * teacher) - F.logsigmoid(sign * student))
        for sign in (1, -1)
    ]
    return sides[0] + sides[1]


@full_precision
def decoupled_by_row(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 times the divergence for the label's class and the one among the others, of each row: [2, rows].

    logits: [rows, classes]; labels: [rows]. The first is that of (label, not label), the second that of the other
    classes' probabilities among themselves (Zhao et al., CVPR 2022, equation 7: TCKD and NCKD). In log space, so
    that neither large logits nor a probability of 0 makes it infinite.
    """
    student, teacher = student_logits / temperature, teacher_logits / temperature
    target = binary_divergence(log_odds(student, labels), log_odds(teacher, labels))
    others = ~is_class(student, labels)
    own, other = log_softmax_over(student, others), log_softmax_over(teacher, others)
    return torch.stack((target, (other.exp() * (other - own)).sum(1))) * temperature**2


def decoupled_losses(student_logits: Tensor, teacher_logits: Tensor, step: Step, temperature: float) -> Tensor:
    """Means over the batch of `decoupled_by_row` for the images of a step, mixed or not: [2]."""
    return step.over_images(
        lambda labels, _: decoupled_by_row(student_logits, teacher_logits, labels, temperature).mean(1)
    )


class DKD(Method):
    """The divergence of KD in two parts: how sure the teacher is of the label, and how it ranks the other classes.

    Zhao, Cui, Song, Qiu and Liang, "Decoupled Knowledge Distillation", CVPR 2022, equation (7). KD is the case in which
    the second part weighs as much as the teacher doubts the label.
    """

    name = "DKD"
    paper = "Zhao et al., Decoupled Knowledge Distillation, CVPR 2022"
    equation = "L = CE + w (alpha T² KL(label or not) + beta T² KL(among the others)), w grows to 1 (equation 7)"
    golden = "dkd"
    needs_teacher = True
    pair_options: ClassVar = {
        ("ResNet56", "ResNet20"): {"beta": 2.0},
        ("ResNet110", "ResNet32"): {"beta": 2.0},
        ("WRN-40-2", "WRN-16-2"): {"beta": 6.0},
        ("WRN-40-2", "WRN-40-1"): {"beta": 6.0},
        ("VGG13", "VGG8"): {"beta": 6.0},
        ("VGG13", "MobileNetV2"): {"beta": 6.0},
    }
    differences: ClassVar = {
        "numbers": (
            "not read",
            "logarithms of summed probabilities: not finite for large logits",
            "in log space: finite, else equal",
        ),
        "warm-up": (
            "not read",
            "20 epochs of any schedule",
            "20 of 240 epochs, fewer of a shorter schedule; `warmup_scaled` = false: as the code (ledger R31)",
        ),
        "epoch reported": ("not read", "best on test", "last"),
    }

    class Options(WarmUpOptions):
        ce_weight: float = Field(1.0, ge=0, description="weight of the cross entropy with the labels, from the start")
        alpha: float = Field(1.0, ge=0, description="weight of the label's class, T^2 included")
        beta: float = Field(8.0, ge=0, description="weight of the other classes, T^2 included")
        temperature: float = Field(4.0, gt=0, description="temperature T of both")

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        return {"ce": self.options.ce_weight, "target": self.options.alpha, "others": self.options.beta}

    def forward(self, step: Step) -> dict[str, Tensor]:
        student, teacher = step.student("plain").logits, step.teacher("plain").logits
        losses = decoupled_losses(student, teacher, step, self.options.temperature)
        target, others = losses * warmup_factor(self.options, step)
        return {"ce": label_loss(student, step), "target": target, "others": others}
