"""Training on random boxes of images on disk or in memory: workers cut every batch while others are trained on."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from benchmark.core.rng import Name
from benchmark.data.augmentation import ROTATIONS, Batch, EpochPlan, Recipe, Source, TrainingSource, View
from benchmark.data.dataset import Images, ImageSet
from benchmark.data.decoding import DecodeTask, decode_here, decode_in_workers
from benchmark.data.mixing import Mix
from benchmark.data.shown_small import ShownSmall
from benchmark.data.streamed import CHUNK, ImageFiles

AHEAD = 3
"""Batches that are decoded before they are needed."""
SEEDS = 2**63 - 1
"""One more than the largest seed of a crop's box."""

Decoded = dict[View, Tensor]
"""The crops of a batch by view, uint8 [batch, turns, size, size, 3]."""


def training_source(
    images: Images, recipe: Recipe, batch_size: int, device: torch.device | str, names: tuple[Name, ...]
) -> Source:
    """Make the source of training batches for images in memory or on disk; the arguments are those of `Source`."""
    if isinstance(images, ImageSet):
        return TrainingSource(images, recipe, batch_size, device, names)
    assert isinstance(images, ImageFiles | ShownSmall)
    return StreamedSource(images, recipe, batch_size, device, names)


class StreamedSource(Source):
    """A source whose images are decoded, or cut, `AHEAD` batches before they are needed.

    Each crop is a random box of the image, made square (`decoding.training_crop`), in place of the crop from a padded
    image that images in memory have. Its seed is drawn like any other random choice, for all images of an epoch at
    once, so that it depends on the image's position, the names and the epoch, and on no batch or worker. With
    `rotated_crop = "per_rotation"` each rotation has a box of its own and is turned after it.
    """

    def __init__(
        self,
        images: ImageFiles | ShownSmall,
        recipe: Recipe,
        batch_size: int,
        device: torch.device | str,
        names: tuple[Name, ...],
    ) -> None:
        # The workers need to know what to decode, so it is chosen on the CPU.
        super().__init__(images, recipe, batch_size, device, names, choices="cpu")
        self.images = images
        self._views: tuple[View, ...] = ("plain",)
        self._stream: Iterator[Decoded] = iter(())
        self._coming: tuple[EpochPlan, int] | None = None

    def draw_offsets(self, crops: int, stream: torch.Generator) -> Tensor:
        """Draw a seed for the box of each crop, int64 [images, crops]."""
        return torch.randint(SEEDS, (len(self.images), crops), generator=stream)

    def batch(self, plan: EpochPlan, step: int) -> Batch:
        """Make the batch of a step, counted from 0. Steps that follow each other are decoded ahead.

        Raises:
            IndexError: the epoch has no such step.
            UserError: an image cannot be decoded.
        """
        index, mix = self.members(plan, step)
        if self._coming is None or self._coming[0] is not plan or self._coming[1] != step:
            # Its own stream must not keep the source alive: without the source, the workers must end at once.
            self._stream = _read_ahead(weakref.proxy(self), plan, step)
        self._coming = None
        crops = next(self._stream)
        if step + 1 < self.batches:
            self._coming = plan, step + 1
        else:
            self._stream = iter(())
        return _StreamedBatch(self, plan, index, mix, crops)

    def crops(self, index: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
        """See `Source.crops`; offsets: seeds, [batch, turns]."""
        return self.normalise_crops(
            torch.cat(decode_here(self._make_tasks(index, offsets, _repeat_flips(flips, offsets))))
        )

    def normalise_crops(self, crops: Tensor) -> Tensor:
        """Turn and normalise crops, uint8 [batch, turns, size, size, 3], to images [turns * batch, 3, size, size]."""
        crops = crops.to(self.device)
        if crops.shape[1] == ROTATIONS:
            crops = torch.stack([crops[:, turn].rot90(turn, (1, 2)) for turn in range(ROTATIONS)], dim=1)
        return self._normalise(crops.flatten(0, 1))

    def remember(self, view: View) -> None:
        """Decode this view ahead from now on, because it was asked for once."""
        self._views = tuple(dict.fromkeys((*self._views, view)))

    def tasks(self, plan: EpochPlan, step: int) -> list[tuple[DecodeTask, dict[View, slice]]]:
        """List the tasks of a batch, and which of a task's crops belong to which view."""
        index, _ = self.members(plan, step)
        # Views of the same images are cut from one decoded image.
        of_itself: list[View] = [view for view in self._views if view != "same_class"]
        groups = [of_itself] + [["same_class"] for view in self._views if view == "same_class"]
        found = []
        for views in groups:
            choices = [self.choices(plan, view, index, self._turns(view)) for view in views]
            ends = list(itertools.accumulate(self._turns(view) for view in views))
            places = {view: slice(end - self._turns(view), end) for view, end in zip(views, ends, strict=True)}
            offsets = torch.cat([offsets for _, offsets, _ in choices], dim=1)
            flips = torch.cat([_repeat_flips(flips, offsets) for _, offsets, flips in choices], dim=1)
            found += [(task, places) for task in self._make_tasks(choices[0][0], offsets, flips)]
        return found

    def _turns(self, view: View) -> int:
        return ROTATIONS if view == "rotated" else 1

    def _make_tasks(self, index: Tensor, seeds: Tensor, flips: Tensor) -> list[DecodeTask]:
        """Make the tasks for crops of the images `index` [batch]; seeds and flips: [batch, crops]."""
        parts = zip(index.split(CHUNK), seeds.split(CHUNK), flips.split(CHUNK), strict=True)
        find = self.images.paths if isinstance(self.images, ImageFiles) else self.images.pixels
        return [DecodeTask(find(part), box.numpy(), flip.numpy(), self.size) for part, box, flip in parts]


def _repeat_flips(flips: Tensor, offsets: Tensor) -> Tensor:
    """Repeat the flip of each image, bool [batch], for its crops: [batch, crops]."""
    return flips[:, None].expand(offsets.shape)


class _StreamedBatch(Batch):
    """A batch with the crops that were decoded ahead for it; other views are decoded when they are asked for."""

    def __init__(self, source: StreamedSource, plan: EpochPlan, index: Tensor, mix: Mix | None, crops: Decoded) -> None:
        super().__init__(source, plan, index, mix)
        self._decoded = crops

    def _crops(self, name: View, turns: int) -> Tensor:
        source = cast(StreamedSource, self._source)
        if name in self._decoded:
            return source.normalise_crops(self._decoded.pop(name))
        images = super()._crops(name, turns)
        source.remember(name)
        return images


def _read_ahead(source: StreamedSource, plan: EpochPlan, first: int) -> Iterator[Decoded]:
    """Decode the crops of each batch of an epoch from the step `first` on, on the source's device."""
    asked: deque[tuple[dict[View, slice], bool]] = deque()
    """The places of the crops of each task, and whether it is the last one of its batch."""

    def tasks() -> Iterator[DecodeTask]:
        for step in range(first, source.batches):
            found = source.tasks(plan, step)
            for number, (task, places) in enumerate(found, 1):
                asked.append((places, number == len(found)))
                yield task

    pieces: dict[View, list[Tensor]] = {}
    ahead = AHEAD * -(-source.batch_size // CHUNK)
    for crops in decode_in_workers(tasks(), ahead, pinned=source.device.type == "cuda"):
        crops = crops.to(source.device, non_blocking=True)
        places, complete = asked.popleft()
        for view, columns in places.items():
            pieces.setdefault(view, []).append(crops[:, columns])
        if complete:
            yield {view: torch.cat(parts) for view, parts in pieces.items()}
            pieces = {}
