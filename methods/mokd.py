"""MOKD: two networks that learn together, each from slow averages of both, through projections of many views."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from benchmark.method import (
    Context,
    Method,
    MethodOptions,
    Network,
    Outputs,
    Shape,
    Step,
    UserError,
    averaged,
    full_precision,
    statistics_kept,
)
from methods.baseline import label_loss
from methods.mokd_heads import MLPHead, THead

GLOBAL_VIEWS = 2
LOCAL_CROPS = 8
LOCAL_SIZE = 96 / 224
"""Side of a local crop in sides of the image: the published pixels on ImageNet."""


@full_precision
def dino_loss(
    student: Tensor, teacher: Tensor, centre: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Cross entropy of each view of a student with each other global view of a teacher: a scalar.

    The mean, over the pairs of a global view and another view, of the mean over the images of
    -sum softmax((teacher - centre) / teacher_temperature) log softmax(student / student_temperature). No gradient flows
    into the teacher. (Caron et al., ICCV 2021, section 3.1, as MOKD takes it over in section 3.)

    student: scores [views * batch, prototypes] of all views, the two global ones first; teacher: [2 * batch,
    prototypes] of the global ones; centre: [prototypes]; all view-major.
    """
    targets = F.softmax((teacher - centre) / teacher_temperature, dim=1).detach().unflatten(0, (GLOBAL_VIEWS, -1))
    images = targets.shape[1]
    log_student = F.log_softmax(student / student_temperature, dim=1).unflatten(0, (-1, images))
    # Linear in the targets: each local view has those of both global views added up, and each of these the other's.
    of_global = (targets.flip(0) * log_student[:GLOBAL_VIEWS]).sum()
    of_local = (targets.sum(0) * log_student[GLOBAL_VIEWS:]).sum()
    pairs = GLOBAL_VIEWS * len(log_student) - GLOBAL_VIEWS
    return -(of_global + of_local) / (pairs * images)


@full_precision
def search_loss(student: Tensor, teacher: Tensor, student_temperature: float, teacher_temperature: float) -> Tensor:
    """Mean over the rows of -sum softmax(teacher / its temperature) log softmax(student / its temperature): a scalar.

    student, teacher: scores [rows, prototypes]; no gradient flows into the teacher. (MOKD, section 3.)
    """
    targets = F.softmax(teacher / teacher_temperature, dim=1).detach()
    return -(targets * F.log_softmax(student / student_temperature, dim=1)).sum(1).mean()


@full_precision
def moved_centre(centre: Tensor, teacher: Tensor, momentum: float) -> Tensor:
    """The centre [prototypes], moved towards the mean of the teacher's scores [rows, prototypes], without a graph."""
    return centre * momentum + averaged(teacher.mean(0)) * (1 - momentum)


def teacher_temperature(epoch: int, warmup_epochs: int, first: float, last: float) -> float:
    """Linear from `first`, in epoch 0, to `last`, in the last of the warm-up epochs, and `last` ever after."""
    if epoch >= warmup_epochs:
        return last
    return first + (last - first) * epoch / max(warmup_epochs - 1, 1)


def teacher_momentum(first: float, progress: float) -> float:
    """What a teacher keeps of its weights: from `first` to 1 along a half cosine, as progress goes from 0 to 1."""
    return 1 - (1 - first) * (1 + math.cos(math.pi * progress)) / 2


def local_crops(images: Tensor, count: int, side: int, generator: torch.Generator) -> Tensor:
    """Square windows of images, each at a place of its own, crop-major: [count * batch, channels, side, side].

    images: [batch, channels, size, size]; generator: on their device.
    """
    batch, _, size, _ = images.shape
    corners = torch.randint(size - side + 1, (2, count * batch, 1), generator=generator, device=images.device)
    rows, columns = corners + torch.arange(side, device=images.device)
    image = torch.arange(batch, device=images.device).repeat(count)
    pixels = images.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], columns[:, None, :]]
    return pixels.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Projections:
    """Scores [rows, prototypes] of some views by both heads of a network."""

    mlp: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Temperatures:
    """By which scores are divided: the student's always, a teacher's where it teaches itself or the other network."""

    student: float
    own: float
    cross: float


def self_loss(student: Projections, teacher: Projections, centres: Projections, temperatures: Temperatures) -> Tensor:
    """What a network learns from its own teacher: `dino_loss` of either head, summed: a scalar."""
    own = temperatures.student, temperatures.own
    mlp = dino_loss(student.mlp, teacher.mlp, centres.mlp, *own)
    return mlp + dino_loss(student.tokens, teacher.tokens, centres.tokens, *own)


def cross_loss(
    student: Projections, teacher: Projections, centres: Projections, found: Tensor, temperatures: Temperatures
) -> Tensor:
    """What a network learns from the other's teacher: `dino_loss` of the MLP heads plus `search_loss`: a scalar.

    found: scores [crops * batch, prototypes] of the other teacher's T-head for this network's local crops as queries.
    """
    cross = temperatures.student, temperatures.cross
    local = student.tokens[-len(found) :]
    return dino_loss(student.mlp, teacher.mlp, centres.mlp, *cross) + search_loss(local, found, *cross)


class Heads(nn.Module):
    """The two heads of a network: `mlp` on the pooled vector, `tokens` on the last stage map."""

    def __init__(self, shape: Shape, options: MOKD.Options) -> None:
        super().__init__()
        channels, *size = shape.stages[-1]
        self.mlp = MLPHead(shape.pooled, options.hidden, options.bottleneck, options.prototypes)
        self.tokens = THead(
            channels, (size[0], size[1]), options.width, options.blocks, options.attention_heads, options.prototypes
        )


class MeanTeacher(nn.Module):
    """A slow average of a network and its heads, and the centres of its scores.

    It takes no gradient. Like its network it normalises by the statistics of the batch; those it gathers are not used.
    """

    centre_mlp: Tensor
    centre_tokens: Tensor

    def __init__(self, network: Network, heads: Heads, prototypes: int) -> None:
        super().__init__()
        self.network = network
        self.heads = heads
        self.requires_grad_(False)
        for name in ("centre_mlp", "centre_tokens"):
            self.register_buffer(name, torch.zeros(prototypes))

    @property
    def centres(self) -> Projections:
        """What is taken off the scores of each head, [prototypes]."""
        return Projections(self.centre_mlp, self.centre_tokens)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Projections, Tensor]:
        """Scores of images [rows, 3, height, width] by both heads, and the last stage map."""
        outputs = self.network(images)
        maps = outputs.stages[-1]
        return Projections(self.heads.mlp(outputs.pooled), self.heads.tokens(maps).scores), maps

    @torch.no_grad()
    def search(self, maps: Tensor, queries: Tensor) -> Tensor:
        """Scores [rows, prototypes] of the T-head for maps [batch, ...] with queries [rows, width] (see `THead`)."""
        scores: Tensor = self.heads.tokens(maps, queries).scores
        return scores

    @torch.no_grad()
    def move_centres(self, seen: Projections, momentum: float) -> None:
        """Move the centres towards the means of the scores just seen."""
        self.centre_mlp.copy_(moved_centre(self.centre_mlp, seen.mlp, momentum))
        self.centre_tokens.copy_(moved_centre(self.centre_tokens, seen.tokens, momentum))

    @torch.no_grad()
    def follow(self, network: nn.Module, heads: nn.Module, momentum: float) -> None:
        """Keep `momentum` of the own weights and take the rest from a network and its heads."""
        for slow, fast in ((self.network, network), (self.heads, heads)):
            for own, other in zip(slow.parameters(), fast.parameters(), strict=True):
                own.lerp_(other, 1 - momentum)


@dataclass(frozen=True)
class Seen:
    """What a network makes of a batch.

    logits: of the first global view, [batch, classes]; scores: of all views, [(2 + crops) * batch, prototypes];
    queries: pooled embeddings of the local crops, [crops * batch, width].
    """

    logits: Tensor
    scores: Projections
    queries: Tensor


class MOKD(Method):
    """Two networks of the same kind learn the labels, and from slow averages of themselves and of each other.

    Song, Xie, Zhang and Luo, "Multi-Mode Online Knowledge Distillation for Self-Supervised Visual Representation
    Learning", CVPR 2023, section 3: a convolutional network and a vision transformer learn without labels, each with an
    average of its past weights as a teacher, heads on its pooled vector and on its map, and the loss of DINO. Each also
    imitates the other's teacher: its MLP head, and its T-head searched with the local crops of the learner.

    To stand beside methods that learn from labels it is wired anew: losses, heads, centres and teachers as published,
    beside cross entropy on the view `plain`, for two convolutional networks of the same kind under the common protocol.
    Global views are `plain` and `second`; local crops are cut from `second`. The centre of a loss between networks,
    which would always equal the one of that teacher's MLP head, is not kept twice. Batch norms keep no statistics of
    the local crops.
    """

    name = "MOKD"
    paper = (
        "Song et al., Multi-Mode Online Knowledge Distillation for Self-Supervised Visual Representation Learning, "
        "CVPR 2023"
    )
    equation = "L = Σ_networks [CE + DINO(MLP) + DINO(T) + λ (DINO(MLP, other's teacher) + search)] (section 3)"
    golden = "mokd"
    remark = (
        "a self-supervised method in a supervised wiring of ours: with labels, two networks of the same kind and the "
        "common protocol"
    )
    # Of two networks, forward and back on the global views and the local crops, and forward alone of their teachers.
    # The heads, which weigh more than a small network, are not reckoned.
    student_passes = 2 * (GLOBAL_VIEWS + LOCAL_CROPS * LOCAL_SIZE**2) + 2 * GLOBAL_VIEWS / 3
    in_default_grid = False

    class Options(MethodOptions):
        ce_weight: float = Field(1.0, ge=0, description="weight of both networks' cross entropy, which MOKD has not")
        cross_weight: float = Field(1.0, ge=0, description="lambda_c: what the student learns from the peer's teacher")
        peer_cross_weight: float = Field(
            0.1, ge=0, description="lambda_t: what the peer learns from the student's teacher"
        )
        prototypes: int = Field(65536, ge=2, description="outputs of every head")
        hidden: int = Field(2048, ge=1, description="width of the MLP head's hidden layers")
        bottleneck: int = Field(256, ge=1, description="width of the MLP head before its prototypes")
        blocks: int = Field(3, ge=1, description="transformer blocks of the T-head")
        attention_heads: int = Field(6, ge=1, description="attention heads of a block; they divide its width")
        width: int = Field(384, ge=1, description="width of the T-head's blocks, that of the published transformer")
        token_rate: float = Field(
            0.003,
            gt=0,
            le=1,
            description="learning rate of the T-heads in those of the protocol: the published 0.0003 in 0.1; at the "
            "full rate of SGD they diverge",
        )
        local_crops: int = Field(LOCAL_CROPS, ge=1, description="local crops of an image")
        local_size: float = Field(
            LOCAL_SIZE,
            gt=0,
            le=1,
            description="side of a local crop in sides of the image, but at least what one place of the last map sees",
        )
        student_temperature: float = Field(0.1, gt=0, description="temperature of the learning networks' scores")
        first_teacher_temperature: float = Field(0.04, gt=0, description="temperature of the teachers at the start")
        teacher_temperature: float = Field(0.07, gt=0, description="temperature of the teachers after the warm-up")
        self_warmup: float = Field(
            0.5, ge=0, le=1, description="warm-up of that temperature for a network's own teacher, share of the epochs"
        )
        cross_warmup: float = Field(
            0.3, ge=0, le=1, description="warm-up of that temperature for the other's teacher, share of the epochs"
        )
        centre_momentum: float = Field(0.9, ge=0, le=1, description="share of the old centre that is kept in a step")
        teacher_momentum: float = Field(
            0.996, ge=0, le=1, description="share of its weights that a teacher keeps in the first step; 1 in the last"
        )

    options: Options

    def __init__(self, context: Context, options: Options) -> None:
        super().__init__(context, options)
        if options.width % options.attention_heads:
            raise UserError(
                f"MOKD: {options.attention_heads} attention heads do not divide a width of {options.width}; choose "
                "width as a multiple of attention_heads"
            )
        shape = context.student
        self.map_side = shape.stages[-1][1]
        self.peer = context.network(shape, "peer")
        self.heads, self.peer_heads = Heads(shape, options), Heads(shape, options)
        context.initialise(self.heads, "heads")
        context.initialise(self.peer_heads, "peer heads")
        self.teacher = MeanTeacher(context.network(shape), copy.deepcopy(self.heads), options.prototypes)
        self.peer_teacher = MeanTeacher(copy.deepcopy(self.peer), copy.deepcopy(self.peer_heads), options.prototypes)
        # With momentum and one rate for all, a smaller gradient is what a smaller rate would be, but for weight decay,
        # which stays that of the protocol.
        for heads in (self.heads, self.peer_heads):
            for parameter in heads.tokens.parameters():
                parameter.register_hook(lambda gradient: gradient * options.token_rate)
        self.progress = 0.0

    @property
    def weights(self) -> dict[str, float]:
        options = self.options
        return {
            "ce": options.ce_weight,
            "self": 1.0,
            "cross": options.cross_weight,
            "peer_ce": options.ce_weight,
            "peer_self": 1.0,
            "peer_cross": options.peer_cross_weight,
        }

    def temperatures(self, epoch: int, epochs: int) -> Temperatures:
        """The temperatures in an epoch counted from 0; warm-ups are shares of the run's epochs, to the nearest one."""
        options = self.options
        ends = options.first_teacher_temperature, options.teacher_temperature
        return Temperatures(
            options.student_temperature,
            teacher_temperature(epoch, round(options.self_warmup * epochs), *ends),
            teacher_temperature(epoch, round(options.cross_warmup * epochs), *ends),
        )

    def crop_side(self, size: int) -> int:
        """Side of the local crops of images of this size: no less than what one place of the last map stands for."""
        return max(round(self.options.local_size * size), math.ceil(size / self.map_side))

    def forward(self, step: Step) -> dict[str, Tensor]:
        options = self.options
        self.progress = step.progress
        plain, second = step.images("plain"), step.images("second")
        images, whole = len(plain), torch.cat((plain, second))
        side = self.crop_side(plain.shape[-1])
        local = local_crops(second, options.local_crops, side, step.generator("local crops"))
        student = _seen(step.student, self.heads, whole, local, images)
        peer = _seen(self._run_peer, self.peer_heads, whole, local, images)
        own, maps = self.teacher(whole)
        other, other_maps = self.peer_teacher(whole)
        found = self.peer_teacher.search(other_maps[:images], student.queries)
        peer_found = self.teacher.search(maps[:images], peer.queries)
        centres, other_centres = self.teacher.centres, self.peer_teacher.centres
        temperatures = self.temperatures(step.epoch, step.epochs)
        terms = {
            "ce": label_loss(student.logits, step),
            "self": self_loss(student.scores, own, centres, temperatures),
            "cross": cross_loss(student.scores, other, other_centres, found, temperatures),
            "peer_ce": label_loss(peer.logits, step),
            "peer_self": self_loss(peer.scores, other, other_centres, temperatures),
            "peer_cross": cross_loss(peer.scores, own, centres, peer_found, temperatures),
        }
        self.teacher.move_centres(own, options.centre_momentum)
        self.peer_teacher.move_centres(other, options.centre_momentum)
        return terms

    def _run_peer(self, images: Tensor, gather: bool = True) -> Outputs:
        with contextlib.nullcontext() if gather else statistics_kept(self.peer):
            return cast(Outputs, self.peer(images))

    def end_step(self, student: Network) -> None:
        """Let both teachers follow their networks."""
        momentum = teacher_momentum(self.options.teacher_momentum, self.progress)
        self.teacher.follow(student, self.heads, momentum)
        self.peer_teacher.follow(self.peer, self.peer_heads, momentum)


def _seen(run: Callable[..., Outputs], heads: Heads, whole: Tensor, local: Tensor, images: int) -> Seen:
    """All that a network makes of the global views [2 * images, ...] and of the local crops."""
    # It will be asked about whole images, so the statistics that it keeps are of those alone.
    of_local, of_whole = run(local, gather=False), run(whole)
    whole_found, local_found = heads.tokens(of_whole.stages[-1]), heads.tokens(of_local.stages[-1])
    scores = Projections(
        heads.mlp(torch.cat((of_whole.pooled, of_local.pooled))),
        torch.cat((whole_found.scores, local_found.scores)),
    )
    return Seen(of_whole.logits[:images], scores, local_found.pooled)
