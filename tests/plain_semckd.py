"""SemCKD beside a plain copy of its public formula, from one state and in the same steps: where does each diverge?

    python -m tests.plain_semckd --teacher ResNet20 --student MobileNetV2 --size 28 --rate 0.05 --seeds 3

trains both on handwritten digits that are enlarged to a size, and prints for each seed how it ended. The copy shares
only the networks with the suite. `--weight 0` trains labels and KD only.
"""

from __future__ import annotations

import argparse
import itertools
import math
import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.backbones import build_network
from benchmark.backbones.network import Network, Outputs
from benchmark.backbones.shapes import network_shape
from benchmark.data import load_dataset
from methods.semckd import SemCKD
from tests.support import stub_context, stub_step

CLASSES, BATCH, REDUCTION, TEMPERATURE = 10, 64, 4, 4.0


class PublicSemCKD(nn.Module):
    """The loss as SemCKD's public code computes it; its modules have the names of the suite's, to share a state."""

    def __init__(self, student: list[int], teacher: list[int], weight: float, batch: int = BATCH) -> None:
        super().__init__()
        width = batch // REDUCTION
        self.weight = weight

        def embedding() -> nn.Sequential:
            return nn.Sequential(nn.Linear(batch, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

        def regressor(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, 2 * outputs, 1, bias=False),
                nn.BatchNorm2d(2 * outputs),
                nn.ReLU(),
                nn.Conv2d(2 * outputs, 2 * outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(2 * outputs),
                nn.ReLU(),
                nn.Conv2d(2 * outputs, outputs, 1, bias=False),
            )

        self.queries = nn.ModuleList(embedding() for _ in student)
        self.keys = nn.ModuleList(embedding() for _ in teacher)
        self.projections = nn.ModuleList(regressor(*pair) for pair in itertools.product(student, teacher))

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Cross entropy + KD + weight x calibration."""

        def embed(module: nn.Module, maps: Tensor) -> Tensor:
            rows = maps.reshape(len(maps), -1)
            embedded = module(rows @ rows.T)
            return embedded / embedded.pow(2).sum(1, keepdim=True).pow(0.5)

        queries = torch.stack([embed(*pair) for pair in zip(self.queries, student.stages, strict=True)], 1)
        keys = torch.stack([embed(*pair) for pair in zip(self.keys, teacher.stages, strict=True)], 1)
        attention = torch.softmax(queries @ keys.transpose(1, 2), dim=2)
        calibration: Tensor | float = 0.0
        for place, (own, other) in enumerate(itertools.product(range(len(self.queries)), range(len(self.keys)))):
            maps, target = student.stages[own], teacher.stages[other]
            if maps.shape[2] > target.shape[2]:
                maps = F.adaptive_avg_pool2d(maps, target.shape[2])
            else:
                target = F.adaptive_avg_pool2d(target, maps.shape[2])
            errors = (self.projections[place](maps) - target).pow(2).mean((1, 2, 3))
            calibration = calibration + (attention[:, own, other] * errors).sum()
        calibration = calibration / (len(labels) * len(self.queries))
        divergence = F.kl_div(
            F.log_softmax(student.logits / TEMPERATURE, 1),
            F.softmax(teacher.logits / TEMPERATURE, 1),
            reduction="batchmean",
        )
        kd = divergence * TEMPERATURE**2
        return F.cross_entropy(student.logits, labels) + kd + self.weight * calibration


@dataclass(frozen=True)
class Ending:
    """How a training ended. step: the first one whose loss is no number; top1, test_loss: after the last step."""

    losses: list[float]
    step: int | None
    top1: float
    test_loss: float

    def __str__(self) -> str:
        state = f"loss not finite in step {self.step}" if self.step else f"last loss {self.losses[-1]:.3g}"
        largest = max(filter(math.isfinite, self.losses))
        return f"{state}, largest {largest:.3g}; top-1 {self.top1:.1f} %, test loss {self.test_loss:.3g}"


@dataclass(frozen=True)
class Images:
    """The digits at a size."""

    train: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor


def load_images(size: int) -> Images:
    """Load the digits, normalised and enlarged: [images, 3, size, size]."""
    digits = load_dataset("digits", None)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (digits.mean, digits.std))

    def enlarge(images: Tensor) -> Tensor:
        scaled = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
        return scaled if size == scaled.shape[2] else F.interpolate(scaled, (size, size), mode="bilinear")

    return Images(enlarge(digits.train.images), digits.train.labels, enlarge(digits.test.images), digits.test.labels)


def make_network(name: str, seed: int) -> Network:
    """A network with weights of a seed."""
    network = build_network(name, CLASSES)
    network.initialise(
        lambda parameter: torch.Generator().manual_seed(zlib.crc32(f"{name} {seed} {parameter}".encode()))
    )
    return network


def make_optimizer(modules: list[nn.Module], rate: float) -> torch.optim.SGD:
    """The optimiser of the recipe."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=5e-4)


def train_teacher(name: str, images: Images, steps: int) -> Network:
    """A teacher after some steps of cross entropy."""
    network = make_network(name, seed=1000)
    optimizer = make_optimizer([network], 0.05)
    stream = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(0, len(images.labels), (BATCH,), generator=stream)
        optimizer.zero_grad()
        F.cross_entropy(network(images.train[batch]).logits, images.labels[batch]).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


@torch.no_grad()
def evaluate(network: Network, images: Images) -> tuple[float, float]:
    """Top-1 in % and loss on the test images."""
    network.eval()
    logits = torch.cat([network(part).logits for part in images.test.split(120)])
    right = (logits.argmax(1) == images.test_labels).float().mean()
    return 100 * float(right), float(F.cross_entropy(logits, images.test_labels))


def make_pair(
    student: str, teacher: str, size: int, weight: float = 400.0, batch: int = BATCH
) -> tuple[SemCKD, PublicSemCKD]:
    """The suite's loss and the public one for two networks, in one state."""
    own, other = network_shape(student, CLASSES, size), network_shape(teacher, CLASSES, size)
    suite = SemCKD(stub_context(own, other, batch_size=batch), SemCKD.Options(semckd_weight=weight))
    public = PublicSemCKD([stage[0] for stage in own.stages], [stage[0] for stage in other.stages], weight, batch)
    public.load_state_dict(suite.state_dict())
    return suite, public


def train(
    loss: SemCKD | PublicSemCKD,
    student: Network,
    teacher: Network,
    images: Images,
    rate: float,
    steps: int,
    seed: int,
    warmup: int = 0,
) -> Ending:
    """Train a student for some steps, until its loss is no number."""
    optimizer = make_optimizer([student, loss], rate)
    stream = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    student.train()
    loss.train()
    while len(losses) < steps:
        for batch in torch.randperm(len(images.labels), generator=stream).split(BATCH):
            if len(batch) < BATCH or len(losses) == steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (len(losses) + 1) / warmup) if warmup else rate
            labels = images.labels[batch]
            own = student(images.train[batch])
            with torch.no_grad():
                other = teacher(images.train[batch])
            if isinstance(loss, SemCKD):
                value, _ = loss.loss(stub_step(labels, student=own, teacher=other))
            else:
                value = loss(own, other, labels)
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]):
                return Ending(losses, len(losses), *evaluate(student, images))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return Ending(losses, None, *evaluate(student, images))


def make_parser() -> argparse.ArgumentParser:
    """Make the command line, which docs/methods.md names options of."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", default="ResNet20")
    parser.add_argument("--student", default="MobileNetV2")
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--weight", type=float, default=400.0)
    parser.add_argument("--steps", type=int, default=22, help="22 are an epoch")
    parser.add_argument("--warmup", type=int, default=0, help="steps in which the rate rises")
    parser.add_argument("--teacher-steps", type=int, default=44)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("suite", "public"))
    return parser


def main() -> None:
    chosen = make_parser().parse_args()
    torch.set_num_threads(1)
    images = load_images(chosen.size)
    teacher = train_teacher(chosen.teacher, images, chosen.teacher_steps)
    print("teacher: top-1 {:.1f} %, test loss {:.3g}".format(*evaluate(teacher, images)), flush=True)
    for seed in range(chosen.seeds):
        pair = make_pair(chosen.student, chosen.teacher, chosen.size, chosen.weight)
        for name, loss in zip(("suite", "public"), pair, strict=True):
            if chosen.only in (None, name):
                student = make_network(chosen.student, seed)
                ending = train(loss, student, teacher, images, chosen.rate, chosen.steps, seed, chosen.warmup)
                print(f"seed {seed}, {name:6}: {ending}", flush=True)


if __name__ == "__main__":
    main()
