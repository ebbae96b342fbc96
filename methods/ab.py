"""AB: first the student's stages learn where the teacher's neurons switch, then the student learns as ever."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from benchmark.method import Context, Method, MethodOptions, Step, UserError, full_precision
from methods.fitnet import Connector, MapSize
from methods.kd import CompanionOptions, companion_terms, companion_weights

PAPER = "Heo et al., Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons, AAAI 2019"


@full_precision
def boundary_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """How far the student's neurons are from being on or off, by the margin, where the teacher's are: a scalar.

    student, teacher: maps before their activation, [batch, channels, height, width]. A neuron of the teacher is on
    above 0. The squared shortfall (margin - s)+ of neurons that should be on, (margin + s)+ of those that should be
    off, summed over an image and averaged over the batch: the paper's piecewise differentiable loss.
    """
    shortfall = torch.where(teacher > 0, margin - student, margin + student).relu()
    return shortfall.square().sum() / len(student)


def connector(student: MapSize, teacher: MapSize) -> nn.Module:
    """What brings a student map (channels, height, width) to the size of a teacher map; nothing if it has that size.

    Raises:
        ValueError: no rule fits the two sizes.
    """
    return nn.Identity() if student == teacher else Connector(student, teacher)


class ABInit(Method):
    """The student's stages learn the teacher's activation boundaries, before any label is seen.

    Heo, Lee, Yun and Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
    AAAI 2019 (see `boundary_loss`). A stage counts twice as much as the one before it, the last one 1. Stages without a
    partner in the other network are left out. Asking our networks for pre-activations moves no running statistics,
    which in the public wide residual networks are updated twice a step.
    """

    name = "AB-init"
    paper = PAPER
    equation = "L = 0.003 Σ_stages 2^(i - n + 1) Σ_neurons ((1 ∓ s)+)², s before its activation (piecewise loss)"
    golden = "ab"
    needs_teacher = True
    needs_preactivations = True
    trains = "stages"
    listed = False

    class Options(MethodOptions):
        boundary_weight: float = Field(0.003, ge=0, description="weight of the sum over all stages")
        margin: float = Field(1.0, gt=0, description="how far beyond its boundary a neuron should be")

    options: Options

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        assert context.teacher is not None
        self.connectors = nn.ModuleList()
        pairs = zip(context.student.stages, context.teacher.stages, strict=False)
        for place, (student, teacher) in enumerate(pairs):
            try:
                module = connector(student, teacher)
            except ValueError:
                raise UserError(
                    f"AB: stage {place + 1} of {context.student.name} {student} cannot be brought to that of "
                    f"{context.teacher.name} {teacher}: it must be half as high, or at least as large; "
                    "choose another pair"
                ) from None
            self.connectors.append(context.initialise(module, f"connectors.{place}"))

    @property
    def weights(self) -> dict[str, float]:
        return {"boundary": self.options.boundary_weight}

    def forward(self, step: Step) -> dict[str, Tensor]:
        student, teacher = step.student("plain").preactivations, step.teacher("plain").preactivations
        assert student is not None
        assert teacher is not None
        last = len(self.connectors) - 1
        losses = [
            2.0 ** (place - last) * boundary_loss(connect(own), other, self.options.margin)
            for place, (connect, own, other) in enumerate(zip(self.connectors, student, teacher, strict=False))
        ]
        return {"boundary": torch.stack(losses).sum()}


class AB(Method):
    """The student learns labels and conventional KD from weights that know the teacher's activation boundaries.

    Heo et al., AAAI 2019: all of the method lies in the first weights, which `ABInit` trains. As in the benchmark of
    Tian et al. (ICLR 2020), no loss of its own is left after that.
    """

    name = "AB"
    paper = PAPER
    equation = "L = CE + KD, from the weights that AB-init leaves"
    golden = "ab"
    needs_teacher = True
    start = "AB-init"

    class Options(CompanionOptions):
        """Those of cross entropy and conventional KD."""

    options: Options

    @property
    def weights(self) -> dict[str, float]:
        return companion_weights(self.options)

    def forward(self, step: Step) -> dict[str, Tensor]:
        return companion_terms(self.options, step.student("plain"), step)
