"""ReviewKD: deep maps of the student, fused into shallower ones, learn from the teacher's maps at every place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from benchmark.method import Context, Method, MethodOptions, Outputs, Shape, Step, UserError, full_precision
from methods.at import pool_to_height
from methods.baseline import label_loss

LEVELS = (4, 2, 1)
"""Heights to which maps are pooled in the loss."""
WIDEST = 512
"""Channels of the fused maps, at most."""


@full_precision
def context_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Hierarchical context loss of two square maps [batch, channels, height, height]: a scalar.

    The mean squared difference of the maps, and of the maps pooled to 4, 2 and 1 rows where these are fewer, with
    weights 1, 1/2, 1/4, 1/8 in this order over those that are there, divided by the sum of the weights. (Chen et al.,
    CVPR 2021, HCL.)
    """
    heights = [student_map.shape[2], *(level for level in LEVELS if level < student_map.shape[2])]
    weights = [0.5**number for number in range(len(heights))]
    losses = [
        F.mse_loss(pool_to_height(student_map, height), pool_to_height(teacher_map, height)) for height in heights
    ]
    return torch.stack([loss * weight for loss, weight in zip(losses, weights, strict=True)]).sum() / sum(weights)


def warmup_factor(epoch: int, warmup_epochs: float, first: int) -> float:
    """What the distillation weighs in an epoch counted from 0: it grows to 1 over the warm-up.

    first: what the first epoch counts as.
    """
    return min((epoch + first) / warmup_epochs, 1.0) if warmup_epochs else 1.0


def _resized(maps: Tensor, height: int) -> Tensor:
    return maps if maps.shape[2] == height else F.interpolate(maps, size=(height, height), mode="nearest")


class FusionBlock(nn.Module):
    """Brings a student's map to the common width, fuses the deeper ones into it, and brings it to the teacher's size.

    inputs, between, outputs: channels of the student's map, of the fused map and of the teacher's map; height: of the
    teacher's map; fuses: whether there is a deeper map. Names of the parameters are those of the public code. (Chen
    et al., CVPR 2021, ABF.)
    """

    def __init__(self, inputs: int, between: int, outputs: int, height: int, fuses: bool) -> None:
        super().__init__()
        self.height = height
        self.conv1 = nn.Sequential(nn.Conv2d(inputs, between, 1, bias=False), nn.BatchNorm2d(between))
        self.conv2 = nn.Sequential(nn.Conv2d(between, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.att_conv = nn.Sequential(nn.Conv2d(2 * between, 2, 1), nn.Sigmoid()) if fuses else None

    @torch.no_grad()
    def widen_start(self) -> None:
        """Make PyTorch's first weights of the convolutions before norms those of Kaiming's rule with a slope of 1."""
        for conv in (self.conv1[0], self.conv2[0]):
            cast(Tensor, conv.weight).mul_(math.sqrt(3))

    def forward(self, maps: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """The map to compare with the teacher's, and the fused map that the next block gets as `deeper`."""
        fused = self.conv1(maps)
        if self.att_conv is not None:
            assert deeper is not None
            deeper = _resized(deeper, fused.shape[2])
            attention = self.att_conv(torch.cat((fused, deeper), dim=1))
            fused = fused * attention[:, :1] + deeper * attention[:, 1:]
        fused = _resized(fused, self.height)
        return self.conv2(fused), fused


def _places(network: Shape) -> list[tuple[int, int]]:
    """Channels and height of what is compared: the pooled vector, a map of height 1, then the last stage and so on."""
    return [(network.pooled, 1), *((channels, height) for channels, height, _ in reversed(network.stages))]


def _maps(pooled: Tensor, stages: Sequence[Tensor]) -> list[Tensor]:
    return [pooled[:, :, None, None], *reversed(stages)]


class ReviewKD(Method):
    """The student's maps, from the deepest on fused into the shallower ones, imitate the teacher's maps.

    Chen, Liu, Zhao and Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021: L = CE + weight * factor * the sum
    over the places of the hierarchical context loss. Places are the pooled vector and all stages; the teacher's maps
    are those before the last activation. The factor grows to 1 over the first twelfth of the epochs.
    """

    name = "ReviewKD"
    paper = "Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021"
    equation = "L = CE + 5 min(epoch / 20, 1) Σ_places HCL(fused student map, teacher map before its activation)"
    golden = "reviewkd"
    # With the fusion blocks on ResNet20; on VGG8 they cost 3.5 times the student, on MobileNetV2 47 times.
    student_passes = 1.46
    needs_teacher = True
    needs_preactivations = True
    pair_options: ClassVar = {
        ("ResNet56", "ResNet20"): {"review_weight": 0.6},
        ("ResNet110", "ResNet32"): {"review_weight": 1.0},
        ("ResNet32x4", "ShuffleNetV2"): {"review_weight": 8.0},
    }
    differences: ClassVar = {
        "warm-up": (
            "not read",
            "authors: epoch 0 weighs nothing, epoch 20 all; mdistiller counts epochs from 1",
            "mdistiller's, as a share of the epochs; `recipe` = `authors` (ledger R29)",
        ),
        "weight": (
            "not read",
            "authors: a script for eight pairs; mdistiller: one pair",
            "the authors' for their pairs, 5 for all others, VGG8 and MobileNetV2 among them",
        ),
        "teacher": (
            "not read",
            "authors: their own, with the statistics of the batch; mdistiller: the common one in evaluation mode",
            "the common one in evaluation mode",
        ),
        "training": (
            "not read",
            "authors: batch 128, rate 0.1, Nesterov; mdistiller: 64, 0.05; both: best epoch on the test set",
            "the protocol's, last epoch",
        ),
    }

    class Options(MethodOptions):
        ce_weight: float = Field(1.0, ge=0, description="weight of the cross entropy with the labels")
        review_weight: float = Field(5.0, ge=0, description="weight of the context loss after the warm-up")
        warmup: float = Field(
            20 / 240, ge=0, le=1, description="warm-up of that weight as a share of the epochs: 20 of the published 240"
        )
        recipe: Literal["mdistiller", "authors"] = Field(
            "mdistiller", description="whose warm-up: its first epoch counts as one, or as none and weighs nothing"
        )

    options: Options

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        student, teacher = context.student, context.teacher
        assert teacher is not None
        if len(student.stages) != len(teacher.stages):
            raise UserError(
                f"ReviewKD: {student.name} has {len(student.stages)} stages and {teacher.name} "
                f"{len(teacher.stages)}; choose a pair with as many stages each"
            )
        between = min(WIDEST, student.pooled)
        places = zip(_places(student), _places(teacher), strict=True)
        blocks = nn.ModuleList(
            FusionBlock(inputs, between, outputs, height, number > 0)
            for number, ((inputs, _), (outputs, height)) in enumerate(places)
        )
        self.abfs = cast(nn.ModuleList, context.initialise(blocks, "blocks"))
        for block in self.abfs:
            cast(FusionBlock, block).widen_start()

    @property
    def weights(self) -> dict[str, float]:
        return {"ce": self.options.ce_weight, "review": self.options.review_weight}

    def forward(self, step: Step) -> dict[str, Tensor]:
        options = self.options
        student, teacher = step.student("plain"), step.teacher("plain")
        first = 1 if options.recipe == "mdistiller" else 0
        factor = warmup_factor(step.epoch, options.warmup * step.epochs, first)
        return {"ce": label_loss(student.logits, step), "review": factor * self._review_loss(student, teacher)}

    def _review_loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        assert teacher.preactivations is not None
        losses, deeper = [], None
        own, theirs = _maps(student.pooled, student.stages), _maps(teacher.pooled, teacher.preactivations)
        for block, maps, target in zip(self.abfs, own, theirs, strict=True):
            compared, deeper = block(maps, deeper)
            losses.append(context_loss(compared, target))
        return torch.stack(losses).sum()
