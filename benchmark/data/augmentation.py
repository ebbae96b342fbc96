"""Batches of augmented images, made on the device the images live on.

The dataset stays on the device as uint8 with its zero padding. A batch is cropped, mirrored and rotated by one indexed
read and then normalised, which gives, bit for bit in float32, what torchvision's RandomCrop (zero padding),
RandomHorizontalFlip, ToTensor and Normalize give for the same offsets and flips.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from benchmark.core.rng import Name, generator
from benchmark.data.dataset import Colour, Images, ImageSet
from benchmark.data.mixing import Mix, Mixture, cut_out, mixed, sample_mix

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
    """All random choices of one epoch, where the images live.

    order: positions of the images in the order they are visited, int64 [images];
    offsets: row and column of the crop's corner in the padded image, int64 [images, crops, 2], with 1 crop or 4; of
    images that stay on disk, the seed of the crop's box, int64 [images, crops];
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

    def __init__(self, source: Source, plan: EpochPlan, index: Tensor, mix: Mix | None = None) -> None:
        """index: of the images that are needed, int64; in a mixed batch the last ones may be there as partners only."""
        needed = index.to(source.device)
        self.index = needed if mix is None else needed[: len(mix.partner)]
        self.labels = source.labels[self.index]
        self.mixture = None
        if mix is not None:
            partners = needed[mix.partner]
            self.mixture = Mixture(source.labels[partners], partners, mix.share)
        self.plan = plan
        self._places = index
        self._mix = mix
        self._source = source
        self._views: dict[View, Tensor] = {}

    @property
    def views(self) -> set[View]:
        """The views that were made so far."""
        return set(self._views)

    def view(self, name: View) -> Tensor:
        """Get the normalised images of a view, float32 in channels_last, made at the first call and kept.

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
        source, plan = self._source, self.plan
        if name == "rotated" and source.recipe.rotated_crop == "shared":
            # Turned after hole and mix, which is the same as turning the image, the hole and the box.
            return rotations(self.view("plain"))
        turns = ROTATIONS if name == "rotated" else 1
        images = self._crops(name, turns)
        if source.recipe.cutout:
            images = cut_out(images, source.holes(plan, name, self._places), source.recipe.cutout, turns)
        return images if self._mix is None else mixed(images, self._mix, turns)

    def _crops(self, name: View, turns: int) -> Tensor:
        """Make the normalised images [turns * batch, 3, height, width] of a view before holes and mixes."""
        return self._source.crops(*self._source.choices(self.plan, name, self._places, turns))


class Source(ABC):
    """Labelled images, and the batches of each epoch; where the images live is up to the subclass.

    Random choices are drawn on the CPU from streams named by `names`, the epoch and what they are for, so every device
    gets the same ones, and those of an epoch need nothing from the epochs before it.
    """

    def __init__(
        self,
        images: Images,
        recipe: Recipe,
        batch_size: int,
        device: torch.device | str,
        names: tuple[Name, ...],
        choices: torch.device | str | None = None,
    ) -> None:
        """choices: the device where the random choices are used, that of the batches by default."""
        if batch_size < 2 or not len(images):
            raise ValueError(f"{len(images)} images cannot be trained on in batches of {batch_size}")
        self.recipe = recipe
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.names = names
        self.size = images.image_size
        self.labels = images.labels.to(self.device)
        self.rows: Callable[[int], slice] = slice
        """The rows of a batch of a given size that this process trains on: all, unless others have the rest."""
        self._choices = self.device if choices is None else torch.device(choices)
        self._normalise = Normalisation(recipe, self.size, self.device)
        sizes = torch.bincount(images.labels)
        self._by_class = torch.argsort(images.labels, stable=True).to(self._choices)
        self._class_size = sizes[images.labels].to(self._choices)
        self._class_start = (sizes.cumsum(0) - sizes)[images.labels].to(self._choices)

    @abstractmethod
    def draw_offsets(self, crops: int, stream: torch.Generator) -> Tensor:
        """Draw the positions of random crops of each image, int64 [images, crops, ...]; see `EpochPlan.offsets`."""

    @abstractmethod
    def crops(self, index: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
        """Make normalised crops [turns * batch, 3, height, width] of the images `index`, int64 [batch].

        offsets: [batch, turns, ...], one crop an image, or one for each of its rotations, which is then turned;
        flips: whether the image is mirrored, bool [batch].
        """

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
        """Draw the random choices of an epoch, counted from 0."""
        count, recipe = len(self.labels), self.recipe
        crops = ROTATIONS if recipe.rotated_crop == "per_rotation" else 1
        order = torch.randperm(count, generator=generator(*self.names, epoch, "order"))
        offsets = self.draw_offsets(crops, generator(*self.names, epoch, "crop"))
        flips = torch.zeros(count, dtype=torch.bool)
        if recipe.flip:
            flips = torch.rand(count, generator=generator(*self.names, epoch, "flip")) < 0.5
        return EpochPlan(epoch, order.to(self._choices), offsets.to(self._choices), flips.to(self._choices))

    def batch(self, plan: EpochPlan, step: int) -> Batch:
        """Make the batch of a step, counted from 0.

        Raises:
            IndexError: the epoch has no such step.
        """
        return Batch(self, plan, *self.members(plan, step))

    def members(self, plan: EpochPlan, step: int) -> tuple[Tensor, Mix | None]:
        """Get the positions of the images that a step needs here, int64, and how these are mixed; None if they are not.

        They are this process's `rows` of the batch. If the batch is mixed and other processes have a part of it, the
        partners of these rows follow; a mix names partners by their place among the positions.

        Raises:
            IndexError: the epoch has no such step.
        """
        whole = self.whole(plan, step)
        rows, mix = self.rows(len(whole)), None
        if self.recipe.cutmix:
            stream = generator(*self.names, plan.epoch, "cutmix", step)
            mix = sample_mix(len(whole), self.size, self.recipe.cutmix, stream, self.device)
        if mix is None or rows == slice(len(whole)):
            return whole[rows], mix
        partners = mix.partner[rows].to(whole.device)
        own = len(partners)
        mix = replace(mix, partner=torch.arange(own, 2 * own, device=self.device))
        return torch.cat((whole[rows], whole[partners])), mix

    def whole(self, plan: EpochPlan, step: int) -> Tensor:
        """Get the positions of the images of a step's batch over all processes, int64 [images].

        Raises:
            IndexError: the epoch has no such step.
        """
        if not 0 <= step < self.batches:
            raise IndexError(f"step {step} of an epoch of {self.batches} batches")
        start = step * self.batch_size
        return plan.order[start : None if step == self.batches - 1 else start + self.batch_size]

    def choices(self, plan: EpochPlan, name: View, index: Tensor, turns: int) -> tuple[Tensor, Tensor, Tensor]:
        """Get which images a view shows, where their crops are and which are mirrored: the arguments of `crops`.

        Raises:
            ValueError: there is no such view.
        """
        if name in ("plain", "rotated"):
            return index, plan.offsets[index, :turns], plan.flips[index]
        if name not in ("second", "same_class"):
            raise ValueError(f"unknown view {name!r}; allowed: plain, rotated, second, same_class")
        offsets = self._drawn(plan, f"{name} crop", lambda stream: self.draw_offsets(1, stream))
        flips = plan.flips
        if self.recipe.flip:
            flips = self._drawn(
                plan, f"{name} flip", lambda stream: torch.rand(len(plan.flips), generator=stream) < 0.5
            )
        shown = index if name == "second" else self._partners(plan, index)
        return shown, offsets[index], flips[index]

    def holes(self, plan: EpochPlan, name: View, index: Tensor) -> Tensor:
        """Get row and column of the centre of each image's hole in an upright view, int64 [batch, 2]."""
        kind = name if name in ("second", "same_class") else "plain"
        shape = (len(self.labels), 2)
        drawn = self._drawn(plan, f"{kind} hole", lambda stream: torch.randint(self.size, shape, generator=stream))
        return drawn[index].to(self.device)

    def _partners(self, plan: EpochPlan, index: Tensor) -> Tensor:
        """Choose an image of the same class for each image of `index`, int64 [batch]: its position, int64 [batch]."""
        uniform = self._drawn(
            plan, "partner", lambda stream: torch.rand(len(self.labels), generator=stream, dtype=torch.float64)
        )
        place = (uniform[index] * self._class_size[index]).long()
        return self._by_class[self._class_start[index] + place]

    def _drawn(self, plan: EpochPlan, name: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        if name not in plan.drawn:
            plan.drawn[name] = draw(generator(*self.names, plan.epoch, name)).to(self._choices)
        return plan.drawn[name]


class TrainingSource(Source):
    """A source whose images live on the device of the batches, as uint8 with their padding of zeros."""

    def __init__(
        self, images: ImageSet, recipe: Recipe, batch_size: int, device: torch.device | str, names: tuple[Name, ...]
    ) -> None:
        super().__init__(images, recipe, batch_size, device, names)
        count, height, width, channels = images.images.shape
        if height != width:
            raise ValueError(f"images of {height}x{width} cannot be trained on; they must be square")
        self.padded_size = height + 2 * recipe.padding
        inside = slice(recipe.padding, recipe.padding + height)
        padded = torch.zeros((count, self.padded_size, self.padded_size, channels), dtype=torch.uint8)
        padded[:, inside, inside] = images.images
        self._pixels = padded.to(self.device).view(-1, channels)
        self._lines = torch.arange(height, device=self.device)

    def draw_offsets(self, crops: int, stream: torch.Generator) -> Tensor:
        """Draw row and column of each crop's corner in the padded image, int64 [images, crops, 2]."""
        return torch.randint(2 * self.recipe.padding + 1, (len(self.labels), crops, 2), generator=stream)

    def crops(self, index: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
        """See `Source.crops`. Rotations that share one crop are `rotations`' work."""
        turns = offsets.shape[1]
        row = (offsets[..., 0, None] + self._lines)[..., :, None]
        column = (offsets[..., 1, None] + self._lines)[..., None, :]
        mirrored = flips[:, None, None]
        first_pixel = (index * self.padded_size**2)[:, None, None]
        if turns == 1 and self.recipe.rotated_crop == "shared":
            # torchvision's usual order crops first, so the mirror is inside the crop.
            column = torch.where(mirrored[..., None], column.flip(-1), column)
            turned = [(row[:, 0], column[:, 0])]
        else:
            turned = [self._before_turn(row[:, turn], column[:, turn], turn, mirrored) for turn in range(turns)]
        read = torch.stack([first_pixel + y * self.padded_size + x for y, x in turned], dim=1)
        pixels = self._pixels.index_select(0, read.view(-1))
        return self._normalise(pixels.view(-1, self.size, self.size, 3))

    def _before_turn(self, row: Tensor, column: Tensor, turn: int, flips: Tensor) -> tuple[Tensor, Tensor]:
        """Find where pixels of the mirrored, then turned, padded image are in the padded image itself."""
        last = self.padded_size - 1
        row, column = ((row, column), (column, last - row), (last - row, last - column), (last - column, row))[turn]
        return row, torch.where(flips, last - column, column)


class Normalisation:
    """Turns uint8 pixels into float32, scaled to 0..1, less the mean, over the standard deviation."""

    def __init__(self, recipe: Recipe, size: int, device: torch.device) -> None:
        # Constants spread over a whole image let the arithmetic run along long rows instead of three channels.
        self._mean = torch.tensor(recipe.mean).repeat(size**2).to(device)
        self._std = torch.tensor(recipe.std).repeat(size**2).to(device)
        # A tensor on the device: CUDA divides by a plain number through its reciprocal, which rounds differently.
        self._white = torch.tensor(float(WHITE), device=device)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images, uint8 [batch, height, width, 3], to float32 [batch, 3, height, width] in channels_last."""
        flat = images.reshape(len(images), -1).float()
        flat.div_(self._white).sub_(self._mean).div_(self._std)
        return flat.view(images.shape).permute(0, 3, 1, 2)


def rotations(images: Tensor) -> Tensor:
    """Turn images [batch, 3, size, size] by 0, 90, 180, 270 degrees counter-clockwise: [4 * batch, 3, size, size].

    Image-major: the four rotations of an image are neighbours. The result is in channels_last.
    """
    batch, channels, size, _ = images.shape
    places = torch.arange(size * size, device=images.device).view(size, size)
    # Reading whole pixels in the turned order is several times faster than turning every channel.
    read = torch.stack([places.rot90(turn) for turn in range(ROTATIONS)]).view(-1)
    pixels = images.permute(0, 2, 3, 1).reshape(batch, size * size, channels)
    return pixels.index_select(1, read).view(ROTATIONS * batch, size, size, channels).permute(0, 3, 1, 2)


def evaluation_batches(
    image_set: Images, recipe: Recipe, batch_size: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over normalised images, float32 [batch, 3, height, width] in channels_last, and labels, in order.

    Images in memory are shown as they are; of those on disk see `benchmark.data.streamed.ImageFiles.batches`.
    """
    device = torch.device(device)
    normalise = Normalisation(recipe, image_set.image_size, device)
    for images, labels in image_set.batches(batch_size):
        yield normalise(images.to(device)), labels.to(device)
