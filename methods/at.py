"""Attention transfer: where a network looks, stage by stage."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchmark.method import Method, Step, outside_autocast
from methods.kd import CompanionOptions, companion_terms, companion_weights


class _MeanSquare(torch.autograd.Function):
    """Mean over the channels of the squares of a map, in at least float32, its gradient in the map's own precision.

    Autograd would widen a half-precision map to a copy, and its gradient to another: half of the cost of this method.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        precision = torch.promote_types(features.dtype, torch.float32)
        return torch.linalg.vector_norm(features, dim=1, dtype=precision).square_() / features.shape[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (features,) = ctx.saved_tensors
        return features * (gradient * (2 / features.shape[1])).to(features.dtype)[:, None]


def attention_map(features: Tensor, power: int = 2) -> Tensor:
    """Mean over the channels of features^power, as a vector of length 1: [batch, height * width], float32 or wider.

    features: [batch, channels, height, width]. (Zagoruyko and Komodakis, ICLR 2017, section 3.1; the mean instead of
    their sum changes nothing once the length is 1.)
    """
    energy = _MeanSquare.apply(features) if power == 2 else _at_least_float32(features).pow(power).mean(1)
    return F.normalize(energy.flatten(1), dim=1, eps=1e-12)


def pool_to_height(features: Tensor, height: int) -> Tensor:
    """Average-pool square maps [batch, channels, rows, rows] to so many rows and columns."""
    rows = features.shape[2]
    if rows == height:
        return features
    features = _at_least_float32(features)
    if rows % height == 0:
        # Equal windows: the same numbers as adaptive pooling.
        return F.avg_pool2d(features, rows // height)
    # Adaptive pooling as two products, because its own gradient has no deterministic form on a GPU.
    windows = _windows(rows, height, features)
    return windows @ features @ windows.T


def _windows(rows: int, height: int, like: Tensor) -> Tensor:
    """The means over the windows of adaptive pooling, [height, rows]: each row sums to 1."""
    place = torch.arange(height, device=like.device)[:, None]
    column = torch.arange(rows, device=like.device)
    inside = (column >= place * rows // height) & (column < -(-(place + 1) * rows // height))
    return inside.to(like.dtype) / inside.sum(1, keepdim=True)


def _at_least_float32(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))


@outside_autocast
def attention_loss(student_maps: tuple[Tensor, ...], teacher_maps: tuple[Tensor, ...], power: int = 2) -> Tensor:
    """Sum over the pairs of maps of the mean squared difference of their attention maps: a scalar.

    student_maps, teacher_maps: [batch, channels, height, width] each, height = width; the larger of a pair is pooled
    to the smaller; maps without a partner are left out. (Zagoruyko and Komodakis, ICLR 2017, equation 2, with the mean
    of squares for the norm.)
    """
    losses = []
    for student, teacher in zip(student_maps, teacher_maps, strict=False):
        height = min(student.shape[2], teacher.shape[2])
        student_attention = attention_map(pool_to_height(student, height), power)
        teacher_attention = attention_map(pool_to_height(teacher, height), power)
        losses.append(F.mse_loss(student_attention, teacher_attention))
    return torch.stack(losses).sum()


class AT(Method):
    """Every stage of the student looks where the teacher's does, beside labels and conventional KD.

    Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, equation (2), power 2.
    """

    name = "AT"
    paper = "Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017"
    equation = "L = CE + KD + 1000 Σ_stages |A(student) - A(teacher)|², a mean, A of length 1 (equation 2)"
    golden = "at"
    needs_teacher = True

    class Options(CompanionOptions):
        attention_weight: float = Field(1000.0, ge=0, description="weight of the attention loss")

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        return companion_weights(self.options) | {"attention": self.options.attention_weight}

    def forward(self, step: Step) -> dict[str, Tensor]:
        student = step.student("plain")
        attention = attention_loss(student.stages, step.teacher("plain").stages)
        return companion_terms(self.options, student, step) | {"attention": attention}
