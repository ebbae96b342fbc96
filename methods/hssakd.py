"""HSSAKD: auxiliary branches that tell class and rotation at once, and their distillation stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from benchmark.method import (
    ROTATIONS,
    Context,
    Method,
    MethodOptions,
    Outputs,
    Step,
    UserError,
    full_precision,
    joint_labels,
    upright,
)
from methods.baseline import label_loss
from methods.kd import distillation_loss

PAPER = "Yang et al., Hierarchical Self-supervised Augmented Knowledge Distillation, IJCAI 2021"


@full_precision
def joint_cross_entropy(branch_logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Sum over the branches of the cross entropy with the joint labels, its mean over all views: a scalar.

    branch_logits: [4 * batch, 4 * classes] each; labels: [batch]. (Yang et al., IJCAI 2021, section 3.)
    """
    targets = joint_labels(labels)
    return torch.stack([F.cross_entropy(logits, targets) for logits in branch_logits]).sum()


def branch_divergence(student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float) -> Tensor:
    """Sum over pairs of branches of T^2 KL(teacher || student), its mean over all views: a scalar.

    student, teacher: logits [4 * batch, 4 * classes] each. (Yang et al., IJCAI 2021, section 3.)
    """
    pairs = zip(student, teacher, strict=True)
    return torch.stack([distillation_loss(own, other, temperature) for own, other in pairs]).sum()


def logits_of(branches: Sequence[Any]) -> list[Tensor]:
    """The logits of each branch's outputs."""
    return [branch.logits for branch in branches]


def branch_label_losses(outputs: Outputs, branch_logits: Sequence[Tensor], step: Step) -> dict[str, Tensor]:
    """Cross entropy of a network on upright images, and of its branches with the joint labels on all four views.

    outputs: on the view `rotated`; branch_logits: [4 * batch, 4 * classes] each. (Yang et al., IJCAI 2021, section 3.)
    """
    return {
        "ce": label_loss(upright(outputs.logits), step),
        "joint": step.over_images(lambda labels, _: joint_cross_entropy(branch_logits, labels)),
    }


class _LabelledBranches:
    """What the two ways to train a teacher's branches share: the losses, and what students read from the branches."""

    branches: nn.Module

    @property
    def weights(self) -> dict[str, float]:
        return {"ce": 1.0, "joint": 1.0}

    def label_losses(self, outputs: Outputs, step: Step) -> dict[str, Tensor]:
        """L_ce of the network on upright images, and the branches' cross entropy on all four views."""
        return branch_label_losses(outputs, logits_of(self.represent(outputs)), step)

    def represent(self, outputs: Outputs) -> tuple[Any, ...]:
        """The outputs of each branch, `logits` [rows, 4 * classes] and `pooled` [rows, width]."""
        return cast(tuple[Any, ...], self.branches(outputs.branch_maps))

    def stage_logits(self, outputs: Outputs) -> tuple[Tensor, ...]:
        """Joint logits [rows, 4 * classes] of each branch."""
        return tuple(logits_of(self.represent(outputs)))


class HSSAKDBranches(_LabelledBranches, Method):
    """Branches on the frozen common teacher learn class and rotation at once.

    Yang et al., IJCAI 2021, section 3: L = L_ce + sum over branches of their cross entropy with the joint labels. With
    the backbone frozen L_ce is a constant, which is still part of the value shown.
    """

    name = "HSSAKD-branches"
    paper = PAPER
    equation = "L = CE + Σ_branches CE(q, class x rotation), the backbone frozen (section 3)"
    golden = "hsakd"
    view = "rotated"
    needs_teacher = True
    trains_student = False
    listed = False
    student_branches = True

    def __init__(self, context: Context, options: MethodOptions) -> None:
        super().__init__(context, options)
        assert context.teacher is not None
        self.branches = context.branches(context.teacher, ROTATIONS * context.num_classes)

    def forward(self, step: Step) -> dict[str, Tensor]:
        return self.label_losses(step.teacher("rotated"), step)


class HSSAKDJointTeacher(_LabelledBranches, Method):
    """A network learns its classes while branches on it learn class and rotation at once.

    Yang et al., IJCAI 2021, section 3: L = L_ce + sum over branches of their cross entropy with the joint labels. It is
    the teacher of HSSAKD*, and a better one than the common teacher.
    """

    name = "HSSAKD-teacher"
    paper = PAPER
    equation = "L = CE + Σ_branches CE(q, class x rotation) (section 3)"
    golden = "hsakd"
    view = "rotated"
    listed = False
    student_branches = True

    def __init__(self, context: Context, options: MethodOptions) -> None:
        super().__init__(context, options)
        self.branches = context.branches(context.student, ROTATIONS * context.num_classes)

    def forward(self, step: Step) -> dict[str, Tensor]:
        return self.label_losses(step.student("rotated"), step)


class HSSAKD(Method):
    """Each branch of the student imitates the teacher's branch on the same stage, and its head the teacher's head.

    Yang, An, Cai and Xu, "Hierarchical Self-supervised Augmented Knowledge Distillation", IJCAI 2021, section 3:
    L = L_ce + T^2 KL of the heads + sum over branches of T^2 KL, all four rotations in each KL. The student's
    branches have no loss with the labels, and their gradients reach the backbone.
    """

    name = "HSSAKD"
    paper = PAPER
    equation = "L = CE + T² KL of the heads + Σ_branches T² KL, all four rotations, T = 3 (section 3)"
    golden = "hsakd"
    view = "rotated"
    needs_teacher = True
    teacher_head = "HSSAKD-branches"
    student_branches = True

    class Options(MethodOptions):
        ce_weight: float = Field(1.0, ge=0, description="weight of the cross entropy on upright images")
        kd_weight: float = Field(1.0, ge=0, description="weight of the divergence of the heads on all four rotations")
        branch_weight: float = Field(1.0, ge=0, description="weight of the divergence of the branches")
        temperature: float = Field(3.0, gt=0, description="temperature T of every divergence")

    options: Options

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        student, teacher = context.student, context.teacher
        assert teacher is not None
        if len(student.branch_maps) != len(teacher.branch_maps):
            raise UserError(
                f"{self.name}: {student.name} has {len(student.branch_maps)} stages and {teacher.name} "
                f"{len(teacher.branch_maps)}; choose a pair with as many stages each"
            )
        self.branches = context.branches(student, ROTATIONS * context.num_classes)

    @property
    def weights(self) -> dict[str, float]:
        options = self.options
        return {"ce": options.ce_weight, "kd": options.kd_weight, "branches": options.branch_weight}

    def forward(self, step: Step) -> dict[str, Tensor]:
        temperature = self.options.temperature
        student, teacher = step.student("rotated"), step.teacher("rotated")
        student_branches = logits_of(self.branches(student.branch_maps))
        teacher_branches = logits_of(step.teacher_head("rotated"))
        return {
            "ce": label_loss(upright(student.logits), step),
            "kd": distillation_loss(student.logits, teacher.logits, temperature),
            "branches": branch_divergence(student_branches, teacher_branches, temperature),
        }

    def stage_logits(self, outputs: Outputs) -> tuple[Tensor, ...]:
        """Joint logits [rows, 4 * classes] of each branch."""
        return tuple(logits_of(self.branches(outputs.branch_maps)))


class HSSAKDStar(HSSAKD):
    """HSSAKD from a teacher that was trained together with its branches, as its authors' best results are."""

    name = "HSSAKD*"
    remark = "taught by a better network, trained jointly with its branches"
    teacher_method = "HSSAKD-teacher"
    teacher_head = "HSSAKD-teacher"
    in_default_grid = False
