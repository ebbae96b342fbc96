"""Batches of augmented images, made on the device the images live on.

The dataset stays on the device as uint8 with its zero padding. A batch is cropped, mirrored and rotated by one indexed
read and then normalised, which gives, bit for bit in float32, what torchvision's RandomCrop (zero padding),
RandomHorizontalFlip, ToTensor and Normalize give for the same offsets and flips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from benchmark.data.dataset import Colour, ImageSet
from benchmark.data.mixing import Mix, Mixture, cut_out, draw_mix, mixed
from benchmark.streams import Name, generator

ROTATIONS = 4
WHITE = 255

View = Literal["plain", "rotated", "second", "same_class"]
RotatedCrop = Literal["shared", "per_rotation"]


@dataclass(frozen=True)
class Recipe:
    """How images are augmented and normalised.

    padding: pixels of zero on each side before the crop back to the image's size; flip: mirror half of the images;
    mean, std: of each channel, for pixels scaled to 0..1;
    rotated_crop: `shared` rotates the cropped and mirrored image, so the four rotations show the same pixels (HSAKD);
    `per_rotation` mirrors, then rotates the whole image, then crops each rotation by itself (SSKD);
    cutout: side of the square hole in each image, in pixels, 0 for none; cutmix: share of the batches that are mixed
    (see `benchmark.data.mixing`).
    """

    padding: int
    flip: bool
    mean: Colour
    std: Colour
    rotated_crop: RotatedCrop = "shared"
    cutout: int = 0
    cutmix: float = 0.0


@dataclass(frozen=True)
class EpochPlan:
    """All random choices of one epoch, on the device of the images.

    order: positions of the images in the order they are visited, int64 [images];
    offsets: row and column of the crop's corner in the padded image, int64 [images, crops, 2], with 1 crop or 4;
    flips: whether the image is mirrored, bool [images]. Offsets and flips are by position, not by order of visit;
    drawn: what only some views need, by name, drawn at first use.
    """

    epoch: int
    order: Tensor
    offsets: Tensor
    flips: Tensor
    drawn: dict[str, Tensor] = field(default_factory=dict)


class Batch:
    """One batch: labels and positions in the image set, int64 [batch], and views of its images on demand.

    mixture: what a box of each image was replaced by, in all views alike; None where nothing was.
    """

    def __init__(self, source: TrainingSource, plan: EpochPlan, index: Tensor, mix: Mix | None = None) -> None:
        self.index = index
        self.labels = source.labels[index]
        self.mixture = Mixture(self.labels[mix.partner], index[mix.partner], mix.share) if mix else None
        self._mix = mix
        self._source = source
        self._plan = plan
        self._views: dict[View, Tensor] = {}

    @property
    def views(self) -> set[View]:
        """The views that were made so far."""
        return set(self._views)

    def view(self, name: View) -> Tensor:
        """The normalised images of a view, float32 in channels_last, made at the first call and kept.

        `plain`: [batch, 3, height, width]. `rotated`: [4 * batch, 3, height, width], image-major; rows 4i to 4i+3 are
        image i turned by 0, 90, 180 and 270 degrees counter-clockwise, and rows 0, 4, 8, ... are the plain view.
        `second`: the same images with another crop and flip. `same_class`: row i is an image of the class of image i,
        any of the training set with the same chance, image i included, with a crop and flip of its own.

        Cutout makes its holes in each view's upright images, before they are turned. In a mixed batch every view is
        mixed alike: row by row with the same view of the partner, in the same box, turned with the image.

        Raises:
            ValueError: there is no such view.
        """
        if name not in self._views:
            self._views[name] = self._make(name)
        return self._views[name]

    def _make(self, name: View) -> Tensor:
        source, plan = self._source, self._plan
        if name == "rotated" and source.recipe.rotated_crop == "shared":
            # Turned after hole and mix, which is the same as turning the image, the hole and the box.
            return rotations(self.view("plain"))
        turns = ROTATIONS if name == "rotated" else 1
        images = source.view(plan, name, self.index, turns)
        if source.recipe.cutout:
            images = cut_out(images, source.holes(plan, name, self.index), source.recipe.cutout, turns)
        return images if self._mix is None else mixed(images, self._mix, turns)


class TrainingSource:
    """An image set on a device, and the batches of each epoch.

    Random choices are drawn on the CPU from streams named by `names`, the epoch and what they are for, so every device
    gets the same ones, and those of an epoch need nothing from the epochs before it.
    """

    def __init__(
        self, images: ImageSet, recipe: Recipe, batch_size: int, device: torch.device | str, names: tuple[Name, ...]
    ) -> None:
        count, height, width, channels = images.images.shape
        if batch_size < 2 or count < 1 or height != width:
            raise ValueError(f"{count} images of {height}x{width} cannot be trained on in batches of {batch_size}")
        self.recipe = recipe
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.names = names
        self.size = height
        self.padded_size = height + 2 * recipe.padding
        inside = slice(recipe.padding, recipe.padding + height)
        padded = torch.zeros((count, self.padded_size, self.padded_size, channels), dtype=torch.uint8)
        padded[:, inside, inside] = images.images
        self._pixels = padded.to(self.device).view(-1, channels)
        self.labels = images.labels.to(self.device)
        self._normalise = Normalisation(recipe, height, width, self.device)
        self._lines = torch.arange(height, device=self.device)
        self._by_class = torch.argsort(self.labels, stable=True)
        sizes = torch.bincount(self.labels)
        self._class_size, self._class_start = sizes, sizes.cumsum(0) - sizes

    @property
    def batches(self) -> int:
        """Number of batches in an epoch.

        The last one holds what is left over. A single left-over image joins the batch before it, because batch
        normalisation cannot be trained on one image.
        """
        count = len(self.labels)
        alone = count % self.batch_size == 1 and count > 1
        return math.ceil(count / self.batch_size) - alone

    def epoch(self, epoch: int) -> EpochPlan:
        """The random choices of an epoch, counted from 0."""
        count, recipe = len(self.labels), self.recipe
        crops = ROTATIONS if recipe.rotated_crop == "per_rotation" else 1
        order = torch.randperm(count, generator=generator(*self.names, epoch, "order"))
        offsets = torch.randint(
            2 * recipe.padding + 1, (count, crops, 2), generator=generator(*self.names, epoch, "crop")
        )
        flips = torch.zeros(count, dtype=torch.bool)
        if recipe.flip:
            flips = torch.rand(count, generator=generator(*self.names, epoch, "flip")) < 0.5
        return EpochPlan(epoch, order.to(self.device), offsets.to(self.device), flips.to(self.device))

    def batch(self, plan: EpochPlan, step: int) -> Batch:
        """The batch of a step, counted from 0.

        Raises:
            IndexError: the epoch has no such step.
        """
        if not 0 <= step < self.batches:
            raise IndexError(f"step {step} of an epoch of {self.batches} batches")
        start = step * self.batch_size
        stop = None if step == self.batches - 1 else start + self.batch_size
        index = plan.order[start:stop]
        mix = None
        if self.recipe.cutmix:
            stream = generator(*self.names, plan.epoch, "cutmix", step)
            mix = draw_mix(len(index), self.size, self.recipe.cutmix, stream, self.device)
        return Batch(self, plan, index, mix)

    def view(self, plan: EpochPlan, name: View, index: Tensor, turns: int) -> Tensor:
        """Normalised images [turns * batch, 3, height, width] of a view before holes and mixes; `index`: [batch].

        Raises:
            ValueError: there is no such view.
        """
        if name in ("plain", "rotated"):
            return self._crops(index, plan.offsets[index, :turns], plan.flips[index])
        if name not in ("second", "same_class"):
            raise ValueError(f"unknown view {name!r}; allowed: plain, rotated, second, same_class")
        count = len(self.labels)
        offsets = self._drawn(
            plan,
            f"{name} crop",
            lambda stream: torch.randint(2 * self.recipe.padding + 1, (count, 2), generator=stream),
        )
        flips = plan.flips
        if self.recipe.flip:
            flips = self._drawn(plan, f"{name} flip", lambda stream: torch.rand(count, generator=stream) < 0.5)
        shown = index if name == "second" else self._partners(plan)[index]
        return self._crops(shown, offsets[index, None], flips[index])

    def holes(self, plan: EpochPlan, name: View, index: Tensor) -> Tensor:
        """Row and column of the centre of each image's hole in an upright view, int64 [batch, 2]."""
        kind = name if name in ("second", "same_class") else "plain"
        shape = (len(self.labels), 2)
        return self._drawn(plan, f"{kind} hole", lambda stream: torch.randint(self.size, shape, generator=stream))[
            index
        ]

    def _partners(self, plan: EpochPlan) -> Tensor:
        """For each image the position of one of its class, int64 [images]."""
        uniform = self._drawn(
            plan, "partner", lambda stream: torch.rand(len(self.labels), generator=stream, dtype=torch.float64)
        )
        place = (uniform * self._class_size[self.labels]).long()
        return self._by_class[self._class_start[self.labels] + place]

    def _drawn(self, plan: EpochPlan, name: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        if name not in plan.drawn:
            plan.drawn[name] = draw(generator(*self.names, plan.epoch, name)).to(self.device)
        return plan.drawn[name]

    def _crops(self, index: Tensor, offsets: Tensor, flipped: Tensor) -> Tensor:
        """Normalised crops of the images `index` [batch] at one rotation for each of the offsets [batch, turns, 2].

        Each rotation has its own crop if there are four an image. Rotations of one crop are `rotations`' work.
        """
        turns = offsets.shape[1]
        row = (offsets[..., 0, None] + self._lines)[..., :, None]
        column = (offsets[..., 1, None] + self._lines)[..., None, :]
        flips = flipped[:, None, None]
        first_pixel = (index * self.padded_size**2)[:, None, None]
        if turns == 1 and self.recipe.rotated_crop == "shared":
            # torchvision's usual order crops first, so the mirror is inside the crop.
            column = torch.where(flips[..., None], column.flip(-1), column)
            turned = [(row[:, 0], column[:, 0])]
        else:
            turned = [self._before_turn(row[:, turn], column[:, turn], turn, flips) for turn in range(turns)]
        read = torch.stack([first_pixel + y * self.padded_size + x for y, x in turned], dim=1)
        pixels = self._pixels.index_select(0, read.view(-1))
        return self._normalise(pixels.view(-1, self.size, self.size, 3))

    def _before_turn(self, row: Tensor, column: Tensor, turn: int, flips: Tensor) -> tuple[Tensor, Tensor]:
        """Where pixels of the mirrored, then turned, padded image stand in the padded image itself."""
        last = self.padded_size - 1
        row, column = ((row, column), (column, last - row), (last - row, last - column), (last - column, row))[turn]
        return row, torch.where(flips, last - column, column)


class Normalisation:
    """Turns uint8 pixels into float32, scaled to 0..1, less the mean, over the standard deviation."""

    def __init__(self, recipe: Recipe, height: int, width: int, device: torch.device) -> None:
        # Constants spread over a whole image let the arithmetic run along long rows instead of three channels.
        self._mean = torch.tensor(recipe.mean).repeat(height * width).to(device)
        self._std = torch.tensor(recipe.std).repeat(height * width).to(device)
        # A tensor on the device: CUDA divides by a plain number through its reciprocal, which rounds differently.
        self._white = torch.tensor(float(WHITE), device=device)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [batch, height, width, 3] to float32 [batch, 3, height, width] in channels_last."""
        flat = images.reshape(len(images), -1).float()
        flat.div_(self._white).sub_(self._mean).div_(self._std)
        return flat.view(images.shape).permute(0, 3, 1, 2)


def rotations(images: Tensor) -> Tensor:
    """Images [batch, 3, size, size] turned by 0, 90, 180, 270 degrees counter-clockwise: [4 * batch, 3, size, size].

    Image-major: the four rotations of an image are neighbours. The result is in channels_last.
    """
    batch, channels, size, _ = images.shape
    places = torch.arange(size * size, device=images.device).view(size, size)
    # Reading whole pixels in the turned order is several times faster than turning every channel.
    read = torch.stack([places.rot90(turn) for turn in range(ROTATIONS)]).view(-1)
    pixels = images.permute(0, 2, 3, 1).reshape(batch, size * size, channels)
    return pixels.index_select(1, read).view(ROTATIONS * batch, size, size, channels).permute(0, 3, 1, 2)


def evaluation_batches(
    image_set: ImageSet, recipe: Recipe, batch_size: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images, float32 [batch, 3, height, width] in channels_last, and labels, in order, as they are."""
    device = torch.device(device)
    height, width = image_set.images.shape[1:3]
    normalise = Normalisation(recipe, height, width, device)
    batches = zip(image_set.images.split(batch_size), image_set.labels.split(batch_size), strict=True)
    for images, labels in batches:
        yield normalise(images.to(device)), labels.to(device)
