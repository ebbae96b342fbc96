"""DKD and logit standardisation against the public implementations' values."""

from __future__ import annotations

import pytest
import torch

from benchmark.method.contract import Mixture
from methods.dkd import DKD, decoupled_by_row
from methods.kd import distillation_loss, divergence_by_row
from methods.logit_standardisation import DKDLS, KDLS, standardise
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

NOT_FINITE = "huge_logits"
"""The public DKD gives nan there."""
DKDLS_CASES = ("basic", "two_classes", "tie", "equal_student", "batch_of_2", "large_logits")


@pytest.mark.parametrize("name", [name for name in STANDARD if name != NOT_FINITE])
def test_both_parts_of_dkd_and_the_gradient_equal_the_public_ones(name: str) -> None:
    case = Case("dkd", name)
    student, teacher, labels = given_logits(case)
    target, others = decoupled_by_row(student, teacher, labels, float(case.get("hp", "T"))).mean(1)
    assert_close(target, case.expected("target_class_part"))
    assert_close(others, case.expected("other_classes_part"))
    loss = float(case.get("hp", "alpha")) * target + float(case.get("hp", "beta")) * others
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_logits", student)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dkd_stays_finite_where_probabilities_underflow(dtype: torch.dtype) -> None:
    student, teacher, labels = given_logits(Case("dkd", NOT_FINITE))
    student = leaf(student.detach().to(dtype))
    parts = decoupled_by_row(student, teacher.to(dtype), labels, 4.0)
    parts.sum().backward()
    assert torch.isfinite(parts).all()
    assert torch.isfinite(student.grad).all()
    assert student.grad.any()


def test_dkd_weighed_by_the_teachers_doubt_is_kd() -> None:
    """The identity of the paper's equation 6: the part of the other classes weighs 1 - p(label) there."""
    student, teacher, labels = given_logits(Case("dkd", "basic"))
    target, others = decoupled_by_row(student, teacher, labels, 4.0)
    doubt = 1 - (teacher / 4).softmax(1).gather(1, labels[:, None])[:, 0]
    assert_close(target + doubt * others, divergence_by_row(student, teacher, 4.0))


@pytest.mark.parametrize("epoch", [1, 7, 20, 240])
def test_dkd_step_equals_the_public_one_through_the_warm_up(epoch: int) -> None:
    assert_step_equals(Case("dkd", f"step_epoch_{epoch}"), DKD, epoch)


def test_two_steps_of_dkd_equal_the_public_ones() -> None:
    assert_two_steps_equal(Case("dkd", "two_steps"), DKD, epoch=7, beta=2)


def test_the_warm_up_is_a_share_of_the_schedule_or_a_number_of_epochs() -> None:
    student, teacher, labels = given_logits(Case("dkd", "basic"))
    whole = build(DKD, student, teacher, warmup_epochs=0)(step_of(student, teacher, labels, 1))["target"]

    def factor(epoch: int, epochs: int, **options: bool) -> float:
        step = step_of(student, teacher, labels)
        object.__setattr__(step, "epoch", epoch - 1)
        object.__setattr__(step, "epochs", epochs)
        return float((build(DKD, student, teacher, **options)(step)["target"] / whole).detach())

    assert [factor(epoch, 240) for epoch in (1, 7, 20, 21)] == pytest.approx([0.05, 0.35, 1, 1])
    assert [factor(epoch, 24) for epoch in (1, 2, 3)] == pytest.approx([0.5, 1, 1])
    assert [factor(epoch, 24, warmup_scaled=False) for epoch in (1, 7, 20)] == pytest.approx([0.05, 0.35, 1])


def test_the_target_of_a_mixed_image_counts_for_both_by_their_shares() -> None:
    student, teacher, labels = given_logits(Case("dkd", "basic"))
    mixture = Mixture(share=0.7, labels=labels.flip(0), index=torch.arange(8).flip(0))
    method = build(DKD, student, teacher)
    mixed = method(step_of(student, teacher, labels, mixture=mixture))
    first, second = (method(step_of(student, teacher, one)) for one in (labels, labels.flip(0)))
    for name, term in mixed.items():
        torch.testing.assert_close(term, 0.7 * first[name] + 0.3 * second[name])


@pytest.mark.parametrize("name", WITHOUT_LABELS)
def test_standardised_kd_and_its_gradient_equal_the_public_ones(name: str) -> None:
    case = Case("lskd", f"kd_{name}")
    student, teacher = given_pair(case)
    assert_close(standardise(student), case.expected("standardised_student"))
    assert_close(standardise(teacher), case.expected("standardised_teacher"))
    loss = distillation_loss(standardise(student), standardise(teacher), float(case.get("hp", "T")))
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_logits", student)


@pytest.mark.parametrize("name", DKDLS_CASES)
def test_standardised_dkd_and_its_gradient_equal_the_public_ones(name: str) -> None:
    case = Case("lskd", f"dkd_{name}")
    student, teacher, labels = given_logits(case)
    parts = decoupled_by_row(standardise(student), standardise(teacher), labels, float(case.get("hp", "T"))).mean(1)
    loss = float(case.get("hp", "alpha")) * parts[0] + float(case.get("hp", "beta")) * parts[1]
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_logits", student)


def test_standardised_steps_equal_the_public_ones() -> None:
    assert_step_equals(Case("lskd", "kd_step"), KDLS)
    assert_step_equals(Case("lskd", "dkd_step_epoch_1"), DKDLS, epoch=1)
    assert_step_equals(Case("lskd", "dkd_step_epoch_240"), DKDLS, epoch=240)


@pytest.mark.parametrize(("name", "cls"), [("kd_two_steps", KDLS), ("dkd_two_steps", DKDLS)])
def test_two_standardised_steps_equal_the_public_ones(name: str, cls: type[KDLS] | type[DKDLS]) -> None:
    assert_two_steps_equal(Case("lskd", name), cls, epoch=7)


def test_standardised_losses_do_not_see_scale_and_shift() -> None:
    student, teacher, labels = given_logits(Case("lskd", "dkd_basic"))
    method = build(DKDLS, student, teacher)
    one = method(step_of(student, teacher, labels))
    other = method(step_of(student * 3 + 1, teacher / 2 - 5, labels))
    for name in ("target", "others"):
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-9)
    assert not torch.allclose(one["ce"], other["ce"])


def test_weights_are_the_published_ones() -> None:
    student, teacher, _ = given_logits(Case("dkd", "basic"))
    assert build(DKD, student, teacher).weights == {"ce": 1, "target": 1, "others": 8}
    assert build(KDLS, student, teacher).weights == {"ce": 0.1, "kd": 9}
    assert build(DKDLS, student, teacher, beta=2, dkd_weight=18).weights == {"ce": 1, "target": 18, "others": 36}
