"""HSSAKD, its teachers and its class score against the public implementation's values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from benchmark.method.contract import Method, Outputs, Shape, UserError, class_scores, joint_labels, upright
from methods.hssakd import HSSAKD, HSSAKDBranches, HSSAKDJointTeacher, HSSAKDStar
from tests.support import (
    Case,
    StubBranches,
    TinyNetwork,
    assert_close,
    assert_gradient,
    branch_outputs,
    leaf,
    outputs_of,
    shape_from,
    stub_context,
    stub_step,
    tiny_network,
)


def golden_branches(case: Case, prefix: str = "") -> list[Tensor]:
    return [leaf(case.input(f"{prefix}aux_logits_{branch}")) for branch in range(3)]


@pytest.mark.parametrize("method_class", [HSSAKD, HSSAKDStar])
def test_student_step_equals_the_public_one(method_class: type[HSSAKD]) -> None:
    case = Case("hsakd", "student_offline")
    logits, branches = leaf(case.input("student_logits")), golden_branches(case, "student_")
    student, teacher = outputs_of(logits), outputs_of(case.input("teacher_logits"))
    of_teacher = branch_outputs([branch.detach() for branch in golden_branches(case, "teacher_")])
    shapes = shape_from("student", student), shape_from("teacher", teacher)
    context = stub_context(*shapes, branches=lambda shape, outputs: StubBranches(branches))
    step = stub_step(case.input("labels"), student=student, teacher=teacher, teacher_head=lambda view: of_teacher)
    loss, terms = method_class(context, method_class.Options()).loss(step)
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert_close(terms["ce"], case.expected("loss_cls"))
    assert_close(terms["kd"] + terms["branches"], case.expected("loss_div"))
    assert torch.equal(joint_labels(case.input("labels")), case.expected("joint_labels"))
    assert_gradient(case, "student_logits", logits)
    for number, branch in enumerate(branches):
        assert_gradient(case, f"student_aux_logits_{number}", branch)


@pytest.mark.parametrize(
    ("name", "method_class"), [("teacher_joint", HSSAKDJointTeacher), ("teacher_frozen", HSSAKDBranches)]
)
def test_teacher_step_equals_the_public_one(name: str, method_class: type[Method]) -> None:
    case = Case("hsakd", name)
    logits, branches = leaf(case.input("logits")), golden_branches(case)
    outputs = outputs_of(logits)
    shape = shape_from("network", outputs)
    context = stub_context(shape, shape, branches=lambda shape, outputs: StubBranches(branches))
    method = method_class(context, method_class.Options())
    source = {"teacher": outputs} if method_class is HSSAKDBranches else {"student": outputs}
    loss, _ = method.loss(stub_step(case.input("labels"), **source))
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert_gradient(case, "logits", logits)
    for number, branch in enumerate(branches):
        assert_gradient(case, f"aux_logits_{number}", branch)


def test_class_score_of_a_branch_equals_the_public_one() -> None:
    case = Case("hsakd", "aux_class_score")
    assert_close(class_scores(case.input("aux_logits")), case.expected("class_score"))


@pytest.mark.parametrize("method_class", [HSSAKD, HSSAKDBranches, HSSAKDJointTeacher])
def test_stage_logits_are_the_joint_logits_of_each_branch(method_class: type[Method]) -> None:
    method = method_class(stub_context(TinyNetwork.SHAPE, TinyNetwork.SHAPE), method_class.Options())
    outputs = tiny_network().eval()(torch.randn(2, 3, 4, 4, dtype=torch.float64))
    stages = method.stage_logits(outputs)
    assert [tuple(logits.shape) for logits in stages] == [(2, 12)] * 3
    for logits, branch in zip(stages, method.branches(outputs.stages), strict=True):
        assert_close(logits, branch.logits)
        for label in range(3):
            assert_close(class_scores(logits)[:, label], sum(logits[:, 4 * label + turn] for turn in range(4)))


def test_branch_gradients_reach_the_student_but_not_a_frozen_teacher() -> None:
    network = tiny_network()
    views = torch.randn(8, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2])

    def teacher(view: str) -> Outputs:
        with torch.no_grad():
            return network(views)

    head = HSSAKDBranches(stub_context(TinyNetwork.SHAPE, TinyNetwork.SHAPE), HSSAKDBranches.Options())
    head.loss(stub_step(labels, teacher=teacher))[0].backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(parameter.grad is not None for parameter in head.parameters())

    student = HSSAKD(stub_context(TinyNetwork.SHAPE, TinyNetwork.SHAPE), HSSAKD.Options())
    represented = head.represent(teacher("rotated"))
    step = stub_step(
        labels, student=lambda view: network(views), teacher=teacher, teacher_head=lambda view: represented
    )
    student(step)["branches"].backward()
    assert network.stem.weight.grad.abs().sum() > 0


@settings(deadline=None)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=20))
def test_joint_labels_are_image_major_like_the_rotated_view(labels: list[int]) -> None:
    joint = joint_labels(torch.tensor(labels))
    assert joint.tolist() == [4 * label + turn for label in labels for turn in range(4)]
    assert (upright(joint) // 4).tolist() == labels


def test_networks_with_different_numbers_of_stages_are_refused_by_name() -> None:
    small = Shape("small", 10, (8, 8, 8), ((8, 8, 8),) * 3, 8)
    large = Shape("large", 10, (8, 8, 8), ((8, 8, 8),) * 4, 8)
    with pytest.raises(UserError, match="small has 3 stages and large 4"):
        HSSAKD(stub_context(small, large), HSSAKD.Options())


def test_star_reads_the_branches_of_the_jointly_trained_teacher() -> None:
    assert HSSAKDStar.teacher_method == HSSAKDStar.teacher_head == HSSAKDJointTeacher.name
    assert not HSSAKDStar.in_default_grid
    assert HSSAKD.teacher_head == HSSAKDBranches.name
    assert HSSAKD.teacher_method == "Baseline"


def test_options_out_of_range_are_refused() -> None:
    for option in ({"temperature": 0}, {"branch_weight": -1}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            HSSAKD.Options(**option)
