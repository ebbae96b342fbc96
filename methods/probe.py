"""Linear evaluation: a new classifier learns on the features of a trained student, which stay as they are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from benchmark.method import Method, MethodOptions, Step
from methods.baseline import label_loss


class Probe(Method):
    """A new linear classifier on a frozen student tells how much its features say about images of another dataset.

    All modules before the classifier are in evaluation mode and have the weights of the run that `Run.start` names.
    With the solver `sgd` the classifier learns by steps, as in HSAKD's linear evaluation (Yang, An, Cai and Xu,
    "Hierarchical Self-supervised Augmented Knowledge Distillation", IJCAI 2021), whose recipe is the protocol
    `probe-sgd`. With `lbfgs`, which is the suite's own, cheaper and needs no rates, the engine fits it once to the
    features of the whole images (`benchmark.training.probing`).
    """

    name = "Probe"
    paper = "linear evaluation, as in Yang et al., IJCAI 2021; the solver lbfgs is the suite's own"
    equation = "L = CE(W f(x) + b, y), f frozen"
    trains = "classifier"
    student_passes = 1 / 3
    listed = False

    class Options(MethodOptions):
        solver: Literal["lbfgs", "sgd"] = Field("lbfgs", description="fit to the features at once, or learn by steps")
        penalty: float = Field(1.0, gt=0, description="weight of |W|^2 / 2 beside the summed loss, for lbfgs")

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        return {"ce": 1.0}

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {"ce": label_loss(step.student("plain").logits, step)}
