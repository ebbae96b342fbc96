"""Compares the predictions of a student with those of its teacher and of the same network trained without one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchmark.core.models import FrozenModel

SHOWN_CLASSES = 3
"""So many classes that gained most are named, and as many that lost most."""


class ClassChange(FrozenModel):
    """How far a student's accuracy on one class is above that of Baseline, in percentage points."""

    label: int = Field(ge=0)
    points: float


class Faithfulness(FrozenModel):
    """How like its teacher one student predicts, over all test images.

    top1: its accuracy in %. agreement: share of the images, in %, for which both predict the same class. kl: mean
    divergence of the student's probabilities from the teacher's, in nats, at temperature 1. (Both: Stanton et al.,
    "Does Knowledge Distillation Really Work?", NeurIPS 2021, section 3.) repeated: share of the images that the teacher
    gets wrong, in %, for which the student predicts the same wrong class; None for a teacher that gets none wrong.
    corrected: share of them, in %, that the student gets right.
    """

    top1: float
    agreement: float
    kl: float
    repeated: float | None
    corrected: float | None


def compare_predictions(student: Tensor, teacher: Tensor, labels: Tensor) -> Faithfulness:
    """Compare the logits of a student and of a teacher, [images, classes], on images with labels [images].

    Raises:
        ValueError: there is no image, or the shapes differ.
    """
    if not len(labels) or student.shape != teacher.shape or len(student) != len(labels):
        raise ValueError(f"logits {[*student.shape]} and {[*teacher.shape]} are not of {len(labels)} images")
    student, teacher = student.double(), teacher.double()
    own, other = student.argmax(1), teacher.argmax(1)
    wrong = other != labels
    divergence = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)
    return Faithfulness(
        top1=_share(own == labels),
        agreement=_share(own == other),
        kl=float(divergence),
        repeated=_share((own == other)[wrong]) if wrong.any() else None,
        corrected=_share((own == labels)[wrong]) if wrong.any() else None,
    )


def compare_classes(student: Tensor, baseline: Tensor, labels: Tensor) -> tuple[ClassChange, ...]:
    """List the classes whose accuracy differs between two networks, the largest gain first, then by label.

    logits: [images, classes], of the same images with labels [images].
    """
    classes = student.shape[1]
    gained = (student.argmax(1) == labels).double() - (baseline.argmax(1) == labels).double()
    sums = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, gained)
    counts = torch.bincount(labels, minlength=classes).clamp_(min=1)
    points = (100 * sums / counts).tolist()
    changes = [ClassChange(label=label, points=value) for label, value in enumerate(points) if value]
    return tuple(sorted(changes, key=lambda change: (-change.points, change.label)))


def _share(chosen: Tensor) -> float:
    return 100 * float(chosen.double().mean())
