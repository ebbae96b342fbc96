"""DLB: the images of the last batch, seen again, teach what was said of them then."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchmark.method import Context, Method, MethodOptions, Step, full_precision, gathered, select_own_rows
from methods.kd import distillation_loss

KEPT = ("images", "targets", "logits")


@full_precision
def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the rows of the cross entropy of logits with targets, both [rows, classes]: a scalar."""
    return F.cross_entropy(logits, targets)


class DLB(Method):
    """Each batch is trained on in two steps; in the second, its past predictions are targets too.

    Shen, Xu, Yang, Li and Guo, "Self-Distillation from the Last Mini-Batch for Consistency Regularization", CVPR 2022:
    L = CE over this batch and the last one, plus alpha T^2 KL(past || present predictions) on the last one. Its images
    are seen with another crop and flip than a step ago. There is no last batch in the first step of a run, and that of
    an epoch's first step is the last one of the epoch before.

    Where processes share batches, each works on its share of both. The loss is that of one process unless the two
    batches are split into different shares, as they may be at the end of an epoch.
    """

    name = "DLB"
    paper = "Shen et al., Self-Distillation from the Last Mini-Batch for Consistency Regularization, CVPR 2022"
    equation = "L = CE of this batch and the last one + alpha T² KL(past, present predictions) on the last one"
    golden = "dlb"
    student_passes = 2.0
    differences: ClassVar = {
        "T and alpha": ("not read", "no defaults", "3 and 1 (ledger R28)"),
        "batches": (
            "half of a batch repeats the last one, the other half comes again in the next (abstract)",
            "a whole batch and the whole last one",
            "as in the code: a step costs two, and every image counts in two steps of an epoch",
        ),
        "training": (
            "not read",
            "Nesterov; no defaults for batch, epochs and rate; best epoch on the test set",
            "the protocol's, last epoch",
        ),
    }

    class Options(MethodOptions):
        alpha: float = Field(1.0, ge=0, description="weight of the divergence from the past predictions")
        temperature: float = Field(3.0, gt=0, description="temperature T of that divergence")

    options: Options
    images: Tensor
    targets: Tensor
    logits: Tensor

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        self.num_classes = context.num_classes
        # Of the last batch, as long as that was; none before the first one.
        self._keep(torch.zeros(0, 3, 1, 1), *(torch.zeros(0, context.num_classes),) * 2)

    @property
    def weights(self) -> dict[str, float]:
        return {"ce": 1.0, "past": self.options.alpha}

    def forward(self, step: Step) -> dict[str, Tensor]:
        logits = step.student("plain").logits

        def one_hot(labels: Tensor, _: Tensor) -> Tensor:
            return F.one_hot(labels, self.num_classes).to(logits.dtype)

        targets = step.over_images(one_hot)
        if len(self.images):
            last = select_own_rows(self.logits)
            seen_again = step.student(select_own_rows(self.images)).logits
            both = torch.cat((seen_again, logits)), torch.cat((select_own_rows(self.targets), targets))
            past = distillation_loss(seen_again, last, self.options.temperature)
        else:
            both, past = (logits, targets), logits.new_zeros(())
        self._keep(*map(gathered, (step.images("second"), targets, logits)))
        return {"ce": soft_cross_entropy(*both), "past": past}

    def _keep(self, *values: Tensor) -> None:
        for name, value in zip(KEPT, values, strict=True):
            self.register_buffer(name, value)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        # The kept batch has the length and size of the images that it had when it was saved.
        self._keep(*(torch.empty_like(state_dict[prefix + name], device=self.images.device) for name in KEPT))
        super()._load_from_state_dict(state_dict, prefix, *others)
