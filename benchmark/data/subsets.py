"""Stratified parts of a training set, drawn from named random streams."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmark.core.errors import UserError
from benchmark.core.rng import Name, generator


def stratified_fraction(labels: Tensor, fraction: float, *names: Name) -> Tensor:
    """Choose the positions, ascending int64, of a part of the images with the same share of each class.

    A class of n images keeps `fraction` * n of them, rounded to the nearest, and at least one. Parts drawn with the
    same names are nested: those of a smaller fraction are all in that of a larger one, and fraction 1 keeps all.
    labels: int64 [images].

    Raises:
        UserError: the fraction is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction {fraction} of the training images is refused; give one above 0 and at most 1")
    kept = [shuffled[: max(1, round(fraction * len(shuffled)))] for shuffled in _shuffled_classes(labels, names)]
    return torch.cat(kept).sort().values


def split_held_out(labels: Tensor, share: float, *names: Name) -> tuple[Tensor, Tensor]:
    """Choose the positions of the images that stay and of those that are held out, both ascending int64.

    Of a class of n images `share` * n are held out, rounded to the nearest, but at least one is held out and one stays.
    labels: int64 [images].

    Raises:
        UserError: the share is not between 0 and 1, or a class has a single image.
    """
    if not 0 < share < 1:
        raise UserError(f"share {share} of held-out images is refused; give one above 0 and below 1")
    kept, held = [], []
    for shuffled in _shuffled_classes(labels, names):
        if len(shuffled) < 2:
            label = int(labels[shuffled[0]])
            raise UserError(f"class number {label} has a single image, none of which can be held out; give it another")
        count = min(max(1, round(share * len(shuffled))), len(shuffled) - 1)
        held.append(shuffled[:count])
        kept.append(shuffled[count:])
    return torch.cat(kept).sort().values, torch.cat(held).sort().values


def _shuffled_classes(labels: Tensor, names: tuple[Name, ...]) -> Iterator[Tensor]:
    """Shuffle the positions of each class's images by a stream of its own, so no class affects another."""
    for label in labels.unique().tolist():
        positions = torch.nonzero(labels == label).squeeze(1)
        yield positions[torch.randperm(len(positions), generator=generator(*names, label))]
