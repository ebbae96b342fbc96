"""Logit standardisation: KD and DKD of logits whose mean and size were taken out, row by row."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from benchmark.method import Step, full_precision
from methods.baseline import label_loss
from methods.dkd import DKD, decoupled_losses, warmup_factor
from methods.kd import KD, distillation_loss

PAPER = "Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024"
SMALLEST = 1e-7
"""Added to a standard deviation before it divides: the bound of the public code."""


@full_precision
def standardise(logits: Tensor) -> Tensor:
    """Logits [rows, classes] less their mean, over their standard deviation (of classes - 1), in each row: same shape.

    The gradient goes through both. A row of equal logits becomes 0, and its gradient is as large as 1 / `SMALLEST`.
    (Sun et al., CVPR 2024.)
    """
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (logits.std(1, keepdim=True) + SMALLEST)


class KDLS(KD):
    """KD of standardised logits: the student need not have the teacher's range, only its relations.

    Sun, Ren, Li, Wang and Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024. The labels are learnt from
    the logits as they are.
    """

    name = "KD+LS"
    paper = PAPER
    equation = "L = 0.1 CE + 9 T² KL(Z(teacher), Z(student)), Z = (z - mean) / deviation of each row, T = 2"
    golden = "lskd"
    pair_options: ClassVar = {
        ("VGG13", "VGG8"): {"temperature": 3.0},
        ("ResNet110", "ResNet20"): {"temperature": 4.0, "kd_weight": 12.0},
        ("ResNet32x4", "WRN-16-2"): {"temperature": 3.0},
        ("ResNet32x4", "WRN-40-2"): {"temperature": 3.0},
        ("WRN-40-2", "MobileNetV2"): {"temperature": 3.0},
        ("VGG13", "MobileNetV2"): {"temperature": 3.0},
        ("ResNet50", "MobileNetV2"): {"temperature": 3.0, "kd_weight": 1.0},
    }
    differences: ClassVar = {
        "settings": (
            "not read",
            "T and weight in the names of the released logs, tuned for each pair",
            "those, where there is a log; else the code's defaults, T = 2 and weight 9 (ledger R33)",
        ),
        "epoch reported": ("not read", "best on test", "last"),
    }

    class Options(KD.Options):
        kd_weight: float = Field(9.0, ge=0, description="weight of the divergence of standardised logits, T^2 included")
        temperature: float = Field(2.0, gt=0, description="temperature T of standardised logits")

    options: Options

    def forward(self, step: Step) -> dict[str, Tensor]:
        student = step.student("plain").logits
        terms = {"ce": label_loss(student, step)}
        if self.options.kd_weight:
            teacher = step.teacher("plain").logits
            terms["kd"] = distillation_loss(standardise(student), standardise(teacher), self.options.temperature)
        return terms


class DKDLS(DKD):
    """DKD of standardised logits.

    Sun, Ren, Li, Wang and Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024, with the loss of Zhao et
    al., "Decoupled Knowledge Distillation", CVPR 2022, equation (7).
    """

    name = "DKD+LS"
    paper = PAPER
    equation = "L = CE + w 9 (alpha T² KL(label or not) + beta T² KL(among the others)) of Z(z), T = 2, w grows to 1"
    golden = "lskd"
    pair_options: ClassVar = {
        ("VGG13", "VGG8"): {"dkd_weight": 15.0, "beta": 2.0},
        ("WRN-40-2", "WRN-40-1"): {"dkd_weight": 12.0, "beta": 2.0},
        ("WRN-40-2", "WRN-16-2"): {"dkd_weight": 12.0, "beta": 2.0},
        ("ResNet56", "ResNet20"): {"temperature": 3.0, "dkd_weight": 18.0, "beta": 2.0},
        ("ResNet110", "ResNet32"): {"dkd_weight": 15.0, "beta": 2.0},
        ("ResNet110", "ResNet20"): {"dkd_weight": 15.0, "beta": 2.0},
        ("ResNet32x4", "WRN-16-2"): {"beta": 2.0},
        ("WRN-40-2", "ResNet8x4"): {"dkd_weight": 18.0, "beta": 2.0},
        ("WRN-40-2", "MobileNetV2"): {"dkd_weight": 15.0, "beta": 2.0},
        ("VGG13", "MobileNetV2"): {"temperature": 3.0, "beta": 2.0},
        ("ResNet50", "MobileNetV2"): {"dkd_weight": 15.0, "beta": 2.0},
    }
    differences: ClassVar = {
        "settings": (
            "not read",
            "T, weight and beta in the names of the released logs; beta is often not the settings file's",
            "those of the logs, where there is one; else T = 2, weight 9, and beta 8 (ledger R33)",
        ),
        "warm-up": ("not read", "20 epochs of any schedule", "20 of 240 epochs (as DKD)"),
        "epoch reported": ("not read", "best on test", "last"),
    }

    class Options(DKD.Options):
        temperature: float = Field(2.0, gt=0, description="temperature T of standardised logits")
        dkd_weight: float = Field(9.0, ge=0, description="factor of both alpha and beta")

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        both = self.options.dkd_weight
        own = {"target": both * self.options.alpha, "others": both * self.options.beta}
        return {"ce": self.options.ce_weight, **own}

    def forward(self, step: Step) -> dict[str, Tensor]:
        student, teacher = step.student("plain").logits, step.teacher("plain").logits
        losses = decoupled_losses(standardise(student), standardise(teacher), step, self.options.temperature)
        target, others = losses * warmup_factor(self.options, step)
        return {"ce": label_loss(student, step), "target": target, "others": others}
