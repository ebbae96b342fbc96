"""A made-up ImageNet: a few photographs of all kinds and sizes in class folders.

A module whose tests use the fixtures `root` and `dataset` imports `small_crops` too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from benchmark.data import Dataset, imagenet, load_dataset
from benchmark.data.augmentation import EpochPlan, Recipe, Source, View
from benchmark.data.streaming import StreamedSource, training_source

WNIDS = ("n01440764", "n02105855", "n03594945")
SIZES = ((50, 37), (37, 50), (64, 48), (40, 40), (120, 24), (30, 21), (90, 60), (33, 47))
"""Width and height, among them a portrait and one too wide for a crop's ratios."""
SIZE = 20
"""Height and width of the crops, where the fixture `small_crops` is imported."""


def photograph(number: int, label: int) -> Image.Image:
    """A smooth image of a few colours, of a size of its own."""
    stream = np.random.default_rng((number, label))
    coarse = stream.integers(0, 160, (5, 5, 3), dtype=np.uint8)
    coarse[..., label % 3] += 90
    return Image.fromarray(coarse).resize(SIZES[number % len(SIZES)], Image.Resampling.BICUBIC)


def made_up_imagenet(root: Path, train: int = 10, val: int = 4, classes: int = len(WNIDS)) -> Path:
    """`imagenet/{train,val}` under `root`, with so many images of each class; among the first ones of each class are a
    grey one, a CMYK one and a PNG that is named JPEG."""
    for split, count in (("train", train), ("val", val)):
        for label, wnid in enumerate(WNIDS[:classes]):
            folder = root / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                image = photograph(number + (100 if split == "val" else 0), label)
                path = folder / f"{wnid}_{number}.JPEG"
                if number == 1:
                    image.convert("L").save(path, "JPEG")
                elif number == 2:
                    image.convert("CMYK").save(path, "JPEG")
                elif number == 3:
                    image.save(path, "PNG")
                else:
                    image.save(path, "JPEG", quality=92)
    return root


def source_of(dataset: Dataset, batch_size: int = 8, name: str = "test", **changes: Any) -> StreamedSource:
    """The training images on disk; `changes` of the recipe."""
    recipe = Recipe(**{"padding": 0, "flip": True, "mean": imagenet.MEAN, "std": imagenet.STD} | changes)
    source = training_source(dataset.train, recipe, batch_size, "cpu", (name,))
    assert isinstance(source, StreamedSource)
    return source


def shown(source: Source, plan: EpochPlan, views: tuple[View, ...] = ("plain",), first: int = 0) -> list[Tensor]:
    """The views of every batch from a step on, by batch and then by view."""
    batches = [source.batch(plan, step) for step in range(first, source.batches)]
    return [batch.view(view) for batch in batches for view in views]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_imagenet(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def small_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small crops, decoded in the test's own process; for every test of a module that imports it."""
    monkeypatch.setattr(imagenet, "IMAGE_SIZE", SIZE)
    monkeypatch.setenv("KD_DATA_WORKERS", "0")


@pytest.fixture
def dataset(root: Path) -> Dataset:
    return load_dataset("imagenet", root)
