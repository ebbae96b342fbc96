"""Every backbone of the table keeps the contract of a backbone, whatever the size of the images.

What needs no golden value is here (see `test_backbones`); the costly part of it runs on light networks, which share
their code with the heavy ones.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmark.backbones import (
    AuxiliaryBranches,
    Network,
    build_branches,
    build_network,
    uses_grouped_convolutions,
)
from benchmark.backbones.cost import multiply_adds, parameters
from benchmark.backbones.shapes import network_shape
from benchmark.backbones.shufflenet_v1 import shuffle_channels
from benchmark.core import rng
from tests.test_backbones import (
    DOUBLE,
    dry,
    fill,
    golden_images,
    initialised,
    relative_error,
)
from tests.test_backbones import (
    NAMES as LISTED,
)

FAMILIES = {
    "WideResNet": ("WRN-10-1-x1/2", "WRN-10-1", "WRN-16-1", "WRN-40-1", "WRN-16-2", "WRN-40-2"),
    "ResNet": (
        *("ResNet8-x1/2", "ResNet8", "ResNet14", "ResNet20", "ResNet32", "ResNet56", "ResNet8x4", "ResNet110"),
        *("ResNet14x4", "ResNet32x4"),
    ),
    "ShuffleNetV1": ("ShuffleNetV1-x1/4", "ShuffleNetV1-u1-x1/2", "ShuffleNetV1-x1/2", "ShuffleNetV1"),
    "ShuffleNetV2": ("ShuffleNetV2-u1-x1/4", "ShuffleNetV2-x1/4", "ShuffleNetV2-x1/2", "ShuffleNetV2"),
    "FourStageResNet": (
        *("ResNet10-x1/4", "ResNet18-x1/4", "ResNet34-x1/4", "ResNet50-x1/4", "ResNet101-x1/4"),
        *("ResNet18", "ResNet34", "ResNet50", "ResNet101"),
    ),
    "VGG": ("VGG8-x1/4", "VGG11-x1/4", "VGG8", "VGG13"),
    "ImageNetResNet": ("ImageNet-ResNet18-x1/4", "ImageNet-ResNet18", "ImageNet-ResNet34"),
    "MobileNetV2": ("MobileNetV2-x1/4", "MobileNetV2-s1-x1/2", "MobileNetV2-s1-u1", "MobileNetV2", "MobileNetV2-s1"),
    "MobileNetV2TfKD": ("MobileNetV2-TFKD-x1/4", "MobileNetV2-TFKD-x1/2", "MobileNetV2-TFKD"),
    "ShuffleNetV2TfKD": ("ShuffleNetV2-TFKD-x1/4", "ShuffleNetV2-TFKD"),
    "PreActResNet": ("PreActResNet18-x1/4", "PreActResNet18"),
    "ResNeXt": ("ResNeXt29-x1/4", "ResNeXt29"),
}
"""By class, all listed networks and some that only follow a pattern, the smallest first.

They are written down, since to build them all takes seconds, in every process that collects tests.
"""
FAMILY = {name: family for family, names in FAMILIES.items() for name in names}
NAMES = list(FAMILY)
HEAVY = (
    *("ResNet18", "ResNet34", "ResNet50", "ResNet101", "VGG13", "ImageNet-ResNet18", "ImageNet-ResNet34"),
    *("PreActResNet18", "ResNeXt29"),
)
"""Those that have at least HEAVY_PARAMETERS with their branches."""
HEAVY_PARAMETERS = 3e7
LIGHT = [name for name in NAMES if name not in HEAVY]
SMALLEST = {family: names[0] for family, names in FAMILIES.items()}


kept_dry = functools.cache(dry)
"""Those of `dry`, built once, since that takes as long as a forward; not to be changed."""


def test_the_networks_are_what_these_tests_take_them_for() -> None:
    assert set(LISTED) <= set(NAMES)
    built = {name: kept_dry(name) for name in NAMES}
    size = {name: parameters(network) + parameters(branches) for name, (network, branches) in built.items()}
    assert {name: type(network).__name__ for name, (network, _) in built.items()} == FAMILY
    assert {name for name in NAMES if size[name] >= HEAVY_PARAMETERS} == set(HEAVY)
    for family, names in FAMILIES.items():
        assert min(names, key=size.__getitem__) == SMALLEST[family]
        assert SMALLEST[family] in LIGHT


OF_EACH_FAMILY = list(SMALLEST.values())
"""The smallest network of each family, whose code the others share."""


@functools.cache
def fresh(name: str) -> tuple[Network, AuxiliaryBranches]:
    """Build a network of 10 classes and its branches with PyTorch's initial weights; not to be changed."""
    return build_network(name, 10).eval(), build_branches(name, 40).eval()


# By which number the height and width of a stage map is smaller than the image's, for images of 8 and of 64 rows.
DIVISORS = {
    "WideResNet": [(1, 2, 4)] * 2,
    "ResNet": [(1, 2, 4)] * 2,
    "ShuffleNetV1": [(2, 4, 8)] * 2,
    "ShuffleNetV2": [(2, 4, 8)] * 2,
    "FourStageResNet": [(1, 2, 4, 8)] * 2,
    "ImageNetResNet": [(4, 8, 16, 32)] * 2,
    "VGG": [(2, 4, 8, 8), (2, 4, 8, 16)],
}


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in NAMES if name not in OF_EACH_FAMILY])
def test_every_network_has_maps_that_its_branches_read(name: str) -> None:
    network, branches = (copy.deepcopy(module).to_empty(device="cpu") for module in kept_dry(name))
    outputs = network.eval()(torch.zeros(1, 3, 8, 8))
    pooled = [branch.pooled for branch in branches.eval()(outputs.branch_maps)]
    assert [vectors.shape for vectors in pooled] == [outputs.pooled.shape] * len(outputs.branch_maps)


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("name", OF_EACH_FAMILY)
def test_other_image_sizes_work_with_the_branches_too(name: str, size: int) -> None:
    network, branches = fresh(name)
    outputs = network(torch.randn(1, 3, size, size, generator=rng.generator("images")), preactivations=True)
    shape = network_shape(name, 10, size)
    if FAMILY[name] in DIVISORS:
        divisors = DIVISORS[FAMILY[name]][size == 64]
        assert [sizes[1:] for sizes in shape.stages] == [(-(-size // divisor),) * 2 for divisor in divisors]
    assert tuple(outputs.stem.shape[1:]) == shape.stem
    assert tuple(tuple(maps.shape[1:]) for maps in outputs.stages) == shape.stages
    assert tuple(tuple(maps.shape[1:]) for maps in outputs.branch_maps) == shape.branch_maps
    assert outputs.preactivations is not None
    assert [maps.shape for maps in outputs.preactivations] == [maps.shape for maps in outputs.stages]
    assert outputs.logits.shape == (1, 10)
    assert outputs.pooled.shape == (1, shape.pooled)
    for branch in branches(outputs.branch_maps):
        assert branch.logits.shape == (1, 40)
        assert branch.logits.isfinite().all()


@torch.no_grad()
def test_vgg_leaves_out_pools_of_single_rows() -> None:
    network, branches = build_network("VGG8-x1/4", 10).eval(), build_branches("VGG8-x1/4", 40).eval()
    outputs = network(torch.randn(2, 3, 2, 4))
    assert [tuple(maps.shape[2:]) for maps in (outputs.stem, *outputs.stages)] == [(2, 4), *[(1, 2)] * 4]
    assert all(branch.logits.shape == (2, 40) for branch in branches(outputs.branch_maps))


def test_branches_of_vgg_read_the_stem_and_the_first_second_and_fourth_stage() -> None:
    outputs = build_network("VGG8-x1/4", 10)(torch.randn(2, 3, 16, 16))
    expected = (outputs.stem, outputs.stages[0], outputs.stages[1], outputs.stages[3])
    assert all(given is map_ for given, map_ in zip(outputs.branch_maps, expected, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("name", OF_EACH_FAMILY)
def test_asking_for_preactivations_changes_neither_outputs_nor_statistics(name: str) -> None:
    asked, plain = (copy.deepcopy(fresh(name)[0]).train() for _ in range(2))
    images = torch.randn(4, 3, 8, 8, generator=rng.generator("images"))
    with_maps, without = asked(images, preactivations=True), plain(images)
    assert without.preactivations is None
    assert torch.equal(with_maps.logits, without.logits)
    assert all(torch.equal(a, b) for a, b in zip(with_maps.stages, without.stages, strict=True))
    for key, value in asked.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]), key
        assert not key.endswith("num_batches_tracked") or value == 1, key


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES["WideResNet"][:2])
def test_wide_resnet_preactivations_use_batch_statistics_in_training_mode(name: str) -> None:
    network = build_network(name, 10).train()
    fill(network)
    norms = [copy.deepcopy(network.get_submodule(key)) for key in ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")]
    outputs = network(golden_images(), preactivations=True)
    assert outputs.preactivations is not None
    for norm, stage, given in zip(norms, outputs.stages, outputs.preactivations, strict=True):
        assert relative_error(given, norm(stage).numpy()) < DOUBLE


ACTIVATED = ("ResNet", "ShuffleNetV1", "FourStageResNet", "ImageNetResNet", "VGG")


@torch.no_grad()
@pytest.mark.parametrize("name", [SMALLEST[family] for family in ACTIVATED])
def test_a_stage_map_is_the_relu_of_its_preactivation(name: str) -> None:
    outputs = build_network(name, 10)(torch.randn(4, 3, 8, 8), preactivations=True)
    assert outputs.preactivations is not None
    for stage, before in zip(outputs.stages, outputs.preactivations, strict=True):
        assert before.min() < 0
        assert torch.equal(stage, before.relu())


@pytest.mark.parametrize("name", OF_EACH_FAMILY)
def test_every_parameter_receives_a_gradient(name: str) -> None:
    network, branches = build_network(name, 10), build_branches(name, 40)
    outputs = network(torch.randn(4, 3, 8, 8), preactivations=True)
    assert outputs.preactivations is not None
    branch_losses = [branch.logits.square().mean() for branch in branches(outputs.branch_maps)]
    maps_loss = torch.stack([maps.square().mean() for maps in outputs.preactivations]).sum()
    (outputs.logits.square().mean() + maps_loss + torch.stack(branch_losses).sum()).backward()
    for key, parameter in (*network.named_parameters(), *branches.named_parameters()):
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", OF_EACH_FAMILY)
def test_after_stages_names_all_that_the_last_stage_map_does_not_depend_on(name: str) -> None:
    network = build_network(name, 10)
    network(torch.randn(4, 3, 8, 8)).stages[-1].sum().backward()
    behind = {key.partition(".")[0] for key, parameter in network.named_parameters() if parameter.grad is None}
    assert behind == set(network.after_stages)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shuffling_interleaves_the_groups_and_keeps_the_memory_layout(layout: torch.memory_format) -> None:
    maps = torch.arange(2 * 6 * 4 * 5).view(2, 6, 4, 5).contiguous(memory_format=layout)
    shuffled = shuffle_channels(maps, 2)
    assert torch.equal(shuffled, maps[:, [0, 3, 1, 4, 2, 5]])
    assert shuffled.is_contiguous(memory_format=layout)


def test_counting_multiply_adds_leaves_the_module_as_it_was() -> None:
    network = build_network("ResNet20", 10).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    multiply_adds(network, torch.empty(4, 3, 32, 32))
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("build", [build_network, build_branches])
@pytest.mark.parametrize("name", OF_EACH_FAMILY)
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
# Of each family the rules of convolutions and of linear layers, for the network and then for the branches.
RULES = {
    "WideResNet": ((HE, "zero_bias"), (HE, "zero_bias")),
    "ResNet": ((HE, "default"), (HE, "zero_bias")),
    "ShuffleNetV1": ((UNIFORM, "default"), (HE, "zero_bias")),
    "ShuffleNetV2": ((UNIFORM, "default"), (UNIFORM, "default")),
    "FourStageResNet": ((HE, "default"), (HE, "default")),
    "ImageNetResNet": ((HE, "default"), (HE, "default")),
    "VGG": ((HE, "normal"), (UNIFORM, "default")),
}


@pytest.mark.parametrize("name", [SMALLEST[family] for family in RULES])
def test_initial_weights_follow_the_rule_of_the_family(name: str) -> None:
    for build, (convolution, linear) in zip((build_network, build_branches), RULES[FAMILY[name]], strict=True):
        for layer in initialised(build, name, 0).modules():  # type: ignore[arg-type]
            if isinstance(layer, nn.BatchNorm2d):
                assert torch.equal(layer.weight, torch.ones_like(layer.weight))
                assert not layer.bias.any()
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                _check_weights(layer.weight, 0.01 if linear == "normal" else bound / math.sqrt(3))
                assert linear == "normal" or layer.weight.abs().max() <= bound
                assert (not layer.bias.any()) == (linear != "default")
            if isinstance(layer, nn.Conv2d):
                area = math.prod(layer.kernel_size)
                bound = 1 / math.sqrt(layer.weight[0].numel())
                he = math.sqrt(2 / (area * layer.out_channels))
                _check_weights(layer.weight, he if convolution == HE else bound / math.sqrt(3))
                assert convolution == HE or layer.weight.abs().max() <= bound
                assert layer.bias is None or (not layer.bias.any()) == (convolution == HE)


def _check_weights(weight: Tensor, deviation: float) -> None:
    # Six standard errors of a standard deviation estimated from a normal sample (a uniform one has less).
    assert weight.std().item() == pytest.approx(deviation, rel=6 / math.sqrt(2 * weight.numel()))


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


@pytest.mark.parametrize("name", NAMES)
def test_grouped_convolutions_are_declared_as_they_are(name: str) -> None:
    network, _ = kept_dry(name)
    grouped = any(layer.groups > 1 for layer in network.modules() if isinstance(layer, nn.Conv2d))
    assert uses_grouped_convolutions(name) == grouped


@torch.no_grad()
@pytest.mark.parametrize("name", ["WRN-16-2", "ResNet20", "ShuffleNetV2"])
def test_the_deepest_branches_stay_as_they_were_when_the_others_are_removed(name: str) -> None:
    whole = build_branches(name, 40).eval()
    maps = build_network(name, 10).eval()(torch.randn(2, 3, 16, 16)).branch_maps
    fewer = copy.deepcopy(whole)
    fewer.keep_deepest(2)
    for kept, branch in zip(fewer(maps), whole(maps)[1:], strict=True):
        assert torch.equal(kept.logits, branch.logits)
    kept_names = [key for key in whole.state_dict() if not key.split(".")[0].endswith("1")]
    assert list(fewer.state_dict()) == kept_names
    with pytest.raises(ValueError, match="of 2 branches 3 cannot be kept"):
        fewer.keep_deepest(3)
