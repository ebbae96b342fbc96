"""SimKD against the public implementation's values, and what predicts in the end."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmark.backbones import build_network
from benchmark.backbones.cost import multiply_adds, parameters
from benchmark.backbones.network import without_classifier
from benchmark.backbones.shapes import network_shape
from benchmark.core.errors import UserError
from methods.simkd import Projector, ReusingPredictor, SimKD, map_loss
from tests.contract_runs import FAMILIES
from tests.golden_networks import StagedNetwork, assert_state, optimiser_of
from tests.support import (
    Case,
    assert_close,
    assert_gradient,
    leaf,
    shape_from,
    stub_context,
    stub_step,
)

MODULES = ("same_size", "student_larger", "teacher_larger", "uneven_sizes")
PROJECTORS = (
    ("ResNet8x4", "ResNet32x4", (214016, 70400, 26240)),
    ("VGG8", "ResNet32x4", (246784, 86784, 34432)),
    ("ShuffleNetV1", "ResNet32x4", (304128, 115456, 48768)),
    ("VGG8", "VGG13", (854016, 280064, 103680)),
)
"""Student, teacher, and the parameters of the public module for the factors 2, 4 and 8."""


@pytest.mark.parametrize("name", MODULES)
def test_the_projector_equals_the_public_one(name: str) -> None:
    case = Case("simkd", name)
    maps, teacher_map = leaf(case.input("student_map")), case.input("teacher_map")
    outputs, height = teacher_map.shape[1:3]
    projector = Projector(maps.shape[1], outputs, height, int(case.get("hp", "factor"))).double()
    projector.load_state_dict(
        projector.state_dict() | {f"transfer.{k}": v for k, v in case.weights("transfer.").items()}
    )
    classifier = nn.Linear(outputs, 10).double()
    classifier.load_state_dict(case.weights("teacher_classifier."))
    projected = projector(maps)
    target = F.adaptive_avg_pool2d(teacher_map, projected.shape[2:])
    assert_close(projected, case.expected("projected"))
    assert_close(target, case.expected("target"))
    assert_close(classifier(projected.mean((2, 3))), case.expected("prediction"))
    loss = map_loss(projected, target)
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_map", maps)
    for key, parameter in projector.named_parameters():
        assert_close(parameter.grad, case.expected(f"gradw_{key}"))
    for key, buffer in projector.named_buffers():
        if "running" in key:
            assert_close(buffer, case.expected(f"after_{key}"))
    in_evaluation = classifier(projector.eval()(maps).mean((2, 3)))
    assert_close(in_evaluation, case.expected("prediction_in_evaluation_mode"))


def test_two_steps_and_the_prediction_equal_the_public_ones() -> None:
    """But for the student's own classifier, which weight decay shrinks there and which is left alone here."""
    case = Case("simkd", "two_steps")
    student, teacher = StagedNetwork((3, 4, 5, 6)), StagedNetwork((4, 5, 6, 8)).eval()
    student.load_state_dict(student.state_dict() | case.weights("student."))
    teacher.load_state_dict(teacher.state_dict() | case.weights("teacher."))
    images = case.input("images_batch1")
    shapes = shape_from("student", student.eval()(images)), shape_from("teacher", teacher(images))
    method = SimKD(stub_context(*shapes), SimKD.Options()).double()
    method.projector.load_state_dict(method.projector.state_dict() | case.weights("projector."))
    method.receive_teacher(teacher)
    student.train().fc.requires_grad_(False)
    optimizer = optimiser_of(case, student, method)
    for number in (1, 2):
        images, labels = case.input(f"images_batch{number}"), case.input(f"labels_batch{number}")
        with torch.no_grad():
            taught = teacher(images, preactivations=True)
        loss, _ = method.loss(stub_step(labels, student=student(images), teacher=taught))
        assert_close(loss, case.expected(f"step{number}_total_loss"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    body = {f"student.{name}.": student.get_submodule(name) for name in ("stem", *student.names)}
    assert_state(case, body | {"projector.": method.projector})
    predictor = method.predictor(student).eval()
    method.eval()
    with torch.no_grad():
        logits = predictor(case.input("images_batch1")).logits
    assert_close(logits, case.expected("inference_logits_batch1"))
    validation = F.cross_entropy(logits, case.input("labels_batch1"))
    assert_close(validation, case.expected("validation_loss_batch1"))


def test_the_loss_of_a_step_equals_the_public_one() -> None:
    case = Case("simkd", "step")
    maps, teacher_map = leaf(case.input("student_feat_3")), case.input("teacher_feat_3")
    projector = Projector(maps.shape[1], teacher_map.shape[1], teacher_map.shape[2], 2).double()
    projector.load_state_dict(projector.state_dict() | case.weights("projector."))
    loss = map_loss(projector(maps), teacher_map)
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert_gradient(case, "student_feat_3", maps)
    for key, parameter in projector.named_parameters():
        assert_close(parameter.grad, case.expected(f"gradw_projector.{key}"))


@pytest.mark.parametrize(("student", "teacher", "counts"), PROJECTORS)
def test_projectors_have_as_many_parameters_as_the_public_ones(
    student: str, teacher: str, counts: tuple[int, ...]
) -> None:
    context = stub_context(network_shape(student, 100, 32), network_shape(teacher, 100, 32))
    assert tuple(parameters(SimKD(context, SimKD.Options(factor=factor)).projector) for factor in (2, 4, 8)) == counts


def test_what_predicts_is_counted_without_the_students_classifier_and_with_all_that_it_uses() -> None:
    context = stub_context(network_shape("ResNet8", 100, 32), network_shape("ResNet8x4", 100, 32))
    method, student = SimKD(context, SimKD.Options()), build_network("ResNet8", 100)
    predictor = method.predictor(student)
    projector, own, teachers = parameters(method.projector), 64 * 100 + 100, 256 * 100 + 100
    assert parameters(predictor) == parameters(student) - own + projector + teachers
    image = torch.zeros(1, 3, 32, 32)
    of_projector = multiply_adds(method.projector, torch.zeros(1, 64, 8, 8))
    assert multiply_adds(predictor, image) == multiply_adds(student, image) - 6400 + of_projector + 25600


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_without_its_classifier_gives_the_same_maps_and_shares_all_its_weights(name: str) -> None:
    network = build_network(name, 10).eval()
    body = without_classifier(network)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(body(images).stages[-1], network(images).stages[-1])
    shared = {id(weight) for weight in body.parameters()}
    behind = {id(weight) for part in network.after_stages for weight in network.get_submodule(part).parameters()}
    assert behind
    assert shared | behind == {id(weight) for weight in network.parameters()}
    assert not shared & behind


@pytest.mark.parametrize("teacher", ["MobileNetV2", "ShuffleNetV2", "PreActResNet18-x1/4"])
def test_a_teacher_whose_classifier_reads_another_map_is_refused(teacher: str) -> None:
    context = stub_context(network_shape("ResNet8", 10, 32), network_shape(teacher, 10, 32))
    with pytest.raises(UserError, match=f"SimKD: the classifier of {teacher} does not .*; choose a teacher such as"):
        SimKD(context, SimKD.Options())


def test_a_projector_without_channels_is_refused() -> None:
    context = stub_context(network_shape("ResNet8", 10, 32), network_shape("ResNet8", 10, 32))
    with pytest.raises(UserError, match="factor = 65, but the last map of ResNet8 has 64 channels; choose a factor"):
        SimKD(context, SimKD.Options(factor=65))


def test_the_student_stays_a_plain_network() -> None:
    network = StagedNetwork((3, 4, 5, 6))
    names = list(network.state_dict())
    predictor = ReusingPredictor(network, Projector(6, 8, 2, 2), nn.Linear(8, 10))
    assert list(network.state_dict()) == names
    assert not [name for name in predictor.state_dict() if name.startswith("body.fc")]
