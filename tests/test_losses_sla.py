"""SLA and SLA+SD against the public implementation's values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from benchmark.backbones.network import Outputs
from benchmark.data.augmentation import rotations
from benchmark.method.contract import Mixture, joint_labels, upright
from methods.sla import SLA, AggregatedPredictor, SLASelfDistilled, aggregate, four_views, joint_scores
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

JOINT = ("sla_basic", "sla_large_loss")
DISTILLED = (
    "sd_basic",
    "sd_temperature_4",
    "sd_large_loss",
    "sd_two_classes",
    "sd_batch_of_1",
    "sd_large_logits",
    "sd_equal_logits",
)


def joint_weight(case: Case) -> float:
    return 4.0 if bool(case.get("hp", "with_large_loss")) else 1.0


@pytest.mark.parametrize("name", JOINT)
def test_joint_classifier_learns_as_the_public_one(name: str) -> None:
    case = Case("sla", name)
    joint, labels = leaf(case.input("joint_logits")), case.input("labels")
    by_class = joint.unflatten(1, (-1, 4))
    student = outputs_of(by_class[:, :, 0])
    method = SLA(stub_context(shape_from("student", student)), SLA.Options(joint_weight=joint_weight(case))).double()
    del method.turned
    method.turned = lambda pooled: by_class[:, :, 1:].flatten(1)
    assert torch.equal(method.joint(student), joint)
    loss, _ = method.loss(stub_step(labels, student=student))
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert_gradient(case, "joint_logits", joint)
    assert torch.equal(joint_labels(labels), case.expected("joint_labels"))
    assert_close(upright(student.logits), case.expected("single_logits"))
    assert_close(aggregate(joint), case.expected("aggregated_logits"))


@pytest.mark.parametrize("name", DISTILLED)
def test_self_distillation_step_equals_the_public_one(name: str) -> None:
    case = Case("sla", name)
    joint, single = leaf(case.input("joint_logits")), leaf(case.input("single_logits"))
    student = outputs_of(single)
    options = SLASelfDistilled.Options(joint_weight=joint_weight(case), temperature=float(case.get("hp", "T")))
    method = SLASelfDistilled(stub_context(shape_from("student", student)), options).double()
    del method.classifier
    method.classifier = lambda pooled: joint
    loss, _ = method.loss(stub_step(case.input("labels"), student=student))
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert_gradient(case, "joint_logits", joint)
    assert_gradient(case, "single_logits", single)
    assert_close(upright(single), case.expected("single_logits"))
    assert_close(aggregate(joint), case.expected("aggregated_logits"))


def test_two_steps_and_both_predictions_equal_the_public_ones() -> None:
    case = Case("sla", "sd_two_steps")
    network = StagedNetwork((3, 4, 5, 6))
    weights = case.weights("base_model.")
    heads = {name: case.weights(f"classifiers.{number}.") for number, name in enumerate(("joint", "own"))}
    network.load_state_dict(weights | {f"fc.{name}": tensor for name, tensor in heads["own"].items()}, strict=False)
    shape = shape_from("student", network.eval()(torch.zeros(1, 3, 8, 8, dtype=torch.float64)))
    method = SLASelfDistilled(stub_context(shape), SLASelfDistilled.Options(inference="aggregated")).double()
    method.classifier.load_state_dict(heads["joint"])
    network.train()
    optimizer = optimiser_of(case, network, method)
    for number in (1, 2):
        images, labels = case.input(f"images_batch{number}"), case.input(f"labels_batch{number}")
        loss, _ = method.loss(stub_step(labels, student=lambda view, images=images: network(rotations(images))))
        assert_close(loss, case.expected(f"step{number}_total_loss"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_state(case, {"classifiers.0.": method.classifier, "classifiers.1.": network.fc})
    body = [network.stem, network.stage1, network.stage2, network.stage3]
    for name, part in zip(("stem", "stage1", "stage2", "stage3"), body, strict=True):
        assert_state(case, {f"base_model.{name}.": part})
    images = case.input("images_batch1")
    with torch.no_grad():
        assert_close(network.eval()(images).logits, case.expected("inference_single_logits_batch1"))
        predictor = method.predictor(network).eval()
        assert_close(predictor(images).logits, case.expected("inference_aggregated_logits_batch1"))


def test_the_rotated_view_has_the_public_order() -> None:
    case = Case("sla", "transforms")
    for views in (rotations, four_views):
        assert_close(views(case.input("images")), case.expected("rotation"))


@pytest.mark.parametrize("cls", [SLA, SLASelfDistilled])
def test_the_student_predicts_alone_unless_aggregation_is_asked_for(cls: type[SLA] | type[SLASelfDistilled]) -> None:
    network, images = tiny_network().eval(), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    context = stub_context(TinyNetwork.SHAPE)
    assert cls(context, cls.Options()).predictor(network) is network
    method = cls(context, cls.Options(inference="aggregated")).double()
    predictor = method.predictor(network)
    assert isinstance(predictor, AggregatedPredictor)
    seen, plain = predictor(images), network(images)
    assert isinstance(seen, Outputs)
    for of_views, of_image in ((seen.pooled, plain.pooled), (seen.stages[0], plain.stages[0]), (seen.stem, plain.stem)):
        assert_close(of_views, of_image)
    by_hand = torch.zeros(2, 3, dtype=torch.float64)
    for turn in range(4):
        turned = network(images.rot90(turn, (2, 3)))
        by_hand += method.joint(turned)[:, turn::4] / 4
    assert_close(seen.logits, by_hand)


def test_joint_scores_put_the_rotations_of_a_class_beside_each_other() -> None:
    upright_scores, turned_scores = torch.tensor([[0.0, 4.0]]), torch.tensor([[1.0, 2.0, 3.0, 5.0, 6.0, 7.0]])
    assert joint_scores(upright_scores, turned_scores).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("cls", [SLA, SLASelfDistilled])
def test_mixed_images_count_as_both_by_their_shares(cls: type[SLA] | type[SLASelfDistilled]) -> None:
    network = tiny_network()
    views = rotations(torch.rand(3, 3, 4, 4, dtype=torch.float64))
    method = cls(stub_context(TinyNetwork.SHAPE), cls.Options()).double()
    first, second = torch.tensor([0, 1, 2]), torch.tensor([1, 1, 0])

    def loss(labels: Tensor, mixture: Mixture | None = None) -> Tensor:
        return method.loss(stub_step(labels, student=lambda view: network(views), mixture=mixture))[0]

    mixed = loss(first, Mixture(second, torch.arange(3), 0.3))
    assert_close(mixed, 0.3 * loss(first) + 0.7 * loss(second))


@pytest.mark.parametrize("option", [{"inference": "both"}, {"joint_weight": -1}, {"temperature": 0}])
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SLASelfDistilled.Options(**option)
