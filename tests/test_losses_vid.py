"""VID against the public implementation's values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmark.method.contract import Shape, UserError
from methods.vid import VID, Guess, inverse_softplus, negative_log_likelihood
from tests.drawn import DrawnCase
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


def public_name(name: str) -> str:
    """The name of a guess's parameter in the public code."""
    return name.replace("guesses.", "").replace("mean.", "regressor.").replace("rho", "log_scale")


def load(module: torch.nn.Module, case: Case) -> None:
    weights = case.weights()
    module.load_state_dict({name: weights[public_name(name)] for name in module.state_dict()})


@pytest.mark.parametrize("name", ["same", "student_larger", "student_smaller"])
def test_information_loss_and_gradients_equal_the_public_ones(name: str) -> None:
    case = DrawnCase("vid", name)
    student, teacher = leaf(case.input("student_feat")), case.input("teacher_feat")
    guess = Guess(16, 32, 5.0, 1e-5).double()
    load(guess, case)
    loss = guess(student, teacher)
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_feat", student)
    assert_close(guess.rho.grad, case.expected("gradw_log_scale"))
    if name == "student_smaller":
        for own, parameter in guess.named_parameters():
            assert_close(parameter.grad, case.expected(f"gradw_{public_name(own)}"))


def test_vid_step_equals_the_public_training_step() -> None:
    case = Case("vid", "step")
    student, teacher = step_outputs(case, "student", True), step_outputs(case, "teacher", False)
    context = stub_context(shape_from("student", student), shape_from("teacher", teacher))
    method = VID(context, VID.Options(kd_weight=0)).double()
    load(method, case)
    loss, terms = method.loss(stub_step(case.input("labels"), student=student, teacher=teacher))
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert terms.keys() == {"ce", "information"}
    assert_step_gradients(case, student)
    for name, parameter in method.named_parameters():
        assert_close(parameter.grad, case.expected(f"gradw_{public_name(name)}"))
    assert "kd" in VID(context, VID.Options()).weights, "conventional KD is added by default"


def test_every_channel_starts_with_the_public_variance() -> None:
    case = Case("vid", "same")
    torch.testing.assert_close(
        Guess(16, 32, 5.0, 1e-5).rho.detach().double(), case.expected("official_init_log_scale"), rtol=1e-7, atol=0
    )
    assert_close(
        torch.full((32,), inverse_softplus(5.0 - 1e-5), dtype=torch.float64), case.expected("official_init_log_scale")
    )


@given(st.floats(-25, 300))
def test_inverse_softplus_inverts_softplus(rho: float) -> None:
    value = torch.nn.functional.softplus(torch.tensor(rho, dtype=torch.float64), threshold=40).item()
    assert math.isclose(inverse_softplus(value), rho, rel_tol=1e-9, abs_tol=1e-9)


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_the_loss_is_the_mean_negative_log_likelihood_of_a_gaussian(seed: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    mean, teacher = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64, generator=stream)
    variance = torch.rand(4, dtype=torch.float64, generator=stream) + 0.1
    gaussian = torch.distributions.Normal(mean, variance.sqrt()[:, None, None])
    expected = -gaussian.log_prob(teacher).mean() - 0.5 * math.log(2 * math.pi)
    assert_close(negative_log_likelihood(mean, teacher, variance), expected)


def test_the_variance_stays_finite_where_the_public_softplus_overflows() -> None:
    guess = Guess(1, 1, 5.0, 1e-5)
    with torch.no_grad():
        guess.rho.fill_(1000.0)
    assert guess.variance.item() == pytest.approx(1000.0)


def test_an_initial_variance_at_or_below_the_smallest_is_refused() -> None:
    shape = Shape("net", 10, (4, 8, 8), ((4, 8, 8),), 4)
    with pytest.raises(UserError, match=r"initial_variance = 0.1 is not above .* epsilon = 0.1"):
        VID(stub_context(shape, shape), VID.Options(initial_variance=0.1, epsilon=0.1))
    with pytest.raises(ValidationError):
        VID.Options(epsilon=0)


def test_stages_without_a_partner_are_left_out() -> None:
    deep = Shape("deep", 10, (4, 8, 8), ((4, 8, 8), (6, 4, 4), (8, 2, 2)), 8)
    flat = Shape("flat", 10, (4, 8, 8), ((5, 8, 8), (7, 8, 8)), 7)
    for student, teacher in ((deep, flat), (flat, deep)):
        assert len(VID(stub_context(student, teacher), VID.Options()).guesses) == 2
