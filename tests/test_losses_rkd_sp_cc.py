"""RKD, SP and CC against the public implementations' values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from benchmark.method.contract import Method
from methods.cc import CC, congruence_loss
from methods.rkd import RKD, relation_losses, relations
from methods.sp import SP, similarities, similarity_loss
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

FLOATS = {"rtol": 1e-10, "atol": 1e-12}


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("weights", "suffix"), [((25, 50), ""), ((1, 0), "_distance"), ((0, 1), "_angle")])
def test_relational_losses_and_gradients_equal_the_public_ones(weights: tuple[float, float], suffix: str) -> None:
    case = Case("rkd", "basic")
    student, teacher = leaf(case.input("student_feat")), leaf(case.input("teacher_feat"))
    distance, angle = relation_losses(student, teacher)
    loss = weights[0] * distance + weights[1] * angle
    loss.backward()
    assert_close(loss, case.expected(f"loss{suffix}"))
    assert_gradient(case, f"student_feat{suffix}", student)
    assert teacher.grad is None


def test_relational_loss_of_equal_rows_equals_the_public_one() -> None:
    case = Case("rkd", "duplicate")
    student, teacher = leaf(case.input("student_feat")), case.input("teacher_feat")
    assert torch.equal(student[1], student[3])
    distance, angle = relation_losses(student, teacher)
    loss = 25 * distance + 50 * angle
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_feat", student)


def test_relations_are_distances_over_their_mean_and_cosines() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    distances, cosines = relations(points)
    expected = torch.tensor([[0.0, 3.0, 4.0], [3.0, 0.0, 5.0], [4.0, 5.0, 0.0]], dtype=torch.float64) / 4
    assert_close(distances, expected)
    # From the first point the others stand at a right angle, from the second the first and third at 3/5.
    corners = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert_close(cosines[0], corners)
    assert_close(cosines[1, 0, 2], torch.tensor(0.6, dtype=torch.float64))
    assert_close(cosines[2, 0, 1], torch.tensor(0.8, dtype=torch.float64))


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(1e-2, 1e2))
def test_relations_do_not_depend_on_scale_place_and_rotation(seed: int, scale: float) -> None:
    points = vectors(5, 4, seed=seed)
    rotation, _ = torch.linalg.qr(vectors(4, 4, seed=seed + 1))
    for one, other in zip(relations(points), relations(points @ rotation * scale + 3), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("equal", [[0, 0, 2, 3], [0, 0, 0, 3], [0, 0, 0, 0]], ids=["two", "three", "all"])
@pytest.mark.parametrize("whose", ["student", "teacher", "both"])
def test_equal_rows_neither_break_nor_blow_up_the_relational_loss(dtype: Any, equal: list[int], whose: str) -> None:
    rows = vectors(2, 4, 6)
    student, teacher = rows[0].to(dtype), rows[1].to(dtype)
    if whose != "teacher":
        student = student[equal]
    if whose != "student":
        teacher = teacher[equal]
    student = leaf(student)
    distance, angle = relation_losses(student, teacher)
    (25 * distance + 50 * angle).backward()
    assert torch.isfinite(distance)
    assert torch.isfinite(angle)
    # Ordinary rows of this size give gradients of about 1.
    assert student.grad.abs().max() < 10


def test_rows_that_differ_by_rounding_count_as_equal() -> None:
    rows = vectors(4, 6).float()
    rows[1] = torch.nextafter(rows[0], torch.zeros(6))
    student = leaf(rows)
    distance, angle = relation_losses(student, vectors(4, 6, seed=1).float())
    (25 * distance + 50 * angle).backward()
    assert student.grad.abs().max() < 10


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_relations_are_exact_for_images_close_together_and_far_from_the_origin(offset: float) -> None:
    # Multiples of powers of two, so that neither the offset nor the differences are rounded.
    points = (vectors(6, 5) * 2**8).round() / 2**8
    points[1] = points[0] + torch.eye(5, dtype=torch.float64)[2] / 2**14
    differences = points[None] - points[:, None]
    lengths = differences.norm(dim=2)
    directions = differences / lengths.clamp_min(1e-12)[..., None]
    distances, cosines = relations(points + offset)
    torch.testing.assert_close(distances, lengths / (lengths.sum() / 30), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(cosines, directions @ directions.mT, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_a_batch_of_identical_rows_gives_the_student_no_gradient(value: float) -> None:
    student = leaf(torch.full((4, 6), value, dtype=torch.float64))
    distance, angle = relation_losses(student, vectors(4, 6))
    (distance + angle).backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_similarity_loss_and_gradient_equal_the_public_ones() -> None:
    case = Case("sp", "basic")
    student, teacher = leaf(case.input("student_feat")), leaf(case.input("teacher_feat"))
    loss = similarity_loss(student, teacher)
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_feat", student)
    assert teacher.grad is None


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(1e-3, 1e3))
def test_similarities_are_rows_of_length_one_whatever_the_scale(seed: int, scale: float) -> None:
    maps = vectors(4, 3, 2, 2, seed=seed)
    found = similarities(maps)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4, dtype=torch.float64), **FLOATS)
    torch.testing.assert_close(similarities(maps * scale), found, **FLOATS)


def test_similarities_do_not_depend_on_the_memory_format() -> None:
    maps = vectors(4, 3, 2, 2)
    assert_close(similarities(maps.contiguous(memory_format=torch.channels_last)), similarities(maps))


def test_a_map_of_zeros_neither_breaks_nor_blows_up_the_similarity_loss() -> None:
    maps = vectors(4, 3, 2, 2)
    maps[1] = 0
    student = leaf(maps)
    loss = similarity_loss(student, vectors(4, 5, 2, 2, seed=1))
    loss.backward()
    assert torch.equal(similarities(maps)[1], torch.zeros(4, dtype=torch.float64))
    assert torch.isfinite(loss)
    # Ordinary maps of this size give gradients of about 0.02.
    assert student.grad.abs().max() < 1


def test_similarities_of_half_precision_maps_are_computed_in_float32() -> None:
    student, teacher = vectors(2, 8, 6, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = similarity_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, similarity_loss(student.float(), teacher.float()))


def test_relations_of_half_precision_vectors_are_computed_in_float32() -> None:
    student, teacher = vectors(2, 8, 6).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = torch.stack(relation_losses(student, teacher))
    assert losses.dtype == torch.float32
    assert torch.equal(losses, torch.stack(relation_losses(student.float(), teacher.float())))


def cc_with(weights: dict[str, Tensor], context: Any, options: CC.Options) -> CC:
    """CC in float64 with the public embeddings' weights."""
    method = CC(context, options).double()
    for ours, public in ((method.embed_student, "embed_s"), (method.embed_teacher, "embed_t")):
        ours.load_state_dict({name: weights[f"{public}.linear.{name}"] for name in ("weight", "bias")})
    return method


def assert_embedding_gradients(case: Case, method: CC) -> None:
    for ours, public in ((method.embed_student, "embed_s"), (method.embed_teacher, "embed_t")):
        assert_close(ours.weight.grad, case.expected(f"gradw_{public}.linear.weight"))
        assert_close(ours.bias.grad, case.expected(f"gradw_{public}.linear.bias"))


def test_congruence_loss_and_gradients_equal_the_public_ones() -> None:
    case = Case("cc", "basic")
    student, teacher = leaf(case.input("student_feat")), case.input("teacher_feat")
    shapes = [shape_from(name, step_outputs(Case("cc", "step"), name, False)) for name in ("student", "teacher")]
    options = CC.Options(dimensions=int(case.get("hp", "feat_dim")))
    method = cc_with(case.weights(), stub_context(*shapes), options)
    loss = congruence_loss(method.embed_student(student), method.embed_teacher(teacher))
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_feat", student)
    assert_embedding_gradients(case, method)


def test_congruence_is_of_neighbours_in_the_batch_without_the_last_and_the_first() -> None:
    student = torch.tensor([[1.0, -2.0], [3.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    loss = congruence_loss(student, torch.zeros_like(student))
    assert_close(loss, torch.tensor((1 * 3 + 2 * 0 + 3 * 0 + 0 * 5) / 2, dtype=torch.float64))
    assert congruence_loss(student[[0, 2, 1]], torch.zeros_like(student)) != loss


def golden_step(method: type[Method], **options: Any) -> tuple[Case, Any, Any, Any]:
    case = Case(str(method.golden), "step")
    student, teacher = step_outputs(case, "student", True), step_outputs(case, "teacher", False)
    context = stub_context(shape_from("student", student), shape_from("teacher", teacher))
    chosen = method.Options(**options)
    built = cc_with(case.weights(), context, chosen) if method is CC else method(context, chosen)
    return case, built, student, stub_step(case.input("labels"), student=student, teacher=teacher)


@pytest.mark.parametrize(
    ("cls", "options", "own"),
    [(RKD, {}, {"distance", "angle"}), (SP, {}, {"similarity"}), (CC, {"dimensions": 12}, {"congruence"})],
)
def test_step_equals_the_public_training_step(cls: type[Method], options: dict[str, Any], own: set[str]) -> None:
    case, method, student, step = golden_step(cls, kd_weight=0, **options)
    loss, terms = method.loss(step)
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert terms.keys() == {"ce", *own}
    assert_step_gradients(case, student)
    if cls is CC:
        assert_embedding_gradients(case, method)


@pytest.mark.parametrize(("cls", "options"), [(RKD, {}), (SP, {}), (CC, {"dimensions": 12})])
def test_conventional_kd_is_added_by_default(cls: type[Method], options: dict[str, Any]) -> None:
    case, method, _, step = golden_step(cls, **options)
    combined, terms = method.loss(step)
    # The golden KD step is 0.1 * ce + 0.9 * kd on the same tensors.
    kd = (Case("kd", "step").expected("total_loss") - 0.1 * terms["ce"]) / 0.9
    assert_close(combined - case.expected("total_loss"), kd)


def test_weights_are_the_published_ones() -> None:
    expected = {RKD: {"distance": 25, "angle": 50}, SP: {"similarity": 3000}, CC: {"congruence": 0.02}}
    for cls, own in expected.items():
        _, method, _, _ = golden_step(cls, **({"dimensions": 12} if cls is CC else {}))
        assert method.weights == {"ce": 1, "kd": 1} | own
    _, method, _, _ = golden_step(RKD, relation_weight=0.5, angle_weight=10)
    assert method.weights == {"ce": 1, "kd": 1, "distance": 12.5, "angle": 5}


@pytest.mark.parametrize(
    ("cls", "option"),
    [
        (RKD, {"relation_weight": -1}),
        (RKD, {"distance_weight": -1}),
        (RKD, {"angle_weight": -1}),
        (SP, {"similarity_weight": -1}),
        (CC, {"congruence_weight": -1}),
        (CC, {"dimensions": 0}),
    ],
)
def test_options_out_of_range_are_refused(cls: type[Method], option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cls.Options(**option)
