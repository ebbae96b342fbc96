"""A training loop in plain PyTorch that shares only the network with the suite: what a Baseline is compared with.

    python -m tests.plain_loop --data-root data --epochs 12 --seed 0

prints the accuracy of ResNet20 on CIFAR-100 after each epoch.
"""

from __future__ import annotations

import argparse
import math
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.backbones import build_network
from benchmark.data import load_dataset
from benchmark.data.dataset import Dataset

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, BATCH = 0.05, 0.9, 5e-4, 64


def draw_crops(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Pad with zeros, crop each image at a place of its own, mirror half of them: [images, 3, size, size] in 0..1."""
    count, _, size, _ = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    corners = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator).tolist()
    crops = torch.stack(
        [
            image[:, row : row + size, column : column + size]
            for image, (row, column) in zip(padded, corners, strict=True)
        ]
    )
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        crops[mirrored] = crops[mirrored].flip(3)
    return crops


def train_plainly(
    dataset: Dataset,
    network: str,
    epochs: int,
    milestones: tuple[int, ...],
    seed: int,
    learning_rate: float = LEARNING_RATE,
    warmup_steps: int = 0,
    batch_size: int = BATCH,
    bf16: bool = False,
) -> list[float]:
    """Train a network by cross-entropy and return its top-1 accuracy on the test images, in %, after each epoch."""
    generator = torch.Generator().manual_seed(seed)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (dataset.mean, dataset.std))

    def scale_pixels(images: Tensor) -> Tensor:
        return images.permute(0, 3, 1, 2).float() / 255

    train, labels = dataset.train.images, dataset.train.labels
    model = build_network(network, len(dataset.classes))
    # Each parameter has a stream of its own, named by the seed and by the parameter.
    model.initialise(lambda name: torch.Generator().manual_seed(zlib.crc32(f"plain {seed} {name}".encode())))
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    accuracies, step = [], 0
    for epoch in range(epochs):
        model.train()
        rate = learning_rate * 0.1 ** sum(epoch >= milestone for milestone in milestones)
        for batch in torch.randperm(len(labels), generator=generator).split(batch_size):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, step / warmup_steps) if warmup_steps else rate
            crops = draw_crops(scale_pixels(train[batch]), dataset.padding, dataset.flip, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model((crops - mean) / std).logits
            loss = F.cross_entropy(logits.float(), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracies.append(measure_accuracy(model, dataset, scale_pixels, mean, std))
    return accuracies


@torch.no_grad()
def measure_accuracy(model: nn.Module, dataset: Dataset, scale_pixels, mean: Tensor, std: Tensor) -> float:
    """The share of the test images whose largest logit is their class's, in %."""
    model.eval()
    right = 0
    for images, labels in zip(dataset.test.images.split(500), dataset.test.labels.split(500), strict=True):
        right += int((model((scale_pixels(images) - mean) / std).logits.argmax(1) == labels).sum())
    return 100 * right / len(dataset.test.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--network", default="ResNet20")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    chosen = parser.parse_args()
    dataset = load_dataset("cifar100", chosen.data_root)
    # Protocol lsskd divides the rate after epochs 150 and 210 of 240; the suite rounds a half upwards.
    milestones = tuple(math.floor(chosen.epochs * share + 0.5) for share in (150 / 240, 210 / 240))
    found = train_plainly(dataset, chosen.network, chosen.epochs, milestones, chosen.seed, bf16=chosen.bf16)
    print(f"seed {chosen.seed}: " + ", ".join(f"{accuracy:.2f}" for accuracy in found))


if __name__ == "__main__":
    main()
