"""Numbers the plain views of an image: each place of the crop in the padded image, mirrored or not.

With padding p the corner of the crop has (2p + 1) x (2p + 1) places. So CIFAR-100's images (padding 4, flips) have 162
views, and the digits (padding 1, no flips) have 9. The number of a view is (row * (2p + 1) + column) * 2 + mirrored, or
row * (2p + 1) + column where nothing is mirrored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.data.augmentation import EpochPlan, Recipe, TrainingSource


def count_views(padding: int, flip: bool) -> int:
    """Count the views of an image."""
    return (2 * padding + 1) ** 2 * (2 if flip else 1)


def number_views(recipe: Recipe, plan: EpochPlan) -> Tensor:
    """Number the plain view that an epoch draws of each image, int64 [images], by position."""
    row, column = plan.offsets[:, 0].unbind(1)
    places = row * (2 * recipe.padding + 1) + column
    return places * 2 + plan.flips if recipe.flip else places


def make_view(source: TrainingSource, number: int, index: Tensor) -> Tensor:
    """Make the view of a number of the images at `index`, int64 [batch]: normalised, [batch, 3, height, width].

    The pixels are those that augmentation makes of an image when it draws this crop and this flip.

    Raises:
        ValueError: there is no view of this number.
    """
    recipe = source.recipe
    if not 0 <= number < count_views(recipe.padding, recipe.flip):
        raise ValueError(f"view {number} of {count_views(recipe.padding, recipe.flip)}")
    place, mirrored = divmod(number, 2) if recipe.flip else (number, 0)
    corner = torch.tensor(divmod(place, 2 * recipe.padding + 1), device=index.device)
    offsets = corner.expand(len(index), 1, 2)
    return source.crops(index, offsets, torch.full_like(index, mirrored, dtype=torch.bool))
