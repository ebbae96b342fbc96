"""The backbones by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmark.backbones.auxiliary import AuxiliaryBranches, BranchOutputs
from benchmark.backbones.network import Network, Outputs, Shape, shape_of
from benchmark.backbones.resnet import FOURFOLD, NARROW, resnet, resnet_branches
from benchmark.backbones.shufflenet_v1 import shufflenet_v1, shufflenet_v1_branches
from benchmark.backbones.shufflenet_v2 import shufflenet_v2, shufflenet_v2_branches
from benchmark.backbones.wrn import wide_resnet, wide_resnet_branches
from benchmark.errors import unknown_name

__all__ = [
    "AuxiliaryBranches",
    "BranchOutputs",
    "Network",
    "Outputs",
    "Shape",
    "build_branches",
    "build_network",
    "is_mobile_network",
    "network_names",
    "public_name",
    "shape_of",
    "uses_grouped_convolutions",
]


@dataclass(frozen=True)
class _Entry:
    """public: the name in RepDistiller's model table, which file names of released teachers use;
    mobile: a MobileNet or ShuffleNet, for which the lineage's recipes have a learning rate of their own."""

    public: str
    network: Callable[[int], Network]
    branches: Callable[[int], AuxiliaryBranches]
    grouped: bool = False
    mobile: bool = False


def _wrn(depth: int, widen_factor: int) -> _Entry:
    return _Entry(
        f"wrn_{depth}_{widen_factor}",
        lambda num_classes: wide_resnet(depth, widen_factor, num_classes),
        lambda num_outputs: wide_resnet_branches(depth, widen_factor, num_outputs),
    )


def _resnet(public: str, depth: int, widths: tuple[int, int, int, int]) -> _Entry:
    return _Entry(
        public,
        lambda num_classes: resnet(depth, widths, num_classes),
        lambda num_outputs: resnet_branches(depth, widths, num_outputs),
    )


_NETWORKS: dict[str, _Entry] = {
    "WRN-16-2": _wrn(16, 2),
    "WRN-40-1": _wrn(40, 1),
    "WRN-40-2": _wrn(40, 2),
    "ResNet20": _resnet("resnet20", 20, NARROW),
    "ResNet56": _resnet("resnet56", 56, NARROW),
    "ResNet8x4": _resnet("resnet8x4", 8, FOURFOLD),
    "ResNet32x4": _resnet("resnet32x4", 32, FOURFOLD),
    "ShuffleNetV1": _Entry("ShuffleV1", shufflenet_v1, shufflenet_v1_branches, grouped=True, mobile=True),
    "ShuffleNetV2": _Entry("ShuffleV2", shufflenet_v2, shufflenet_v2_branches, grouped=True, mobile=True),
}


def _entry(name: str) -> _Entry:
    if name not in _NETWORKS:
        raise unknown_name("network", name, _NETWORKS)
    return _NETWORKS[name]


def network_names() -> tuple[str, ...]:
    """The names of all networks, in the order of the table."""
    return tuple(_NETWORKS)


def build_network(name: str, num_classes: int) -> Network:
    """The network of this name, whose weights mean nothing until `initialise` or a checkpoint fills them.

    Raises:
        UserError: there is no network of this name.
    """
    entry = _entry(name)
    # PyTorch's layers draw weights as they are made; the caller's random stream must not move for that.
    with torch.random.fork_rng(devices=[]):
        return entry.network(num_classes)


def build_branches(name: str, num_outputs: int) -> AuxiliaryBranches:
    """Auxiliary branches for the network of this name, each with `num_outputs` outputs, not initialised either.

    The public ones have four outputs a class, one for each rotation.

    Raises:
        UserError: there is no network of this name.
    """
    entry = _entry(name)
    with torch.random.fork_rng(devices=[]):
        return entry.branches(num_outputs)


def uses_grouped_convolutions(name: str) -> bool:
    """Whether the network has grouped or depthwise convolutions, which run slower in bfloat16 than in float32.

    Raises:
        UserError: there is no network of this name.
    """
    return _entry(name).grouped


def is_mobile_network(name: str) -> bool:
    """Whether the network is a MobileNet or a ShuffleNet.

    Raises:
        UserError: there is no network of this name.
    """
    return _entry(name).mobile


def public_name(name: str) -> str:
    """The short name of the network in the public code and in the file names of released teachers.

    Raises:
        UserError: there is no network of this name.
    """
    return _entry(name).public
