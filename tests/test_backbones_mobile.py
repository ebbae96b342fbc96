"""MobileNetV2, Tf-KD's networks, PreActResNet18 and ResNeXt29 compute what the public implementations compute.

`golden/backbones_mobile.npz` and `.json` hold what those gave, as `golden/backbones.*` do for the other networks (see
`test_backbones`), and the spread of the first weights that they drew.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.backbones import Outputs, build_branches, build_network, is_mobile_network, uses_grouped_convolutions
from benchmark.backbones.cost import multiply_adds, parameters
from benchmark.backbones.mobilenet_v2_tfkd import MobileNetV2TfKD
from benchmark.backbones.preact_resnet import Block
from benchmark.backbones.released import ReleasedWeights, apply_to
from tests.test_backbones import (
    GOLDEN,
    SINGLE_EVALUATION,
    SINGLE_TRAINING,
    dry,
    fill,
    golden_images,
    golden_values,
    initialised,
    relative_error,
    shapes_of,
    unfilled,
)

FACTS = json.loads((GOLDEN / "backbones_mobile.json").read_text())
VALUES = np.load(GOLDEN / "backbones_mobile.npz")

DOUBLE = 1e-10


@dataclass(frozen=True)
class Public:
    """Where the golden values of a network are, and how it is built.

    stages: golden names of the stage maps; after: the first sub-module behind each of them but the last;
    classifier: the last layer; stem: golden name of the stem map; stem_norm: the sub-module before the stem's ReLU,
    where that module's map was stored instead.
    """

    name: str
    stages: tuple[str, ...]
    after: tuple[str, ...]
    classifier: str
    stem: str | None = None
    stem_norm: str | None = None


MOBILENET_PARTS = ("blocks.2", "blocks.3", "blocks.5")
PUBLIC = {
    "MobileNetV2": Public(
        "MobileNetV2", ("feat1", "feat2", "feat3", "feat4"), MOBILENET_PARTS, "classifier.0", stem="feat0"
    ),
    "MobileNetV2-s1": Public("hsakd_mobilenetV2", ("feat0", "feat1", "feat2", "feat3"), MOBILENET_PARTS, "classifier"),
    "MobileNetV2-TFKD": Public(
        "tfkd_MobileNetV2",
        ("stage/stage2", "stage/stage3", "stage/stage5", "stage/stage7"),
        ("stage3", "stage4", "stage6"),
        "conv2",
        stem="stage/pre",
    ),
    "ShuffleNetV2-TFKD": Public(
        "tfkd_ShuffleNetV2",
        ("stage/stage2", "stage/stage3", "stage/stage4"),
        ("stage3", "stage4"),
        "fc",
        stem="stage/pre",
    ),
    "PreActResNet18": Public(
        "pskd_PreActResNet18",
        ("stage/layer1", "stage/layer2", "stage/layer3", "stage/layer4"),
        ("layer2", "layer3", "layer4"),
        "linear",
        stem_norm="bn1",
    ),
    "ResNeXt29": Public(
        "pskd_ResNeXt29_8x64d",
        ("stage/stage_1", "stage/stage_2", "stage/stage_3"),
        ("stage_2", "stage_3"),
        "classifier",
        stem_norm="bn_1",
    ),
}
NARROW = {"MobileNetV2-TFKD-x1/2": ("MobileNetV2-TFKD", 2), "PreActResNet18-x1/4": ("PreActResNet18", 4)}
ALL = (*PUBLIC, *NARROW)
BIASED = [name for name in ALL if "TFKD" in name]


@dataclass(frozen=True)
class Forward:
    """What one network gave with the golden weights of its public plain version, in float64."""

    name: str
    public: Public
    evaluation: Outputs
    training: Outputs
    stem_norm: Tensor | None


@pytest.fixture(scope="module", params=PUBLIC)
def forward(request: pytest.FixtureRequest) -> Forward:
    public = PUBLIC[request.param]
    network, _ = dry(request.param)
    fill(network)
    kept: list[Tensor] = []
    with torch.no_grad():
        if public.stem_norm is not None:
            # A copy, because the ReLU behind the norm works in place.
            norm = network.get_submodule(public.stem_norm)
            norm.register_forward_hook(lambda module, inputs, output: kept.append(output.clone()))
        evaluation = network.eval()(golden_images(), preactivations=True)
        training = network.train()(golden_images())
    return Forward(request.param, public, evaluation, training, kept[0] if kept else None)


def assert_map_is_golden(maps: Tensor, name: str) -> None:
    """Mean, spread, first values and channel means of a map are the stored ones."""
    values = maps.numpy()
    summary = np.concatenate([[values.mean(), values.std()], values[0].ravel()[:8]])
    assert relative_error(summary, VALUES[f"{name}/stats"]) < SINGLE_EVALUATION
    assert relative_error(values.mean((0, 2, 3)), VALUES[f"{name}/chmean"]) < SINGLE_EVALUATION


def test_logits_equal_the_public_implementation_in_both_modes(forward: Forward) -> None:
    public = forward.public.name
    assert relative_error(forward.evaluation.logits, VALUES[f"{public}/eval/logits_f64"]) < DOUBLE
    assert relative_error(forward.training.logits, VALUES[f"{public}/train/logits_f64"]) < DOUBLE


def test_maps_and_pooled_vector_equal_the_public_ones(forward: Forward) -> None:
    public, outputs = forward.public, forward.evaluation
    for maps, golden in zip(outputs.stages, public.stages, strict=True):
        assert_map_is_golden(maps, f"{public.name}/{golden}")
    if public.stem is not None:
        assert_map_is_golden(outputs.stem, f"{public.name}/{public.stem}")
    if public.stem_norm is not None:
        assert forward.stem_norm is not None
        assert_map_is_golden(forward.stem_norm, f"{public.name}/stage/{public.stem_norm}")
        assert torch.equal(outputs.stem, forward.stem_norm.relu())
    # The vector of the first image is all that is stored.
    assert relative_error(outputs.pooled[:1], VALUES[f"{public.name}/eval/pooled"]) < SINGLE_EVALUATION


def test_a_stage_map_is_its_preactivation_or_the_relu_of_it(forward: Forward) -> None:
    outputs = forward.evaluation
    assert outputs.preactivations is not None
    linear = forward.name.startswith(("MobileNet", "PreAct"))
    for maps, before in zip(outputs.stages, outputs.preactivations, strict=True):
        assert before.min() < 0
        assert torch.equal(maps, before if linear else before.relu())


@pytest.mark.parametrize("name", PUBLIC)
def test_state_dict_keys_shapes_and_order_are_the_public_ones(name: str) -> None:
    assert shapes_of(dry(name)[0]) == list(FACTS[PUBLIC[name].name]["state_dict"].items())


@pytest.mark.parametrize("name", PUBLIC)
def test_cost_equals_the_public_counts(name: str) -> None:
    network, facts = unfilled(name)[0], FACTS[PUBLIC[name].name]
    assert parameters(network) == facts["parameters"]
    assert multiply_adds(network, torch.zeros(2, 3, 32, 32)) == facts["multiply_adds"]


@torch.no_grad()
def test_branches_of_mobilenet_v2_equal_the_public_implementation() -> None:
    network, branches = dry("MobileNetV2-s1")
    fill(network, "backbone.")
    fill(branches, "auxiliary_classifier.")
    public = "mobilenetV2_aux"
    outputs = network.eval()(golden_images())
    assert relative_error(outputs.logits, VALUES[f"{public}/eval/logits_f64"]) < DOUBLE
    for index, branch in enumerate(branches.eval()(outputs.branch_maps)):
        assert relative_error(branch.logits, VALUES[f"{public}/eval/aux_logits{index}_f64"]) < DOUBLE
    outputs = network.train()(golden_images())
    assert relative_error(outputs.logits, VALUES[f"{public}/train/logits_f64"]) < DOUBLE
    for index, branch in enumerate(branches.train()(outputs.branch_maps)):
        assert relative_error(branch.logits, VALUES[f"{public}/train/aux_logits{index}"]) < SINGLE_TRAINING


@pytest.mark.parametrize("name", ["MobileNetV2", "MobileNetV2-s1"])
def test_branches_of_mobilenet_v2_are_the_public_ones_whatever_the_stem(name: str) -> None:
    assert shapes_of(dry(name)[1]) == list(FACTS["mobilenetV2_aux"]["branches"].items())


def test_cost_of_mobilenet_v2_with_branches_equals_the_public_counts() -> None:
    network, branches = unfilled("MobileNetV2-s1")
    images = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        maps = network.eval()(images).branch_maps
    facts = FACTS["mobilenetV2_aux"]
    assert parameters(network) + parameters(branches) == facts["parameters"]
    assert multiply_adds(network, images) + multiply_adds(branches, maps) == facts["multiply_adds"]


def repeated_keys(name: str, network: nn.Module, branches: nn.Module) -> list[list[tuple[str, str]]]:
    """For each branch but the last, its keys in order, each beside the key of the network's part that it repeats."""
    public = PUBLIC[name]
    body = [key for key in network.state_dict() if not key.startswith(f"{public.classifier}.")]
    repeated = []
    for number, first in enumerate(public.after, start=1):
        start = next(index for index, key in enumerate(body) if key.startswith(f"{first}."))
        own = [
            key for key in branches.state_dict() if key.startswith((f"block_extractor{number}.", f"conv2_{number}."))
        ]
        repeated.append(list(zip(own, body[start:], strict=True)))
    return repeated


@pytest.mark.parametrize("name", PUBLIC)
def test_a_branch_has_the_shapes_of_what_follows_its_stage_map(name: str) -> None:
    network, branches = dry(name)
    sizes, branch_sizes = dict(shapes_of(network)), dict(shapes_of(branches))
    for pairs in repeated_keys(name, network, branches):
        assert [branch_sizes[key] for key, _ in pairs] == [sizes[key] for _, key in pairs]


@pytest.mark.parametrize("name", PUBLIC)
def test_the_last_branch_repeats_the_last_stage_but_for_what_its_first_unit_receives(name: str) -> None:
    _, branches = dry(name)
    stage, again = (
        dict(shapes_of(branches.get_submodule(f"block_extractor{number}")))
        for number in (branches.count - 1, branches.count)
    )
    # A first unit that changes neither size nor width needs no projection where identities are allowed.
    assert again.keys() <= stage.keys()
    projects_on_demand = name in ("PreActResNet18", "ResNeXt29")
    assert any(key not in again for key in stage) == projects_on_demand
    assert all("shortcut" in key for key in stage if key not in again)
    first_unit = ("0.0.", "0.stage_3_bottleneck_0.")
    assert all(again[key] == stage[key] for key in again if not key.startswith(first_unit))


@torch.no_grad()
@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("name", ALL)
def test_branches_end_at_the_size_of_the_last_stage_map_and_the_width_of_the_network(name: str, size: int) -> None:
    network, branches = unfilled(name)
    ends: list[Tensor] = []
    for number in range(1, branches.count + 1):
        extractor = branches.get_submodule(f"block_extractor{number}")
        extractor.register_forward_hook(lambda module, inputs, output: ends.append(output))
    outputs = network(torch.zeros(2, 3, size, size))
    pooled = [branch.pooled for branch in branches(outputs.branch_maps)]
    assert [maps.shape[2:] for maps in ends] == [outputs.stages[-1].shape[2:]] * len(outputs.stages)
    assert [vectors.shape for vectors in pooled] == [outputs.pooled.shape] * len(outputs.stages)


@pytest.mark.parametrize("name", NARROW)
def test_a_narrow_network_has_that_fraction_of_the_channels_everywhere(name: str) -> None:
    full, divisor = NARROW[name]
    for narrow_module, wide_module, outputs in zip(dry(name), dry(full), (100, 400), strict=True):
        narrow, wide = shapes_of(narrow_module), shapes_of(wide_module)
        assert [key for key, _ in narrow] == [key for key, _ in wide]
        kept = {1, 3, outputs}  # Kernel sides, image channels, inputs of depthwise convolutions, and outputs.
        for (key, actual), (_, expected) in zip(narrow, wide, strict=True):
            assert actual == [size if size in kept else size // divisor for size in expected], key


@pytest.mark.parametrize("name", PUBLIC)
def test_first_weights_spread_as_those_of_the_public_implementation(name: str) -> None:
    network = initialised(build_network, name, 0)
    branches = initialised(build_branches, name, 0)
    count = len(PUBLIC[name].stages)
    expected = FACTS[PUBLIC[name].name]["initial_deviation"]
    weights, branch_weights = network.state_dict(), branches.state_dict()
    repeated = repeated_keys(name, network, branches)
    drawn = [(weights[key], deviation) for key, deviation in expected.items()]
    drawn += [
        (branch_weights[key], expected[original])
        for pairs in repeated
        for key, original in pairs
        if original in expected
    ]
    classifier = f"{PUBLIC[name].classifier}.weight"
    drawn += [(branch_weights[f"fc{number}.weight"], expected[classifier]) for number in range(1, count + 1)]
    for weight, deviation in drawn:
        # Six standard errors of the ratio of two deviations, each estimated from a normal sample of this size.
        assert weight.std().item() == pytest.approx(deviation, rel=6 / math.sqrt(weight.numel()), abs=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_first_biases_are_zero_unless_drawn_by_pytorchs_rule_as_the_weights_are(name: str) -> None:
    default = name in BIASED or name.startswith("PreAct")
    for module in (initialised(build_network, name, 0), initialised(build_branches, name, 0)):
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                assert (layer.weight == 1).all()
                assert (layer.bias == 0).all()
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
                bound = 1 / math.sqrt(layer.weight[0].numel())
                assert layer.bias.abs().max() <= (bound if default else 0)
                assert bool(layer.bias.all()) == default
                assert not default or layer.weight.abs().max() <= bound


@pytest.mark.parametrize("name", ALL)
def test_convolutions_have_a_bias_in_tfkds_networks_alone(name: str) -> None:
    for module in dry(name):
        convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
        assert all((layer.bias is not None) == (name in BIASED) for layer in convolutions)


@pytest.mark.parametrize("name", ALL)
def test_networks_are_declared_as_they_are(name: str) -> None:
    assert is_mobile_network(name) == ("Mobile" in name or "Shuffle" in name)
    assert uses_grouped_convolutions(name) != name.startswith("PreAct")


@torch.no_grad()
def test_activations_of_tfkds_mobilenet_stop_at_six_in_its_branches_too() -> None:
    network, branches = build_network("MobileNetV2-TFKD", 10).eval(), build_branches("MobileNetV2-TFKD", 40).eval()
    assert isinstance(network, MobileNetV2TfKD)
    extractors = [branches.get_submodule(f"block_extractor{number}") for number in range(1, branches.count + 1)]
    heads = [extractor[-3:] for extractor in extractors if isinstance(extractor, nn.Sequential)]
    maps = 1e4 * torch.randn(1, 320, 2, 2)
    assert network.pre(maps[:, :3]).max() == 6
    assert [float(head(maps).max()) for head in (network.conv1, *heads)] == [6] * 5


@torch.no_grad()
def test_tfkds_mobilenet_adds_a_border_of_one_pixel_to_the_image() -> None:
    network = build_network("MobileNetV2-TFKD", 10).eval()
    assert isinstance(network, MobileNetV2TfKD)
    outputs = network(torch.randn(1, 3, 32, 32))
    assert outputs.stem.shape == (1, 32, 34, 34)
    assert [maps.shape[2] for maps in outputs.stages] == [17, 9, 5, 5]
    # Its last layer is a convolution, and can be used on vectors as a linear layer can.
    weight = network.conv2.weight.flatten(1)
    expected = outputs.pooled @ weight.T + network.conv2.bias
    assert torch.allclose(network.conv2(outputs.pooled), expected, atol=1e-5)
    assert torch.equal(network.conv2(outputs.pooled), outputs.logits)


@torch.no_grad()
def test_no_relu_follows_the_stem_of_tfkds_shufflenet() -> None:
    assert build_network("ShuffleNetV2-TFKD", 10).eval()(torch.randn(1, 3, 32, 32)).stem.min() < 0


@torch.no_grad()
@pytest.mark.parametrize(("in_channels", "stride"), [(8, 1), (4, 2)])
def test_a_preactivation_block_skips_from_its_activated_input(in_channels: int, stride: int) -> None:
    block = Block(in_channels, 8, stride).eval()
    nn.init.normal_(block.bn1.bias)
    block.conv2.weight.zero_()
    maps = torch.randn(2, in_channels, 6, 6)
    activated = block.bn1(maps).relu()
    expected = activated if block.shortcut is None else block.shortcut(activated)
    assert (block.shortcut is None) == (stride == 1)
    assert torch.equal(block(maps), expected)


@torch.no_grad()
def test_checkpoints_of_mobilenet_v2_load_under_either_key_of_the_classifier() -> None:
    network = build_network("MobileNetV2", 100).double()
    shapes = {key.replace("classifier.0.", "classifier."): value.shape for key, value in network.state_dict().items()}
    apply_to(network, ReleasedWeights(golden_values(shapes), None, "state_dict", ""), "MobileNetV2")
    logits = network.eval()(golden_images()).logits
    assert relative_error(logits, VALUES["sskd_MobileNetV2/eval/logits_f64"]) < DOUBLE
    twin = build_network("MobileNetV2-s1", 100).double()
    apply_to(twin, ReleasedWeights(network.state_dict(), None, "model", ""), "MobileNetV2-s1")
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), network.parameters(), strict=True))
