"""Teacher-free KD: a network is taught by an equal one trained before it, or by a teacher made up from the labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field
from torch import Tensor

from benchmark.method import Method, MethodOptions, Step, full_precision
from methods.baseline import label_loss
from methods.kd import distillation_loss
from methods.pskd import one_hot

PAPER = "Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, CVPR 2020"
MEAN_OVER_CLASSES = (
    "its divergence is a mean over batch and classes, as published for 100 classes, so fewer classes make it weigh more"
)

# The networks of the public settings, under the names of the suite's networks that stand for them.
RESNET18 = ("ResNet18", "PreActResNet18", "PreActResNet18-x1/4")
RESNET50 = ("ResNet50", "ResNet101", "ResNet101-x1/4")
MOBILENET_V2 = ("MobileNetV2-TFKD", "MobileNetV2-TFKD-x1/2", "MobileNetV2", "MobileNetV2-s1")
SHUFFLENET_V2 = ("ShuffleNetV2-TFKD", "ShuffleNetV2")
RESNEXT29 = ("ResNeXt29",)

Setting = tuple[tuple[str, ...], float, float, float]

# Of the public code, for CIFAR-100: networks, alpha, temperature, multiplier. Networks without a setting of their own
# have ResNet18's, which are the defaults; so has ResNet101.
REGULARISATION: tuple[Setting, ...] = (
    (RESNET18, 0.1, 20.0, 100.0),
    (MOBILENET_V2, 0.95, 40.0, 1.0),
    (SHUFFLENET_V2, 0.95, 10.0, 1.0),
    (RESNEXT29, 0.5, 40.0, 100.0),  # its multiplier is missing from the public file; the default's
)
SELF_TRAINING: tuple[Setting, ...] = (
    (RESNET18, 0.95, 6.0, 50.0),
    (RESNET50, 0.95, 6.0, 50.0),  # ResNet50's multiplier is missing, ResNet101 has no file; the default's, ResNet50's
    (MOBILENET_V2, 0.95, 20.0, 1.0),
    (SHUFFLENET_V2, 0.95, 20.0, 1.0),
    (RESNEXT29, 0.9, 20.0, 100.0),
)


def _by_network(settings: Iterable[Setting]) -> dict[str, dict[str, Any]]:
    return {
        network: {"alpha": alpha, "temperature": temperature, "multiplier": multiplier}
        for networks, alpha, temperature, multiplier in settings
        for network in networks
    }


def divergence_by_element(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)), its mean over all batch * classes elements: a scalar.

    This is the public code's mean, which with 100 classes is a hundredth of the mean over the rows; the multipliers of
    the settings go with it. It stays the mean over the elements with any other number of classes.
    """
    return distillation_loss(logits, teacher_logits, temperature) / logits.shape[1]


def virtual_teacher(labels: Tensor, num_classes: int, correct: float, like: Tensor) -> Tensor:
    """Probabilities [batch, classes] of a teacher that gives `correct` to the label, the rest to all others alike.

    (Yuan et al., CVPR 2020, section 4.) labels: [batch]; like: a tensor of the precision that losses are computed for.
    """
    hard = one_hot(labels, num_classes, like)
    return correct * hard + (1 - correct) / (num_classes - 1) * (1 - hard)


@full_precision
def regularisation_loss(logits: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
    """KL(softmax(probabilities / T) || softmax(logits)), its mean over all batch * classes elements: a scalar.

    As in the public code it is the virtual teacher's probabilities, not their logarithms, that are divided by T and
    enter a softmax (again), the student's logits are not softened, and there is no factor T^2.

    logits, probabilities: [batch, classes].
    """
    return divergence_by_element(logits, probabilities / temperature, 1.0)


class TFKDReg(Method):
    """The labels are joined by a virtual teacher, who is nearly always right and finds all other classes alike.

    Yuan, Tay, Li, Wang and Feng, "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020,
    section 4, with the divergence of the public code (see `regularisation_loss`).
    """

    name = "TF-KD-reg"
    paper = PAPER
    equation = "L = (1 - a) CE + a m KL(virtual teacher, p), a mean over batch and classes (section 4, public code)"
    golden = "tfkd_reg"
    remark = f"{MEAN_OVER_CLASSES}; ResNet101, for which no setting is published, has ResNet18's"
    network_options = _by_network(REGULARISATION)

    class Options(MethodOptions):
        alpha: float = Field(0.1, ge=0, le=1, description="share of the virtual teacher; labels have the rest")
        temperature: float = Field(20.0, gt=0, description="temperature T of the virtual teacher")
        multiplier: float = Field(100.0, ge=0, description="factor m of the divergence, a mean over batch and classes")
        correct_probability: float = Field(
            0.99, gt=0, le=1, description="what the virtual teacher gives to the label before it is softened"
        )

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        return {"ce": 1 - self.options.alpha, "virtual_kd": self.options.alpha * self.options.multiplier}

    def forward(self, step: Step) -> dict[str, Tensor]:
        logits = step.student("plain").logits

        def divergence(labels: Tensor, _: Tensor) -> Tensor:
            teacher = virtual_teacher(labels, logits.shape[1], self.options.correct_probability, logits)
            return regularisation_loss(logits, teacher, self.options.temperature)

        return {"ce": label_loss(logits, step), "virtual_kd": step.over_images(divergence)}


class TFKDSelf(Method):
    """The student is taught by a network like itself, trained before on the labels alone.

    Yuan, Tay, Li, Wang and Feng, "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020,
    section 4, with the mean of the public code (see `divergence_by_element`).
    """

    name = "TF-KD-self"
    paper = PAPER
    equation = "L = (1 - a) CE + a m T² KL(teacher, p), a mean over batch and classes (section 4, public code)"
    golden = "tfkd_self"
    remark = (
        f"{MEAN_OVER_CLASSES}; ResNet101, for which no setting is published, has ResNet50's, with ResNet18's multiplier"
    )
    needs_teacher = True
    teaches_itself = True
    network_options = _by_network(SELF_TRAINING)

    class Options(MethodOptions):
        alpha: float = Field(0.95, ge=0, le=1, description="share of the teacher; labels have the rest")
        temperature: float = Field(6.0, gt=0, description="temperature T of both predictions")
        multiplier: float = Field(
            50.0, ge=0, description="factor m of the divergence beside T^2, a mean over batch and classes"
        )

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        return {"ce": 1 - self.options.alpha, "kd": self.options.alpha * self.options.multiplier}

    def forward(self, step: Step) -> dict[str, Tensor]:
        logits = step.student("plain").logits
        teacher = step.teacher("plain").logits
        return {
            "ce": label_loss(logits, step),
            "kd": divergence_by_element(logits, teacher, self.options.temperature),
        }
