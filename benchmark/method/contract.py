"""The contract of a distillation method.

A method is an `nn.Module` beside the student. It declares what it needs, builds its extra modules from the shapes of
student and teacher, and maps one training step to named loss terms. The loss is the sum of the terms, each times its
weight. The engine provides data, teacher, optimiser, schedule, precision and checkpoints. A method keeps everything
that it must remember between steps in its parameters and buffers; a checkpoint stores nothing else of it. If several
processes share a batch, what a method stores for single images passes through `gathered`, and what it stores of a mean
over images through `averaged`.

A new method is one file in `methods/` with a subclass of `Method`. Nothing needs to be registered elsewhere.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, ParamSpec, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from benchmark.backbones.auxiliary import AuxiliaryBranches
from benchmark.backbones.network import Network, Outputs, Shape, statistics_kept, without_classifier
from benchmark.core.errors import UserError
from benchmark.data.augmentation import ROTATIONS, View
from benchmark.data.mixing import Mixture
from benchmark.method.history import PastNetwork, PredictionHistory

__all__ = [
    "ROTATIONS",
    "Context",
    "ContractError",
    "Method",
    "MethodOptions",
    "Mixture",
    "Network",
    "Outputs",
    "PastNetwork",
    "PredictionHistory",
    "Shape",
    "Step",
    "UserError",
    "View",
    "full_precision",
    "joint_labels",
    "outside_autocast",
    "statistics_kept",
    "upright",
    "without_classifier",
]


class ContractError(ValueError):
    """A method violates its contract; the message begins with the method's name."""


class MethodOptions(BaseModel):
    """A method's options: frozen, typed, with ranges; an unknown name or a value out of range is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NewNetwork(Protocol):
    """See `Context.network`."""

    def __call__(self, shape: Shape, stream: str = "", /) -> Network: ...


class NewBranches(Protocol):
    """See `Context.branches`."""

    def __call__(self, shape: Shape, outputs: int, stream: str = "", /) -> AuxiliaryBranches: ...


@dataclass(frozen=True)
class Context:
    """What a method is built from, on the CPU; the engine moves parameters and buffers to the device afterwards.

    labels: class of each training image, int64 [images], in the order that `Step.index` counts in;
    generator: a fresh, named random stream of this method, for initial values only;
    initialise: fills a new module's parameters by PyTorch's rules, each from this method's stream of its name;
    branches: makes auxiliary branches for a network's shape with so many outputs each, filled from the *network's*
    streams, so that all methods with branches on a network start from the same ones;
    network: makes a copy of a shape's network with the student's first weights (for methods that keep past weights).
    With a stream's name, network and branches get other first weights, from this method's streams of that name (for
    peers). If a run starts from the weights of another one (`Method.start`), only the student gets those;
    batch_size: images of a whole batch, or of a process's part of it; an epoch's last one may have fewer, or one more.
    """

    student: Shape
    teacher: Shape | None
    num_classes: int
    labels: Tensor
    generator: Callable[[str], torch.Generator]
    initialise: Callable[[nn.Module, str], nn.Module]
    branches: NewBranches
    network: NewNetwork
    batch_size: int


class RunStudent(Protocol):
    """See `Step.student`."""

    def __call__(self, shown: View | Tensor, /, gather: bool = True) -> Outputs: ...


@dataclass(frozen=True)
class Step:
    """One training step as a method sees it.

    labels, index: class and position in the training set of each image of the batch, int64 [batch];
    epoch: the epoch under way, counted from 0, of `epochs`; progress: share of all steps done before this one, 0..1;
    images: the images of a view, augmented and normalised, [rows, 3, height, width];
    student: runs the student in training mode on a view or on images, with a graph (each call is one forward). With
    `gather=False` its norms use the statistics of these images and do not add them to the running statistics: for
    images unlike those of the evaluation, such as small crops;
    teacher: the teacher's outputs for a view, in evaluation mode, without a graph, computed once for the cohort;
    teacher_head: what the teacher's trained head makes of those outputs (see `Method.represent`);
    generator: a fresh random stream on the step's device, named by run, step and the given name;
    mixture: the second image in each image of the batch, under CutMix; None where images are not mixed.

    The view `rotated` holds the four rotations (0, 90, 180, 270 degrees, counter-clockwise) of each image, image-major:
    rows 4i to 4i+3 belong to image i, and rows 0, 4, 8, ... are the view `plain` (see `upright`). In the view
    `same_class` row i is some training image of the class of image i, in `second` it is image i with another crop and
    flip.

    A method uses labels and positions only through `over_images`, so that it is right for mixed images as well.
    """

    labels: Tensor
    index: Tensor
    epoch: int
    epochs: int
    progress: float
    images: Callable[[View], Tensor]
    student: RunStudent
    teacher: Callable[[View], Outputs]
    teacher_head: Callable[[View], Any]
    generator: Callable[[str], torch.Generator]
    mixture: Mixture | None = None

    def over_images(self, value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Compute `value(labels, index)` of the batch's images; if they are mixed, its mean over both, by their shares.

        For losses that are linear in the target (cross entropies) this is the loss with the mixed target; it also mixes
        targets themselves.
        """
        if self.mixture is None:
            return value(self.labels, self.index)
        first = value(self.labels, self.index)
        second = value(self.mixture.labels, self.mixture.index)
        return self.mixture.share * first + (1 - self.mixture.share) * second

    @property
    def main_labels(self) -> Tensor:
        """The class of the larger part of each image, int64 [batch], for losses that cannot use mixed targets."""
        return self.labels if self.mixture is None or self.mixture.share >= 0.5 else self.mixture.labels


class Method(nn.Module):
    """Base of all methods; subclasses set the class attributes and write `__init__` and `forward`."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    paper: ClassVar[str]
    equation: ClassVar[str]
    """The loss in a line, and where the paper has it."""
    golden: ClassVar[str | None] = None
    """Name of the file of golden cases that its losses are tested against."""
    remark: ClassVar[str] = ""
    """A note for readers of a table, such as that the row is our own reading of a paper."""
    differences: ClassVar[Mapping[str, tuple[str, str, str]]] = {}
    """Differences by subject: what the paper says, what the public code does, and what the suite does."""
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    network_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Defaults that differ from those of `Options` for some students, by the network's name."""
    pair_options: ClassVar[Mapping[tuple[str, str], Mapping[str, Any]]] = {}
    """Defaults that differ for some pairs, by the names of teacher and student; they override `network_options`."""
    view: ClassVar[View] = "plain"
    """The view the student is run on; estimates of cost use it."""
    student_passes: ClassVar[float] = 1.0
    """Forward and backward passes of the student on `view` in a step, those of peers included (a forward alone counts a
    third); estimates of cost use it."""
    needs_teacher: ClassVar[bool] = False
    teaches_itself: ClassVar[bool] = False
    """Whether the teacher is a network like the student, whatever the table's pair."""
    needs_preactivations: ClassVar[bool] = False
    trains_student: ClassVar[bool] = True
    """False for a head trained on a frozen teacher: there is no student, and `Step.student` must not be called."""
    trains: ClassVar[Literal["student", "stages", "classifier"]] = "student"
    """With `stages`, the modules after the student's last stage map (`Network.after_stages`) stay as they are, running
    statistics included; with `classifier`, all modules but the last of these do."""
    start: ClassVar[str | None] = None
    """Name of a method; its run of the same student, teacher and seed gives the student's first weights."""
    teacher_head: ClassVar[str | None] = None
    """Name of the method that trains the head this one reads through `Step.teacher_head`."""
    teacher_method: ClassVar[str] = "Baseline"
    """Name of the method that trains this one's teacher. If it has `represent`, the teacher is its own head."""
    compares_images: ClassVar[bool] = False
    """Whether its loss compares the images of a batch with each other. If processes share a batch, each compares only
    its own images, and the record says so."""
    student_branches: ClassVar[bool] = False
    """Whether it trains auxiliary branches on the student (or, for a head, on the teacher); for the cost of a run."""
    listed: ClassVar[bool] = True
    """False for a method that only serves another one and is no row of a table."""
    in_default_grid: ClassVar[bool] = True
    """False for a row that runs only when it is named."""

    def __init__(self, context: Context, options: BaseModel) -> None:
        super().__init__()
        self.options = options

    @property
    @abstractmethod
    def weights(self) -> dict[str, float]:
        """The weight of each term that `forward` returns, by the term's name."""

    @property
    def longest_gradient(self) -> float | None:
        """The largest norm of a step's gradient over all parameters; longer ones are scaled down. None: no limit."""
        return None

    @abstractmethod
    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute the unweighted loss terms of one step, each a scalar with a graph, by name."""

    def loss(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted sum of the terms, a scalar with a graph, and the terms by name.

        Raises:
            ContractError: the terms are not those that have a weight, or one is no scalar.
        """
        terms = self(step)
        weights = self.weights
        if not isinstance(terms, dict):
            raise ContractError(f"{self.name}: forward returns {type(terms).__name__}, and not loss terms by name")
        if terms.keys() != weights.keys():
            raise ContractError(f"{self.name}: terms {sorted(terms)} do not match weights {sorted(weights)}")
        for name, term in terms.items():
            if not isinstance(term, Tensor) or term.dim():
                found = f"of shape {list(term.shape)}" if isinstance(term, Tensor) else type(term).__name__
                raise ContractError(f"{self.name}: the term {name!r} is {found}, and must be a scalar tensor")
        return torch.stack([terms[name] * weights[name] for name in terms]).sum(), terms

    def represent(self, outputs: Outputs) -> Any:
        """Apply the trained head to the teacher's outputs; only methods named as a `teacher_head` implement it.

        Raises:
            NotImplementedError: the method is no head.
        """
        raise NotImplementedError(f"{self.name} is no head of a teacher")

    def stage_logits(self, outputs: Outputs) -> tuple[Tensor, ...]:
        """Compute the joint logits [rows, 4 * classes] of each stage's auxiliary classifier, the first stage first.

        They tell class and rotation at once (see `joint_labels`); a method without branches has none.
        """
        return ()

    def receive_teacher(self, teacher: Network) -> None:
        """Take what the method keeps of the frozen teacher; called once before the first step."""

    def predictor(self, student: Network) -> nn.Module:
        """Return the module that predicts after training, from images [batch, 3, height, width] to `Outputs`.

        The suite evaluates, counts and exports it. If it is not the student alone, the record keeps the method's state
        beside the student's weights, and `student` may be a network that was just built.
        """
        return student

    def end_step(self, student: Network) -> None:
        """Do what must be done after each step of the optimiser."""

    def end_epoch(self, epoch: int, student: Network) -> None:
        """Do what must be done after the last step of each epoch; the student is in training mode."""


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def outside_autocast(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a loss so that it computes in the precisions it chooses, also where the step runs under autocast."""

    @functools.wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return wrapped


def full_precision(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a loss so that it computes in at least float32, also where the step runs under bf16 autocast.

    Half-precision tensors among the positional arguments (also inside tuples and lists) are widened; float32 and
    float64 stay what they are.
    """

    def widen(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
            return value.float()
        if isinstance(value, tuple | list):
            return type(value)(widen(item) for item in value)
        return value

    @functools.wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return outside_autocast(function)(*(widen(argument) for argument in args), **kwargs)

    return wrapped


def joint_labels(labels: Tensor) -> Tensor:
    """Make labels of class and rotation, class * 4 + rotation, for image-major rows: int64 [4 * batch]."""
    return (labels[:, None] * ROTATIONS + torch.arange(ROTATIONS, device=labels.device)).flatten()


def class_scores(joint_logits: Tensor) -> Tensor:
    """Sum the four joint logits of each class, [rows, 4 * classes] to [rows, classes].

    (The class score of HSAKD's public code; on upright images it is a stage's classifier.)
    """
    return joint_logits.unflatten(1, (-1, ROTATIONS)).sum(2)


def upright(values: Tensor) -> Tensor:
    """Select the rotation-0 rows of image-major rotated values [4 * batch, ...]: [batch, ...]."""
    return values[::ROTATIONS]
