"""Datasets by name, or from a TOML file that describes the user's class folders."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmark.core.errors import unknown_name
from benchmark.data import cifar100, digits, imagenet, stl10, tiny_imagenet
from benchmark.data.custom import load_custom
from benchmark.data.dataset import Dataset, Images, ImageSet

__all__ = ["Dataset", "ImageSet", "Images", "dataset_names", "load_dataset"]

LOADERS = {
    **{module.NAME: module.load for module in (digits, cifar100, tiny_imagenet, imagenet, stl10)},
    tiny_imagenet.SMALL_NAME: tiny_imagenet.load_small,
    **{name: partial(digits.load, name=name) for name in digits.SHOWN if name != digits.NAME},
}


def dataset_names() -> tuple[str, ...]:
    """List the names of the suite's datasets."""
    return tuple(LOADERS)


def load_dataset(
    name_or_toml: str, data_root: Path | None = None, cache_root: Path | None = None, download: bool = True
) -> Dataset:
    """Load the dataset of a name, or the one that a TOML file describes (see `benchmark.data.custom`).

    data_root: the folder that holds the dataset; cache_root: the folder for its decoded images, `<data_root>/.kd-cache`
    by default (or the user's cache folder, if that cannot be written); download: whether it may be fetched.

    Raises:
        UserError: the name is unknown, or the dataset is missing or damaged, or its description is wrong.
    """
    if name_or_toml.endswith(".toml"):
        return load_custom(Path(name_or_toml), data_root, cache_root, reserved=dataset_names())
    if name_or_toml not in LOADERS:
        raise unknown_name("dataset", name_or_toml, [*LOADERS, "the path of a dataset's .toml file"])
    return LOADERS[name_or_toml](data_root, cache_root, download)
