"""PS-KD: the network's own predictions of the epoch before soften the labels."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchmark.method import (
    Context,
    Method,
    MethodOptions,
    Network,
    PastNetwork,
    PredictionHistory,
    Step,
    full_precision,
)


def growing_alpha(final: float, epoch: int, epochs: int) -> float:
    """Trust in the past in an epoch counted from 0: linear, `final` in the last one (Kim et al., 2021, section 3)."""
    return final * (epoch + 1) / epochs


@full_precision
def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Softmax over the last dimension of logits / temperature, without a graph; the shape of the logits."""
    return F.softmax(logits.detach() / temperature, dim=-1)


def one_hot(labels: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """Labels [...] as distributions [..., num_classes] in the precision that losses on `like` are computed in."""
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    return F.one_hot(labels, num_classes).to(dtype)


def soft_targets(hard: Tensor, past: Tensor | None, alpha: float) -> Tensor:
    """(1 - alpha) * hard + alpha * past; the hard targets where there is no past (Kim et al., 2021, section 3)."""
    return hard if past is None else (1 - alpha) * hard + alpha * past


@full_precision
def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_c targets_c log softmax(logits)_c over the last dimension, its mean over all rows: a scalar."""
    return -(targets * F.log_softmax(logits, dim=-1)).sum(-1).mean()


class PSKD(Method):
    """Labels are mixed with what the network said of the image an epoch ago, more and more as training goes on.

    Kim, Ji, Yoon and Hwang, "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021,
    section 3: cross entropy with (1 - a_t) * label + a_t * past prediction, a_t = a_T * t / T in epoch t of T. In the
    first epoch, which has no past, the label alone counts.
    """

    name = "PS-KD"
    paper = "Kim et al., Self-Knowledge Distillation with Progressive Refinement of Targets, ICCV 2021"
    equation = "L = CE(p, (1 - a_t) y + a_t p of the epoch before), a_t = 0.8 t / T (section 3)"
    golden = "pskd"

    class Options(MethodOptions):
        alpha: float = Field(0.8, ge=0, le=1, description="trust in the past in the last epoch, a_T")
        past: Literal["table", "previous_weights"] = Field(
            "table",
            description="past predictions: those made in training an epoch ago, or those of the weights at the end of "
            "the previous epoch on the present view",
        )
        table_dtype: Literal["float16", "float32", "float64"] = Field(
            "float16", description="precision in which the table keeps past predictions"
        )

    options: Options

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        self.num_classes = context.num_classes
        self.history: PredictionHistory | None = None
        self.past_network: PastNetwork | None = None
        if options.past == "table":
            self.history = PredictionHistory(len(context.labels), (context.num_classes,), options.table_dtype)
        else:
            self.past_network = PastNetwork(context.network(context.student))

    @property
    def weights(self) -> dict[str, float]:
        return {"ce": 1.0}

    def forward(self, step: Step) -> dict[str, Tensor]:
        logits = step.student("plain").logits
        alpha = growing_alpha(self.options.alpha, step.epoch, step.epochs)
        past_of_view = self._past_of_view(step)

        def targets(labels: Tensor, index: Tensor) -> Tensor:
            hard = one_hot(labels, self.num_classes, logits)
            past = past_of_view
            if self.history is not None and step.epoch > 0:
                past = self.history.look_up(index, hard)
            return soft_targets(hard, past, alpha)

        loss = soft_cross_entropy(logits, step.over_images(targets))
        # What is said of a mixture is said of neither image: each keeps what was last said of it alone.
        if self.history is not None and step.mixture is None:
            self.history.store(step.index, probabilities(logits))
        return {"ce": loss}

    def _past_of_view(self, step: Step) -> Tensor | None:
        """What the past network says of the images as they are shown, where there is one."""
        if self.past_network is None or step.epoch == 0:
            return None
        outputs, _ = self.past_network(step.images("plain"))
        return probabilities(outputs.logits)

    def end_epoch(self, epoch: int, student: Network) -> None:
        """Keep the weights, where the past is made from them."""
        if self.past_network is not None:
            self.past_network.remember(student)
