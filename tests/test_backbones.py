"""The backbones compute what the public implementations compute.

`golden/backbones.npz` holds what those computed for weights and an input that the functions below rebuild from
names alone, of wide vectors the first 200 columns; `golden/backbones.json` holds their parameter names, shapes and
costs. What needs no golden value is in `test_backbones_contract`.
"""

from __future__ import annotations

import copy
import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.backbones import (
    AuxiliaryBranches,
    Network,
    build_branches,
    build_network,
    network_names,
)
from benchmark.backbones.cost import multiply_adds, parameters
from benchmark.core import rng

GOLDEN = Path(__file__).parent / "golden"
FACTS = json.loads((GOLDEN / "backbones.json").read_text())
VALUES = np.load(GOLDEN / "backbones.npz")
NAMES = network_names()
PUBLIC = {
    "WRN-16-2": "wrn_16_2",
    "WRN-40-1": "wrn_40_1",
    "WRN-40-2": "wrn_40_2",
    "ResNet20": "resnet20",
    "ResNet56": "resnet56",
    "ResNet8x4": "resnet8x4",
    "ResNet32x4": "resnet32x4",
    "ShuffleNetV1": "ShuffleV1",
    "ShuffleNetV2": "ShuffleV2",
    "ResNet8": "resnet8",
    "ResNet32": "resnet32",
    "ResNet110": "resnet110",
    "ResNet18": "ResNet18",
    "ResNet34": "ResNet34",
    "ResNet50": "ResNet50",
    "ResNet101": "ResNet101",
    "VGG8": "vgg8",
    "VGG13": "vgg13",
    "ImageNet-ResNet18": "resnet18",
    "ImageNet-ResNet34": "resnet34",
}
"""What the public implementation calls each network that golden values are of."""
PUBLIC_BRANCHES = {
    "WRN-16-2": "wrn_16_2_aux",
    "WRN-40-1": "wrn_40_1_aux",
    "WRN-40-2": "wrn_40_2_aux",
    "ResNet20": "resnet20_aux",
    "ResNet56": "resnet56_aux",
    "ResNet8x4": "resnet8x4_aux",
    "ResNet32x4": "resnet32x4_aux",
    "ShuffleNetV1": "ShuffleV1_aux",
    "ShuffleNetV2": "ShuffleV2_aux",
    "ResNet50": "ResNet50_aux",
    "VGG8": "vgg8_bn_aux",
    "VGG13": "vgg13_bn_aux",
    "ImageNet-ResNet18": "resnet18_imagenet_aux",
    "ImageNet-ResNet34": "resnet34_imagenet_aux",
}
"""What HSAKD's code calls each network whose branches golden values are of."""
WITHOUT_FEATURE_LIST = ("ResNet101", "resnet18", "resnet34")
"""Public networks (PS-KD's, torchvision's) without a list of features: stages are stored, pre-activations are not."""


def dry(name: str) -> tuple[Network, AuxiliaryBranches]:
    """Network and branches without memory, with the numbers of outputs of the golden ones."""
    classes = classes_of(name)
    with torch.device("meta"):
        return build_network(name, classes), build_branches(name, 4 * classes)


def unfilled(name: str) -> tuple[Network, AuxiliaryBranches]:
    """Network and branches on the CPU, with whatever is in memory as weights.

    A forward on the meta device takes several times as long as one of a few small images.
    """
    network, branches = dry(name)
    return network.to_empty(device="cpu"), branches.to_empty(device="cpu")


def classes_of(name: str) -> int:
    return 1000 if name.startswith("ImageNet") else 100


def image_size_of(name: str) -> int:
    return 224 if name.startswith("ImageNet") else 32


DOUBLE = 1e-10
# Some golden values were only stored from a float32 forward, whose rounding no exact computation can meet. Relative
# to the largest entry it is below 2.2e-6 in evaluation mode, and up to 1.8e-5 with batch statistics over few values.
SINGLE_EVALUATION = 5e-6
SINGLE_TRAINING = 2e-5


def golden_values(shapes: Mapping[str, torch.Size], prefix: str = "") -> dict[str, Tensor]:
    """The weights the golden values were computed with: each from a generator seeded by its full public name."""
    return {key: _golden_value(prefix + key, tuple(shape)) for key, shape in shapes.items()}


def _golden_value(key: str, shape: tuple[int, ...]) -> Tensor:
    draw = np.random.RandomState(zlib.crc32(key.encode()))
    leaf = key.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64)
    if leaf == "running_var":
        values = 1 + 0.2 * draw.uniform(size=shape)
    elif leaf == "weight" and len(shape) > 1:
        values = draw.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    elif leaf == "weight":
        values = 1 + 0.1 * draw.standard_normal(shape)
    else:
        values = 0.1 * draw.standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32)).double()


def golden_images(size: int = 32) -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).standard_normal([2, 3, size, size]).astype(np.float32)).double()


def fill(module: nn.Module, prefix: str = "") -> None:
    """Give a module, which may be one without memory, the golden weights in float64."""
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    module.load_state_dict(golden_values(shapes, prefix), assign=True)


def relative_error(actual: Tensor | np.ndarray, expected: np.ndarray) -> float:
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def error_of_columns(actual: Tensor, golden: str) -> float:
    """The relative error of a vector for each image, in the columns that are stored."""
    expected = VALUES[golden]
    return relative_error(actual[:, : expected.shape[1]], expected)


def shapes_of(module: nn.Module) -> list[tuple[str, list[int]]]:
    return [(key, list(value.shape)) for key, value in module.state_dict().items()]


def leave_large(names: list[str]) -> list[Any]:
    """Names, of which `make test` leaves those that are a smaller one of the same code with more or wider layers."""
    large = ("ResNet32x4", "ResNet34", "ResNet50", "VGG13", "ImageNet-ResNet34")
    return [pytest.param(name, marks=pytest.mark.slow) if name in large else name for name in names]


@pytest.fixture(scope="module", params=leave_large(list(PUBLIC)))
def filled(request: pytest.FixtureRequest) -> tuple[str, Network, Tensor]:
    """A network with the golden weights of its public plain version, and the golden images, in float64."""
    network, _ = dry(request.param)
    fill(network)
    return PUBLIC[request.param], network, golden_images(image_size_of(request.param))


@pytest.fixture(scope="module", params=leave_large(list(PUBLIC_BRANCHES)))
def filled_with_branches(request: pytest.FixtureRequest) -> tuple[str, Network, AuxiliaryBranches, Tensor]:
    """A network and its branches with the golden weights of their public version, and the images, in float64."""
    network, branches = dry(request.param)
    fill(network, "backbone.")
    fill(branches, "auxiliary_classifier.")
    return PUBLIC_BRANCHES[request.param], network, branches, golden_images(image_size_of(request.param))


@torch.no_grad()
def test_outputs_and_maps_equal_the_public_implementation_in_evaluation_mode(
    filled: tuple[str, Network, Tensor],
) -> None:
    public, network, images = filled
    outputs = network.eval()(images, preactivations=True)
    assert error_of_columns(outputs.logits, f"{public}/eval/logits_f64") < DOUBLE
    assert error_of_columns(outputs.pooled, f"{public}/eval/pooled") < SINGLE_EVALUATION
    maps = {f"feat{index}": maps for index, maps in enumerate((outputs.stem, *outputs.stages))}
    assert outputs.preactivations is not None
    maps |= {f"preact{index}": maps for index, maps in enumerate(outputs.preactivations, start=1)}
    stored = {kind: map_ for kind, map_ in maps.items() if f"{public}/{kind}/stats" in VALUES}
    missing = maps.keys() - stored.keys() - {"feat0"}
    assert not missing or (public in WITHOUT_FEATURE_LIST and all(kind.startswith("preact") for kind in missing))
    for kind in stored:
        values = maps[kind].numpy()
        summary = np.concatenate([[values.mean(), values.std()], values[0].ravel()[:8]])
        channel_means = values.reshape(*values.shape[:2], -1).mean((0, 2))
        assert relative_error(summary, VALUES[f"{public}/{kind}/stats"]) < SINGLE_EVALUATION
        assert relative_error(channel_means, VALUES[f"{public}/{kind}/chmean"]) < SINGLE_EVALUATION


@torch.no_grad()
def test_logits_equal_the_public_implementation_in_training_mode(filled: tuple[str, Network, Tensor]) -> None:
    public, network, images = filled
    logits = copy.deepcopy(network).train()(images).logits
    assert error_of_columns(logits, f"{public}/train/logits_f64") < DOUBLE


@torch.no_grad()
def test_branches_equal_the_public_implementation_in_evaluation_mode(
    filled_with_branches: tuple[str, Network, AuxiliaryBranches, Tensor],
) -> None:
    public, network, branches, images = filled_with_branches
    outputs = network.eval()(images)
    assert error_of_columns(outputs.logits, f"{public}/eval/logits_f64") < DOUBLE
    for index, branch in enumerate(branches.eval()(outputs.branch_maps)):
        assert error_of_columns(branch.logits, f"{public}/eval/aux_logits{index}_f64") < DOUBLE
        assert error_of_columns(branch.pooled, f"{public}/eval/aux_pooled{index}") < SINGLE_EVALUATION


@torch.no_grad()
def test_branches_equal_the_public_implementation_in_training_mode(
    filled_with_branches: tuple[str, Network, AuxiliaryBranches, Tensor],
) -> None:
    public, network, branches, images = filled_with_branches
    outputs = network.train()(images)
    assert error_of_columns(outputs.logits, f"{public}/train/logits_f64") < DOUBLE
    for index, branch in enumerate(branches.train()(outputs.branch_maps)):
        assert error_of_columns(branch.logits, f"{public}/train/aux_logits{index}") < SINGLE_TRAINING


@pytest.mark.parametrize("name", PUBLIC)
def test_state_dict_keys_shapes_and_order_are_the_public_ones(name: str) -> None:
    network, branches = dry(name)
    assert shapes_of(network) == list(FACTS[PUBLIC[name]]["state_dict"].items())
    if name in PUBLIC_BRANCHES:
        assert shapes_of(branches) == list(FACTS[PUBLIC_BRANCHES[name]]["branches"].items())


@pytest.mark.parametrize("name", PUBLIC)
def test_cost_equals_the_public_counts(name: str) -> None:
    network, branches = unfilled(name)
    plain, size = FACTS[PUBLIC[name]], image_size_of(name)
    images = torch.zeros(1, 3, size, size)
    cost = parameters(network), multiply_adds(network, images)
    assert cost == (plain["parameters"], plain["multiply_adds"])
    if name in PUBLIC_BRANCHES:
        both = FACTS[PUBLIC_BRANCHES[name]]
        with torch.no_grad():
            maps = network.eval()(images).branch_maps
        assert cost[0] + parameters(branches) == both["parameters"]
        assert cost[1] + multiply_adds(branches, maps) == both["multiply_adds"]


QUARTERS = [f"ResNet{depth}-x1/4" for depth in (18, 34, 50, 101)]
WITHOUT_PUBLIC_BRANCHES = ["ResNet8", "ResNet32", "ResNet110", "ResNet18", "ResNet34", "ResNet101", *QUARTERS]


@pytest.mark.parametrize("name", WITHOUT_PUBLIC_BRANCHES)
def test_branches_of_our_own_repeat_the_stages_their_map_has_not_passed(name: str) -> None:
    assert name not in PUBLIC_BRANCHES
    network, branches = dry(name)
    count = branches.count
    layers = [network.get_submodule(f"layer{number}") for number in range(1, count + 1)]
    for number in range(1, count):
        repeated = branches.get_submodule(f"block_extractor{number}").children()
        assert [shapes_of(stage) for stage in repeated] == [shapes_of(stage) for stage in layers[number:]]
    (last,) = branches.get_submodule(f"block_extractor{count}").children()
    assert len(list(last.children())) == len(list(layers[-1].children()))
    maps = torch.empty(1, branches.get_submodule("fc1").in_features, 4, 4, device="meta")  # type: ignore[arg-type]
    assert last(maps).shape == maps.shape


def test_every_golden_network_is_compared() -> None:
    assert FACTS.keys() == {
        *PUBLIC.values(),
        *PUBLIC_BRANCHES.values(),
    }


def named_streams(seed: int, changed: str = "") -> Callable[[str], torch.Generator]:
    return lambda name: rng.generator("weights", name, seed + 100 if name == changed else seed)


def initialised(build: Callable[[str, int], Network | AuxiliaryBranches], name: str, *seeds: object) -> nn.Module:
    with torch.device("meta"):
        module = build(name, 20)
    # PyTorch's own first weights would be drawn only to be replaced.
    module.to_empty(device="cpu")
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
    module.initialise(named_streams(*seeds))  # type: ignore[arg-type]
    return module
