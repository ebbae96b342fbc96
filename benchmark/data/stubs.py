"""The form of the suite's own datasets, to estimate what runs cost without the images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

import torch
from torch import Tensor

from benchmark.data import cifar100, imagenet, stl10, tiny_imagenet
from benchmark.data.dataset import Dataset
from benchmark.data.download import DEFAULT_DATA_ROOT

UNREAD = ""
"""The fingerprint of images that were not read; nothing is kept of runs on them (`benchmark.core.spec.Run.kept`)."""


@dataclass(frozen=True)
class DatasetStub:
    """Numbers of training and test images and of classes; sizes in pixels; what the data folder holds."""

    train: int
    test: int
    classes: int
    image_size: int
    folders: tuple[str, ...]
    padding: int = 0


STUBS = {
    cifar100.NAME: DatasetStub(
        50_000,
        10_000,
        cifar100.NUM_CLASSES,
        cifar100.IMAGE_SIZE,
        (cifar100.NAME, cifar100.ARCHIVE_FOLDER),
        cifar100.PADDING,
    ),
    tiny_imagenet.NAME: DatasetStub(
        100_000,
        10_000,
        tiny_imagenet.NUM_CLASSES,
        tiny_imagenet.IMAGE_SIZE,
        (tiny_imagenet.FOLDER,),
        tiny_imagenet.PADDING,
    ),
    tiny_imagenet.SMALL_NAME: DatasetStub(
        100_000, 10_000, tiny_imagenet.NUM_CLASSES, tiny_imagenet.SMALL_SIZE, (tiny_imagenet.FOLDER,)
    ),
    stl10.NAME: DatasetStub(5_000, 8_000, stl10.NUM_CLASSES, stl10.IMAGE_SIZE, (stl10.FOLDER,)),
    imagenet.NAME: DatasetStub(
        imagenet.WHOLE["train"], imagenet.WHOLE["val"], imagenet.NUM_CLASSES, imagenet.IMAGE_SIZE, (imagenet.NAME,)
    ),
}


@dataclass(frozen=True)
class UnreadImages:
    """Images of which only the number and the size are known. labels: as if all classes had equally many."""

    labels: Tensor
    image_size: int

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> Self:
        """Raise ValueError: there are no images to choose from."""
        self._refuse()

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Raise ValueError: there are no images to show."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError("these images were never read; only their cost can be estimated")


def find_stub(name: str, data_root: Path | None = None) -> Dataset | None:
    """Make a dataset of the suite without its images, if there are none in `data_root` (`data` by default).

    Its fingerprint is `UNREAD`, so none of its runs is one that was ever trained. None where there is a folder for it,
    whatever is in it, or where it has no known form.
    """
    form, root = STUBS.get(name), data_root or DEFAULT_DATA_ROOT
    if form is None or any(os.path.lexists(root / folder) for folder in form.folders):
        return None

    def images(count: int) -> UnreadImages:
        return UnreadImages((torch.arange(count) % form.classes).sort().values, form.image_size)

    classes = tuple(f"class {number}" for number in range(form.classes))
    # None of these colours is ever used.
    grey = (0.5, 0.5, 0.5)
    return Dataset(
        name, classes, images(form.train), images(form.test), grey, grey, form.padding, flip=True, fingerprint=UNREAD
    )


def describe_unread(unread: Dataset, data_root: Path | None) -> str:
    """Describe for the user what was planned with instead of images."""
    size, root = unread.image_size, data_root or DEFAULT_DATA_ROOT
    return (
        f"{unread.name} is not in {root}: planned for {len(unread.train):,} training images of {size}x{size} pixels in "
        f"{unread.num_classes:,} classes, which is what it has; all its runs count as not yet run."
    )
