"""SSKD: what a self-supervised task brings out of the teacher, beside its class probabilities."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from benchmark.method import ROTATIONS, Context, Method, MethodOptions, Outputs, Step, full_precision, upright
from methods.baseline import cross_entropy, label_loss
from methods.kd import distillation_loss, divergence_by_row

PAPER = "Xu et al., Knowledge Distillation Meets Self-Supervision, ECCV 2020"
TURNED = ROTATIONS - 1


def turned(values: Tensor) -> Tensor:
    """The rows of rotations 1 to 3 of image-major values [4 * batch, ...]: [3 * batch, ...]."""
    return values.unflatten(0, (-1, ROTATIONS))[:, 1:].flatten(0, 1)


def own_image(batch: int, device: torch.device) -> Tensor:
    """For each turned row, the number of its image in the batch: int64 [3 * batch]."""
    return torch.arange(batch, device=device).repeat_interleave(TURNED)


@full_precision
def similarity(projected: Tensor) -> Tensor:
    """Cosine of each turned row with each upright row of projected features [4 * batch, width]: [3 * batch, batch].

    (Xu et al., ECCV 2020, section 3; no length counts as less than 1e-8.)
    """
    directions = F.normalize(projected, dim=1, eps=1e-8)
    return turned(directions) @ upright(directions).t()


def ranks(scores: Tensor, right: Tensor) -> Tensor:
    """How many scores of each row [rows, candidates] beat that of the right candidate [rows]: int64 [rows]."""
    return (scores > scores.gather(1, right[:, None])).sum(1)


def least_wrong(rank: Tensor, ratio: float) -> Tensor:
    """Which rows to learn from: all of rank 0, and of the others that share with the smallest ranks: bool [rows].

    The share is rounded down to whole rows; equal ranks at its end go by position. (Xu et al., ECCV 2020,
    selective transfer.) Counts stay tensors, so nothing waits for the device.
    """
    wrong = (rank > 0).sum()
    kept = len(rank) - wrong + (wrong.double() * ratio).long()
    position = rank.argsort(stable=True).argsort()
    return position < kept


@full_precision
def selected_divergence(student: Tensor, teacher: Tensor, keep: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), its mean over the rows that are kept: a scalar.

    student, teacher: [rows, candidates]; keep: bool [rows]; 0 where no row is kept.
    """
    rows = divergence_by_row(student, teacher, temperature)
    return torch.where(keep, rows, 0).sum() / keep.sum().clamp(min=1)


def projection(width: int) -> nn.Sequential:
    """The head of the self-supervised task: linear, ReLU, linear, all of the pooled vector's width."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


class SSKDHead(Method):
    """The teacher's head learns to tell which upright image of the batch a turned one comes from.

    Xu et al., ECCV 2020, section 3, first stage: cross entropy of the cosines S (see `similarity`), which are the
    logits themselves, without a temperature, against each turned row's own image. The teacher is frozen.
    """

    name = "SSKD-head"
    paper = PAPER
    equation = "L = CE(cosines with the upright images, own image) (section 3, first stage)"
    golden = "sskd"
    compares_images = True
    view = "rotated"
    needs_teacher = True
    trains_student = False
    listed = False

    def __init__(self, context: Context, options: MethodOptions) -> None:
        super().__init__(context, options)
        assert context.teacher is not None
        self.head = context.initialise(projection(context.teacher.pooled), "head")

    @property
    def weights(self) -> dict[str, float]:
        return {"contrast": 1.0}

    def forward(self, step: Step) -> dict[str, Tensor]:
        cosines = similarity(self.represent(step.teacher("rotated")))
        return {"contrast": cross_entropy(cosines, own_image(len(step.labels), cosines.device))}

    def represent(self, outputs: Outputs) -> Tensor:
        """Projected features of all rows of the view `rotated`: [4 * batch, width]."""
        return cast(Tensor, self.head(outputs.pooled))


class SSKD(Method):
    """The student learns the teacher's classes on upright and turned images, and its similarities between them.

    Xu, Liu, Li and Loy, "Knowledge Distillation Meets Self-Supervision", ECCV 2020, section 3:
    L = 0.1 L_ce + 0.9 L_kd + 2.7 L_turned + 10 L_similarity, the last two over selected turned rows only: where the
    teacher itself errs, its least wrong answers (see `least_wrong`).
    """

    name = "SSKD"
    paper = PAPER
    equation = "L = 0.1 CE + 0.9 KD + 2.7 KD on turned images + 10 T² KL of similarities (section 3)"
    golden = "sskd"
    compares_images = True
    view = "rotated"
    needs_teacher = True
    teacher_head = "SSKD-head"

    class Options(MethodOptions):
        ce_weight: float = Field(0.1, ge=0, description="weight of the cross entropy on upright images")
        kd_weight: float = Field(0.9, ge=0, description="weight of the divergence on upright images")
        turned_weight: float = Field(2.7, ge=0, description="weight of the divergence on turned images")
        similarity_weight: float = Field(10.0, ge=0, description="weight of the divergence of similarities")
        kd_temperature: float = Field(4.0, gt=0, description="temperature on upright images")
        turned_temperature: float = Field(4.0, gt=0, description="temperature on turned images")
        similarity_temperature: float = Field(0.5, gt=0, description="temperature of the similarities")
        turned_ratio: float = Field(1.0, ge=0, le=1, description="share of wrongly classified turned images kept")
        similarity_ratio: float = Field(0.75, ge=0, le=1, description="share of wrongly matched turned images kept")

    options: Options

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        self.head = context.initialise(projection(context.student.pooled), "head")

    @property
    def weights(self) -> dict[str, float]:
        options = self.options
        return {
            "ce": options.ce_weight,
            "kd": options.kd_weight,
            "turned": options.turned_weight,
            "similarity": options.similarity_weight,
        }

    def forward(self, step: Step) -> dict[str, Tensor]:
        options = self.options
        student, teacher = step.student("rotated"), step.teacher("rotated")
        turned_teacher = turned(teacher.logits)
        keep_class = least_wrong(
            ranks(turned_teacher, step.main_labels.repeat_interleave(TURNED)), options.turned_ratio
        )
        teacher_similarity = similarity(step.teacher_head("rotated"))
        image = own_image(len(step.labels), step.labels.device)
        keep_similarity = least_wrong(ranks(teacher_similarity, image), options.similarity_ratio)
        upright_student = upright(student.logits)
        return {
            "ce": label_loss(upright_student, step),
            "kd": distillation_loss(upright_student, upright(teacher.logits), options.kd_temperature),
            "turned": selected_divergence(
                turned(student.logits), turned_teacher, keep_class, options.turned_temperature
            ),
            "similarity": selected_divergence(
                similarity(self.head(student.pooled)),
                teacher_similarity,
                keep_similarity,
                options.similarity_temperature,
            ),
        }
