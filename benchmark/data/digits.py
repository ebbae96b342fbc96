"""The demonstration dataset: handwritten digits that come with scikit-learn, so that nothing is downloaded.

1797 images of 8x8 pixels with grey values 0..16, from the test part of E. Alpaydin and C. Kaynak, "Optical Recognition
of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmark.data.dataset import Dataset, ImageSet, fingerprint_of, measured_normalisation, splits_hashes
from benchmark.data.subsets import split_held_out

NAME = "digits"
SIZE = 8
BRIGHTEST = 16
TEST_SHARE = 0.2
PADDING = 1
SHOWN = {NAME: range(10), "digits-0-4": range(5), "digits-5-9": range(5, 10)}
"""The digits of each dataset. The halves have no class in common: what was learnt on one is probed on the other."""


def load(
    data_root: Path | None = None, cache_root: Path | None = None, download: bool = True, name: str = NAME
) -> Dataset:
    """Load the digits of `SHOWN`, a stratified fifth for testing; the labels count from the first of them.

    The other arguments are those of every dataset's loader; nothing is read from these folders.
    """
    shown = SHOWN[name]
    table = _read_table()
    classes = tuple(str(digit) for digit in shown)
    grey = table[:, :-1].reshape(-1, SIZE, SIZE)
    # Rounded to the nearest of 256 levels in whole numbers, the same on every machine.
    levels = (grey * 255 + BRIGHTEST // 2) // BRIGHTEST
    images = torch.from_numpy(levels.astype(np.uint8))[..., None].repeat(1, 1, 1, 3)
    labels = torch.from_numpy(table[:, -1].copy())
    kept, held = split_held_out(labels, TEST_SHARE, NAME, "test")

    def select(split: Tensor) -> ImageSet:
        own = split[(labels[split] >= shown.start) & (labels[split] < shown.stop)]
        return ImageSet(images[own], labels[own] - shown.start)

    train, test = select(kept), select(held)
    mean, std = measured_normalisation(train.images)
    return Dataset(
        name=name,
        classes=classes,
        train=train,
        test=test,
        mean=mean,
        std=std,
        padding=PADDING,
        flip=False,
        fingerprint=fingerprint_of(splits_hashes(train, test), classes, mean, std, PADDING, flip=False),
    )


def _read_table() -> np.ndarray:
    """Read scikit-learn's file: of each image the grey values and the label, int64 [images, 65]."""
    # Importing scikit-learn itself takes more than a second and a hundred megabytes.
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    return np.loadtxt(path, delimiter=",", dtype=np.int64)
