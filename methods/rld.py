"""Refined logits: the teacher's mistakes do not reach the student, what it says of less likely classes does."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from benchmark.method import Method, Step, full_precision
from methods.baseline import label_loss
from methods.dkd import WarmUpOptions, binary_divergence, log_odds, log_softmax_over, warmup_factor
from methods.logit_standardisation import standardise


@full_precision
def confidence_by_row(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 times the divergence of the student's confidence in the label from the teacher's in its own choice: [rows].

    logits: [rows, classes]; labels: [rows]. Of (p, 1 - p), where p is the student's probability of the label and the
    teacher's largest one. (Sun et al., 2024: sample confidence distillation.)
    """
    student, teacher = student_logits / temperature, teacher_logits / temperature
    return binary_divergence(log_odds(student, labels), log_odds(teacher, teacher.argmax(1))) * temperature**2


@full_precision
def masked_correlation_by_row(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """T^2 times the divergence among the classes that the teacher finds less likely than the label: [rows].

    logits: [rows, classes]; labels: [rows]. A row without such a class counts as 0. (Sun et al., 2024: masked
    correlation distillation.)
    """
    kept = teacher_logits < teacher_logits.gather(1, labels[:, None])
    some = kept.any(1)
    # A row that keeps none has no distribution; it is computed over all classes, and left out.
    safe = kept | ~some[:, None]
    own, other = (log_softmax_over(logits / temperature, safe) for logits in (student_logits, teacher_logits))
    divergence = torch.where(safe, other.exp() * (other - own), 0.0).sum(1)
    return torch.where(some, divergence, 0.0) * temperature**2


class RLD(Method):
    """The student is as sure of the label as the teacher of its choice, and ranks the less likely classes like it.

    Sun, Chen, Lyu, Chen, Chen and Wang, "Knowledge Distillation with Refined Logits", arXiv:2408.07703 (ICCV 2025):
    sample confidence and masked correlation. Where the teacher is right the first is DKD's part of the label's class.
    """

    name = "RLD"
    paper = "Sun et al., Knowledge Distillation with Refined Logits, ICCV 2025"
    equation = "L = CE + w (alpha Tc² KL(confidence) + beta T² KL(classes below the label)), w grows to 1"
    golden = "rld"
    needs_teacher = True
    differences: ClassVar = {
        "temperature of the confidence": (
            "not read",
            "1 in the code and all settings files; T by the switch in the README's command",
            "1; `confidence_temperature` = 4: the README's command (ledger R32)",
        ),
        "numbers": (
            "not read",
            "logarithms of summed probabilities: not finite for large logits",
            "in log space: finite, else equal",
        ),
        "warm-up": ("not read", "20 epochs of any schedule", "20 of 240 epochs (as DKD)"),
        "epoch reported": ("not read", "best on test", "last"),
    }

    class Options(WarmUpOptions):
        ce_weight: float = Field(1.0, ge=0, description="weight of the cross entropy with the labels, from the start")
        alpha: float = Field(1.0, ge=0, description="weight of the confidence, T^2 included")
        beta: float = Field(8.0, ge=0, description="weight of the less likely classes, T^2 included")
        temperature: float = Field(4.0, gt=0, description="temperature T of the less likely classes")
        confidence_temperature: float = Field(1.0, gt=0, description="temperature of the confidence")
        standardised: bool = Field(
            False, description="standardise both networks' logits first (KD+LS); then alpha 9, beta 72 and T 2 belong"
        )

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        return {"ce": self.options.ce_weight, "confidence": self.options.alpha, "correlation": self.options.beta}

    def forward(self, step: Step) -> dict[str, Tensor]:
        logits, options = step.student("plain").logits, self.options
        student, teacher = logits, step.teacher("plain").logits
        if options.standardised:
            student, teacher = standardise(student), standardise(teacher)

        def losses(labels: Tensor, _: Tensor) -> Tensor:
            confidence = confidence_by_row(student, teacher, labels, options.confidence_temperature)
            correlation = masked_correlation_by_row(student, teacher, labels, options.temperature)
            return torch.stack((confidence.mean(), correlation.mean()))

        confidence, correlation = step.over_images(losses) * warmup_factor(options, step)
        return {"ce": label_loss(logits, step), "confidence": confidence, "correlation": correlation}
