"""Scale-decoupled distillation: the teacher's opinion of every region of an image, not only of the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from benchmark.method import ContractError, MethodOptions, Outputs, Step, full_precision
from methods.at import pool_to_height
from methods.baseline import label_loss
from methods.dkd import DKD, WarmUpOptions, decoupled_by_row, warmup_factor
from methods.kd import KD, divergence_by_row
from methods.nkd import NKD, normalised_by_row

PAPER = "Wei et al., Scaled Decoupled Distillation, CVPR 2024"
FINEST = 4
"""The map is first pooled to so many rows and columns; coarser regions are means of these."""
Scales = Literal["1+2+4", "1+2"]
ByRow = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A loss of each row, [..., rows], from student's and teacher's logits [rows, classes] and labels [rows]."""


def pool_regions(maps: Tensor, scales: Scales) -> Tensor:
    """Means over the regions of a map: the whole, its quarters and, at the scale 4, its sixteenths, row by row.

    maps: [batch, channels, height, width], height = width; returns [batch, channels, regions], 5 or 21 of them.
    """
    finest = pool_to_height(maps, FINEST)
    return torch.cat([pool_to_height(finest, int(scale)).flatten(2) for scale in scales.split("+")], dim=2)


def region_logits(outputs: Outputs, scales: Scales) -> Tensor:
    """What a network's own classifier says of each region of its last map: [batch, regions, classes]. (Section 3.)"""
    if outputs.averaged is None or outputs.classifier is None:
        raise ContractError("SDD needs a network that tells the map before its classifier, `averaged` and `classifier`")
    vectors = pool_regions(outputs.averaged, scales).mT
    logits: Tensor = outputs.classifier(vectors.flatten(0, 1))
    return logits.unflatten(0, vectors.shape[:2])


def region_weights(teacher_logits: Tensor, labels: Tensor, complementary: float) -> Tensor:
    """`complementary` where the teacher is right in a region and wrong in the whole, or the other way round; else 1.

    teacher_logits: [batch, regions, classes], the whole first; labels: [batch]; returns [batch, regions]. (Wei et al.,
    CVPR 2024, section 3.)
    """
    right = teacher_logits.argmax(2) == labels[:, None]
    return torch.where(right == right[:, :1], 1.0, complementary).to(teacher_logits.dtype)


@full_precision
def region_loss(student: Tensor, teacher: Tensor, labels: Tensor, by_row: ByRow, complementary: float) -> Tensor:
    """Mean over all regions of a batch of their weighted losses, a scalar for each loss that `by_row` gives.

    student, teacher: logits [batch, regions, classes]; labels: [batch]. The sum is divided by the number of regions and
    not by their weights. (Wei et al., CVPR 2024, section 3.)
    """
    weights = region_weights(teacher, labels, complementary).flatten()
    rows = by_row(student.flatten(0, 1), teacher.flatten(0, 1), labels.repeat_interleave(student.shape[1]))
    return (rows * weights).mean(-1)


class RegionOptions(MethodOptions):
    """Options of all forms of SDD."""

    scales: Scales = Field("1+2+4", description="regions: the whole and its quarters, also its sixteenths or not")
    complementary_weight: float = Field(
        2.0, ge=0, description="weight of a region where the teacher is right and in the whole wrong, or the reverse"
    )
    clip_norm: float = Field(40.0, ge=0, description="length that a step's gradient is cut to; 0: it is not cut")


def all_regions(step: Step, student: Outputs, options: RegionOptions, by_row: ByRow) -> Tensor:
    """`region_loss` for the images of a step, mixed or not."""
    own = region_logits(student, options.scales)
    with torch.no_grad():
        other = region_logits(step.teacher("plain"), options.scales)
    return step.over_images(lambda labels, _: region_loss(own, other, labels, by_row, options.complementary_weight))


class _CutGradient:
    """What all forms of SDD share beside their options."""

    options: RegionOptions

    @property
    def longest_gradient(self) -> float | None:
        """The length that a step's gradient is cut to, as the options say; None: it is not cut."""
        return self.options.clip_norm or None


DIFFERENCES = {
    "regions": (
        "not read",
        "1+2 for ResNet32x4 > ResNet8x4 and VGG13 > VGG8, 1+2+4 elsewhere",
        "as the code",
    ),
    "gradient": ("not read", "cut to a length of 40", "the same; `clip_norm` = 0: not cut (ledger R36)"),
    "loss that is not finite": ("not read", "replaced by 0, so that the step learns labels only", "stays finite"),
    "epoch reported": ("not read", "best on test", "last"),
}
FEW_REGIONS: dict[tuple[str, str], dict[str, Scales]] = {
    ("ResNet32x4", "ResNet8x4"): {"scales": "1+2"},
    ("VGG13", "VGG8"): {"scales": "1+2"},
}
SETTINGS_OF_DKD: dict[tuple[str, str], Mapping[str, Any]] = {
    pair: {**DKD.pair_options.get(pair, {}), **FEW_REGIONS.get(pair, {})} for pair in (*DKD.pair_options, *FEW_REGIONS)
}


class SDDKD(_CutGradient, KD):
    """KD of every region's logits, with more weight where a region and the whole disagree.

    Wei, Luo and Luo, "Scaled Decoupled Distillation", CVPR 2024, section 3.
    """

    name = "SDD-KD"
    paper = PAPER
    equation = "L = 0.1 CE + 0.9 mean over regions of w T² KL(teacher, student), w = 1 or 2, T = 4 (section 3)"
    golden = "sdd"
    pair_options: ClassVar = FEW_REGIONS
    differences: ClassVar = {
        **DIFFERENCES,
        "warm-up": ("not read", "none, though the scripts' comments have one", "none"),
    }

    class Options(KD.Options, RegionOptions):
        pass

    options: Options

    def forward(self, step: Step) -> dict[str, Tensor]:
        student = step.student("plain")

        def by_row(own: Tensor, other: Tensor, _: Tensor) -> Tensor:
            return divergence_by_row(own, other, self.options.temperature)

        terms = {"ce": label_loss(student.logits, step)}
        return terms | {"kd": all_regions(step, student, self.options, by_row)} if self.options.kd_weight else terms


class SDDDKD(_CutGradient, DKD):
    """DKD of every region's logits, with more weight where a region and the whole disagree.

    Wei, Luo and Luo, "Scaled Decoupled Distillation", CVPR 2024, section 3, with the loss of DKD.
    """

    name = "SDD-DKD"
    paper = PAPER
    equation = "L = CE + mean over regions of w DKD, w = 1 or 2, with DKD's warm-up (section 3)"
    golden = "sdd"
    pair_options: ClassVar = SETTINGS_OF_DKD
    differences: ClassVar = {
        **DIFFERENCES,
        "warm-up": ("not read", "20 epochs of any schedule", "20 of 240 epochs (as DKD)"),
    }

    class Options(DKD.Options, RegionOptions):
        pass

    options: Options

    def forward(self, step: Step) -> dict[str, Tensor]:
        student = step.student("plain")

        def by_row(own: Tensor, other: Tensor, labels: Tensor) -> Tensor:
            return decoupled_by_row(own, other, labels, self.options.temperature)

        losses = all_regions(step, student, self.options, by_row)
        target, others = losses * warmup_factor(self.options, step)
        return {"ce": label_loss(student.logits, step), "target": target, "others": others}


class SDDNKD(_CutGradient, NKD):
    """NKD of every region's logits, with more weight where a region and the whole disagree.

    Wei, Luo and Luo, "Scaled Decoupled Distillation", CVPR 2024, section 3, with the loss of NKD.
    """

    name = "SDD-NKD"
    paper = PAPER
    equation = "L = CE + mean over regions of w NKD, w = 1 or 2, T = 4, with DKD's warm-up (section 3)"
    golden = "sdd"
    pair_options: ClassVar = {
        pair: {"others_weight" if name == "beta" else name: value for name, value in options.items()}
        for pair, options in SETTINGS_OF_DKD.items()
    }
    differences: ClassVar = {
        **DIFFERENCES,
        "warm-up": SDDDKD.differences["warm-up"],
        "the other classes": (
            "NKD's",
            "the mask that should remove the label keeps it: a slip",
            "as the code; `label_kept` = false: NKD's (ledger R36)",
        ),
        "settings": ("not read", "T and gamma are DKD's T and beta", "as the code"),
    }

    class Options(NKD.Options, WarmUpOptions, RegionOptions):
        others_weight: float = Field(8.0, ge=0, description="weight gamma of the other classes, T^2 included")
        temperature: float = Field(4.0, gt=0, description="temperature T of the other classes")
        label_kept: bool = Field(True, description="the label is among the other classes, as in the public code")

    options: Options

    def forward(self, step: Step) -> dict[str, Tensor]:
        student, options = step.student("plain"), self.options

        def by_row(own: Tensor, other: Tensor, labels: Tensor) -> Tensor:
            return normalised_by_row(own, other, labels, options.temperature, options.label_kept)

        losses = all_regions(step, student, options, by_row)
        target, others = losses * warmup_factor(options, step)
        return {"ce": label_loss(student.logits, step), "target": target, "others": others}
