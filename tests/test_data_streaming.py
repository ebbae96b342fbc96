"""Crops of images on disk are torchvision's, whoever decodes them, and however many do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from benchmark.data import Dataset, imagenet
from benchmark.data import decoding as decoding_module
from benchmark.data.augmentation import Recipe, View, evaluation_batches, rotations
from benchmark.data.decoding import RATIO, SCALE, evaluation_crop, random_box, training_crop
from benchmark.data.mixing import cut_out
from benchmark.data.streamed import ImageFiles
from benchmark.data.streaming import StreamedSource
from benchmark.data.torchvision_operators import import_torchvision
from tests.photographs import SIZE, dataset, photograph, root, shown, small_crops, source_of

__all__ = ["dataset", "root", "small_crops"]

VIEWS: tuple[View, ...] = ("plain", "rotated", "second", "same_class")


def normalised(image: Image.Image) -> Tensor:
    functional: Any = import_torchvision("transforms.functional")
    return functional.normalize(functional.to_tensor(image), imagenet.MEAN, imagenet.STD)


def by_torchvision(path: str, seed: int, flip: bool, turn: int = 0) -> Tensor:
    """The crop that torchvision draws from a file after that seed, mirrored or not, turned, normalised."""
    transforms: Any = import_torchvision("transforms")
    with Image.open(path) as opened, torch.random.fork_rng():
        torch.manual_seed(seed)
        image = transforms.RandomResizedCrop(SIZE)(opened.convert("RGB"))
    image = transforms.functional.hflip(image) if flip else image
    return normalised(transforms.functional.rotate(image, 90 * turn))


def path_of(dataset: Dataset, position: int) -> str:
    assert isinstance(dataset.train, ImageFiles)
    return dataset.train.paths(torch.tensor([position]))[0]


sizes = st.integers(1, 300)


@settings(deadline=None, max_examples=150)
@given(width=sizes, height=sizes, seed=st.integers(0, 2**63 - 2))
def test_a_box_is_the_one_that_torchvision_draws_from_the_seed(width: int, height: int, seed: int) -> None:
    transforms: Any = import_torchvision("transforms")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        top, left, high, wide = transforms.RandomResizedCrop.get_params(Image.new("L", (width, height)), SCALE, RATIO)
    assert random_box(width, height, seed) == (left, top, left + wide, top + high)


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (400, 300)])
def test_an_image_of_extreme_shape_is_cut_in_the_middle(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding_module, "TRIES", 0)
    expected = {1000: (493, 0, 506, 10), 10: (0, 493, 10, 506), 400: (0, 0, 400, 300)}[width]
    assert random_box(width, height, 0) == expected


@settings(deadline=None, max_examples=40)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 40), seed=st.integers(0, 2**40))
def test_crops_of_any_image_are_pixel_for_pixel_torchvisions(width: int, height: int, size: int, seed: int) -> None:
    transforms: Any = import_torchvision("transforms")
    image = photograph(seed % 50, 0).resize((width, height))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        assert training_crop(image, seed, size).tobytes() == transforms.RandomResizedCrop(size)(image).tobytes()
    whole = transforms.Compose([transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)])
    assert evaluation_crop(image, size).tobytes() == whole(image).tobytes()


def test_at_224_the_shorter_side_is_made_256() -> None:
    transforms: Any = import_torchvision("transforms")
    image = photograph(0, 0).resize((500, 375))
    whole = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    assert evaluation_crop(image, 224).tobytes() == whole(image).tobytes()


def test_every_image_of_every_kind_is_shown_as_torchvision_shows_it(dataset: Dataset) -> None:
    source = source_of(dataset)
    plan = source.epoch(2)
    seen = 0
    for step in range(source.batches):
        batch = source.batch(plan, step)
        assert torch.equal(batch.labels, dataset.train.labels[batch.index])
        for position, image in zip(batch.index.tolist(), batch.view("plain"), strict=True):
            expected = by_torchvision(
                path_of(dataset, position), int(plan.offsets[position, 0]), bool(plan.flips[position])
            )
            assert torch.equal(image, expected)
            seen += 1
        assert torch.equal(batch.view("rotated"), rotations(batch.view("plain")))
        assert batch.view("rotated").is_contiguous(memory_format=torch.channels_last)
    assert seen == 30
    assert 0 < plan.flips.sum() < 30


def test_each_rotation_can_have_a_box_of_its_own(dataset: Dataset) -> None:
    source = source_of(dataset, rotated_crop="per_rotation")
    plan = source.epoch(0)
    batch = source.batch(plan, 0)
    rows = iter(batch.view("rotated"))
    for position in batch.index.tolist():
        for turn in range(4):
            seed, flip = int(plan.offsets[position, turn]), bool(plan.flips[position])
            assert torch.equal(next(rows), by_torchvision(path_of(dataset, position), seed, flip, turn))
    assert torch.equal(batch.view("plain"), batch.view("rotated")[::4])


def test_the_other_views_have_crops_of_their_own(dataset: Dataset) -> None:
    source = source_of(dataset)
    plan = source.epoch(0)
    batch = source.batch(plan, 1)
    second, same = batch.view("second"), batch.view("same_class")
    for view, images in (("second", second), ("same_class", same)):
        index, seeds, flips = source.choices(plan, view, plan.order[8:16], 1)  # type: ignore[arg-type]
        assert torch.equal(dataset.train.labels[index], batch.labels)
        for row, position in enumerate(index.tolist()):
            expected = by_torchvision(path_of(dataset, position), int(seeds[row, 0]), bool(flips[row]))
            assert torch.equal(images[row], expected)
    for left, right in ((second, same), (second, batch.view("plain")), (same, batch.view("plain"))):
        assert not torch.equal(left, right)
    with pytest.raises(ValueError, match="unknown view"):
        batch.view("upside_down")  # type: ignore[arg-type]


def test_a_view_is_the_same_decoded_ahead_or_when_asked_for(dataset: Dataset) -> None:
    plan = source_of(dataset).epoch(0)
    asked = source_of(dataset)
    ahead = source_of(dataset)
    for view in ("second", "same_class"):
        ahead.remember(view)  # type: ignore[arg-type]
    for step in range(asked.batches):
        for view in VIEWS:
            # A new source each time has nothing decoded but the plain view.
            alone = source_of(dataset).batch(plan, step).view(view)
            assert torch.equal(alone, ahead.batch(plan, step).view(view)), view
    first = shown(asked, plan, VIEWS)
    assert all(torch.equal(left, right) for left, right in zip(first, shown(asked, plan, VIEWS), strict=True))


def test_flips_can_be_switched_off(dataset: Dataset) -> None:
    source = source_of(dataset, flip=False)
    plan = source.epoch(0)
    batch = source.batch(plan, 0)
    assert not plan.flips.any()
    for position, image in zip(batch.index.tolist(), batch.view("second"), strict=True):
        _, seeds, _ = source.choices(plan, "second", torch.tensor([position]), 1)
        assert torch.equal(image, by_torchvision(path_of(dataset, position), int(seeds), flip=False))


def test_an_images_crop_depends_on_names_and_epoch_and_on_no_batch(dataset: Dataset) -> None:
    def by_position(source: StreamedSource, epoch: int) -> Tensor:
        plan = source.epoch(epoch)
        return torch.cat(shown(source, plan))[plan.order.argsort()]

    first = by_position(source_of(dataset, 8), 1)
    assert torch.equal(first, by_position(source_of(dataset, 30), 1))
    assert not torch.equal(first, by_position(source_of(dataset, 8), 0))
    assert not torch.equal(first, by_position(source_of(dataset, 8, "other"), 1))


def test_an_epoch_can_be_taken_up_in_its_middle(dataset: Dataset) -> None:
    source = source_of(dataset, 4)
    plan = source.epoch(0)
    whole = shown(source, plan)
    assert len(whole) == source.batches == 8
    for first in (1, 5, 7):
        fresh = source_of(dataset, 4)
        rest = shown(fresh, fresh.epoch(0), first=first)
        assert all(torch.equal(left, right) for left, right in zip(whole[first:], rest, strict=True))
    for step in (3, 0, 7, 7, 2):
        assert torch.equal(source.batch(plan, step).view("plain"), whole[step])
    with pytest.raises(IndexError, match="step 8"):
        source.batch(plan, 8)


def test_holes_and_mixes_are_made_as_in_memory(dataset: Dataset) -> None:
    plain, holed, mixed = source_of(dataset), source_of(dataset, cutout=6), source_of(dataset, cutmix=1.0)
    plan = plain.epoch(0)
    for step in range(plain.batches):
        batch = plain.batch(plan, step)
        centres = holed.holes(plan, "plain", batch.index)
        expected = cut_out(batch.view("plain"), centres, 6, 1)
        assert torch.equal(holed.batch(plan, step).view("plain"), expected)
        assert torch.equal(holed.batch(plan, step).view("rotated"), rotations(expected))
        other = mixed.batch(plan, step)
        assert other.mixture is not None
        images = {int(position): image for position, image in zip(batch.index, batch.view("plain"), strict=True)}
        for row, image in enumerate(other.view("plain")):
            own, partner = images[int(batch.index[row])], images[int(other.mixture.index[row])]
            from_own, from_partner = (image == own).all(0), (image == partner).all(0)
            assert (from_own | from_partner).all()
            assert from_own.double().mean() >= other.mixture.share - 1e-9


def test_a_process_that_shares_batches_decodes_its_rows_only(dataset: Dataset) -> None:
    for changes in ({}, {"cutmix": 1.0}):
        whole, part = source_of(dataset, **changes), source_of(dataset, **changes)
        part.rows = lambda images: slice(1, 4)
        plan = whole.epoch(0)
        for step in range(whole.batches):
            for view in VIEWS:
                rows = slice(4, 16) if view == "rotated" else slice(1, 4)
                expected = whole.batch(plan, step).view(view)[rows]
                assert torch.equal(part.batch(plan, step).view(view), expected), view


def test_evaluation_shows_the_middle_of_each_image_in_order(dataset: Dataset) -> None:
    recipe = source_of(dataset).recipe
    assert isinstance(dataset.test, ImageFiles)
    for batch_size in (5, 250):
        batches = list(evaluation_batches(dataset.test, recipe, batch_size, "cpu"))
        assert [len(labels) for _, labels in batches] == ([5, 5, 2] if batch_size == 5 else [12])
        assert torch.equal(torch.cat([labels for _, labels in batches]), dataset.test.labels)
        images = torch.cat([images for images, _ in batches])
        for path, image in zip(dataset.test.paths(torch.arange(12)), images, strict=True):
            with Image.open(path) as opened:
                assert torch.equal(image, normalised(evaluation_crop(opened.convert("RGB"), SIZE)))


def test_the_whole_epochs_choices_of_imagenet_take_no_time() -> None:
    count = 1_281_167
    images = ImageFiles(Path(), ("a", "b"), np.full(count, b"x.JPEG", dtype="S6"), torch.arange(count) % 2, SIZE)
    source = StreamedSource(images, Recipe(0, True, imagenet.MEAN, imagenet.STD), 256, "cpu", ("test",))
    started = time.process_time()
    plan = source.epoch(0)
    assert plan.offsets.shape == (count, 1)
    assert source.batches == 5005
    assert time.process_time() - started < 5
