"""Labelled image files of any size, decoded when they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmark.data.decoding import DecodeTask, decode_in_workers

CHUNK = 32
"""Images that one worker decodes at a time: few, so that many workers share the next batch."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files in class folders, and the class of each.

    root: holds the class folders; folders: their names, by label; names: of the files, as the bytes that the file
    system knows them by, [images]; labels: int64 [images]; image_size: of the square that is cut out, in pixels.
    """

    root: Path
    folders: tuple[str, ...]
    names: np.ndarray
    labels: Tensor
    image_size: int

    def __len__(self) -> int:
        return len(self.labels)

    def paths(self, index: Tensor) -> tuple[str, ...]:
        """Get the files at the positions `index`, int64 [images]."""
        places = zip(self.labels[index].tolist(), self.names[index.numpy()].tolist(), strict=True)
        return tuple(os.path.join(self.root, self.folders[label], os.fsdecode(name)) for label, name in places)

    def subset(self, index: Tensor) -> ImageFiles:
        """Select the images at the positions `index`, int64 [images]."""
        return ImageFiles(self.root, self.folders, self.names[index.numpy()], self.labels[index], self.image_size)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Decode the middle of each image (`evaluation_crop`), uint8 [batch, size, size, 3]; with labels, in order.

        Raises:
            UserError: an image cannot be decoded.
        """
        chunk = min(CHUNK, batch_size)
        pieces = decode_in_workers(self._tasks(batch_size, chunk), ahead=2 * -(-batch_size // chunk))
        for labels in self.labels.split(batch_size):
            crops = [next(pieces)[:, 0] for _ in range(-(-len(labels) // chunk))]
            yield torch.cat(crops), labels

    def _tasks(self, batch_size: int, chunk: int) -> Iterator[DecodeTask]:
        for batch in torch.arange(len(self)).split(batch_size):
            for index in batch.split(chunk):
                flips = np.zeros((len(index), 1), dtype=bool)
                yield DecodeTask(self.paths(index), None, flips, self.image_size)
