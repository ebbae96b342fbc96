"""Random images and untrained teachers for measuring what a step costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmark.backbones.network import Network
from benchmark.core.rng import generator
from benchmark.core.spec import Run
from benchmark.data.dataset import Dataset, ImageSet
from benchmark.data.views import count_views
from benchmark.training.atlas import AtlasReader
from benchmark.training.inputs import build_head, recipe_for, share_teacher
from benchmark.training.learner import fresh_network
from benchmark.training.teacher import Teacher

CLASSES = 100


def random_images(count: int, size: int, classes: int = CLASSES) -> Dataset:
    """Make images of noise in CIFAR-100's form; what a step costs does not depend on what they show."""
    stream = generator("untrained", "images")
    train = ImageSet(
        torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=stream),
        torch.arange(count) % classes,
    )
    test = ImageSet(train.images[:classes], train.labels[:classes])
    return Dataset(
        name="random",
        classes=tuple(f"{number:03}" for number in range(classes)),
        train=train,
        test=test,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        padding=4,
        flip=True,
        fingerprint="random",
    )


def dummy_teacher(
    runs: Sequence[Run], num_classes: int, image_size: int, device: torch.device, images: Dataset | None = None
) -> Teacher | None:
    """Build the untrained teacher that runs share, with its heads; None if no run has a teacher.

    images: what is trained on, for runs that read an atlas; all its views then have the same logits of noise.
    """

    def network(run: Run) -> Network:
        assert run.teacher_network
        return fresh_network(run.teacher_network, num_classes, 0)

    def atlas(run: Run) -> AtlasReader:
        assert images is not None
        logits = torch.randn(len(images.train), num_classes, generator=generator("untrained", "atlas")).half().numpy()
        views = count_views(images.padding, images.flip)
        return AtlasReader([logits] * views, recipe_for(run.protocol, images), device)

    return share_teacher(runs, network, lambda run: build_head(run, num_classes, image_size), atlas, device)
