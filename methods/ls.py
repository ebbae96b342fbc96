"""Label smoothing: a little of the label's mass is spread over the other classes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from benchmark.method import Method, MethodOptions, Step
from methods.pskd import one_hot, soft_cross_entropy

Smoothed = Literal["all", "others"]


def smoothed_targets(hard: Tensor, epsilon: float, smoothed: Smoothed) -> Tensor:
    """Distributions [..., classes] that keep 1 - epsilon of the one-hot targets `hard` and spread epsilon evenly.

    `all`: over all classes, the label's included (Szegedy et al., CVPR 2016, section 7); `others`: over the others
    alone, so that the label keeps just 1 - epsilon (the public code of Tf-KD).
    """
    classes = hard.shape[-1]
    if smoothed == "all":
        return (1 - epsilon) * hard + epsilon / classes
    return (1 - epsilon) * hard + epsilon / (classes - 1) * (1 - hard)


class LS(Method):
    """Cross entropy with smoothed labels.

    Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
    section 7.
    """

    name = "LS"
    paper = "Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016"
    equation = "L = CE(p, (1 - ε) y + ε / classes), ε = 0.1 (section 7)"
    golden = "label_smoothing"

    class Options(MethodOptions):
        epsilon: float = Field(0.1, ge=0, lt=1, description="the mass that is spread")
        smoothed: Smoothed = Field(
            "all", description="what it is spread over: all classes, the label's included, or the others alone"
        )

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        return {"ce": 1.0}

    def forward(self, step: Step) -> dict[str, Tensor]:
        logits = step.student("plain").logits
        hard = step.over_images(lambda labels, _: one_hot(labels, logits.shape[1], logits))
        # Smoothing a mixture of labels is mixing smoothed labels.
        return {"ce": soft_cross_entropy(logits, smoothed_targets(hard, self.options.epsilon, self.options.smoothed))}
