"""CRD: contrast each image's student and teacher embeddings with remembered embeddings of other images."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from benchmark.method import Context, Method, Step, UserError, averaged, full_precision, gathered
from methods.kd import CompanionOptions, companion_terms, companion_weights

EPSILON = 1e-7
"""Added to the denominators of the contrast, as the authors' implementation does."""


class _NoiseContrast(torch.autograd.Function):
    """The contrast of one side; its gradient is worked out on the way forward, while the scores are at hand.

    One matrix product with the whole memory, then a look-up of the scores that were drawn, is about eighty times
    cheaper than gathering thousands of vectors for each image. Autograd would have to keep the memory itself, which
    changes before the way back; this keeps one tensor of [batch, width].
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        memory: Tensor,
        candidates: Tensor,
        normaliser: Tensor,
        known: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        batch, images, negatives = len(embeddings), len(memory), candidates.shape[1] - 1
        scores = (embeddings / temperature).mm(memory.t()).gather(1, candidates).exp_()
        normaliser = torch.where(known, normaliser, averaged(scores.mean()) * images)
        noise = negatives / images
        ratio = scores.mul_(1 / (normaliser * noise))
        offset = EPSILON / noise
        # log(p / (p + c + eps)) and log(c / (p + c + eps)), both divided through by c: sums of small positive numbers
        # instead of differences of large ones.
        loss = torch.log1p(ratio[:, 1:] + offset).sum(1) + torch.log1p((1 + offset) / ratio[:, 0])
        if ctx.needs_input_grad[0]:
            slope = ratio / (ratio + (1 + offset))
            slope[:, 0] -= 1
            weights = slope.new_zeros(batch, images).scatter_add_(1, candidates, slope)
            ctx.save_for_backward(weights.mm(memory) / (temperature * batch))
        ctx.mark_non_differentiable(normaliser)
        return loss.mean(), normaliser

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * loss_gradient, None, None, None, None, None


@full_precision
def contrast_loss(
    embeddings: Tensor,
    memory: Tensor,
    candidates: Tensor,
    normaliser: Tensor,
    known: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """How badly each embedding tells its own image in a memory of the other network from K others.

    With p = exp(memory . embedding / temperature) / Z and c = K / images, the mean over the batch of
    -log(p / (p + c + eps)) for the positive and -log(c / (p + c + eps)) for each negative, summed (Tian et al.,
    ICLR 2020, section 3, estimated by noise contrast).

    embeddings: [batch, width]; memory: [images, width], no gradient; candidates: rows of the memory, the positive
    first, int64 [batch, 1 + K]; normaliser: Z, a scalar; known: bool scalar, False where Z is still to be estimated,
    as the mean unnormalised score of this batch times the number of images. Gives the loss, a scalar, and Z.
    """
    loss, normaliser = _NoiseContrast.apply(embeddings, memory, candidates, normaliser, known, temperature)
    return loss, normaliser


@full_precision
def unit_length(vectors: Tensor) -> Tensor:
    """Vectors [batch, width] divided by their length."""
    return vectors / vectors.square().sum(1, keepdim=True).sqrt()


class Negatives(nn.Module):
    """Draws, for images of given classes, positions of other images; vectorised, on the device of the labels.

    labels: class of each training image, int64 [images]; count: how many to draw for an image, at most as many as
    every class has to draw from; source: the images of other classes, or all but the image itself.

    Raises:
        UserError: some class has nothing to draw from.
    """

    labels: Tensor
    by_class: Tensor
    first: Tensor
    size: Tensor

    def __init__(
        self,
        labels: Tensor,
        num_classes: int,
        count: int,
        source: Literal["other_classes", "all_images"],
        replacement: bool,
    ) -> None:
        super().__init__()
        sizes = torch.bincount(labels, minlength=num_classes)
        excluded = int(sizes.max()) if source == "other_classes" else 1
        if excluded >= len(labels):
            raise UserError("CRD: there is no image to contrast with; give it two classes or negatives_from=all_images")
        self.count = min(count, len(labels) - excluded)
        self.source = source
        self.replacement = replacement
        # All of this follows from the labels, so a checkpoint need not hold it.
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("by_class", torch.argsort(labels, stable=True), persistent=False)
        self.register_buffer("first", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("size", sizes, persistent=False)

    def forward(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Positions of the negatives of the images `index` [batch]: int64 [batch, count]."""
        if not self.replacement:
            return self._distinct(index, generator)
        uniform = torch.rand(len(index), self.count, generator=generator, device=index.device)
        if self.source == "all_images":
            drawn = (uniform * (len(self.labels) - 1)).long()
            return drawn + (drawn >= index[:, None])
        own = self.labels[index][:, None]
        # Sorted by class, an image's own class is one block of positions: draw from the rest, and step over it.
        drawn = (uniform * (len(self.labels) - self.size[own])).long()
        drawn += self.size[own] * (drawn >= self.first[own])
        return self.by_class.index_select(0, drawn.flatten()).view_as(drawn)

    def _distinct(self, index: Tensor, generator: torch.Generator) -> Tensor:
        keys = torch.rand(len(index), len(self.labels), generator=generator, device=index.device)
        if self.source == "all_images":
            excluded = torch.arange(len(self.labels), device=index.device) == index[:, None]
        else:
            excluded = self.labels == self.labels[index][:, None]
        return keys.masked_fill_(excluded, 2.0).argsort(dim=1, stable=True)[:, : self.count]


class CRD(Method):
    """Student and teacher embeddings of one image attract each other and repel those of other images.

    Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, section 3 (see
    `contrast_loss`): each embedding is compared with a memory of the *other* network's embeddings. Beside labels and
    conventional KD.
    """

    name = "CRD"
    paper = "Tian et al., Contrastive Representation Distillation, ICLR 2020"
    equation = "L = CE + KD + 0.8 (contrast with the student's memory + with the teacher's) (section 3)"
    golden = "crd"
    needs_teacher = True

    class Options(CompanionOptions):
        contrast_weight: float = Field(0.8, ge=0, description="weight of the contrast")
        dimensions: int = Field(128, ge=1, description="width of the embeddings")
        contrast_temperature: float = Field(0.07, gt=0, description="temperature tau of the scores")
        memory_momentum: float = Field(0.5, ge=0, lt=1, description="share of the old embedding in the memory")
        negatives: int = Field(16384, ge=1, description="negatives drawn for an image; fewer where there are fewer")
        negatives_from: Literal["other_classes", "all_images"] = Field(
            "other_classes", description="what negatives are drawn from; never the image itself"
        )
        replacement: bool = Field(
            True, description="draw with replacement; without, each step sorts a number for every training image"
        )

    options: Options
    memory_student: Tensor
    memory_teacher: Tensor
    normalisers: Tensor
    normalisers_known: Tensor

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        assert context.teacher is not None
        width, images = options.dimensions, len(context.labels)
        self.embed_student = context.initialise(nn.Linear(context.student.pooled, width), "embed_student")
        self.embed_teacher = context.initialise(nn.Linear(context.teacher.pooled, width), "embed_teacher")
        bound = math.sqrt(3 / width)
        for name in ("memory_student", "memory_teacher"):
            uniform = torch.rand(images, width, generator=context.generator(name))
            self.register_buffer(name, uniform * (2 * bound) - bound)
        self.register_buffer("normalisers", torch.zeros(2))
        self.register_buffer("normalisers_known", torch.tensor(False))
        self.negatives = Negatives(
            context.labels, context.num_classes, options.negatives, options.negatives_from, options.replacement
        )

    @property
    def weights(self) -> dict[str, float]:
        return companion_weights(self.options) | {"contrast": self.options.contrast_weight}

    def draw(self, index: Tensor, step: Step) -> Tensor:
        """Positions of the images `index` [batch] and of their negatives, int64 [batch, 1 + negatives]."""
        negatives = self.negatives(index, step.generator("negatives"))
        return torch.cat((index[:, None], negatives), dim=1)

    def forward(self, step: Step) -> dict[str, Tensor]:
        student = step.student("plain")
        contrast = self._contrast(student.pooled, step.teacher("plain").pooled, step)
        return companion_terms(self.options, student, step) | {"contrast": contrast}

    def _contrast(self, student_pooled: Tensor, teacher_pooled: Tensor, step: Step) -> Tensor:
        embedded_student = unit_length(self.embed_student(student_pooled))
        embedded_teacher = unit_length(self.embed_teacher(teacher_pooled))
        temperature = self.options.contrast_temperature
        known, (z_student, z_teacher) = self.normalisers_known.clone(), self.normalisers.clone()

        def contrast(_: Tensor, index: Tensor) -> Tensor:
            candidates = self.draw(index, step)
            student_loss, student_normaliser = contrast_loss(
                embedded_student, self.memory_teacher, candidates, z_student, known, temperature
            )
            teacher_loss, teacher_normaliser = contrast_loss(
                embedded_teacher, self.memory_student, candidates, z_teacher, known, temperature
            )
            with torch.no_grad():
                self.normalisers.copy_(torch.stack((student_normaliser, teacher_normaliser)))
                self.normalisers_known.fill_(True)
            return student_loss + teacher_loss

        loss = step.over_images(contrast)
        # The embedding of a mixture is that of neither image; the memory keeps the last one of each alone.
        if step.mixture is None:
            with torch.no_grad():
                self._update(self.memory_student, step.index, embedded_student)
                self._update(self.memory_teacher, step.index, embedded_teacher)
        return loss

    def _update(self, memory: Tensor, index: Tensor, embeddings: Tensor) -> None:
        kept = self.options.memory_momentum
        index, embeddings = gathered(index), gathered(embeddings)
        mixed = memory[index] * kept + embeddings * (1 - kept)
        memory.index_copy_(0, index, unit_length(mixed))
