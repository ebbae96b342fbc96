"""Images in memory that networks are shown at a smaller size: how a network is probed on images larger than its own.

In training each image is a random box of it, made square, with half of them mirrored (torchvision's
`RandomResizedCrop` and `RandomHorizontalFlip`); in evaluation the whole image is scaled (`Resize`). That is how
HSSAKD's authors show STL-10 and Tiny-ImageNet to networks that learnt from images of 32x32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmark.data.cache import Content
from benchmark.data.dataset import Colour, Dataset, ImageSet, fingerprint_of
from benchmark.data.decoding import RATIO, SCALE


@dataclass(frozen=True)
class ShownSmall:
    """Images in memory, uint8 [images, height, width, 3], shown at another size.

    image_size: of the square that a network is shown, in pixels.
    """

    images: Tensor
    labels: Tensor
    image_size: int

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, index: Tensor) -> tuple[np.ndarray, ...]:
        """Get the pixels of the images at the positions `index`, int64 [images], for a `DecodeTask`."""
        return tuple(self.images[index].numpy())

    def subset(self, index: Tensor) -> ShownSmall:
        """Select the images at the positions `index`, int64 [images]."""
        return ShownSmall(self.images[index], self.labels[index], self.image_size)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the whole images, scaled, uint8 [batch, size, size, 3], and their labels, in order."""
        for images, labels in zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True):
            yield scaled(images, self.image_size), labels


def scaled(images: Tensor, size: int) -> Tensor:
    """Scale images, uint8 [images, height, width, 3], to [images, size, size, 3], as torchvision's `Resize` does."""
    small = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in images.numpy()]
    return torch.from_numpy(np.stack([np.asarray(image) for image in small]))


def show_small(name: str, content: Content, hashes: dict[str, str], size: int, mean: Colour, std: Colour) -> Dataset:
    """Make the dataset of larger images (with the hashes of their cache) that are shown at `size`."""
    shown = [fingerprint_of(hashes, content.classes, mean, std, 0, flip=True), size, SCALE, RATIO]
    return Dataset(
        name=name,
        classes=content.classes,
        train=ShownSmall(content.train.images, content.train.labels, size),
        # Scaled once, and not before each evaluation.
        test=ImageSet(scaled(content.test.images, size), content.test.labels),
        mean=mean,
        std=std,
        padding=0,
        flip=True,
        fingerprint=hashlib.sha256(json.dumps(shown, separators=(",", ":")).encode()).hexdigest(),
    )
