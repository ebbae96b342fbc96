"""RLD, NKD, DIST, TTM and WTTM against the public implementations' values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmark.method.contract import Method
from methods.dist import DIST, correlations, relation_losses
from methods.nkd import NKD, normalised_by_row
from methods.rld import RLD, confidence_by_row, masked_correlation_by_row
from methods.ttm import TTM, WTTM, power_sum, transformed_by_row
from tests.golden_logits import (
    STANDARD,
    WITHOUT_LABELS,
    assert_step_equals,
    assert_two_steps_equal,
    build,
    given_logits,
    given_pair,
    step_of,
)
from tests.support import Case, assert_close, assert_gradient, leaf

TTM_CASES = (
    "basic",
    "two_classes",
    "equal_teacher",
    "equal_student",
    "temperature_1",
    "batch_of_2",
    "large_logits",
    "huge_logits",
)
RLD_NOT_FINITE = "huge_logits"
"""The public RLD gives nan there."""
RLD_CASES = [name for name in STANDARD if name != RLD_NOT_FINITE]
RLD_WITHOUT_PARTS = ("same_temperature", "all_masked")
WTTM_CASES = (*WITHOUT_LABELS, "exponent_0_05", "exponent_0_5")


def setting(case: Case, name: str) -> float:
    return float(case.get("hp", name))


@pytest.mark.parametrize(
    "name", [*(name for name in STANDARD if name != RLD_NOT_FINITE), "same_temperature", "all_masked"]
)
def test_both_parts_of_rld_and_the_gradient_equal_the_public_ones(name: str) -> None:
    case = Case("rld", name)
    student, teacher, labels = given_logits(case)
    confidence = confidence_by_row(student, teacher, labels, setting(case, "alpha_T")).mean()
    correlation = masked_correlation_by_row(student, teacher, labels, setting(case, "T")).mean()
    if name in RLD_CASES:
        assert_close(confidence, case.expected("scd_part"))
        assert_close(correlation, case.expected("mcd_part"))
    loss = setting(case, "alpha") * confidence + setting(case, "beta") * correlation
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_logits", student)


def test_rld_of_standardised_logits_equals_the_public_one() -> None:
    case = Case("rld", "standardised")
    student, teacher, labels = given_logits(case)
    names = {"alpha": "alpha", "beta": "beta", "temperature": "T", "confidence_temperature": "alpha_T"}
    options = {ours: setting(case, public) for ours, public in names.items()}
    method = build(RLD, student, teacher, ce_weight=0, standardised=True, **options)
    loss, _ = method.loss(step_of(student, teacher, labels))
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_logits", student)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["large_logits", RLD_NOT_FINITE, "all_masked"])
def test_rld_stays_finite_where_probabilities_underflow(name: str, dtype: torch.dtype) -> None:
    student, teacher, labels = given_logits(Case("rld", name))
    student, teacher = leaf(student.detach().to(dtype)), teacher.to(dtype)
    rows = confidence_by_row(student, teacher, labels, 1.0) + masked_correlation_by_row(student, teacher, labels, 4.0)
    rows.sum().backward()
    assert torch.isfinite(rows).all()
    assert torch.isfinite(student.grad).all()
    assert student.grad.any()


@pytest.mark.parametrize("epoch", [1, 20, 240])
def test_rld_step_equals_the_public_one_through_the_warm_up(epoch: int) -> None:
    assert_step_equals(Case("rld", f"step_epoch_{epoch}"), RLD, epoch)


@pytest.mark.parametrize("name", STANDARD)
def test_both_parts_of_nkd_and_the_gradient_equal_the_public_ones(name: str) -> None:
    case = Case("nkd", name)
    student, teacher, labels = given_logits(case)
    target, others = normalised_by_row(student, teacher, labels, setting(case, "temp")).mean(1)
    assert_close(target, case.expected("target_part"))
    loss = target + setting(case, "gamma") * others
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_logits", student)


@pytest.mark.parametrize("name", [*WITHOUT_LABELS, "unequal_weights"])
def test_both_relations_and_the_gradient_equal_the_public_ones(name: str) -> None:
    case = Case("dist", name)
    student, teacher = given_pair(case)
    inter, intra = relation_losses(student, teacher, setting(case, "tau"))
    if name in STANDARD:
        assert_close(inter, case.expected("inter_class_relation_times_tau2"))
        assert_close(intra, case.expected("intra_class_relation_times_tau2"))
    loss = setting(case, "beta") * inter + setting(case, "gamma") * intra
    loss.backward()
    assert_close(loss, case.expected("loss"))
    if name in ("equal_student", "equal_both"):
        # A residue of 1e-17 over the bound of 1e-8 is all that the gradient of constant probabilities consists of.
        torch.testing.assert_close(student.grad, case.expected("grad_student_logits"), rtol=0, atol=1e-6)
    else:
        assert_gradient(case, "student_logits", student)


def test_a_correlation_sees_neither_scale_nor_shift_and_a_constant_has_none() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0], [3.0, 1.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(correlations(values, 5 * values - 3), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(correlations(values, -values), -torch.ones(2, dtype=torch.float64))
    assert torch.equal(correlations(values, torch.ones_like(values)), torch.zeros(2, dtype=torch.float64))


def weighted(student: Tensor, teacher: Tensor, exponent: float) -> Tensor:
    return (power_sum(teacher, exponent) * transformed_by_row(student, teacher, exponent)).mean()


@pytest.mark.parametrize(
    "name", [f"{kind}_{name}" for kind, names in (("wttm", WTTM_CASES), ("ttm", TTM_CASES)) for name in names]
)
def test_transformed_matching_and_its_gradient_equal_the_public_ones(name: str) -> None:
    case = Case("wttm", name)
    student, teacher = given_pair(case)
    exponent = setting(case, "exponent")
    if name.startswith("wttm"):
        loss = weighted(student, teacher, exponent)
        if "exponent" not in name:
            assert_close(power_sum(teacher, exponent), case.expected("power_sum"))
    else:
        loss = transformed_by_row(student, teacher, exponent).mean()
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_logits", student)


def test_the_power_sum_lies_between_certainty_and_ignorance() -> None:
    sure = torch.tensor([[1e4, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert_close(power_sum(sure, 0.2), torch.ones(1, dtype=torch.float64))
    assert float(power_sum(torch.zeros(1, 100), 0.2)) == pytest.approx(100**0.8)


@pytest.mark.parametrize(
    ("file", "name", "cls"),
    [("nkd", "step", NKD), ("dist", "step", DIST), ("wttm", "ttm_step", TTM), ("wttm", "wttm_step", WTTM)],
)
def test_steps_equal_the_public_ones(file: str, name: str, cls: type[Method]) -> None:
    assert_step_equals(Case(file, name), cls)


@pytest.mark.parametrize(
    ("file", "name", "cls", "epoch"),
    [
        ("rld", "two_steps", RLD, 7),
        ("nkd", "two_steps", NKD, 240),
        ("dist", "two_steps", DIST, 240),
        ("wttm", "ttm_two_steps", TTM, 240),
        ("wttm", "wttm_two_steps", WTTM, 240),
    ],
)
def test_two_steps_equal_the_public_ones(file: str, name: str, cls: type[Method], epoch: int) -> None:
    assert_two_steps_equal(Case(file, name), cls, epoch)


@pytest.mark.parametrize("cls", [NKD, DIST, TTM, WTTM])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_terms_are_finite_for_logits_of_any_size(cls: type[Method], dtype: torch.dtype) -> None:
    student, teacher, labels = given_logits(Case("nkd", "huge_logits"))
    student = leaf(student.detach().to(dtype))
    terms = build(cls, student, teacher.to(dtype))(step_of(student, teacher.to(dtype), labels))
    torch.stack([term.float() for term in terms.values()]).sum().backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(
    ("cls", "options", "weights"),
    [
        (RLD, {}, {"ce": 1, "confidence": 1, "correlation": 8}),
        (NKD, {}, {"ce": 1, "target": 1, "others": 3.5}),
        (DIST, {"intra_weight": 0.5}, {"ce": 1, "inter": 2, "intra": 1}),
        (TTM, {}, {"ce": 1, "ttm": 45}),
        (WTTM, {}, {"ce": 1, "ttm": 4}),
    ],
)
def test_weights_are_the_published_ones(cls: type[Method], options: dict[str, Any], weights: dict[str, float]) -> None:
    logits = torch.zeros(2, 3, dtype=torch.float64)
    assert build(cls, logits, logits, **options).weights == weights
