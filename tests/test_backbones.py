"""The backbones compute what the public implementations compute.

`golden/backbones.npz` holds what those computed for weights and an input that the functions below rebuild from
names alone; `golden/backbones.json` holds their parameter names, shapes and costs.
"""

from __future__ import annotations

import copy
import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark import streams
from benchmark.backbones import (
    AuxiliaryBranches,
    Network,
    build_branches,
    build_network,
    network_names,
    public_name,
    shape_of,
    uses_grouped_convolutions,
)
from benchmark.backbones.cost import multiply_adds, parameters
from benchmark.backbones.resnet import NARROW, resnet
from benchmark.backbones.shufflenet_v1 import shuffle_channels
from benchmark.backbones.wrn import wide_resnet
from benchmark.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
FACTS = json.loads((GOLDEN / "backbones.json").read_text())
VALUES = np.load(GOLDEN / "backbones.npz")
NAMES = network_names()
WIDE = [name for name in NAMES if name.startswith("WRN")]

DOUBLE = 1e-9
# Some golden values were only stored from a float32 forward, whose rounding no exact computation can meet. Relative
# to the largest entry it is below 2.2e-6 in evaluation mode, and up to 1.1e-5 with batch statistics over few values.
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


def golden_images() -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).standard_normal([2, 3, 32, 32]).astype(np.float32)).double()


def fill(module: nn.Module, prefix: str = "") -> None:
    module.double()
    module.load_state_dict(golden_values({key: value.shape for key, value in module.state_dict().items()}, prefix))


def relative_error(actual: Tensor | np.ndarray, expected: np.ndarray) -> float:
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def shapes_of(module: nn.Module) -> list[tuple[str, list[int]]]:
    return [(key, list(value.shape)) for key, value in module.state_dict().items()]


@pytest.fixture(scope="module", params=NAMES)
def filled(request: pytest.FixtureRequest) -> tuple[str, Network]:
    """A network with the golden weights of its public plain version, in float64."""
    network = build_network(request.param, 100)
    fill(network)
    return public_name(request.param), network


@pytest.fixture(scope="module", params=NAMES)
def filled_with_branches(request: pytest.FixtureRequest) -> tuple[str, Network, AuxiliaryBranches]:
    """A network and its branches with the golden weights of their public version, in float64."""
    network, branches = build_network(request.param, 100), build_branches(request.param, 400)
    fill(network, "backbone.")
    fill(branches, "auxiliary_classifier.")
    return f"{public_name(request.param)}_aux", network, branches


@torch.no_grad()
def test_logits_equal_the_public_implementation_in_evaluation_mode(filled: tuple[str, Network]) -> None:
    public, network = filled
    outputs = network.eval()(golden_images())
    assert relative_error(outputs.logits, VALUES[f"{public}/eval/logits_f64"]) < DOUBLE
    assert relative_error(outputs.pooled, VALUES[f"{public}/eval/pooled"]) < SINGLE_EVALUATION


@torch.no_grad()
def test_logits_equal_the_public_implementation_in_training_mode(filled: tuple[str, Network]) -> None:
    public, network = filled
    logits = copy.deepcopy(network).train()(golden_images()).logits
    assert relative_error(logits, VALUES[f"{public}/train/logits_f64"]) < DOUBLE


@torch.no_grad()
@pytest.mark.parametrize("kind", ["feat", "preact"])
def test_maps_equal_the_public_feature_list(filled: tuple[str, Network], kind: str) -> None:
    public, network = filled
    outputs = network.eval()(golden_images(), preactivations=True)
    assert outputs.preactivations is not None
    middle = outputs.stages if kind == "feat" else outputs.preactivations
    for index, maps in enumerate((outputs.stem, *middle, outputs.pooled)):
        values = maps.numpy()
        summary = np.concatenate([[values.mean(), values.std()], values[0].ravel()[:8]])
        channel_means = values.reshape(*values.shape[:2], -1).mean((0, 2))
        assert relative_error(summary, VALUES[f"{public}/{kind}{index}/stats"]) < SINGLE_EVALUATION
        assert relative_error(channel_means, VALUES[f"{public}/{kind}{index}/chmean"]) < SINGLE_EVALUATION


@torch.no_grad()
def test_branches_equal_the_public_implementation_in_evaluation_mode(
    filled_with_branches: tuple[str, Network, AuxiliaryBranches],
) -> None:
    public, network, branches = filled_with_branches
    outputs = network.eval()(golden_images())
    assert relative_error(outputs.logits, VALUES[f"{public}/eval/logits_f64"]) < DOUBLE
    for index, branch in enumerate(branches.eval()(outputs.branch_maps)):
        assert relative_error(branch.logits, VALUES[f"{public}/eval/aux_logits{index}_f64"]) < DOUBLE
        assert relative_error(branch.pooled, VALUES[f"{public}/eval/aux_pooled{index}"]) < SINGLE_EVALUATION


@torch.no_grad()
def test_branches_equal_the_public_implementation_in_training_mode(
    filled_with_branches: tuple[str, Network, AuxiliaryBranches],
) -> None:
    public, network, branches = filled_with_branches
    outputs = network.train()(golden_images())
    assert relative_error(outputs.logits, VALUES[f"{public}/train/logits_f64"]) < DOUBLE
    for index, branch in enumerate(branches.train()(outputs.branch_maps)):
        assert relative_error(branch.logits, VALUES[f"{public}/train/aux_logits{index}"]) < SINGLE_TRAINING


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_keys_shapes_and_order_are_the_public_ones(name: str) -> None:
    public = public_name(name)
    expected = FACTS[public]["state_dict"].items()
    assert shapes_of(build_network(name, 100)) == list(expected)
    expected = FACTS[f"{public}_aux"]["branches"].items()
    assert shapes_of(build_branches(name, 400)) == list(expected)


@pytest.mark.parametrize("name", NAMES)
def test_cost_equals_the_public_counts(name: str) -> None:
    network, branches = build_network(name, 100), build_branches(name, 400)
    plain, both = FACTS[public_name(name)], FACTS[f"{public_name(name)}_aux"]
    images = torch.empty(2, 3, 32, 32)
    with torch.no_grad():
        maps = copy.deepcopy(network).to("meta")(images.to("meta")).branch_maps
    assert parameters(network) == plain["parameters"]
    assert multiply_adds(network, images) == plain["multiply_adds"]
    assert parameters(network) + parameters(branches) == both["parameters"]
    assert multiply_adds(network, images) + multiply_adds(branches, maps) == both["multiply_adds"]


def test_counting_multiply_adds_leaves_the_module_as_it_was() -> None:
    network = build_network("ResNet20", 10).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    multiply_adds(network, torch.empty(4, 3, 32, 32))
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("name", NAMES)
def test_other_image_sizes_work_with_the_branches_too(name: str, size: int) -> None:
    network, branches = build_network(name, 7).eval(), build_branches(name, 28).eval()
    outputs = network(torch.randn(2, 3, size, size, generator=streams.generator("images")), preactivations=True)
    shape = shape_of(name, network, size)
    first = size // 2 if uses_grouped_convolutions(name) else size
    assert [sizes[1:] for sizes in shape.stages] == [(first // d, first // d) for d in (1, 2, 4)]
    assert tuple(tuple(maps.shape[1:]) for maps in outputs.stages) == shape.stages
    assert outputs.preactivations is not None
    assert [maps.shape for maps in outputs.preactivations] == [maps.shape for maps in outputs.stages]
    assert outputs.logits.shape == (2, 7)
    assert outputs.pooled.shape == (2, shape.pooled)
    for branch in branches(outputs.branch_maps):
        assert branch.logits.shape == (2, 28)
        assert branch.logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_asking_for_preactivations_changes_neither_outputs_nor_statistics(name: str) -> None:
    asked = build_network(name, 10).train()
    plain = copy.deepcopy(asked)
    images = torch.randn(4, 3, 16, 16, generator=streams.generator("images"))
    with_maps, without = asked(images, preactivations=True), plain(images)
    assert without.preactivations is None
    assert torch.equal(with_maps.logits, without.logits)
    assert all(torch.equal(a, b) for a, b in zip(with_maps.stages, without.stages, strict=True))
    for key, value in asked.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]), key
        assert not key.endswith("num_batches_tracked") or value == 1, key


@torch.no_grad()
@pytest.mark.parametrize("name", WIDE)
def test_wide_resnet_preactivations_use_batch_statistics_in_training_mode(name: str) -> None:
    network = build_network(name, 10).train()
    fill(network)
    norms = [copy.deepcopy(network.get_submodule(key)) for key in ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")]
    outputs = network(golden_images(), preactivations=True)
    assert outputs.preactivations is not None
    for norm, stage, given in zip(norms, outputs.stages, outputs.preactivations, strict=True):
        assert relative_error(given, norm(stage).numpy()) < DOUBLE


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WIDE and name != "ShuffleNetV2"])
def test_a_stage_map_is_the_relu_of_its_preactivation(name: str) -> None:
    outputs = build_network(name, 10)(torch.randn(2, 3, 16, 16), preactivations=True)
    assert outputs.preactivations is not None
    for stage, before in zip(outputs.stages, outputs.preactivations, strict=True):
        assert before.min() < 0
        assert torch.equal(stage, before.relu())


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_receives_a_gradient(name: str) -> None:
    network, branches = build_network(name, 10), build_branches(name, 40)
    outputs = network(torch.randn(4, 3, 16, 16), preactivations=True)
    assert outputs.preactivations is not None
    branch_losses = [branch.logits.square().mean() for branch in branches(outputs.branch_maps)]
    maps_loss = torch.stack([maps.square().mean() for maps in outputs.preactivations]).sum()
    (outputs.logits.square().mean() + maps_loss + torch.stack(branch_losses).sum()).backward()
    for key, parameter in (*network.named_parameters(), *branches.named_parameters()):
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shuffling_interleaves_the_groups_and_keeps_the_memory_layout(layout: torch.memory_format) -> None:
    maps = torch.arange(2 * 6 * 4 * 5).view(2, 6, 4, 5).contiguous(memory_format=layout)
    shuffled = shuffle_channels(maps, 2)
    assert torch.equal(shuffled, maps[:, [0, 3, 1, 4, 2, 5]])
    assert shuffled.is_contiguous(memory_format=layout)


def named_streams(seed: int, changed: str = "") -> Callable[[str], torch.Generator]:
    return lambda name: streams.generator("weights", name, seed + 100 if name == changed else seed)


def initialised(build: Callable[[str, int], Network | AuxiliaryBranches], name: str, *seeds: object) -> nn.Module:
    module = build(name, 20)
    module.initialise(named_streams(*seeds))  # type: ignore[arg-type]
    return module


@pytest.mark.parametrize("build", [build_network, build_branches])
@pytest.mark.parametrize("name", NAMES)
def test_initial_weights_depend_on_seed_and_parameter_name_alone(
    name: str, build: Callable[[str, int], Network | AuxiliaryBranches]
) -> None:
    first = dict(initialised(build, name, 0).state_dict())
    torch.rand(1)
    again = initialised(build, name, 0).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.items())

    weights = [key for key, value in first.items() if key.endswith("weight") and value.ndim > 1]
    other = initialised(build, name, 1).state_dict()
    assert not any(torch.equal(first[key], other[key]) for key in weights)

    moved = weights[len(weights) // 2]
    once_moved = initialised(build, name, 0, moved).state_dict()
    assert [key for key, value in first.items() if not torch.equal(value, once_moved[key])] == [moved]


HE, UNIFORM = "he", "uniform"


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights_follow_the_rule_of_the_family(name: str) -> None:
    # Convolutions of the network, and of the branches; whether the linear biases start at zero, in the same order.
    rules = {"WRN": (HE, HE, True, True), "Res": (HE, HE, False, True)}
    special = {"ShuffleNetV1": (UNIFORM, HE, False, True), "ShuffleNetV2": (UNIFORM, UNIFORM, False, False)}
    network_rule, branch_rule, network_zero, branch_zero = special.get(name) or rules[name[:3]]
    for module, rule, zero in (
        (initialised(build_network, name, 0), network_rule, network_zero),
        (initialised(build_branches, name, 0), branch_rule, branch_zero),
    ):
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                assert torch.equal(layer.weight, torch.ones_like(layer.weight))
                assert not layer.bias.any()
            if isinstance(layer, nn.Linear):
                assert layer.weight.abs().max() <= layer.in_features**-0.5
                assert (not layer.bias.any()) == zero
            if isinstance(layer, nn.Conv2d):
                _check_convolution(layer.weight, rule)


def _check_convolution(weight: Tensor, rule: str) -> None:
    area = weight.shape[2] * weight.shape[3]
    bound = 1 / math.sqrt(weight[0].numel())
    expected = math.sqrt(2 / (area * weight.shape[0])) if rule == HE else bound / math.sqrt(3)
    # Six standard errors of a standard deviation estimated from a normal sample (a uniform one has less).
    assert weight.std().item() == pytest.approx(expected, rel=6 / math.sqrt(2 * weight.numel()))
    assert (weight.abs().max().item() <= bound) or rule == HE


def test_building_a_network_does_not_move_the_callers_random_stream() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_network("ResNet20", 10)
    build_branches("ResNet20", 40)
    assert torch.equal(torch.rand(4), expected)


def test_branches_refuse_another_number_of_stage_maps() -> None:
    with pytest.raises(ValueError, match="3 branches need as many stage maps, not 2"):
        build_branches("ResNet20", 40)((torch.zeros(1, 16, 8, 8), torch.zeros(1, 32, 4, 4)))


@pytest.mark.parametrize("ask", [public_name, uses_grouped_convolutions, lambda name: build_network(name, 10)])
def test_an_unknown_network_is_refused_with_the_nearest_name(ask: Callable[[str], object]) -> None:
    with pytest.raises(UserError, match=r"unknown network 'wrn-40-3'.*did you mean 'WRN-40-[12]'.*ShuffleNetV2"):
        ask("wrn-40-3")


def test_depths_outside_a_family_are_refused() -> None:
    with pytest.raises(ValueError, match="not 20"):
        wide_resnet(20, 2, 10)
    with pytest.raises(ValueError, match="not 21"):
        resnet(21, NARROW, 10)


@pytest.mark.parametrize("name", NAMES)
def test_grouped_convolutions_are_declared_as_they_are(name: str) -> None:
    network = build_network(name, 10)
    grouped = any(layer.groups > 1 for layer in network.modules() if isinstance(layer, nn.Conv2d))
    assert uses_grouped_convolutions(name) == grouped
