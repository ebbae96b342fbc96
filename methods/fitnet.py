"""FitNet: a hint from the middle of the teacher."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from benchmark.method import Context, Method, Shape, Step, UserError, full_precision
from methods.kd import CompanionOptions, companion_terms, companion_weights

MapSize = tuple[int, int, int]


@full_precision
def hint_loss(regressed: Tensor, hint: Tensor) -> Tensor:
    """Mean squared difference of two maps [batch, channels, height, width] over all their elements: a scalar."""
    return F.mse_loss(regressed, hint)


class Connector(nn.Module):
    """Brings a student map (channels, height, width) to the size of a teacher map: convolution, batch norm.

    A map twice as high as the teacher's is halved by a 3x3 convolution of stride 2, one half as high is doubled by a
    transposed 4x4 one, any other that is at least as large is cut to size by a convolution without padding.

    Raises:
        ValueError: no rule fits the two sizes.
    """

    def __init__(self, student: MapSize, teacher: MapSize) -> None:
        super().__init__()
        (inputs, height, width), (outputs, teacher_height, teacher_width) = student, teacher
        self.conv: nn.Module
        if height == 2 * teacher_height:
            self.conv = nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1)
        elif 2 * height == teacher_height:
            self.conv = nn.ConvTranspose2d(inputs, outputs, kernel_size=4, stride=2, padding=1)
        elif height >= teacher_height and width >= teacher_width:
            self.conv = nn.Conv2d(inputs, outputs, (1 + height - teacher_height, 1 + width - teacher_width))
        else:
            raise ValueError(f"no connector brings a map of {student} to {teacher}")
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Student map [batch, channels, height, width] to the teacher's channels, height and width."""
        return cast(Tensor, self.bn(self.conv(features)))


class Regressor(Connector):
    """A connector with a ReLU behind it."""

    def forward(self, features: Tensor) -> Tensor:
        """Student map [batch, channels, height, width] to the teacher's channels, height and width."""
        return F.relu(super().forward(features))


def _map_size(network: Shape, hint_stage: int) -> MapSize:
    maps = (network.stem, *network.stages)
    if hint_stage >= len(maps):
        raise UserError(
            f"FitNet: hint_stage = {hint_stage}, but {network.name} has maps 0 (stem) to {len(maps) - 1}; "
            "choose one of those"
        )
    return maps[hint_stage]


class FitNet(Method):
    """A map in the middle of the student, through a regressor, imitates the teacher's map at the same place.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation (3). In one stage, as in the benchmark of
    Tian et al. (ICLR 2020): hint, labels and conventional KD are learnt together from the first epoch.
    """

    name = "FitNet"
    paper = "Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015"
    equation = "L = CE + KD + 100 |r(student map) - teacher map|² of one stage, a mean (equation 3)"
    golden = "fitnet"
    needs_teacher = True

    class Options(CompanionOptions):
        hint_weight: float = Field(100.0, ge=0, description="weight of the hint loss")
        hint_stage: int = Field(2, ge=0, description="which map: 0 is the stem, 1 the first stage")

    options: Options

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        assert context.teacher is not None
        student = _map_size(context.student, options.hint_stage)
        teacher = _map_size(context.teacher, options.hint_stage)
        try:
            regressor = Regressor(student, teacher)
        except ValueError:
            raise UserError(
                f"FitNet: map {options.hint_stage} of {context.student.name} {student} cannot be brought to that of "
                f"{context.teacher.name} {teacher}: it must be half as high, or at least as large; "
                "choose another hint_stage"
            ) from None
        self.regressor = context.initialise(regressor, "regressor")

    @property
    def weights(self) -> dict[str, float]:
        return companion_weights(self.options) | {"hint": self.options.hint_weight}

    def forward(self, step: Step) -> dict[str, Tensor]:
        student = step.student("plain")
        teacher = step.teacher("plain")
        place = self.options.hint_stage
        regressed = self.regressor((student.stem, *student.stages)[place])
        hint = (teacher.stem, *teacher.stages)[place]
        return companion_terms(self.options, student, step) | {"hint": hint_loss(regressed, hint)}
