"""The demonstration dataset: handwritten digits that come with scikit-learn, so that nothing is downloaded.

1797 images of 8x8 pixels with grey values 0..16, from the test part of E. Alpaydin and C. Kaynak, "Optical Recognition
of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmark.data.dataset import Dataset, ImageSet, fingerprint_of, measured_normalisation, splits_hashes
from benchmark.data.subsets import split_held_out

NAME = "digits"
BRIGHTEST = 16
TEST_SHARE = 0.2
PADDING = 1
CLASSES = tuple("0123456789")


def load(data_root: Path | None = None, cache_root: Path | None = None, download: bool = True) -> Dataset:
    """The digits, a stratified fifth of them for testing; the arguments of other datasets' loaders do not matter."""
    from sklearn.datasets import load_digits

    source = load_digits()
    grey = source.images.astype(np.int64)
    # Rounded to the nearest of 256 levels in whole numbers, the same on every machine.
    levels = (grey * 255 + BRIGHTEST // 2) // BRIGHTEST
    images = torch.from_numpy(levels.astype(np.uint8))[..., None].repeat(1, 1, 1, 3)
    labels = torch.from_numpy(source.target.astype(np.int64))
    kept, held = split_held_out(labels, TEST_SHARE, NAME, "test")
    train, test = _subset(images, labels, kept), _subset(images, labels, held)
    mean, std = measured_normalisation(train.images)
    return Dataset(
        name=NAME,
        classes=CLASSES,
        train=train,
        test=test,
        mean=mean,
        std=std,
        padding=PADDING,
        flip=False,
        fingerprint=fingerprint_of(splits_hashes(train, test), CLASSES, mean, std, PADDING, flip=False),
    )


def _subset(images: Tensor, labels: Tensor, index: Tensor) -> ImageSet:
    return ImageSet(images[index], labels[index])
