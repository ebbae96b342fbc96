"""BYOT against the values of the author's code and of the third party's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from benchmark.backbones.cost import parameters
from benchmark.backbones.network import Shape
from benchmark.backbones.shapes import network_shape
from benchmark.core.errors import UserError
from methods.byot import (
    BYOT,
    AttentiveBranch,
    BottleneckBranch,
    EnsemblePredictor,
    SeparableBlock,
    Shallow,
    masked_square,
    softened_cross_entropy,
    upsample,
    whole_distance,
)
from tests.golden_networks import StagedNetwork, assert_state, optimiser_of
from tests.support import (
    Case,
    TinyNetwork,
    assert_close,
    assert_gradient,
    leaf,
    outputs_of,
    shape_from,
    stub_context,
    stub_step,
    tiny_network,
)

OF_AUTHOR = (
    "basic",
    "temperature_1",
    "two_classes",
    "batch_of_2",
    "large_logits",
    "stronger_hints",
    "zero_distance",
)
OF_THIRD_PARTY = (
    "basic",
    "post_relu",
    "temperature_1",
    "two_classes",
    "batch_of_2",
    "large_logits",
    "equal_logits",
    "stronger_hints",
)
FOUR_STAGES = ((3, 8, 8), (4, 4, 4), (5, 2, 2), (6, 1, 1))


def bare_method(classes: int, **options: Any) -> BYOT:
    """A method for four stages, whose classifiers' outputs a test replaces."""
    shape = Shape("student", classes, (3, 8, 8), FOUR_STAGES, 6)
    return BYOT(stub_context(shape), BYOT.Options(**options)).double()


@pytest.mark.parametrize("name", OF_AUTHOR)
def test_a_step_equals_the_authors(name: str) -> None:
    case = Case("byot_authors", name)
    inputs = {
        f"{kind}_{place}": leaf(case.input(f"{kind}_{place}")) for kind in ("logits", "feat") for place in (1, 2, 3, 4)
    }
    method = bare_method(
        inputs["logits_4"].shape[1],
        temperature=float(case.get("hp", "T")),
        alpha=float(case.get("hp", "loss_coefficient")),
        beta=float(case.get("hp", "feature_loss_coefficient")),
    )
    found = [Shallow(inputs[f"logits_{place}"], inputs[f"feat_{place}"]) for place in (1, 2, 3)]
    method.shallow = lambda outputs: found  # type: ignore[method-assign]
    adaptations = []
    for place in (1, 2):
        weights = case.weights(f"adaptation_layers.{3 - place}.")
        adaptations.append(nn.Linear(*reversed(weights["weight"].shape)).double())
        adaptations[-1].load_state_dict(weights)
    method.adaptations = nn.ModuleList(adaptations)
    loss, _ = method.loss(stub_step(case.input("labels"), student=outputs_of(inputs["logits_4"], inputs["feat_4"])))
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    for key, tensor in inputs.items():
        assert_gradient(case, key, tensor)
    for place, adaptation in zip((1, 2), adaptations, strict=True):
        for kind in ("weight", "bias"):
            expected = case.expected(f"gradw_adaptation_layers.{3 - place}.{kind}")
            assert_close(adaptation.get_parameter(kind).grad, expected)
    assert bool(case.expected("gradnonew_adaptation_layers.0.weight")), "which is why it is not built"


@pytest.mark.parametrize("name", OF_THIRD_PARTY)
def test_a_step_equals_the_third_partys(name: str) -> None:
    case = Case("byot", name)
    places = ("final", 1, 2, 3)
    logits = {place: leaf(case.input(f"logits_{place}")) for place in places}
    features = {place: leaf(case.input(f"feat_{place}")) for place in places}
    method = bare_method(
        logits["final"].shape[1],
        reading="third_party",
        **{
            option: float(case.get("hp", hyper))
            for option, hyper in {"temperature": "T", "alpha": "alpha", "beta": "beta"}.items()
        },
    )
    found = [Shallow(logits[place], features[place].flatten(1)) for place in (1, 2, 3)]
    method.shallow = lambda outputs: found  # type: ignore[method-assign]
    student = outputs_of(logits["final"], features["final"].flatten(1))
    loss, _ = method.loss(stub_step(case.input("labels"), student=student))
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    temperature = float(case.get("hp", "T"))
    kd = [softened_cross_entropy(each.logits, student.logits, temperature) * temperature**2 for each in found]
    assert_close(torch.stack(kd), case.expected("kd_terms"))
    squares = [masked_square(each.features, student.pooled) for each in found]
    assert_close(torch.stack(squares), case.expected("feature_terms"))
    for place in places:
        assert_gradient(case, f"logits_{place}", logits[place])
        assert_gradient(case, f"feat_{place}", features[place])


def assert_module(case: Case, module: nn.Module, apply: Any) -> None:
    """Output, gradients and running statistics of a module in training are the golden ones."""
    module.double().load_state_dict(case.weights(), strict=False)
    maps = leaf(case.input("map"))
    output = apply(maps)
    (output * case.input("cotangent")).sum().backward()
    assert_close(output, case.expected("output"))
    assert_gradient(case, "map", maps)
    for name, parameter in module.named_parameters():
        assert_close(parameter.grad, case.expected(f"gradw_{name}"))
    for name, buffer in module.named_buffers():
        if "running" in name:
            assert_close(buffer, case.expected(f"after_{name}"))


def test_the_authors_block_equals_the_public_one() -> None:
    case = Case("byot_authors", "branch_block")
    block = SeparableBlock(3, 5, stride=2)
    assert_module(case, block, block)


def test_the_third_partys_branch_equals_the_public_one() -> None:
    case = Case("byot", "branch_kernel_2")
    branch = BottleneckBranch([(4, 4, 4), (8, 2, 2)], 8)
    assert_module(case, branch, lambda maps: nn.Sequential.forward(branch, maps))


def trained(case: Case, network: StagedNetwork, method: BYOT) -> None:
    """Two steps, whose losses are the golden ones."""
    optimizer = optimiser_of(case, network.train(), method.train())
    for number in (1, 2):
        images, labels = case.input(f"images_batch{number}"), case.input(f"labels_batch{number}")
        loss, _ = method.loss(stub_step(labels, student=lambda view, images=images: network(images)))
        assert_close(loss, case.expected(f"step{number}_total_loss"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def body(network: StagedNetwork) -> dict[str, nn.Module]:
    return {f"{name}.": network.get_submodule(name) for name in ("stem", *network.names)}


def test_two_steps_of_the_authors_code() -> None:
    case = Case("byot_authors", "two_steps")
    network = StagedNetwork((3, 3, 4, 5, 6), strides=(1, 2, 2, 2))
    shape = shape_from("student", network.eval()(case.input("images_batch1")))
    method = BYOT(stub_context(shape), BYOT.Options()).double()
    parts = body(network) | {"fc4.": network.fc}
    for place, (branch, classifier) in enumerate(zip(method.branches, method.classifiers, strict=True), start=1):
        parts |= {f"attention{place}.": branch.attention, f"scala{place}.": branch.scala, f"fc{place}.": classifier}
    for place, adaptation in enumerate(method.adaptations, start=1):
        parts[f"adaptation_layers.{3 - place}."] = adaptation
    for prefix, part in parts.items():
        part.load_state_dict(part.state_dict() | case.weights(prefix))
    trained(case, network, method)
    for prefix, part in parts.items():
        for name, tensor in part.named_parameters():
            assert_close(tensor.data, case.expected(f"after_step2_{prefix}{name}"))


def test_two_steps_of_the_third_partys_code() -> None:
    case = Case("byot", "two_steps")
    network = StagedNetwork((3, 4, 4, 5, 8), strides=(1, 2, 2, 2))
    shape = shape_from("student", network.eval()(case.input("images_batch1")))
    options = BYOT.Options(reading="third_party", beta=float(case.get("hp", "beta")))
    method = BYOT(stub_context(shape), options).double()
    parts = body(network) | {"fc.": network.fc}
    for place, (branch, classifier) in enumerate(zip(method.branches, method.classifiers, strict=True), start=1):
        parts |= {f"branch{place}.": branch, f"middle_fc{place}.": classifier}
    for prefix, part in parts.items():
        part.load_state_dict(part.state_dict() | case.weights(prefix))
    trained(case, network, method)
    assert_state(case, parts)


def test_branches_of_resnet18_have_as_many_parameters_as_the_public_ones() -> None:
    shape = network_shape("ResNet18", 100, 32)
    of_author = BYOT(stub_context(shape), BYOT.Options())
    branches = [branch for branch in of_author.branches if isinstance(branch, AttentiveBranch)]
    assert sum(parameters(branch.attention) for branch in branches) == 182784
    assert sum(parameters(branch.scala) for branch in branches) == 726528
    assert parameters(of_author.classifiers) == 153900
    assert parameters(of_author.adaptations) == 787968 * 2 // 3, "without the one that never learns"
    third = BYOT(stub_context(shape), BYOT.Options(reading="third_party"))
    assert parameters(third.branches) + parameters(third.classifiers) == 1791020


def test_the_defaults_are_those_of_the_reading() -> None:
    assert bare_method(10).weights == pytest.approx({"ce": 1.0, "shallow_ce": 0.7, "kd": 0.3, "feature": 0.03})
    third = bare_method(10, reading="third_party").weights
    assert third == pytest.approx({"ce": 0.9, "shallow_ce": 0.9, "kd": 0.9, "feature": 1e-6})


@pytest.mark.parametrize("size", [2, 4, 5, 8])
def test_both_ways_to_enlarge_a_map_give_the_same_numbers(size: int) -> None:
    maps = torch.rand(2, 3, (size + 1) // 2, (size + 1) // 2, dtype=torch.float64)
    expected = F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)
    assert_close(upsample(maps, size, size), expected)


def test_equal_features_get_no_gradient() -> None:
    features = leaf(torch.ones(2, 3, dtype=torch.float64))
    whole_distance(features, features.detach().clone()).backward()
    assert features.grad is not None
    assert not features.grad.any()


@pytest.mark.parametrize("reading", ["author", "third_party"])
def test_the_ensemble_is_the_mean_of_all_classifiers(reading: str) -> None:
    network, images = tiny_network().eval(), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    context = stub_context(TinyNetwork.SHAPE)
    assert BYOT(context, BYOT.Options(reading=reading)).predictor(network) is network
    method = BYOT(context, BYOT.Options(reading=reading, inference="ensemble")).double().eval()
    predictor = method.predictor(network)
    assert isinstance(predictor, EnsemblePredictor)
    outputs = network(images)
    expected: Tensor = outputs.logits / 3
    for branch, classifier, maps in zip(method.branches, method.classifiers, outputs.stages, strict=False):
        expected = expected + classifier(branch(maps)) / 3
    assert_close(predictor(images).logits, expected)


def test_a_network_with_one_map_is_refused() -> None:
    shape = Shape("Flat", 10, (3, 8, 8), ((3, 8, 8),), 3)
    with pytest.raises(UserError, match="BYOT: Flat has one map; choose a network with two or more"):
        BYOT(stub_context(shape), BYOT.Options())


@pytest.mark.parametrize("option", [{"reading": "both"}, {"alpha": 1.1}, {"beta": -1}, {"temperature": 0}])
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BYOT.Options(**option)
