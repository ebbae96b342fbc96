"""FitNet and AT against the public implementation's values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmark.method.contract import Shape, UserError
from methods.at import AT, attention_loss, attention_map, pool_to_height
from methods.fitnet import FitNet, Regressor, hint_loss
from tests.support import (
    Case,
    assert_close,
    assert_gradient,
    assert_step_gradients,
    leaf,
    shape_from,
    step_outputs,
    stub_context,
    stub_step,
)


@pytest.mark.parametrize("rule", ["half", "same", "double", "crop"])
def test_regressor_and_hint_loss_equal_the_public_ones(rule: str) -> None:
    case = Case("fitnet", rule)
    student, teacher = leaf(case.input("student_feat")), case.input("teacher_feat")
    regressor = Regressor(tuple(student.shape[1:]), tuple(teacher.shape[1:])).double()
    regressor.load_state_dict(case.weights(), strict=False)
    loss = hint_loss(regressor(student), teacher)
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_feat", student)
    for name, parameter in regressor.named_parameters():
        assert_close(parameter.grad, case.expected(f"gradw_{name}"))
    assert_close(regressor.bn.running_mean, case.expected("bn_running_mean"))
    assert_close(regressor.bn.running_var, case.expected("bn_running_var"))


def test_fitnet_step_equals_the_public_training_step() -> None:
    case = Case("fitnet", "step")
    student, teacher = step_outputs(case, "student", True), step_outputs(case, "teacher", False)
    context = stub_context(shape_from("student", student), shape_from("teacher", teacher))
    method = FitNet(context, FitNet.Options(kd_weight=0)).double()
    method.regressor.load_state_dict(case.weights(), strict=False)
    loss, terms = method.loss(stub_step(case.input("labels"), student=student, teacher=teacher))
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert terms.keys() == {"ce", "hint"}
    assert_step_gradients(case, student)
    for name, parameter in method.regressor.named_parameters():
        assert_close(parameter.grad, case.expected(f"gradw_{name}"))


def shape(*stages: tuple[int, int, int], name: str = "net") -> Shape:
    return Shape(name, 10, (16, 32, 32), stages, 64)


def test_fitnet_names_both_networks_where_no_rule_fits() -> None:
    context = stub_context(shape((8, 5, 5), name="small"), shape((8, 16, 16), name="large"))
    with pytest.raises(UserError, match=r"small \(8, 5, 5\).*large \(8, 16, 16\)"):
        FitNet(context, FitNet.Options(hint_stage=1))


def test_fitnet_refuses_a_stage_that_a_network_does_not_have() -> None:
    context = stub_context(shape((8, 8, 8), (8, 4, 4)), shape((8, 8, 8)))
    with pytest.raises(UserError, match="hint_stage = 2, but net has maps 0"):
        FitNet(context, FitNet.Options())
    with pytest.raises(ValidationError):
        FitNet.Options(hint_stage=-1)


def test_attention_losses_and_gradients_equal_the_public_ones() -> None:
    case = Case("at", "basic")
    student = [leaf(case.input(f"student_feat_{layer}")) for layer in range(3)]
    teacher = [case.input(f"teacher_feat_{layer}") for layer in range(3)]
    each = torch.stack([attention_loss((own,), (other,)) for own, other in zip(student, teacher, strict=True)])
    assert_close(each, case.expected("losses"))
    loss = attention_loss(tuple(student), tuple(teacher))
    loss.backward()
    assert_close(loss, case.expected("loss"))
    for layer, tensor in enumerate(student):
        assert_gradient(case, f"student_feat_{layer}", tensor)


def test_attention_step_equals_the_public_training_step() -> None:
    case = Case("at", "step")
    student, teacher = step_outputs(case, "student", True), step_outputs(case, "teacher", False)
    context = stub_context(shape_from("student", student), shape_from("teacher", teacher))
    loss, terms = AT(context, AT.Options(kd_weight=0)).loss(
        stub_step(case.input("labels"), student=student, teacher=teacher)
    )
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert terms.keys() == {"ce", "attention"}
    assert_step_gradients(case, student)


@pytest.mark.parametrize("method", [FitNet, AT])
def test_conventional_kd_is_added_by_default(method: type[FitNet] | type[AT]) -> None:
    case = Case("at", "step")
    student, teacher = step_outputs(case, "student", False), step_outputs(case, "teacher", False)
    context = stub_context(shape_from("student", student), shape_from("teacher", teacher))
    step = stub_step(case.input("labels"), student=student, teacher=teacher)
    without, _ = method(context, method.Options(kd_weight=0)).double().loss(step)
    combined, terms = method(context, method.Options()).double().loss(step)
    # The golden KD step is 0.1 * ce + 0.9 * kd on the same tensors.
    kd = (Case("kd", "step").expected("total_loss") - 0.1 * terms["ce"]) / 0.9
    assert_close(combined - without, kd)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(1e-3, 1e3))
def test_attention_does_not_depend_on_the_scale_of_a_map(seed: int, scale: float) -> None:
    maps = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(attention_map(maps * scale), attention_map(maps), rtol=1e-10, atol=1e-12)
    assert attention_loss((maps * scale,), (maps,)) < 1e-20


@pytest.mark.parametrize("rows", [4, 7, 8, 12])
def test_pooling_to_a_height_is_adaptive_average_pooling(rows: int) -> None:
    maps = torch.randn(2, 3, rows, rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(pool_to_height(maps, 4), torch.nn.functional.adaptive_avg_pool2d(maps, 4))
