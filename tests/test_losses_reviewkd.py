"""ReviewKD against the public implementations' values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from benchmark.backbones.cost import parameters
from benchmark.backbones.shapes import network_shape
from benchmark.core.errors import UserError
from methods.reviewkd import FusionBlock, ReviewKD, context_loss, warmup_factor
from tests.golden_networks import StagedNetwork, assert_state, optimiser_of
from tests.support import (
    Case,
    assert_close,
    assert_gradient,
    leaf,
    outputs_of,
    shape_from,
    step_outputs,
    stub_context,
    stub_step,
)

MAPS = ("hcl_1", "hcl_2", "hcl_4", "hcl_7", "hcl_8", "hcl_16", "hcl_identical")
BLOCKS = ("abf_first", "abf_fuse", "abf_fuse_resized", "abf_fuse_shrunk")
EXTRA_PARAMETERS = (
    ("ResNet8x4", "ResNet32x4", 1808774),
    ("ResNet20", "ResNet56", 114278),
    ("WRN-16-2", "WRN-40-2", 453830),
    ("WRN-40-1", "WRN-40-2", 216006),
    ("ShuffleNetV1", "WRN-40-2", 2984646),
    ("ShuffleNetV1", "ResNet32x4", 4607366),
    ("ShuffleNetV2", "ResNet32x4", 4195718),
    ("VGG8", "VGG13", 9847560),
    ("MobileNetV2", "VGG13", 9640712),
)
"""Student, teacher, and the parameters that the authors' builder makes of them."""


@pytest.mark.parametrize("name", MAPS)
def test_the_context_loss_equals_the_public_one(name: str) -> None:
    case = Case("reviewkd", name)
    student = leaf(case.input("student_map"))
    teacher = student.detach().clone() if name == "hcl_identical" else case.input("teacher_map")
    loss = context_loss(student, teacher)
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_map", student)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_fusion_block_equals_the_public_one(name: str) -> None:
    case = Case("reviewkd", name)
    maps, fuses = leaf(case.input("x")), bool(case.get("hp", "fuse"))
    deeper = leaf(case.input("residual")) if fuses else None
    cotangents = case.input("output_cotangent"), case.input("passed_on_cotangent")
    between, outputs = int(case.get("hp", "mid_channels")), cotangents[0].shape[1]
    block = FusionBlock(maps.shape[1], between, outputs, int(case.get("hp", "out_shape")), fuses).double()
    block.load_state_dict(block.state_dict() | case.weights())
    compared, passed_on = block(maps, deeper)
    assert_close(compared, case.expected("output"))
    assert_close(passed_on, case.expected("passed_on"))
    ((compared * cotangents[0]).sum() + (passed_on * cotangents[1]).sum()).backward()
    assert_gradient(case, "x", maps)
    if deeper is not None:
        assert_gradient(case, "residual", deeper)
    for key, parameter in block.named_parameters():
        assert_close(parameter.grad, case.expected(f"gradw_{key}"))
    for key, buffer in block.named_buffers():
        if "running" in key:
            assert_close(buffer, case.expected(f"after_{key}"))


def test_a_step_in_the_warm_up_equals_the_public_one() -> None:
    case = Case("reviewkd", "step_epoch_7")
    student = step_outputs(case, "student", differentiable=True)
    teacher = step_outputs(case, "teacher", differentiable=False)
    teacher = replace(teacher, preactivations=teacher.stages)
    context = stub_context(shape_from("student", student), shape_from("teacher", teacher))
    method = ReviewKD(context, ReviewKD.Options()).double()
    method.abfs.load_state_dict(method.abfs.state_dict() | case.weights("abfs."))
    assert parameters(method.abfs) == int(case.get("out64", "extra_parameters"))
    epoch = int(case.get("hp", "epoch")) - 1
    loss, terms = method.loss(
        stub_step(case.input("labels"), epoch=epoch, epochs=240, student=student, teacher=teacher)
    )
    loss.backward()
    assert_close(terms["ce"], case.expected("loss_ce"))
    assert_close(terms["review"] * 5, case.expected("loss_kd"))
    assert_close(loss, case.expected("total_loss"))
    for place, tensor in enumerate((*student.stages, student.pooled), start=1):
        assert_gradient(case, f"student_feat_{place}", tensor)
    assert_gradient(case, "student_logits", student.logits)
    for key, parameter in method.abfs.named_parameters():
        assert_close(parameter.grad, case.expected(f"gradw_abfs.{key}"))


def test_two_steps_equal_the_public_ones() -> None:
    case = Case("reviewkd", "two_steps")
    student, teacher = StagedNetwork((3, 4, 5, 6)), StagedNetwork((4, 5, 6, 8)).eval()
    student.load_state_dict(student.state_dict() | case.weights("student."))
    teacher.load_state_dict(teacher.state_dict() | case.weights("teacher."))
    images = case.input("images_batch1")
    shapes = shape_from("student", student.eval()(images)), shape_from("teacher", teacher(images))
    method = ReviewKD(stub_context(*shapes), ReviewKD.Options()).double()
    method.abfs.load_state_dict(method.abfs.state_dict() | case.weights("abfs."))
    optimizer = optimiser_of(case, student.train(), method)
    for number in (1, 2):
        images, labels = case.input(f"images_batch{number}"), case.input(f"labels_batch{number}")
        with torch.no_grad():
            taught = teacher(images, preactivations=True)
        loss, terms = method.loss(stub_step(labels, epoch=6, epochs=240, student=student(images), teacher=taught))
        assert_close(terms["ce"], case.expected(f"step{number}_loss_ce"))
        assert_close(loss, case.expected(f"step{number}_total_loss"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_state(case, {"student.": student, "abfs.": method.abfs})


@pytest.mark.parametrize(("recipe", "first"), [("mdistiller", 1), ("authors", 0)])
def test_the_warm_up_is_that_of_the_recipe(recipe: str, first: int) -> None:
    case = Case("reviewkd", "warmup")
    name = "mdistiller_factor_of_epoch_1_to_25" if first else "authors_factor_of_epoch_0_to_24"
    factors = [warmup_factor(epoch, 20 / 240 * 240, first) for epoch in range(25)]
    assert_close(torch.tensor(factors, dtype=torch.float64), case.expected(name))
    student = outputs_of(torch.zeros(4, 10, dtype=torch.float64), torch.rand(4, 6, dtype=torch.float64))
    teacher = replace(student, pooled=student.pooled + 1, preactivations=student.stages)
    context = stub_context(shape_from("student", student), shape_from("teacher", teacher))
    method = ReviewKD(context, ReviewKD.Options(recipe=recipe)).double()
    step = stub_step(torch.zeros(4, dtype=torch.int64), epoch=0, epochs=240, student=student, teacher=teacher)
    assert (float(method(step)["review"].detach()) == 0) == (recipe == "authors")


def test_without_a_warm_up_the_first_epoch_weighs_all() -> None:
    assert warmup_factor(0, 0.0, 0) == 1.0


@pytest.mark.parametrize(("student", "teacher", "count"), EXTRA_PARAMETERS)
def test_the_blocks_of_a_pair_have_as_many_parameters_as_the_authors(student: str, teacher: str, count: int) -> None:
    context = stub_context(network_shape(student, 100, 32), network_shape(teacher, 100, 32))
    assert parameters(ReviewKD(context, ReviewKD.Options()).abfs) == count


def test_a_pair_with_other_stages_is_refused() -> None:
    context = stub_context(network_shape("ResNet8", 10, 8), network_shape("ResNet18", 10, 8))
    with pytest.raises(UserError, match="ResNet8 has 3 stages and ResNet18 4; choose a pair with as many stages each"):
        ReviewKD(context, ReviewKD.Options())


@pytest.mark.parametrize("option", [{"recipe": "ours"}, {"warmup": 1.5}, {"review_weight": -1}])
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ReviewKD.Options(**option)
