"""Weights of a small network as released files hold them, for the tests of reading and refusing these."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from benchmark.backbones import build_network
from benchmark.backbones.network import Network
from benchmark.backbones.released import ReleasedWeights
from benchmark.core import rng

NAME = "ResNet20"


def network(seed: int = 0, num_classes: int = 10) -> Network:
    module = build_network(NAME, num_classes)
    module.initialise(lambda name: rng.generator(name, seed))
    return module


def weights(seed: int = 0) -> dict[str, Tensor]:
    return dict(network(seed).state_dict())


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in tensors.items()}


def released(backbone: dict[str, Tensor], auxiliary: dict[str, Tensor] | None = None) -> ReleasedWeights:
    return ReleasedWeights(backbone, auxiliary, "state dict", "")


def leave_trace(folder: str) -> None:
    """Show that code in a file was run."""
    Path(folder).mkdir()


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in actual.items())


def archived(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive as `torch.save` makes them."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(f"archive/{name}", content)
    return path
