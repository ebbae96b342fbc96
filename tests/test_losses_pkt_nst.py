"""PKT and NST against the public implementations' values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmark.method.contract import Method
from methods.nst import NST, channel_directions, mean_kernel, selectivity_loss
from methods.pkt import PKT, neighbour_loss, neighbour_probabilities
from tests.golden_networks import assert_staged_steps_equal
from tests.support import (
    Case,
    assert_close,
    assert_gradient,
    leaf,
    outputs_of,
    shape_from,
    stub_context,
    stub_step,
)

PKT_CASES = (
    "basic",
    "batch_of_2",
    "batch_of_1",
    "identical",
    "post_relu",
    "duplicate_rows",
    "opposite_rows",
    "zero_row_teacher",
    "large_features",
)
NST_CASES = (
    "same_size",
    "student_larger",
    "teacher_larger",
    "one_by_one_maps",
    "post_relu",
    "dead_channels",
    "identical",
    "batch_of_1",
)


@pytest.mark.parametrize("name", PKT_CASES)
def test_neighbour_loss_and_gradient_equal_the_public_ones(name: str) -> None:
    case = Case("pkt", name)
    student = leaf(case.input("student_feat"))
    loss = neighbour_loss(student, case.input("teacher_feat"))
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_feat", student)


def test_a_vector_of_zeros_gets_no_gradient_and_the_others_the_public_one() -> None:
    case = Case("pkt", "zero_row")
    student = leaf(case.input("student_feat"))
    loss = neighbour_loss(student, case.input("teacher_feat"))
    loss.backward()
    assert_close(loss, case.expected("loss"))
    zero = ~student.detach().any(1)
    expected = case.expected("grad_student_feat")
    assert zero.sum() == 1
    assert torch.equal(expected.isnan().all(1), zero)
    assert torch.equal(student.grad[zero], torch.zeros_like(student[zero]))
    assert_close(student.grad[~zero], expected[~zero])


def test_neighbour_probabilities_are_rows_that_sum_to_one_whatever_the_scale() -> None:
    features = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = neighbour_probabilities(features)
    assert_close(found.sum(1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(neighbour_probabilities(features * 1000), found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [16, 64, 128])
def test_the_mean_over_rows_keeps_its_size_in_batches_of_another_size(rows: int) -> None:
    stream = torch.Generator().manual_seed(rows)
    logits, student, teacher = (torch.randn(rows, 4, dtype=torch.float64, generator=stream) for _ in range(3))
    step = stub_step(
        torch.zeros(rows, dtype=torch.int64), student=outputs_of(logits, student), teacher=outputs_of(logits, teacher)
    )
    shapes = [shape_from(name, outputs_of(logits, student)) for name in ("student", "teacher")]
    entries, by_row = (
        PKT(stub_context(*shapes), PKT.Options(reduction=reduction))(step)["neighbours"]
        for reduction in ("entries", "rows")
    )
    target, own = neighbour_probabilities(teacher), neighbour_probabilities(student)
    divergence = (target * (target.log() - own.log())).sum(1).mean()
    torch.testing.assert_close(by_row, divergence / 64, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(entries, divergence / rows, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", NST_CASES)
def test_selectivity_losses_and_gradients_equal_the_public_ones(name: str) -> None:
    case = Case("nst", name)
    student = leaf(case.input("student_feat_0"))
    loss = selectivity_loss(student, case.input("teacher_feat_0"))
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_feat_0", student)


def test_both_ways_to_sum_a_kernel_are_the_double_sum() -> None:
    stream = torch.Generator().manual_seed(1)
    few, many, other = (
        torch.randn(2, channels, 3, 3, dtype=torch.float64, generator=stream) for channels in (4, 20, 11)
    )
    for maps in (few, many):
        one, two = channel_directions(maps), channel_directions(other)
        by_hand = sum((a @ b) ** 2 for image in range(2) for a in one[image] for b in two[image])
        assert_close(mean_kernel(one, two), by_hand / (2 * len(one[0]) * len(two[0])))


@pytest.mark.parametrize("cls", [PKT, NST])
def test_two_steps_equal_the_public_ones(cls: type[Method]) -> None:
    assert_staged_steps_equal(Case(str(cls.golden), "two_steps"), cls, kd_weight=0)


@pytest.mark.parametrize("name", ["PKT", "NST"])
def test_half_precision_is_computed_in_float32(name: str) -> None:
    stream = torch.Generator().manual_seed(1)
    maps = [torch.randn(8, 6, 4, 4, generator=stream).bfloat16() for _ in range(2)]
    loss = neighbour_loss if name == "PKT" else selectivity_loss
    inputs: list[Tensor] = [map_.mean((2, 3)) for map_ in maps] if name == "PKT" else maps
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(*inputs)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(*(tensor.float() for tensor in inputs)))


def test_weights_are_the_published_ones() -> None:
    outputs = outputs_of(torch.zeros(2, 3))
    context = stub_context(*(shape_from(name, outputs) for name in ("student", "teacher")))
    assert PKT(context, PKT.Options()).weights == {"ce": 1, "kd": 1, "neighbours": 30000}
    assert NST(context, NST.Options(kd_weight=0)).weights == {"ce": 1, "selectivity": 50}
