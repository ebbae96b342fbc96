"""SLA: class and rotation in one joint label, without distillation and with it; the ancestor of joint branches."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from benchmark.method import ROTATIONS, Context, Method, MethodOptions, Network, Outputs, Step, upright
from methods.baseline import label_loss
from methods.hssakd import joint_cross_entropy
from methods.kd import distillation_loss

PAPER = "Lee et al., Self-supervised Label Augmentation via Input Transformations, ICML 2020"
TURNED = ROTATIONS - 1


def joint_scores(upright_scores: Tensor, turned_scores: Tensor) -> Tensor:
    """Logits of class and rotation at once, class * 4 + rotation: [rows, 4 * classes].

    upright_scores: of each class at rotation 0, [rows, classes]; turned_scores: of each class at rotations 1 to 3,
    [rows, 3 * classes], the three of a class beside each other.
    """
    turned = turned_scores.unflatten(1, (-1, TURNED))
    return torch.cat((upright_scores[:, :, None], turned), dim=2).flatten(1)


def aggregate(joint_logits: Tensor) -> Tensor:
    """Class scores of an image from its four views: the mean over the rotations of the logits of just that rotation.

    joint_logits: image-major, [4 * batch, 4 * classes]; returns [batch, classes]. (Lee et al., ICML 2020: aggregated
    inference.)
    """
    by_view = joint_logits.unflatten(0, (-1, ROTATIONS)).unflatten(2, (-1, ROTATIONS))
    return torch.stack([by_view[:, turn, :, turn] for turn in range(ROTATIONS)]).mean(0)


def four_views(images: Tensor) -> Tensor:
    """The view `rotated` of images [batch, 3, size, size], made of what can be exported: [4 * batch, ...]."""
    turned = images.transpose(2, 3)
    return torch.stack((images, turned.flip(2), images.flip((2, 3)), turned.flip(3)), dim=1).flatten(0, 1)


class JointOptions(MethodOptions):
    """Options of both forms."""

    joint_weight: float = Field(
        1.0, ge=0, description="weight of the joint cross entropy; 4 is the public switch for large data sets"
    )
    inference: Literal["single", "aggregated"] = Field(
        "single",
        description="what predicts: the student alone on the plain image, or the joint classifier on all four "
        "rotations of it, which costs four forwards",
    )


class _JointClassifier:
    """What both forms share: which network predicts."""

    options: JointOptions

    def joint(self, outputs: Outputs) -> Tensor:
        """Joint logits of the student's outputs, [rows, 4 * classes]."""
        raise NotImplementedError

    def predictor(self, student: Network) -> nn.Module:
        """The student, or the student and the joint classifier on all four rotations (see `JointOptions`)."""
        return AggregatedPredictor(student, self) if self.options.inference == "aggregated" else student


class AggregatedPredictor(nn.Module):
    """A student with the joint classifier of its method, which aggregates the four rotations of an image."""

    def __init__(self, student: Network, method: _JointClassifier) -> None:
        super().__init__()
        self.student = student
        self.method = method

    def forward(self, images: Tensor) -> Outputs:
        """Outputs for images [batch, 3, size, size]: those of the upright views, but for the aggregated logits."""
        seen = self.student(four_views(images))
        logits = aggregate(self.method.joint(seen))
        return Outputs(logits, upright(seen.pooled), upright(seen.stem), tuple(map(upright, seen.stages)))


class SLA(_JointClassifier, Method):
    """The student learns class and rotation at once, in one classifier of 4 * classes labels.

    Lee, Hwang and Shin, "Self-supervised Label Augmentation via Input Transformations", ICML 2020. The
    columns of rotation 0 of that classifier are the student's own classifier, and those of the turned views are the
    method's, so the plain student is what the paper calls single inference.
    """

    name = "SLA"
    paper = PAPER
    equation = "L = CE(q, class x rotation), a mean over the four rotations"
    golden = "sla"
    view = "rotated"
    differences: ClassVar = {
        "transformations": ("input transformations", "rotations, channel orders or both; rotations first", "rotations"),
        "classifier": (
            "one classifier of joint labels",
            "a linear layer of 4 x classes outputs",
            "the same in two parts: rotation 0 is the student's own classifier, the rest the method's",
        ),
        "prediction": (
            "aggregated over the views; by self-distillation in one (abstract)",
            "both are logged",
            "the plain image alone; `inference` = `aggregated` (ledger R26)",
        ),
        "training": (
            "not read",
            "80,000 steps of 128 images, rate 0.1 (CIFAR-10); 5,000 images are held out to choose the epoch",
            "the protocol's, all images, last epoch",
        ),
    }

    class Options(JointOptions):
        pass

    options: Options

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        turned = nn.Linear(context.student.pooled, TURNED * context.num_classes)
        self.turned = context.initialise(turned, "turned")

    @property
    def weights(self) -> dict[str, float]:
        return {"joint": self.options.joint_weight}

    def joint(self, outputs: Outputs) -> Tensor:
        """Joint logits of the student's outputs, [rows, 4 * classes]."""
        return joint_scores(outputs.logits, self.turned(outputs.pooled))

    def forward(self, step: Step) -> dict[str, Tensor]:
        joint = self.joint(step.student("rotated"))
        return {"joint": step.over_images(lambda labels, _: joint_cross_entropy([joint], labels))}


class SLASelfDistilled(_JointClassifier, Method):
    """Beside the joint classifier, the student's own one learns the class, also from the four views aggregated.

    Lee, Hwang and Shin, ICML 2020 (SLA+SD): L = CE(joint) + CE(upright) + T^2 KL(aggregated || upright);
    no gradient flows into the aggregated prediction, and the student predicts from the plain image alone.
    """

    name = "SLA+SD"
    paper = PAPER
    equation = "L = CE(q, class x rotation) + CE(p, y) + T² KL(q aggregated, p), T = 1"
    golden = "sla"
    view = "rotated"
    differences: ClassVar = {
        **SLA.differences,
        "classifier": ("not read", "two linear layers on one body", "the joint one beside the student's own"),
        "divergence": ("not read", "T = 1, factor T², all weights 1", "the same; options"),
    }

    class Options(JointOptions):
        ce_weight: float = Field(1.0, ge=0, description="weight of the cross entropy on upright images")
        sd_weight: float = Field(1.0, ge=0, description="weight of the divergence from the aggregated prediction")
        temperature: float = Field(1.0, gt=0, description="temperature T of that divergence")

    options: Options

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        classifier = nn.Linear(context.student.pooled, ROTATIONS * context.num_classes)
        self.classifier = context.initialise(classifier, "classifier")

    @property
    def weights(self) -> dict[str, float]:
        options = self.options
        return {"joint": options.joint_weight, "ce": options.ce_weight, "sd": options.sd_weight}

    def joint(self, outputs: Outputs) -> Tensor:
        """Joint logits of the student's outputs, [rows, 4 * classes]."""
        return cast(Tensor, self.classifier(outputs.pooled))

    def forward(self, step: Step) -> dict[str, Tensor]:
        student = step.student("rotated")
        joint, own = self.joint(student), upright(student.logits)
        return {
            "joint": step.over_images(lambda labels, _: joint_cross_entropy([joint], labels)),
            "ce": label_loss(own, step),
            "sd": distillation_loss(own, aggregate(joint).detach(), self.options.temperature),
        }
