"""A user's dataset: class folders, and a TOML file that describes them.

    name = "leaves"
    folder = "leaves"        # holds {train,test}/<class>/*.{png,jpg,jpeg,bmp,webp}
    image_size = 32          # every image must be 32x32
    padding = 4              # pixels of zero on each side before a random crop
    flip = true              # whether images may be mirrored
    mean = [0.5, 0.5, 0.5]   # optional, with std: for pixels scaled to 0..1; measured on the training images otherwise
    std = [0.25, 0.25, 0.25]

A relative `folder` is looked for in the data folder, if there is one, and then beside the TOML file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from benchmark.core.errors import UserError
from benchmark.core.models import FrozenModel
from benchmark.data.cache import locate_cache, make_dataset, read_or_build
from benchmark.data.dataset import Dataset
from benchmark.data.folders import list_class_folders, read_class_folders
from benchmark.io.toml import load_toml

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]


class DatasetDescription(FrozenModel):
    """The fields of a dataset's TOML file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    folder: Path
    image_size: int = Field(ge=8, le=1024)
    padding: int = Field(ge=0)
    flip: bool
    mean: tuple[Share, Share, Share] | None = None
    std: tuple[PositiveShare, PositiveShare, PositiveShare] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together; give both or neither")
        if self.padding > self.image_size:
            raise ValueError(f"padding {self.padding} is more than the image size {self.image_size}")
        return self


def read_description(path: Path, reserved: Iterable[str] = ()) -> DatasetDescription:
    """Read the description in a TOML file.

    Raises:
        UserError: there is no such file, it is no TOML, a value is not allowed, or its name is one of `reserved`.
    """
    description = load_toml(path, "dataset file", DatasetDescription, "docs/own-files.md")
    if description.name in reserved:
        raise UserError(f"dataset file {path}: the name {description.name!r} is taken; choose another")
    return description


def load_custom(path: Path, data_root: Path | None, cache_root: Path | None, reserved: Iterable[str]) -> Dataset:
    """Load the dataset that a TOML file describes, through its cache.

    Raises:
        UserError: the description, the folders, an image or the cache is wrong.
    """
    description = read_description(path, reserved)
    folder = _folder(path, description.folder, data_root)
    found = list_class_folders(folder)
    if len(found.classes) < 2:
        raise UserError(f"{folder} has a single class, {found.classes[0]!r}; there must be two or more to tell apart")
    # Two datasets of one name may share a data folder; and another size makes other images of the same files.
    key = f"{description.name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"
    cached = read_or_build(
        locate_cache(data_root or path.parent, cache_root),
        key,
        f"{found.state} {description.image_size}",
        lambda: read_class_folders(found, description.image_size),
    )
    return make_dataset(
        description.name, cached, description.padding, description.flip, description.mean, description.std
    )


def _folder(path: Path, folder: Path, data_root: Path | None) -> Path:
    candidates = [root / folder for root in (data_root, path.parent) if root is not None]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    looked = " or ".join(dict.fromkeys(str(candidate) for candidate in candidates))
    raise UserError(f"dataset file {path}: there is no folder {looked}; correct `folder` or pass its data folder")
