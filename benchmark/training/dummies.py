"""Random images and untrained teachers for measuring what a step costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmark.core.devices import placed
from benchmark.core.rng import generator
from benchmark.core.spec import Run
from benchmark.data.dataset import Dataset, ImageSet
from benchmark.data.views import count_views
from benchmark.plugins.registry import method_class
from benchmark.training.atlas import AtlasReader
from benchmark.training.inputs import head_run_for_checkpoint, recipe_for
from benchmark.training.learner import build_method, fresh_network, head_key
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
    taught = [run for run in runs if run.teacher]
    if not taught:
        return None
    no_labels = torch.zeros(0, dtype=torch.int64)
    heads = {}
    for run in taught:
        if run.head is not None:
            head = run.head if isinstance(run.head, Run) else head_run_for_checkpoint(run)
            heads[head_key(run)] = placed(build_method(head, num_classes, image_size, no_labels), device)
    assert taught[0].teacher_network
    assert taught[0].teacher_precision
    network = None
    if any(run.teacher_outputs == "live" for run in taught):
        network = placed(fresh_network(taught[0].teacher_network, num_classes, 0), device)
    atlas = None
    if any(run.teacher_outputs == "atlas" for run in taught):
        assert images is not None
        logits = torch.randn(len(images.train), num_classes, generator=generator("untrained", "atlas")).half().numpy()
        views = count_views(images.padding, images.flip)
        atlas = AtlasReader([logits] * views, recipe_for(taught[0].protocol, images), device)
    return Teacher(
        network,
        heads,
        taught[0].teacher_precision,
        preactivations=any(method_class(run.method).needs_preactivations for run in taught),
        atlas=atlas,
    )
