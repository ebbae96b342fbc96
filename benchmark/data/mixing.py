"""Cutout and CutMix on batches of normalised images.

Cutout (DeVries and Taylor, 2017): a square hole of zeros, its centre anywhere in the image, so that it may hang over
the edge. CutMix (Yun et al., ICCV 2019): with some probability a batch is mixed; a box of each image, as large as a
uniform share of it and with its centre anywhere, is replaced by the same box of a partner in the batch, and the image
then counts as both, in proportion to the pixels each has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HOLE = 0.25
"""Side of Cutout's hole as a share of the image's: 8 of 32 pixels, the authors' choice for CIFAR-100."""
MIXED_BATCHES = 0.5
"""Share of the batches that CutMix mixes: the authors' choice for CIFAR."""


@dataclass(frozen=True)
class Mixture:
    """The second image that each image of a batch is mixed with.

    labels, index: its class and its position in the training set, int64 [batch]; share: of the pixels that are still
    the first image's, 0..1, the same for the whole batch.
    """

    labels: Tensor
    index: Tensor
    share: float


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed: with which row, int64 [batch], and in which box of the upright image, bool [size, size]."""

    partner: Tensor
    box: Tensor
    share: float


def sample_mix(
    batch: int, size: int, probability: float, generator: torch.Generator, device: torch.device
) -> Mix | None:
    """Draw how a batch of square images is mixed, or None if it is not.

    The share left to the first image is uniform (Beta(1, 1)) before the box is cut off at the edge; `Mix.share` is what
    it then really is.
    """
    if float(torch.rand((), generator=generator)) >= probability:
        return None
    side = int(size * math.sqrt(1.0 - float(torch.rand((), generator=generator))))
    row, column = torch.randint(size, (2,), generator=generator).tolist()
    top, left = max(row - side // 2, 0), max(column - side // 2, 0)
    bottom, right = min(row + side // 2, size), min(column + side // 2, size)
    box = torch.zeros(size, size, dtype=torch.bool)
    box[top:bottom, left:right] = True
    partner = torch.randperm(batch, generator=generator)
    share = 1.0 - (bottom - top) * (right - left) / size**2
    return Mix(partner.to(device), box.to(device), share)


def _turned(masks: Tensor, turns: int) -> Tensor:
    """Turn masks [batch, size, size] by the first `turns` rotations, image-major: [turns * batch, 1, size, size]."""
    return torch.stack([masks.rot90(turn, (1, 2)) for turn in range(turns)], dim=1).flatten(0, 1)[:, None]


def mixed(images: Tensor, mix: Mix, turns: int) -> Tensor:
    """Replace the box in images [turns * batch, channels, size, size], image-major, by the partner's pixels.

    images: [turns * (batch or more), ...]; those after the batch are there as partners only.
    """
    rows = mix.partner[:, None] * turns + torch.arange(turns, device=images.device)
    boxes = _turned(mix.box[None].expand(len(mix.partner), -1, -1), turns)
    own = images[: len(boxes)]
    return torch.where(boxes, images[rows.flatten()], own).contiguous(memory_format=torch.channels_last)


def cut_out(images: Tensor, centres: Tensor, side: int, turns: int) -> Tensor:
    """Put a square of zeros into each of the images [turns * batch, channels, size, size], image-major.

    centres: row and column in the upright image, int64 [batch, 2]; side: of the square, in pixels.
    """
    lines = torch.arange(images.shape[-1], device=images.device)
    start = centres - side // 2
    inside = (lines >= start[..., None]) & (lines < start[..., None] + side)
    holes = inside[:, 0, :, None] & inside[:, 1, None, :]
    # In place on a copy: masked_fill itself would give up the images' channels_last layout.
    return images.clone().masked_fill_(_turned(holes, turns), 0.0)
