"""Cross entropy and KD against the public implementation's values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.method.contract import full_precision
from methods.baseline import Baseline
from methods.kd import KD, distillation_loss
from tests.support import (
    Case,
    assert_close,
    assert_gradient,
    assert_step_gradients,
    leaf,
    outputs_of,
    shape_from,
    step_outputs,
    stub_context,
    stub_step,
)


def test_distillation_loss_and_both_gradients_equal_the_public_ones() -> None:
    case = Case("kd", "basic")
    student, teacher = leaf(case.input("student_logits")), leaf(case.input("teacher_logits"))
    loss = distillation_loss(student, teacher, float(case.get("hp", "T")))
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_logits", student)
    assert_gradient(case, "teacher_logits_if_not_detached", teacher)


def test_kd_step_equals_the_public_training_step() -> None:
    case = Case("kd", "step")
    student, teacher = step_outputs(case, "student", True), step_outputs(case, "teacher", False)
    method = KD(stub_context(shape_from("student", student), shape_from("teacher", teacher)), KD.Options())
    loss, terms = method.loss(stub_step(case.input("labels"), student=student, teacher=teacher))
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert terms.keys() == {"ce", "kd"}
    assert_step_gradients(case, student)


def test_baseline_is_the_cross_entropy_and_asks_for_no_teacher() -> None:
    logits = leaf(torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]], dtype=torch.float64))
    labels = torch.tensor([0, 2])
    method = Baseline(stub_context(shape_from("student", outputs_of(logits))), Baseline.Options())
    loss, terms = method.loss(stub_step(labels, student=outputs_of(logits)))
    by_hand = (
        -sum(torch.log(logits[row].exp()[label] / logits[row].exp().sum()) for row, label in enumerate(labels)) / 2
    )
    assert_close(loss, by_hand)
    assert terms.keys() == {"ce"}


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0.5, 20))
def test_divergence_of_equal_logits_is_zero_and_of_others_positive(seed: int, temperature: float) -> None:
    logits = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert distillation_loss(logits[0], logits[0], temperature).abs() < 1e-12
    assert distillation_loss(logits[0], logits[1], temperature) > 0


def test_losses_compute_in_float32_under_autocast() -> None:
    student, teacher = (torch.randn(2, 8, 10, generator=torch.Generator().manual_seed(1)) * 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distillation_loss(student, teacher, 4.0)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, distillation_loss(student.float(), teacher.float(), 4.0))
    assert full_precision(F.softmax)(student, 1).dtype == torch.float32
