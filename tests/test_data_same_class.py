"""The views `same_class` and `second`: which images they show, and that they move no other view."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmark.data.augmentation import Batch, Recipe, TrainingSource, View
from benchmark.data.dataset import ImageSet

VIEWS: tuple[View, ...] = ("plain", "rotated", "second", "same_class")
AS_THEY_ARE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SIZES = (1, 2, 7, 20)
"""Images of each class."""
LABELS = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))[
    torch.randperm(sum(SIZES), generator=torch.Generator().manual_seed(0))
]


def numbered_images(size: int = 4) -> ImageSet:
    """Images of one grey each, that of image i being i + 1."""
    greys = torch.arange(1, len(LABELS) + 1, dtype=torch.uint8)
    return ImageSet(greys[:, None, None, None].repeat(1, size, size, 3), LABELS)


def source_of(images: ImageSet, batch_size: int = 8, *names: str, **recipe: Any) -> TrainingSource:
    whole = Recipe(**({"padding": 0, "flip": False} | AS_THEY_ARE | recipe))
    return TrainingSource(images, whole, batch_size, "cpu", names or ("test",))


def shown(batch: Batch, view: View) -> Tensor:
    """Positions of the images that a view shows, from their grey in the middle, which no crop by one pixel loses."""
    return (batch.view(view)[:, 0, 1, 1] * 255).round().long() - 1


def batches_of(source: TrainingSource, epoch: int) -> list[Batch]:
    plan = source.epoch(epoch)
    return [source.batch(plan, step) for step in range(source.batches)]


def partners(source: TrainingSource, epoch: int) -> Tensor:
    """The partner of each image in an epoch, int64 [images]."""
    found = torch.full_like(LABELS, -1)
    for batch in batches_of(source, epoch):
        found[batch.index] = shown(batch, "same_class")
    return found


def test_a_partner_has_the_class_of_its_image() -> None:
    source = source_of(numbered_images(), padding=1, flip=True)
    for epoch in range(20):
        assert torch.equal(LABELS[partners(source, epoch)], LABELS)


def test_partners_are_uniform_over_the_class_the_image_itself_included() -> None:
    source, epochs = source_of(numbered_images(2), batch_size=30), 600
    counts = torch.zeros(30, 30, dtype=torch.float64)
    for epoch in range(epochs):
        counts[torch.arange(30), partners(source, epoch)] += 1
    of_one_class = LABELS[:, None] == LABELS
    assert counts[~of_one_class].sum() == 0
    sizes = torch.tensor(SIZES, dtype=torch.float64)
    expected = (epochs / sizes[LABELS])[:, None].expand(30, 30)
    deviation = torch.where(of_one_class, (counts - expected) ** 2 / expected, 0.0)
    freedom = float((sizes * (sizes - 1)).sum())
    # A chi-square of so many degrees of freedom: five standard deviations are left on both sides.
    assert abs(float(deviation.sum()) - freedom) < 5 * (2 * freedom) ** 0.5
    # The same for the images that are their own partners, among those that have a choice.
    chance = (1 / sizes[LABELS])[sizes[LABELS] > 1]
    themselves = counts.diagonal()[sizes[LABELS] > 1].sum()
    spread = float((epochs * chance * (1 - chance)).sum()) ** 0.5
    assert abs(float(themselves) - epochs * float(chance.sum())) < 5 * spread


def test_images_of_one_class_choose_their_partners_independently() -> None:
    source, epochs = source_of(numbered_images(2), batch_size=30), 400
    first, second = (LABELS == 1).nonzero().flatten().tolist()
    chosen = torch.stack([partners(source, epoch) for epoch in range(epochs)])
    alike = int((chosen[:, first] == chosen[:, second]).sum())
    # Half of 400 are expected, with a standard deviation of 10.
    assert 150 < alike < 250


def test_partners_depend_on_names_and_epoch_and_not_on_the_batches() -> None:
    whole, parts = (source_of(numbered_images(), size, padding=1) for size in (30, 7))
    assert torch.equal(partners(whole, 3), partners(parts, 3))
    assert not torch.equal(partners(whole, 3), partners(whole, 4))
    assert not torch.equal(partners(whole, 3), partners(source_of(numbered_images(), 30, "other", padding=1), 3))


def test_the_second_view_shows_the_same_images() -> None:
    source = source_of(numbered_images(), padding=1, flip=True)
    for batch in batches_of(source, 0):
        assert torch.equal(shown(batch, "second"), batch.index)


def textured_images() -> ImageSet:
    """Images that show any crop and flip."""
    pixels = torch.randint(1, 256, (30, 6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels, LABELS)


def test_crops_and_flips_of_the_views_are_independent() -> None:
    source = source_of(textured_images(), 30, padding=1, flip=True)
    again: dict[View, int] = {"second": 0, "same_class": 0}
    for epoch in range(60):
        (batch,) = batches_of(source, epoch)
        for view in again:
            again[view] += int((batch.view("plain") == batch.view(view)).flatten(1).all(1).sum())
    # Nine crops and two flips: 100 of the 1800 are expected to be as in `plain`, with a standard deviation of 9.7;
    # partners are mostly other images, so of those 4 / 18 a batch, 13 in all.
    assert 50 < again["second"] < 150
    assert 0 < again["same_class"] < 40


RECIPES: dict[str, dict[str, Any]] = {
    "crops": {"padding": 1, "flip": True},
    "crop for each rotation": {"padding": 1, "flip": True, "rotated_crop": "per_rotation"},
    "cutout": {"padding": 1, "flip": True, "cutout": 3},
    "cutmix": {"padding": 1, "flip": True, "cutmix": 1.0, "cutout": 2},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_no_view_depends_on_which_others_are_asked_for_or_in_which_order(recipe: dict[str, Any]) -> None:
    def views(order: tuple[View, ...]) -> dict[View, Tensor]:
        source = source_of(textured_images(), **recipe)
        batches = batches_of(source, 2)
        return {view: torch.cat([batch.view(view) for batch in batches]) for view in order}

    alone = {view: views((view,))[view] for view in VIEWS}
    for order in itertools.permutations(VIEWS):
        for view, images in views(order).items():
            assert torch.equal(images, alone[view]), (order, view)


def test_views_of_a_later_batch_do_not_depend_on_those_before_it() -> None:
    source = source_of(textured_images(), padding=1, flip=True)
    visited = batches_of(source, 1)
    for batch in visited:
        for view in VIEWS:
            batch.view(view)
    plan = source.epoch(1)
    last = source.batch(plan, source.batches - 1)
    for view in ("same_class", "second"):
        assert torch.equal(last.view(view), visited[-1].view(view))
