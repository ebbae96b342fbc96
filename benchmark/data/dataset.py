"""Labelled images in memory, and their fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

LEVELS = 256
"""Values that an 8-bit channel can take."""

PIECE = 2**20
"""Bytes of a file that are read at once."""

Colour = tuple[float, float, float]
"""One value for each of red, green and blue."""


class Images(Protocol):
    """Labelled square images: in memory (`ImageSet`, `shown_small.ShownSmall`) or on disk (`streamed.ImageFiles`)."""

    @property
    def labels(self) -> Tensor:
        """The class of each image, int64 [images]."""

    @property
    def image_size(self) -> int:
        """Height, which is also the width, in pixels, as a network is shown them."""

    def __len__(self) -> int: ...

    def subset(self, index: Tensor) -> Self:
        """Select the images at the positions `index`, int64 [images]."""

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the images as evaluated, uint8 [batch, height, width, 3], and their labels, in order."""


@dataclass(frozen=True)
class ImageSet:
    """Images, uint8 [images, height, width, 3], and the class of each, int64 [images]."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.shape[-1] != 3:
            raise ValueError(f"images are {self.images.dtype} {tuple(self.images.shape)}, not uint8 [images, h, w, 3]")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels are {self.labels.dtype} {tuple(self.labels.shape)}, not int64 [images]")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """Height, in pixels."""
        return self.images.shape[1]

    def subset(self, index: Tensor) -> ImageSet:
        """Select the images at the positions `index`, int64 [images]."""
        return ImageSet(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> ImageSet:
        """Copy the images to a device."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the images, uint8 [batch, height, width, 3], and their labels, in order."""
        return zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True)


@dataclass(frozen=True)
class Dataset:
    """A training and a test set of square images, and how they are augmented and normalised.

    classes: name of each class, in the order of the labels;
    mean, std: of each channel, for pixels scaled to 0..1; padding: pixels of zero on each side before a random crop;
    flip: whether images may be mirrored;
    fingerprint: sha256, in hex, of all of this but the name (see `fingerprint_of`).
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    mean: Colour
    std: Colour
    padding: int
    flip: bool
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """Height, which is also the width, in pixels."""
        return self.train.image_size


def content_hash(images: Tensor | np.ndarray) -> str:
    """Compute the sha256 of an array's type, shape and values, in hex."""
    array = np.asanyarray(images)
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.flags.c_contiguous:
        # Pages of a map stay in memory once they are read; a file that is read a piece at a time leaves none.
        assert array.filename
        with open(array.filename, "rb") as opened:
            opened.seek(array.offset)
            for start in range(0, array.nbytes, PIECE):
                digest.update(opened.read(min(PIECE, array.nbytes - start)))
    else:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def fingerprint_of(
    hashes: dict[str, str], classes: tuple[str, ...], mean: Colour, std: Colour, padding: int, flip: bool
) -> str:
    """Compute the sha256, in hex, of everything in a dataset that affects a result.

    `hashes` holds the `content_hash` of the images and labels of both splits. The normalisation and augmentation count
    too: a run is identified by its dataset's fingerprint, and would otherwise be taken for one with other settings.
    """
    content = [sorted(hashes.items()), list(classes), list(mean), list(std), padding, flip]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def splits_hashes(train: ImageSet, test: ImageSet) -> dict[str, str]:
    """Compute the `content_hash` of images and labels of both splits, by the names that `fingerprint_of` expects."""
    return {
        "train-images": content_hash(train.images),
        "train-labels": content_hash(train.labels),
        "test-images": content_hash(test.images),
        "test-labels": content_hash(test.labels),
    }


def measured_normalisation(images: Tensor) -> tuple[Colour, Colour]:
    """Compute mean and standard deviation (of the population) of each channel over all pixels, scaled to 0..1.

    Computed from integers, so that they do not depend on the order of the images or the machine.
    """
    counts = np.zeros((3, LEVELS), dtype=np.int64)
    # In pieces, because counting widens every pixel to eight bytes.
    for piece in images.split(1000):
        for channel in range(3):
            counts[channel] += np.bincount(piece[..., channel].reshape(-1).numpy(), minlength=LEVELS)
    means, deviations = [], []
    for count in counts.tolist():
        total = sum(count)
        first = sum(level * number for level, number in enumerate(count))
        second = sum(level * level * number for level, number in enumerate(count))
        means.append(first / (total * (LEVELS - 1)))
        deviations.append(math.sqrt((total * second - first * first) / (total * total)) / (LEVELS - 1))
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])
