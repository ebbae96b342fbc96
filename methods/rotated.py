"""A control: the rotated views that self-supervised methods see, with nothing but the class to learn from them."""

from __future__ import annotations

from torch import Tensor

from benchmark.method import ROTATIONS, Method, Step
from methods.baseline import cross_entropy


class RotatedBaseline(Method):
    """The student learns the class of all four rotations of each image: rotation as augmentation, and no more.

    What SSKD, HSSAKD and LSSKD gain over Baseline may come from seeing four times as many images. This control sees
    them too.
    """

    name = "Baseline-rotated"
    paper = "supervised training with cross entropy, on rotated images (a control of ours)"
    equation = "L = CE(p, y), a mean over the four rotations"
    remark = "a control of ours, with rotated images as augmentation"
    view = "rotated"

    @property
    def weights(self) -> dict[str, float]:
        return {"ce": 1.0}

    def forward(self, step: Step) -> dict[str, Tensor]:
        logits = step.student("rotated").logits
        return {"ce": step.over_images(lambda labels, _: cross_entropy(logits, labels.repeat_interleave(ROTATIONS)))}
