"""CRD against the public implementation's values, and what its draws must never be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from benchmark.method.contract import Step, UserError
from methods.crd import CRD, EPSILON, Negatives, contrast_loss
from tests.support import (
    Case,
    assert_close,
    assert_step_gradients,
    leaf,
    outputs_of,
    shape_from,
    step_outputs,
    stub_context,
    stub_step,
)

IMAGES, NEGATIVES, WIDTH = 40, 12, 16
EMBEDDINGS = {
    "embed_s.linear.weight": "embed_student.weight",
    "embed_s.linear.bias": "embed_student.bias",
    "embed_t.linear.weight": "embed_teacher.weight",
    "embed_t.linear.bias": "embed_teacher.bias",
}


class GivenDraws(CRD):
    """CRD whose candidates are given instead of drawn."""

    candidates: Tensor

    def draw(self, index: Tensor, step: Step) -> Tensor:
        return self.candidates


def golden_crd(student_pooled: Tensor, teacher_pooled: Tensor, **options: Any) -> GivenDraws:
    """CRD with the first weights and memories of the golden cases."""
    case = Case("crd", "two_batches")
    student = shape_from("student", outputs_of(torch.zeros(8, 10), student_pooled))
    teacher = shape_from("teacher", outputs_of(torch.zeros(8, 10), teacher_pooled))
    chosen = {"kd_weight": 0, "dimensions": WIDTH, "negatives": NEGATIVES} | options
    method = GivenDraws(stub_context(student, teacher, torch.arange(IMAGES) % 10), CRD.Options(**chosen)).double()
    state = {ours: case.get("w", theirs) for theirs, ours in EMBEDDINGS.items()}
    state |= {"memory_student": case.input("memory_v1_init"), "memory_teacher": case.input("memory_v2_init")}
    method.load_state_dict(state, strict=False)
    return method


def test_two_batches_equal_the_public_ones_with_gradients_and_memories() -> None:
    case = Case("crd", "two_batches")
    method = golden_crd(case.input("student_feat_b1"), case.input("teacher_feat_b1"))
    for batch in ("b1", "b2"):
        student, teacher = leaf(case.input(f"student_feat_{batch}")), leaf(case.input(f"teacher_feat_{batch}"))
        logits = torch.zeros(8, 10, dtype=torch.float64)
        method.candidates = case.input(f"contrast_idx_{batch}")
        step = stub_step(
            torch.zeros(8, dtype=torch.long),
            case.input(f"index_{batch}"),
            student=outputs_of(logits, student),
            teacher=outputs_of(logits, teacher),
        )
        method.zero_grad()
        loss = method(step)["contrast"]
        loss.backward()
        assert_close(loss[None], case.expected(f"{batch}_loss"))
        assert_close(method.normalisers, torch.stack([case.expected(f"{batch}_Z_v{side}") for side in (1, 2)]))
        assert_close(student.grad, case.expected(f"{batch}_grad_student_feat"))
        assert_close(teacher.grad, case.expected(f"{batch}_grad_teacher_feat_if_not_detached"))
        for theirs, ours in EMBEDDINGS.items():
            assert_close(method.get_parameter(ours).grad, case.expected(f"{batch}_gradw_{theirs}"))
        assert_close(method.memory_student, case.expected(f"{batch}_memory_v1"))
        assert_close(method.memory_teacher, case.expected(f"{batch}_memory_v2"))


def test_each_side_equals_the_public_one() -> None:
    case = Case("crd", "two_batches")
    zero, unknown = torch.zeros((), dtype=torch.float64), torch.tensor(False)
    candidates = case.input("contrast_idx_b1")
    for side, memory, embedded in (("s", "memory_v2_init", "embed_s"), ("t", "memory_v1_init", "embed_t")):
        loss, _ = contrast_loss(case.expected(f"b1_{embedded}"), case.input(memory), candidates, zero, unknown, 0.07)
        assert_close(loss[None], case.expected(f"b1_{side}_loss"))


def test_draws_from_all_images_with_the_own_class_among_them_equal_the_public_ones() -> None:
    case = Case("crd", "alias_draw")
    student, teacher = leaf(case.input("student_feat")), case.input("teacher_feat")
    method = golden_crd(student, teacher)
    candidates = case.input("draw").view(8, NEGATIVES + 1).clone()
    candidates[:, 0] = case.input("index")
    method.candidates = candidates
    logits = torch.zeros(8, 10, dtype=torch.float64)
    loss = method(
        stub_step(
            torch.zeros(8, dtype=torch.long),
            case.input("index"),
            student=outputs_of(logits, student),
            teacher=outputs_of(logits, teacher),
        )
    )["contrast"]
    loss.backward()
    assert_close(loss[None], case.expected("loss"))
    assert_gradient_of(case, "student_feat", student)
    assert_close(method.normalisers, torch.stack([case.expected("Z_v1"), case.expected("Z_v2")]))


def assert_gradient_of(case: Case, name: str, tensor: Tensor) -> None:
    assert tensor.grad is not None
    assert_close(tensor.grad, case.expected(f"grad_{name}"))


@pytest.mark.parametrize(("name", "kd_weight"), [("step", 0), ("step_plus_kd", 1)])
def test_crd_step_equals_the_public_training_step(name: str, kd_weight: float) -> None:
    case = Case("crd", name)
    student, teacher = step_outputs(case, "student", True), step_outputs(case, "teacher", False)
    method = golden_crd(student.pooled, teacher.pooled, kd_weight=kd_weight)
    method.candidates = case.input("contrast_idx")
    loss, terms = method.loss(stub_step(case.input("labels"), case.input("index"), student=student, teacher=teacher))
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert terms.keys() == {"ce", "contrast"} | ({"kd"} if kd_weight else set())
    assert_step_gradients(case, student)
    for theirs, ours in EMBEDDINGS.items():
        assert_close(method.get_parameter(ours).grad, case.expected(f"gradw_{theirs}"))


def test_loss_is_the_formula_of_the_paper_where_candidates_repeat() -> None:
    random = torch.Generator().manual_seed(3)
    embeddings = leaf(torch.randn(4, 6, dtype=torch.float64, generator=random) / 6)
    memory = torch.randn(9, 6, dtype=torch.float64, generator=random) / 6
    candidates = torch.randint(9, (4, 30), generator=random)
    z, temperature = torch.tensor(7.0, dtype=torch.float64), 0.3
    loss, kept = contrast_loss(embeddings, memory, candidates, z, torch.tensor(True), temperature)
    other = leaf(embeddings.detach())
    noise, total = 29 / 9, 0.0
    for row in range(4):
        for column, image in enumerate(candidates[row].tolist()):
            p = torch.exp((memory[image] * other[row]).sum() / temperature) / z
            numerator = p if column == 0 else noise
            total = total - torch.log(numerator / (p + noise + EPSILON)) / 4
    loss.backward()
    total.backward()
    assert torch.equal(kept, z)
    assert_close(loss, total)
    assert_close(embeddings.grad, other.grad)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=4, max_size=60).filter(lambda labels: len(set(labels)) > 1),
    st.sampled_from(["other_classes", "all_images"]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_negatives_are_never_the_image_itself_nor_of_its_class(
    labels: list[int], source: Any, replacement: bool, seed: int
) -> None:
    classes = torch.tensor(labels)
    index = torch.arange(len(labels))
    draws = Negatives(classes, 5, 20, source, replacement)(index, torch.Generator().manual_seed(seed))
    assert draws.dtype == torch.int64
    assert draws.shape[1] >= 1
    assert ((draws >= 0) & (draws < len(labels))).all()
    assert (draws != index[:, None]).all()
    if source == "other_classes":
        assert (classes[draws] != classes[:, None]).all()
    if not replacement:
        assert all(len(set(row)) == len(row) for row in draws.tolist())


@pytest.mark.parametrize("source", ["other_classes", "all_images"])
@pytest.mark.parametrize("replacement", [True, False])
def test_every_allowed_image_is_drawn_equally_often(source: Any, replacement: bool) -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 2, 1])
    draw = Negatives(labels, 3, 2, source, replacement)
    random = torch.Generator().manual_seed(0)
    draws = torch.cat([draw(torch.full((500,), 3), random) for _ in range(8)])
    counts = torch.bincount(draws.flatten(), minlength=8).double()
    allowed = labels != 0 if source == "other_classes" else torch.arange(8) != 3
    expected = draws.numel() / int(allowed.sum())
    assert (counts[~allowed] == 0).all()
    # Six standard deviations of a binomial count.
    assert ((counts[allowed] - expected).abs() < 6 * expected**0.5).all()


def test_negatives_are_as_many_as_the_largest_class_leaves() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2])
    assert Negatives(labels, 3, 16384, "other_classes", True).count == 2
    assert Negatives(labels, 3, 16384, "all_images", True).count == 4
    assert Negatives(labels, 3, 1, "other_classes", True).count == 1
    with pytest.raises(UserError, match="no image to contrast with"):
        Negatives(torch.zeros(3, dtype=torch.long), 1, 5, "other_classes", True)


def test_draws_differ_between_steps_and_repeat_within_one() -> None:
    case = Case("crd", "step")
    student, teacher = step_outputs(case, "student", False), step_outputs(case, "teacher", False)
    shapes = shape_from("student", student), shape_from("teacher", teacher)
    method = CRD(stub_context(*shapes, torch.arange(200) % 10), CRD.Options(negatives=50))
    first, again, later = (
        method.draw(torch.arange(8), stub_step(case.input("labels"), epoch=epoch)) for epoch in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert torch.equal(first[:, 0], torch.arange(8))


def test_normalisers_come_from_the_first_batch_and_survive_a_checkpoint() -> None:
    case = Case("crd", "two_batches")
    method = golden_crd(case.input("student_feat_b1"), case.input("teacher_feat_b1"))

    def train_on(one: GivenDraws, batch: str) -> Tensor:
        one.candidates = case.input(f"contrast_idx_{batch}")
        logits = torch.zeros(8, 10, dtype=torch.float64)
        student = outputs_of(logits, case.input(f"student_feat_{batch}"))
        teacher = outputs_of(logits, case.input(f"teacher_feat_{batch}"))
        index = case.input(f"index_{batch}")
        return one(stub_step(torch.zeros(8, dtype=torch.long), index, student=student, teacher=teacher))["contrast"]

    assert not method.normalisers_known
    train_on(method, "b1")
    assert method.normalisers_known
    resumed = golden_crd(case.input("student_feat_b1"), case.input("teacher_feat_b1"))
    resumed.load_state_dict(method.state_dict())
    assert torch.equal(train_on(resumed, "b2"), train_on(method, "b2"))
    assert_close(resumed.normalisers[0], case.expected("b1_Z_v1"))


@pytest.mark.parametrize(
    "option", [{"negatives": 0}, {"contrast_temperature": 0}, {"memory_momentum": 1}, {"negatives_from": "classes"}]
)
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CRD.Options(**option)
