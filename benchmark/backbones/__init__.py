"""The backbones by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmark.backbones.auxiliary import AuxiliaryBranches, BranchOutputs
from benchmark.backbones.four_stage_resnet import (
    IMAGENET_RESNET18,
    IMAGENET_RESNET34,
    QUARTER_RESNET18,
    QUARTER_RESNET34,
    QUARTER_RESNET50,
    QUARTER_RESNET101,
    RESNET18,
    RESNET34,
    RESNET50,
    RESNET101,
    Plan,
    four_stage_branches,
    four_stage_resnet,
    imagenet_resnet,
)
from benchmark.backbones.mobilenet_v2 import mobilenet_v2, mobilenet_v2_branches, mobilenet_v2_s1
from benchmark.backbones.mobilenet_v2_tfkd import (
    half_mobilenet_v2_tfkd,
    half_mobilenet_v2_tfkd_branches,
    mobilenet_v2_tfkd,
    mobilenet_v2_tfkd_branches,
)
from benchmark.backbones.network import Network, Outputs, Shape, shape_of
from benchmark.backbones.preact_resnet import (
    narrow_preact_resnet18,
    narrow_preact_resnet18_branches,
    preact_resnet18,
    preact_resnet18_branches,
)
from benchmark.backbones.resnet import FOURFOLD, NARROW, resnet, resnet_branches
from benchmark.backbones.resnext import resnext29_8x64d, resnext29_8x64d_branches
from benchmark.backbones.shufflenet_v1 import shufflenet_v1, shufflenet_v1_branches
from benchmark.backbones.shufflenet_v2 import shufflenet_v2, shufflenet_v2_branches
from benchmark.backbones.shufflenet_v2_tfkd import shufflenet_v2_tfkd, shufflenet_v2_tfkd_branches
from benchmark.backbones.vgg import VGG8, VGG13, Convolutions, vgg, vgg_branches
from benchmark.backbones.wrn import wide_resnet, wide_resnet_branches
from benchmark.core.errors import unknown_name

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
    "public_branches_name",
    "public_name",
    "shape_of",
    "uses_grouped_convolutions",
]


@dataclass(frozen=True)
class _Entry:
    """public: the name in the public code and in the file names of its released teachers (RepDistiller's where it has
    the network); our own for a network of ours;
    public_branches: the name of network and branches in HSAKD's code, None if it has no such branches or they fail;
    mobile: a MobileNet or ShuffleNet, for which the lineage's recipes have a learning rate of their own."""

    public: str
    network: Callable[[int], Network]
    branches: Callable[[int], AuxiliaryBranches]
    public_branches: str | None = None
    grouped: bool = False
    mobile: bool = False


def _wrn(depth: int, widen_factor: int) -> _Entry:
    return _Entry(
        f"wrn_{depth}_{widen_factor}",
        lambda num_classes: wide_resnet(depth, widen_factor, num_classes),
        lambda num_outputs: wide_resnet_branches(depth, widen_factor, num_outputs),
        f"wrn_{depth}_{widen_factor}_aux",
    )


def _resnet(public: str, depth: int, widths: tuple[int, int, int, int], public_branches: str | None = None) -> _Entry:
    return _Entry(
        public,
        lambda num_classes: resnet(depth, widths, num_classes),
        lambda num_outputs: resnet_branches(depth, widths, num_outputs),
        public_branches,
    )


def _four_stage(public: str, plan: Plan, public_branches: str | None = None, imagenet: bool = False) -> _Entry:
    build = imagenet_resnet if imagenet else four_stage_resnet
    return _Entry(
        public,
        lambda num_classes: build(plan, num_classes),
        lambda num_outputs: four_stage_branches(plan, num_outputs),
        public_branches,
    )


def _vgg(public: str, convolutions: Convolutions) -> _Entry:
    return _Entry(
        public,
        lambda num_classes: vgg(convolutions, num_classes),
        lambda num_outputs: vgg_branches(convolutions, num_outputs),
        f"{public}_bn_aux",
    )


_NETWORKS: dict[str, _Entry] = {
    "WRN-16-2": _wrn(16, 2),
    "WRN-40-1": _wrn(40, 1),
    "WRN-40-2": _wrn(40, 2),
    "ResNet20": _resnet("resnet20", 20, NARROW, "resnet20_aux"),
    "ResNet56": _resnet("resnet56", 56, NARROW, "resnet56_aux"),
    "ResNet8x4": _resnet("resnet8x4", 8, FOURFOLD, "resnet8x4_aux"),
    "ResNet32x4": _resnet("resnet32x4", 32, FOURFOLD, "resnet32x4_aux"),
    "ShuffleNetV1": _Entry(
        "ShuffleV1", shufflenet_v1, shufflenet_v1_branches, "ShuffleV1_aux", grouped=True, mobile=True
    ),
    "ShuffleNetV2": _Entry(
        "ShuffleV2", shufflenet_v2, shufflenet_v2_branches, "ShuffleV2_aux", grouped=True, mobile=True
    ),
    "ResNet8": _resnet("resnet8", 8, NARROW),
    "ResNet32": _resnet("resnet32", 32, NARROW),
    "ResNet110": _resnet("resnet110", 110, NARROW),
    "ResNet18": _four_stage("ResNet18", RESNET18),
    "ResNet34": _four_stage("ResNet34", RESNET34),
    "ResNet50": _four_stage("ResNet50", RESNET50, "ResNet50_aux"),
    "ResNet101": _four_stage("ResNet101", RESNET101),
    "ResNet18-x1/4": _four_stage("ResNet18-x1/4", QUARTER_RESNET18),
    "ResNet34-x1/4": _four_stage("ResNet34-x1/4", QUARTER_RESNET34),
    "ResNet50-x1/4": _four_stage("ResNet50-x1/4", QUARTER_RESNET50),
    "ResNet101-x1/4": _four_stage("ResNet101-x1/4", QUARTER_RESNET101),
    "VGG8": _vgg("vgg8", VGG8),
    "VGG13": _vgg("vgg13", VGG13),
    "ImageNet-ResNet18": _four_stage("resnet18", IMAGENET_RESNET18, "resnet18_imagenet_aux", imagenet=True),
    "ImageNet-ResNet34": _four_stage("resnet34", IMAGENET_RESNET34, "resnet34_imagenet_aux", imagenet=True),
    "MobileNetV2": _Entry("MobileNetV2", mobilenet_v2, mobilenet_v2_branches, grouped=True, mobile=True),
    "MobileNetV2-s1": _Entry(
        "mobilenetV2", mobilenet_v2_s1, mobilenet_v2_branches, "mobilenetV2_aux", grouped=True, mobile=True
    ),
    "MobileNetV2-TFKD": _Entry(
        "mobilenet_v2", mobilenet_v2_tfkd, mobilenet_v2_tfkd_branches, grouped=True, mobile=True
    ),
    "MobileNetV2-TFKD-x1/2": _Entry(
        "MobileNetV2-TFKD-x1/2", half_mobilenet_v2_tfkd, half_mobilenet_v2_tfkd_branches, grouped=True, mobile=True
    ),
    "ShuffleNetV2-TFKD": _Entry(
        "shufflenet_v2", shufflenet_v2_tfkd, shufflenet_v2_tfkd_branches, grouped=True, mobile=True
    ),
    "PreActResNet18": _Entry("PreActResNet18", preact_resnet18, preact_resnet18_branches),
    "PreActResNet18-x1/4": _Entry("PreActResNet18-x1/4", narrow_preact_resnet18, narrow_preact_resnet18_branches),
    "ResNeXt29": _Entry("resnext29", resnext29_8x64d, resnext29_8x64d_branches, grouped=True),
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

    A network of ours, which no public code has, keeps its own name.

    Raises:
        UserError: there is no network of this name.
    """
    return _entry(name).public


def public_branches_name(name: str) -> str | None:
    """The name in HSAKD's code of the network with its branches; None where the branches are ours alone.

    Raises:
        UserError: there is no network of this name.
    """
    return _entry(name).public_branches
