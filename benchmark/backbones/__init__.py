"""The backbones by name."""

from __future__ import annotations

import functools

import torch

from benchmark.backbones import (
    four_stage_resnet,
    mobilenet_v2,
    mobilenet_v2_tfkd,
    preact_resnet,
    resnet,
    resnext,
    shufflenet_v1,
    shufflenet_v2,
    shufflenet_v2_tfkd,
    vgg,
    wrn,
)
from benchmark.backbones.auxiliary import AuxiliaryBranches, BranchOutputs
from benchmark.backbones.family import Architecture, with_sizes
from benchmark.backbones.network import Network, Outputs, Shape
from benchmark.core.errors import UserError, nearest, unknown_name

__all__ = [
    "AuxiliaryBranches",
    "BranchOutputs",
    "Network",
    "Outputs",
    "Shape",
    "build_branches",
    "build_network",
    "check_network",
    "is_mobile_network",
    "is_network",
    "network_names",
    "network_patterns",
    "uses_grouped_convolutions",
]


_FAMILIES = (
    wrn.FAMILY,
    resnet.FAMILY,
    with_sizes(
        four_stage_resnet.NETWORKS
        | vgg.NETWORKS
        | shufflenet_v2_tfkd.NETWORKS
        | mobilenet_v2_tfkd.NETWORKS
        | preact_resnet.NETWORKS
        | resnext.NETWORKS,
        "ResNet10, VGG<8, 11, 13, 16 or 19>, and -x1/2 or -x1/4 behind the name of any other network",
    ),
    with_sizes(
        shufflenet_v1.NETWORKS | shufflenet_v2.NETWORKS,
        "ShuffleNetV<1 or 2>-u<units in every stage, 1 to 9>, also with -x1/2 or -x1/4",
        units=True,
    ),
    with_sizes(
        mobilenet_v2.NETWORKS,
        "MobileNetV2-u<units in every group, 1 to 9> and MobileNetV2-s1-u<units>, also with -x1/2 or -x1/4",
        units=True,
    ),
)


_NAMES = (
    "WRN-16-2",
    "WRN-40-1",
    "WRN-40-2",
    "ResNet20",
    "ResNet56",
    "ResNet8x4",
    "ResNet32x4",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "ResNet8",
    "ResNet32",
    "ResNet110",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ResNet18-x1/4",
    "ResNet34-x1/4",
    "ResNet50-x1/4",
    "ResNet101-x1/4",
    "VGG8",
    "VGG13",
    "ImageNet-ResNet18",
    "ImageNet-ResNet34",
    "MobileNetV2",
    "MobileNetV2-s1",
    "MobileNetV2-TFKD",
    "MobileNetV2-TFKD-x1/2",
    "ShuffleNetV2-TFKD",
    "PreActResNet18",
    "PreActResNet18-x1/4",
    "ResNeXt29",
)
"""Networks of tables, papers and demonstrations."""


@functools.cache
def _architecture(name: str, kind: str = "network") -> Architecture:
    """Find what a name stands for (see `check_network`)."""
    # The last family first: it has ResNets too, of four stages.
    for family in reversed(_FAMILIES):
        if match := family.pattern.fullmatch(name):
            try:
                return family.architecture(match)
            except ValueError as error:
                near = nearest(name, network_names())
                hint = f" (did you mean {near!r}?)" if near else ""
                raise UserError(f"unknown {kind} {name!r}{hint}: {error}") from error
    raise unknown_name(kind, name, [*network_names(), *network_patterns()])


def check_network(name: str, kind: str = "network") -> None:
    """Check that there is a network of this name.

    kind: what the name stands for, for the error.

    Raises:
        UserError: there is none; the message says which there are.
    """
    _architecture(name, kind)


def is_network(name: str) -> bool:
    """Tell whether there is a network of this name."""
    try:
        check_network(name)
    except UserError:
        return False
    return True


def network_patterns() -> tuple[str, ...]:
    """List the patterns of the names that are not listed one by one."""
    return tuple(family.form for family in _FAMILIES)


def network_names() -> tuple[str, ...]:
    """List the networks that tables, papers and demonstrations use; `network_patterns` describes the others."""
    return _NAMES


def build_network(name: str, num_classes: int) -> Network:
    """Build the network of this name; its weights mean nothing until `initialise` or a checkpoint fills them.

    Raises:
        UserError: there is no network of this name.
    """
    architecture = _architecture(name)
    # PyTorch's layers draw weights as they are made; the caller's random stream must not move for that.
    with torch.random.fork_rng(devices=[]):
        return architecture.network(num_classes)


def build_branches(name: str, num_outputs: int) -> AuxiliaryBranches:
    """Build auxiliary branches for the network of this name, each with `num_outputs` outputs, not initialised either.

    The public ones have four outputs a class, one for each rotation.

    Raises:
        UserError: there is no network of this name.
    """
    architecture = _architecture(name)
    with torch.random.fork_rng(devices=[]):
        return architecture.branches(num_outputs)


def uses_grouped_convolutions(name: str) -> bool:
    """Tell whether the network has grouped or depthwise convolutions, which run slower in bfloat16 than in float32.

    Raises:
        UserError: there is no network of this name.
    """
    return _architecture(name).grouped


def is_mobile_network(name: str) -> bool:
    """Tell whether the network is a MobileNet or a ShuffleNet.

    Raises:
        UserError: there is no network of this name.
    """
    return _architecture(name).mobile
