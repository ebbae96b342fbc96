"""BYOT: classifiers on earlier maps learn from the deepest one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from benchmark.method import Context, Method, MethodOptions, Network, Outputs, Shape, Step, UserError, full_precision
from methods.baseline import label_loss

MapSize = tuple[int, int, int]


@full_precision
def softened_cross_entropy(logits: Tensor, target_logits: Tensor, temperature: float) -> Tensor:
    """Mean over the rows of -sum softmax(target / T) log softmax(logits / T), without a factor T^2: a scalar.

    logits, target_logits: [batch, classes]; no gradient flows into the target.
    """
    targets = F.softmax(target_logits.detach() / temperature, dim=1)
    return F.cross_entropy(logits / temperature, targets)


@full_precision
def whole_distance(features: Tensor, target: Tensor) -> Tensor:
    """Euclidean length of the whole difference of two matrices [batch, width]: a scalar, not averaged.

    Its gradient has the same length whatever the distance, and is 0 where there is none. None flows into the target.
    """
    return torch.linalg.vector_norm(features - target.detach())


@full_precision
def masked_square(features: Tensor, target: Tensor) -> Tensor:
    """Sum of the squared differences of two matrices [batch, width] where one of them is positive: a scalar.

    No gradient flows into the target.
    """
    target = target.detach()
    counted = (features > 0) | (target > 0)
    return torch.where(counted, (features - target).square(), 0).sum()


class SeparableBlock(nn.Module):
    """Two separable 3x3 convolutions, the first with a stride, each followed by norm and ReLU.

    Names of the parameters are those of the author's code.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()

        def separable(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
            return [
                nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]

        self.op = nn.Sequential(*separable(inputs, inputs, stride), *separable(inputs, outputs, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [batch, channels, height, width] to maps of the output's width, smaller by the stride."""
        return cast(Tensor, self.op(maps))


def upsample(maps: Tensor, height: int, width: int) -> Tensor:
    """Enlarge maps [batch, channels, h, w] to [batch, channels, height, width], bilinear between the pixels' centres.

    Two products with matrices, since the gradient of torch's own form has no fixed order of summation on CUDA.
    """

    def weights(before: int, after: int) -> Tensor:
        pixels = torch.eye(before, dtype=maps.dtype, device=maps.device)[None]
        return F.interpolate(pixels, size=after, mode="linear", align_corners=False)[0]

    return weights(maps.shape[2], height).T @ maps @ weights(maps.shape[3], width)


class AttentiveBranch(nn.Module):
    """The author's branch: the map times an attention map, then a block for each later stage, then a mean.

    maps: sizes of this branch's map and of those that come after it.
    """

    def __init__(self, maps: Sequence[MapSize]) -> None:
        super().__init__()
        channels = maps[0][0]
        self.attention = nn.Sequential(SeparableBlock(channels, channels, 2), nn.BatchNorm2d(channels), nn.ReLU())
        # A stage that leaves the height as it is has no stride to repeat.
        self.scala = nn.Sequential(
            *(SeparableBlock(inputs[0], outputs[0], 1 + (inputs[1] > outputs[1])) for inputs, outputs in pairwise(maps))
        )
        self.width = maps[-1][0]

    def forward(self, maps: Tensor) -> Tensor:
        """Features [batch, width] of a map [batch, channels, height, width]."""
        attention, size = self.attention(maps), maps.shape[-2:]
        if self.training:
            attention = upsample(attention, *size)
        else:
            # Without a gradient torch's own form will do, and an exported file can hold it.
            attention = F.interpolate(attention, size=size, mode="bilinear", align_corners=False)
        return cast(Tensor, self.scala(maps * attention.sigmoid()).mean((2, 3)))


class BottleneckBranch(nn.Sequential):
    """The third party's branch: 1x1, k x k with stride k, 1x1 convolution, each with norm and ReLU, then a mean.

    maps: sizes of this branch's map and of those that come after it, whose last one decides k; width: of the features,
    and four times that in between.
    """

    def __init__(self, maps: Sequence[MapSize], width: int) -> None:
        side, between = max(1, maps[0][1] // maps[-1][1]), max(1, width // 4)
        layers: list[nn.Module] = []
        for inputs, outputs, kernel in ((maps[0][0], between, 1), (between, between, side), (between, width, 1)):
            layers += [nn.Conv2d(inputs, outputs, kernel, stride=kernel), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers)
        self.width = width

    def forward(self, maps: Tensor) -> Tensor:
        """Features [batch, width] of a map [batch, channels, height, width]."""
        return cast(Tensor, super().forward(maps).mean((2, 3)))


class Shallow(NamedTuple):
    """What a classifier on an earlier map gives: logits [batch, classes], and features [batch, width] before it."""

    logits: Tensor
    features: Tensor


class EnsemblePredictor(nn.Module):
    """A student with the classifiers on its earlier maps, which predict together by the mean of their logits."""

    def __init__(self, student: Network, method: BYOT) -> None:
        super().__init__()
        self.student = student
        self.branches, self.classifiers = method.branches, method.classifiers
        self._shallow = method.shallow

    def forward(self, images: Tensor) -> Outputs:
        """The student's outputs for images [batch, 3, height, width], but for the logits."""
        outputs = self.student(images)
        logits = [outputs.logits, *(shallow.logits for shallow in self._shallow(outputs))]
        return replace(outputs, logits=torch.stack(logits).mean(0))


class BYOT(Method):
    """Each classifier on an earlier map learns the labels, the deepest one's predictions, and its features.

    Zhang, Song, Gao, Chen, Bao and Ma, "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks
    via Self Distillation", ICCV 2019. The only code by its authors is that of the journal version, and other code that
    is widely used differs from it in every part; both are here (`reading`).

    author: L = CE(z_K) + sum_i [(1 - alpha) CE(z_i) + alpha K_i] + beta sum_i |A_i F_i - F_K|, with a linear A_i, over
    all earlier maps i but the last of them in the final sum; K_i is the cross entropy of the softened distributions.
    third_party: L = (1 - alpha) sum of all CE + alpha T^2 sum_i K_i + beta sum_i of the squared differences.
    Gradients of the branches flow into the student's body, none flows into what teaches.
    """

    name = "BYOT"
    paper = (
        "Zhang et al., Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self "
        "Distillation, ICCV 2019"
    )
    equation = "L = CE + Σ_i [0.7 CE(z_i) + 0.3 CE(softened z, z_i)] + 0.03 Σ_i |A F_i - F|, T = 3 (author's code)"
    golden = "byot_authors"
    # Its feature terms are no means over the images: a length of all rows, or a sum.
    compares_images = True
    # Of the author's branches on ResNet20; on the networks of Table III they cost 1.05 to 1.16.
    student_passes = 1.07
    differences: ClassVar = {
        "reading": (
            "conference version; no settings (so a third party says)",
            "the first author's is of the journal version; third parties' are others",
            "the author's; `reading` = `third_party` for the one most copied (ledger R27)",
        ),
        "prediction": (
            "the deepest classifier, and an ensemble",
            "author: best epoch of the mean of all classifiers on the test set; third party: of the deepest",
            "the deepest alone, which is the plain student; `inference` = `ensemble`",
        ),
        "feature term": (
            "squared distance (by a comment in the author's code)",
            "author: distance after a linear layer, left out for the last of the earlier maps, though the comment "
            "says the first; third party: masked squared sum times 1e-6",
            "as in the code; the linear layer that never learns is not built",
        ),
        "branches": (
            "bottlenecks (the author's code still holds them, unused)",
            "for ResNets of four stages on maps that end 4x4",
            "the same by the sizes of the maps of any network; their first weights are PyTorch's, not He's",
        ),
        "training": (
            "not read",
            "author: AutoAugment, Cutout and grey padding always on; 250 epochs, batch 128, rate 0.1",
            "the protocol's, last epoch",
        ),
    }

    class Options(MethodOptions):
        reading: Literal["author", "third_party"] = Field(
            "author", description="whose branches, weights and feature term: see the class in methods/byot.py"
        )
        alpha: float | None = Field(
            None, ge=0, le=1, description="share of distillation; none: 0.3 (author) or 0.1 (third_party)"
        )
        beta: float | None = Field(
            None, ge=0, description="weight of the feature term; none: 0.03 (author) or 1e-6 (third_party)"
        )
        temperature: float = Field(3.0, gt=0, description="temperature T of the distillation")
        inference: Literal["deepest", "ensemble"] = Field(
            "deepest", description="what predicts: the student alone, or the mean of all classifiers' logits"
        )

    options: Options

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        shape = context.student
        if len(shape.branch_maps) < 2:
            raise UserError(f"BYOT: {shape.name} has one map; choose a network with two or more")
        self.of_author = options.reading == "author"
        built = [self._branch(shape, place) for place in range(len(shape.branch_maps) - 1)]
        self.branches = cast(nn.ModuleList, context.initialise(nn.ModuleList(built), "branches"))
        classifiers = nn.ModuleList(nn.Linear(branch.width, context.num_classes) for branch in built)
        self.classifiers = cast(nn.ModuleList, context.initialise(classifiers, "classifiers"))
        taught = built[:-1] if self.of_author else []
        adaptations = nn.ModuleList(nn.Linear(branch.width, shape.pooled) for branch in taught)
        self.adaptations = cast(nn.ModuleList, context.initialise(adaptations, "adaptations"))

    def _branch(self, shape: Shape, place: int) -> AttentiveBranch | BottleneckBranch:
        maps = shape.branch_maps[place:]
        return AttentiveBranch(maps) if self.of_author else BottleneckBranch(maps, shape.pooled)

    @property
    def weights(self) -> dict[str, float]:
        usual_alpha, usual_beta = (0.3, 0.03) if self.of_author else (0.1, 1e-6)
        alpha = usual_alpha if self.options.alpha is None else self.options.alpha
        beta = usual_beta if self.options.beta is None else self.options.beta
        squared = 1.0 if self.of_author else self.options.temperature**2
        return {
            "ce": 1.0 if self.of_author else 1 - alpha,
            "shallow_ce": 1 - alpha,
            "kd": alpha * squared,
            "feature": beta,
        }

    def shallow(self, outputs: Outputs) -> list[Shallow]:
        """What the classifiers on the earlier maps give, the first one first."""
        found = []
        for branch, classifier, maps in zip(self.branches, self.classifiers, outputs.branch_maps[:-1], strict=True):
            features = branch(maps)
            found.append(Shallow(classifier(features), features))
        return found

    def forward(self, step: Step) -> dict[str, Tensor]:
        student = step.student("plain")
        shallow = self.shallow(student)
        temperature = self.options.temperature
        kd = [softened_cross_entropy(each.logits, student.logits, temperature) for each in shallow]
        return {
            "ce": label_loss(student.logits, step),
            "shallow_ce": torch.stack([label_loss(each.logits, step) for each in shallow]).sum(),
            "kd": torch.stack(kd).sum(),
            "feature": self._feature_loss(shallow, student.pooled),
        }

    def _feature_loss(self, shallow: Sequence[Shallow], target: Tensor) -> Tensor:
        if self.of_author:
            pairs = zip(self.adaptations, shallow[:-1], strict=True)
            losses = [whole_distance(adaptation(each.features), target) for adaptation, each in pairs]
        else:
            losses = [masked_square(each.features, target) for each in shallow]
        return torch.stack(losses).sum() if losses else target.new_zeros(())

    def predictor(self, student: Network) -> nn.Module:
        """The student, or the student and the classifiers on its earlier maps."""
        return EnsemblePredictor(student, self) if self.options.inference == "ensemble" else student
