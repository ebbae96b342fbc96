"""Correlation congruence: the difference from the teacher is not to carry over from one image to the next."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from benchmark.method import Context, Method, Step, full_precision
from methods.kd import CompanionOptions, companion_terms, companion_weights


@full_precision
def congruence_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean inner product of neighbouring images' absolute differences between two embeddings: a scalar.

    student, teacher: [batch, width], two images or more. With d_n = |student_n - teacher_n|, element by element, the
    mean over n of d_n . d_(n+1); the last image has no neighbour after it, so the order of the batch matters.

    This is the authors' public code. The paper (Peng et al., ICCV 2019, section 3) compares correlations under a
    Gaussian kernel expanded to a Taylor series, which the code has not.
    """
    difference = (student - teacher).abs()
    return (difference[:-1] * difference[1:]).sum(1).mean()


class CC(Method):
    """Embeddings of both networks' pooled vectors, both learnt, differ congruently within a batch.

    Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, in the form of the authors' public code
    (see `congruence_loss`). Beside labels and conventional KD.
    """

    name = "CC"
    paper = "Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019"
    equation = "L = CE + KD + 0.02 mean d_n·d_(n+1), d = |e(student) - e(teacher)| (public code, not section 3)"
    golden = "cc"
    compares_images = True
    needs_teacher = True

    class Options(CompanionOptions):
        congruence_weight: float = Field(0.02, ge=0, description="weight of the congruence loss")
        dimensions: int = Field(128, ge=1, description="width of the embeddings")

    options: Options

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        assert context.teacher is not None
        width = options.dimensions
        self.embed_student = context.initialise(nn.Linear(context.student.pooled, width), "embed_student")
        self.embed_teacher = context.initialise(nn.Linear(context.teacher.pooled, width), "embed_teacher")

    @property
    def weights(self) -> dict[str, float]:
        return companion_weights(self.options) | {"congruence": self.options.congruence_weight}

    def forward(self, step: Step) -> dict[str, Tensor]:
        student = step.student("plain")
        teacher = step.teacher("plain")
        congruence = congruence_loss(self.embed_student(student.pooled), self.embed_teacher(teacher.pooled))
        return companion_terms(self.options, student, step) | {"congruence": congruence}
