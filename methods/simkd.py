"""SimKD: the student imitates the teacher's last map and predicts with the teacher's classifier."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, cast

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from benchmark.method import (
    Context,
    Method,
    MethodOptions,
    Network,
    Outputs,
    Shape,
    Step,
    UserError,
    full_precision,
    without_classifier,
)
from methods.at import pool_to_height

RAW_SUMS = "PreActResNet"
"""Start of the names of networks whose classifier averages raw sums, which a map behind a ReLU cannot imitate."""


@full_precision
def map_loss(projected: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of two maps [batch, channels, height, width] over all elements: a scalar."""
    return F.mse_loss(projected, target)


class Projector(nn.Module):
    """Brings a student's last map to the teacher's channels: 1x1, 3x3, 1x1 convolution, each with norm and ReLU.

    inputs, outputs: channels of student and teacher; height: of the teacher's map, to which a larger one is pooled;
    factor: the convolutions in between have outputs // factor channels. Names of the parameters are those of the public
    code.
    """

    def __init__(self, inputs: int, outputs: int, height: int, factor: int) -> None:
        super().__init__()
        self.height = height
        between = outputs // factor
        layers: list[nn.Module] = []
        for wide, narrow, kernel in ((inputs, between, 1), (between, between, 3), (between, outputs, 1)):
            conv = nn.Conv2d(wide, narrow, kernel, padding=kernel // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(narrow), nn.ReLU()]
        self.transfer = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        """Student maps [batch, channels, height, height] with the teacher's channels, no higher than its map."""
        return cast(Tensor, self.transfer(pool_to_height(maps, min(self.height, maps.shape[2]))))


class ReusingPredictor(nn.Module):
    """A student up to its last stage map, the projector, and the teacher's classifier on the mean over the map."""

    def __init__(self, student: Network, projector: Projector, classifier: nn.Linear) -> None:
        super().__init__()
        self.body = without_classifier(student)
        self.projector = projector
        self.classifier = classifier

    def forward(self, images: Tensor) -> Outputs:
        """The student's maps for images [batch, 3, height, width], with the projected pooled vector and its logits."""
        outputs = self.body(images)
        pooled = self.projector(outputs.stages[-1]).mean((2, 3))
        return replace(outputs, logits=self.classifier(pooled), pooled=pooled)


class SimKD(Method):
    """The student's last map, through a projector, imitates the teacher's; the teacher's classifier predicts.

    Chen, Mei, Zhang, Wang, Feng and Chen, "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022:
    L = mean squared difference of the projected map and the teacher's last one; there are no labels in it. The layers
    behind the student's last map are not trained. What predicts, and is evaluated, counted and exported, is the body,
    the projector and the teacher's classifier: more than the student of every other row.
    """

    name = "SimKD"
    paper = "Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022"
    equation = "L = |P(student's last map) - teacher's last map|², a mean; no labels"
    golden = "simkd"
    remark = (
        "predicts with the student's body, a projector and the teacher's classifier, which all count in its parameters "
        "and multiply-adds; the student's own classifier is not trained"
    )
    needs_teacher = True
    needs_preactivations = True
    trains = "stages"
    differences: ClassVar = {
        "prediction": (
            "the teacher's classifier behind a projector (abstract)",
            "the same, with the student's unused classifier kept in the file",
            "the same without the unused layers (ledger R30)",
        ),
        "student's classifier": (
            "not read",
            "a loss weight of 0, so that weight decay alone shrinks it",
            "it stays at its first weights, and so does every layer behind the last stage map",
        ),
        "teacher": (
            "various architectures (abstract)",
            "ResNets and VGG, whose last listed module is the classifier",
            "all whose classifier averages their last map after a ReLU; WRN's map is taken behind its last norm and "
            "ReLU; MobileNetV2, ShuffleNetV2 and PreActResNet18 are refused",
        ),
        "training": ("not read", "RepDistiller's; best epoch on the test set", "the protocol's, last epoch"),
    }

    class Options(MethodOptions):
        factor: int = Field(
            2, ge=1, description="the projector is so many times narrower than the teacher's map; 2, 4 or 8 published"
        )

    options: Options

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        assert context.teacher is not None
        channels = context.student.stages[-1][0]
        outputs, teacher_height = _target_size(context.teacher)
        if options.factor > outputs:
            raise UserError(
                f"SimKD: factor = {options.factor}, but the last map of {context.teacher.name} has {outputs} channels; "
                f"choose a factor from 1 to {outputs}"
            )
        projector = Projector(channels, outputs, teacher_height, options.factor)
        self.projector = cast(Projector, context.initialise(projector, "projector"))
        classifier = context.initialise(nn.Linear(outputs, context.num_classes), "classifier")
        self.classifier = cast(nn.Linear, classifier.requires_grad_(False))

    @property
    def weights(self) -> dict[str, float]:
        return {"map": 1.0}

    def receive_teacher(self, teacher: Network) -> None:
        """Copy its classifier."""
        self.classifier.load_state_dict(teacher.get_submodule(teacher.after_stages[-1]).state_dict())

    def forward(self, step: Step) -> dict[str, Tensor]:
        teacher = step.teacher("plain")
        assert teacher.preactivations is not None
        projected = self.projector(step.student("plain").stages[-1])
        # What the classifier averages: of a wide residual network the stage map still lacks its last norm and ReLU.
        target = pool_to_height(F.relu(teacher.preactivations[-1]), projected.shape[2])
        return {"map": map_loss(projected, target)}

    def predictor(self, student: Network) -> nn.Module:
        """The student's body, the projector and the teacher's classifier."""
        return ReusingPredictor(student, self.projector, self.classifier)


def _target_size(teacher: Shape) -> tuple[int, int]:
    """Channels and height of the map that a teacher's classifier averages.

    Raises:
        UserError: it averages another one.
    """
    channels, height, _ = teacher.stages[-1]
    if channels != teacher.pooled or teacher.name.startswith(RAW_SUMS):
        raise UserError(
            f"SimKD: the classifier of {teacher.name} does not average its last stage map after a ReLU; choose a "
            "teacher such as a ResNet, a WRN, a VGG or ShuffleNetV1"
        )
    return channels, height
