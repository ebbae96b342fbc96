"""SemCKD: every stage of the student learns from every stage of the teacher, as attention weighs them."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from benchmark.method import Context, Method, Step, UserError, full_precision
from methods.at import pool_to_height
from methods.kd import CompanionOptions, companion_terms, companion_weights


@full_precision
def similarities(features: Tensor) -> Tensor:
    """Inner products of the maps of a batch's images [batch, channels, height, width]: [batch, batch]."""
    rows = features.flatten(1)
    return rows @ rows.t()


@full_precision
def association(queries: Tensor, keys: Tensor) -> Tensor:
    """How much of each student stage's lesson comes from each teacher stage: [batch, student stages, teacher stages].

    queries, keys: embeddings [batch, stages, width]; the softmax over the teacher's stages of their cosines.
    """
    cosines = F.normalize(queries, dim=2) @ F.normalize(keys, dim=2).transpose(1, 2)
    return cosines.softmax(dim=2)


@full_precision
def image_errors(projected: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of two maps [batch, channels, height, width] of each image: [batch]."""
    return F.mse_loss(projected, target, reduction="none").mean((1, 2, 3))


@full_precision
def calibration_loss(attention: Tensor, errors: Tensor) -> Tensor:
    """Errors weighed by attention, both [batch, student stages, teacher stages]: a scalar.

    Summed over the teacher's stages, whose weights add up to 1, and averaged over the student's and the batch. (Chen et
    al., AAAI 2021.)
    """
    return (attention * errors).sum(2).mean()


def embedding(batch: int, width: int) -> nn.Sequential:
    """Makes queries and keys of an image's similarities to its batch: linear, ReLU of twice the width, linear."""
    return nn.Sequential(nn.Linear(batch, 2 * width), nn.ReLU(inplace=True), nn.Linear(2 * width, width))


def projection(inputs: int, outputs: int) -> nn.Sequential:
    """Makes a guess of a teacher map out of a student map of its height: 1x1, 3x3 and 1x1 convolutions.

    The first two have twice the outputs, a batch norm and a ReLU.
    """
    wide = 2 * outputs
    return nn.Sequential(
        nn.Conv2d(inputs, wide, 1, bias=False),
        nn.BatchNorm2d(wide),
        nn.ReLU(inplace=True),
        nn.Conv2d(wide, wide, 3, padding=1, bias=False),
        nn.BatchNorm2d(wide),
        nn.ReLU(inplace=True),
        nn.Conv2d(wide, outputs, 1, bias=False),
    )


class SemCKD(Method):
    """Every stage of the student imitates all stages of the teacher, those most of whose meaning it has the most.

    Chen, Mei, Zhang, Wang, Wang, Feng and Chen, "Cross-Layer Distillation with Semantic Calibration", AAAI 2021:
    attention between stages is made of the similarities within a batch (see `association`), and weighs how badly each
    student stage, projected, imitates each teacher stage (see `calibration_loss`). Beside labels and conventional KD.

    The attention reads the similarities to a whole batch. A batch of another size, the last one of an epoch, teaches
    labels and conventional KD only; the public code skips such a batch altogether.
    """

    name = "SemCKD"
    paper = "Chen et al., Cross-Layer Distillation with Semantic Calibration, AAAI 2021"
    equation = "L = CE + KD + 400 Σ_pairs of stages attention |p(student) - teacher|², a mean (calibration loss)"
    golden = "semckd"
    compares_images = True
    needs_teacher = True
    # With the projections: 2.7 to 7.2 for the pairs of Table II, by their multiply-adds.
    student_passes = 4.0

    class Options(CompanionOptions):
        semckd_weight: float = Field(400.0, ge=0, description="weight of the calibration loss")
        reduction: int = Field(4, ge=1, description="how many times the batch size is that of queries and keys")

    options: Options

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        assert context.teacher is not None
        self.batch_size = context.batch_size
        width = self.batch_size // options.reduction
        if width < 1:
            raise UserError(
                f"SemCKD: with batches of {self.batch_size} images and reduction = {options.reduction} the attention "
                f"has nothing to read; choose a batch size of at least {options.reduction} or a smaller reduction"
            )
        students, teachers = context.student.stages, context.teacher.stages

        def embeddings(name: str, count: int) -> nn.ModuleList:
            return nn.ModuleList(
                context.initialise(embedding(self.batch_size, width), f"{name}.{place}") for place in range(count)
            )

        self.queries = embeddings("queries", len(students))
        self.keys = embeddings("keys", len(teachers))
        # Of all pairs of stages, the teacher's running fastest.
        self.projections = nn.ModuleList(
            context.initialise(projection(own[0], other[0]), f"projections.{place}")
            for place, (own, other) in enumerate(itertools.product(students, teachers))
        )

    @property
    def weights(self) -> dict[str, float]:
        return companion_weights(self.options) | {"calibration": self.options.semckd_weight}

    def forward(self, step: Step) -> dict[str, Tensor]:
        student = step.student("plain")
        terms = companion_terms(self.options, student, step)
        if len(student.logits) != self.batch_size:
            return terms | {"calibration": terms["ce"].new_zeros(())}
        stages = step.teacher("plain").stages
        attention = self.attention(student.stages, stages)
        return terms | {"calibration": calibration_loss(attention, self.errors(student.stages, stages))}

    @full_precision
    def attention(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
        """The association of the stages for each image, [batch, student stages, teacher stages].

        student, teacher: the stage maps of a whole batch, [batch, channels, height, width] each.
        """
        queries = [embed(similarities(maps)) for embed, maps in zip(self.queries, student, strict=True)]
        keys = [embed(similarities(maps)) for embed, maps in zip(self.keys, teacher, strict=True)]
        return association(torch.stack(queries, dim=1), torch.stack(keys, dim=1))

    def errors(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
        """How badly each student stage imitates each teacher stage, [batch, student stages, teacher stages].

        student, teacher: the stage maps, [batch, channels, height, width] each; the larger of a pair is pooled to the
        smaller before it is projected or compared.
        """
        errors = []
        for project, (own, other) in zip(self.projections, itertools.product(student, teacher), strict=True):
            height = min(own.shape[2], other.shape[2])
            errors.append(image_errors(project(pool_to_height(own, height)), pool_to_height(other, height)))
        return torch.stack(errors, dim=1).unflatten(1, (len(student), len(teacher)))
