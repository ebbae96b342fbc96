"""VID: the student's maps should tell as much as possible of the teacher's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from benchmark.method import Context, Method, Step, UserError, full_precision
from methods.at import pool_to_height
from methods.kd import CompanionOptions, companion_terms, companion_weights


@full_precision
def negative_log_likelihood(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """-log N(teacher; mean, variance) averaged over all elements, without its constant: a scalar.

    mean, teacher: [batch, channels, height, width]; variance: [channels], one for all images and places. (Ahn et al.,
    CVPR 2019; the mean over the elements instead of their sum, as in the benchmark of Tian et al., ICLR 2020.)
    """
    # The variance is the same all over a channel, so the channel's mean square is all that is needed of the maps.
    square = F.mse_loss(mean, teacher, reduction="none").mean((0, 2, 3))
    return 0.5 * (square / variance + variance.log()).mean()


def inverse_softplus(value: float) -> float:
    """The number whose softplus is `value` > 0."""
    return value + math.log(-math.expm1(-value))


class Guess(nn.Module):
    """A Gaussian guess of a teacher map from a student map: its mean, by three 1x1 convolutions, and its variance.

    All convolutions have as many outputs as the teacher map has channels. The variance of a channel is
    softplus(rho) + epsilon, with a rho that is learnt.
    """

    def __init__(self, student_channels: int, teacher_channels: int, variance: float, epsilon: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        self.rho = nn.Parameter(torch.full((teacher_channels,), inverse_softplus(variance - epsilon)))
        self.epsilon = epsilon

    @property
    def variance(self) -> Tensor:
        """The variance of each of the teacher's channels, [channels]."""
        return F.softplus(self.rho) + self.epsilon

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """How unlikely the teacher map is, given the student map, each [batch, channels, height, width]: a scalar.

        The larger of the two is pooled to the smaller.
        """
        height = min(student.shape[2], teacher.shape[2])
        mean = self.mean(pool_to_height(student, height))
        return negative_log_likelihood(mean, pool_to_height(teacher, height), self.variance)


class VID(Method):
    """Each stage of the student guesses the teacher's, which bounds their mutual information from below.

    Ahn, Hu, Damianou, Lawrence and Dai, "Variational Information Distillation for Knowledge Transfer", CVPR 2019: the
    loss is the negative log-likelihood of the teacher's maps under Gaussians made of the student's (see `Guess`).
    Beside labels and conventional KD. Stages without a partner in the other network are left out.
    """

    name = "VID"
    paper = "Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019"
    equation = "L = CE + KD + Σ_stages ½ ((teacher - μ(student))² / σ² + log σ²), a mean (variational bound)"
    golden = "vid"
    needs_teacher = True

    class Options(CompanionOptions):
        information_weight: float = Field(1.0, ge=0, description="weight of the negative log-likelihood")
        initial_variance: float = Field(5.0, gt=0, description="variance of every channel before training")
        epsilon: float = Field(1e-5, gt=0, description="smallest variance")

    options: Options

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        assert context.teacher is not None
        if options.initial_variance <= options.epsilon:
            raise UserError(
                f"VID: initial_variance = {options.initial_variance} is not above the smallest variance, "
                f"epsilon = {options.epsilon}; choose a larger initial_variance or a smaller epsilon"
            )
        self.guesses = nn.ModuleList()
        pairs = zip(context.student.stages, context.teacher.stages, strict=False)
        for place, (student, teacher) in enumerate(pairs):
            guess = Guess(student[0], teacher[0], options.initial_variance, options.epsilon)
            context.initialise(guess.mean, f"guesses.{place}.mean")
            self.guesses.append(guess)

    @property
    def weights(self) -> dict[str, float]:
        return companion_weights(self.options) | {"information": self.options.information_weight}

    def forward(self, step: Step) -> dict[str, Tensor]:
        student, teacher = step.student("plain"), step.teacher("plain")
        stages = zip(self.guesses, student.stages, teacher.stages, strict=False)
        losses = [guess(own, other) for guess, own, other in stages]
        return companion_terms(self.options, student, step) | {"information": torch.stack(losses).sum()}
