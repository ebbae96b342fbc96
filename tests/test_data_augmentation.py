"""Augmented batches are torchvision's, bit for bit, and depend on names alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from benchmark.data import load_dataset
from benchmark.data.augmentation import Batch, EpochPlan, Recipe, TrainingSource, evaluation_batches, rotations
from benchmark.data.dataset import ImageSet
from benchmark.data.torchvision_operators import import_torchvision

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
GOLDEN = Path(__file__).parent / "golden" / "views.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def random_images(count: int, size: int, seed: int = 0) -> ImageSet:
    stream = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, size, size, 3), dtype=torch.uint8, generator=stream)
    return ImageSet(images, torch.arange(count) % 3)


def by_torchvision(images: Tensor, plan: EpochPlan, index: Tensor, recipe: Recipe, view: str) -> Tensor:
    """The view of a batch, image by image, through torchvision's transforms of PIL images."""
    functional: Any = import_torchvision("transforms.functional")
    size = images.shape[1]

    def crop(image: Image.Image, offset: Tensor) -> Image.Image:
        top, left = offset.tolist()
        return functional.crop(functional.pad(image, recipe.padding, fill=0), top, left, size, size)

    def finish(image: Image.Image) -> Tensor:
        return functional.normalize(functional.to_tensor(image), recipe.mean, recipe.std)

    rows = []
    for position in index.tolist():
        image = Image.fromarray(images[position].numpy())
        flip, offsets = bool(plan.flips[position]), plan.offsets[position]
        if recipe.rotated_crop == "per_rotation":
            image = functional.hflip(image) if flip else image
            turned = [crop(functional.rotate(image, 90 * turn), offsets[turn]) for turn in range(4)]
        else:
            image = crop(image, offsets[0])
            image = functional.hflip(image) if flip else image
            turned = [functional.rotate(image, 90 * turn) for turn in range(4)]
        rows += [finish(image) for image in (turned if view == "rotated" else turned[:1])]
    return torch.stack(rows)


@pytest.mark.parametrize("rotated_crop", ["shared", "per_rotation"])
@pytest.mark.parametrize("view", ["plain", "rotated"])
def test_views_of_the_digits_are_bit_equal_to_torchvision(rotated_crop: Any, view: Any) -> None:
    digits = load_dataset("digits")
    recipe = Recipe(padding=2, flip=True, mean=digits.mean, std=digits.std, rotated_crop=rotated_crop)
    source = TrainingSource(digits.train, recipe, 64, "cpu", ("test",))
    plan = source.epoch(3)
    batch = source.batch(plan, 5)
    assert 0 < plan.flips[batch.index].sum() < 64
    expected = by_torchvision(digits.train.images, plan, batch.index, recipe, view)
    assert torch.equal(batch.view(view), expected)


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 9),
    padding=st.integers(0, 4),
    flip=st.booleans(),
    rotated_crop=st.sampled_from(["shared", "per_rotation"]),
    seed=st.integers(0, 2**16),
)
def test_views_of_any_images_are_bit_equal_to_torchvision(
    size: int, padding: int, flip: bool, rotated_crop: Any, seed: int
) -> None:
    images = random_images(5, size, seed)
    recipe = Recipe(padding, flip, MEAN, STD, rotated_crop)
    source = TrainingSource(images, recipe, 5, "cpu", (seed,))
    plan = source.epoch(0)
    batch = source.batch(plan, 0)
    for view in ("plain", "rotated"):
        expected = by_torchvision(images.images, plan, batch.index, recipe, view)
        assert torch.equal(batch.view(view), expected)


@pytest.mark.parametrize("rotated_crop", ["shared", "per_rotation"])
@pytest.mark.parametrize("rotated_first", [True, False])
def test_every_fourth_rotated_row_is_the_plain_view(rotated_crop: Any, rotated_first: bool) -> None:
    source = TrainingSource(random_images(20, 8), Recipe(2, True, MEAN, STD, rotated_crop), 8, "cpu", ("test",))
    batch = source.batch(source.epoch(0), 1)
    if rotated_first:
        batch.view("rotated")
    assert torch.equal(batch.view("rotated")[::4], batch.view("plain"))


def test_four_quarter_turns_are_the_image_itself() -> None:
    images = torch.randn(3, 3, 7, 7)
    once = rotations(images)[1::4]
    assert torch.equal(rotations(rotations(once)[2::4])[1::4], images)


def test_rotations_are_those_of_the_hsakd_reference(golden: dict[str, Tensor]) -> None:
    assert torch.equal(rotations(golden["hsakd_images"]), golden["hsakd_rotated_images"])


def test_flip_then_rotation_is_that_of_the_sskd_reference(golden: dict[str, Tensor]) -> None:
    images = ImageSet(golden["sskd_images"], torch.tensor([0, 1]))
    recipe = Recipe(0, True, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "per_rotation")
    source = TrainingSource(images, recipe, 2, "cpu", ("test",))

    def views(position: int, flipped: bool) -> Tensor:
        offsets = torch.zeros(2, 4, 2, dtype=torch.int64)
        plan = EpochPlan(0, torch.tensor([position]), offsets, torch.tensor([flipped, flipped]))
        rotated = Batch(source, plan, plan.order).view("rotated")
        return (rotated * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    assert torch.equal(views(0, False), golden["sskd_test_views"])
    # The official reader flipped its last read of the second image and none before.
    for read, flipped in enumerate([False, False, False, False, True]):
        assert torch.equal(views(1, flipped), golden["sskd_train_views"][read])


def test_crops_of_the_rotations_are_independent_only_where_the_recipe_says_so() -> None:
    images = random_images(50, 6)
    shared = TrainingSource(images, Recipe(4, False, MEAN, STD, "shared"), 10, "cpu", ("test",)).epoch(0)
    own = TrainingSource(images, Recipe(4, False, MEAN, STD, "per_rotation"), 10, "cpu", ("test",)).epoch(0)
    assert shared.offsets.shape == (50, 1, 2)
    assert own.offsets.shape == (50, 4, 2)
    for turn in range(1, 4):
        assert not torch.equal(own.offsets[:, 0], own.offsets[:, turn])


def test_images_are_in_channels_last() -> None:
    source = TrainingSource(random_images(8, 6), Recipe(1, True, MEAN, STD), 4, "cpu", ("test",))
    batch = source.batch(source.epoch(0), 0)
    evaluated, _ = next(iter(evaluation_batches(random_images(8, 6), source.recipe, 4, "cpu")))
    for images, rows in ((batch.view("plain"), 4), (batch.view("rotated"), 16), (evaluated, 4)):
        assert images.shape == (rows, 3, 6, 6)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_view_is_made_once() -> None:
    source = TrainingSource(random_images(8, 6), Recipe(1, True, MEAN, STD), 4, "cpu", ("test",))
    batch = source.batch(source.epoch(0), 0)
    assert batch.view("plain") is batch.view("plain")
    assert batch.view("rotated") is batch.view("rotated")
    with pytest.raises(ValueError, match="allowed: plain, rotated"):
        batch.view("mirrored")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "sizes"), [(8, [4, 4]), (10, [4, 4, 2]), (9, [4, 5]), (5, [5]), (4, [4]), (3, [3]), (1, [1])]
)
def test_an_epoch_visits_every_image_once_and_leaves_none_alone(count: int, sizes: list[int]) -> None:
    images = random_images(count, 4)
    source = TrainingSource(images, Recipe(1, True, MEAN, STD), 4, "cpu", ("test",))
    plan = source.epoch(0)
    batches = [source.batch(plan, step) for step in range(source.batches)]
    assert [len(batch.labels) for batch in batches] == sizes
    visited = torch.cat([batch.index for batch in batches])
    assert visited.sort().values.tolist() == list(range(count))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), images.labels[visited])
    with pytest.raises(IndexError):
        source.batch(plan, source.batches)


def test_an_epoch_depends_on_its_names_and_number_alone() -> None:
    images, recipe = random_images(40, 6), Recipe(4, True, MEAN, STD)

    def plan(epoch: int, *names: str) -> EpochPlan:
        source = TrainingSource(images, recipe, 8, "cpu", names)
        if epoch:
            source.epoch(0)
        return source.epoch(epoch)

    first, second = plan(2, "a"), TrainingSource(images, recipe, 16, "cpu", ("a",)).epoch(2)
    for other in (plan(1, "a"), plan(2, "b")):
        assert not torch.equal(first.order, other.order)
        assert not torch.equal(first.offsets, other.offsets)
        assert not torch.equal(first.flips, other.flips)
    assert torch.equal(first.order, second.order)
    assert torch.equal(first.offsets, second.offsets)
    assert torch.equal(first.flips, second.flips)


def test_crops_reach_every_corner_and_half_of_the_images_are_mirrored() -> None:
    source = TrainingSource(random_images(4000, 2), Recipe(4, True, MEAN, STD), 64, "cpu", ("test",))
    plan = source.epoch(0)
    counts = torch.bincount(plan.offsets[:, 0, 0] * 9 + plan.offsets[:, 0, 1], minlength=81)
    assert len(counts) == 81
    # 49 are expected of each; six standard deviations (7 each) are left on both sides.
    assert counts.min() > 7
    assert counts.max() < 91
    assert 1800 < plan.flips.sum() < 2200


def test_without_flip_and_padding_the_images_are_as_they_are_evaluated() -> None:
    images = random_images(10, 6)
    recipe = Recipe(0, False, MEAN, STD)
    source = TrainingSource(images, recipe, 4, "cpu", ("test",))
    plan = source.epoch(0)
    evaluated = torch.cat([batch for batch, _ in evaluation_batches(images, recipe, 3, "cpu")])
    labels = torch.cat([batch for _, batch in evaluation_batches(images, recipe, 3, "cpu")])
    assert torch.equal(labels, images.labels)
    for step in range(source.batches):
        batch = source.batch(plan, step)
        assert torch.equal(batch.view("plain"), evaluated[batch.index])


def test_evaluation_is_bit_equal_to_torchvision() -> None:
    functional: Any = import_torchvision("transforms.functional")
    digits = load_dataset("digits")
    recipe = Recipe(1, True, digits.mean, digits.std)
    images, _ = next(iter(evaluation_batches(digits.test, recipe, 50, "cpu")))
    for ours, image in zip(images, digits.test.images, strict=False):
        assert torch.equal(ours, functional.normalize(functional.to_tensor(image.numpy()), recipe.mean, recipe.std))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rotated_crop", ["shared", "per_rotation"])
def test_a_gpu_gives_the_same_bits(rotated_crop: Any) -> None:
    images, recipe = random_images(64, 32), Recipe(4, True, MEAN, STD, rotated_crop)
    here, there = (TrainingSource(images, recipe, 32, device, ("test",)) for device in ("cpu", "cuda"))
    for view in ("plain", "rotated"):
        expected = here.batch(here.epoch(0), 1).view(view)
        assert torch.equal(there.batch(there.epoch(0), 1).view(view).cpu(), expected)
