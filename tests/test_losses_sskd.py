"""SSKD and its head against the public implementation's values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

import methods.sskd
from benchmark.method.contract import upright
from methods.sskd import SSKD, SSKDHead, least_wrong, own_image, ranks, selected_divergence, similarity, turned
from tests.support import Case, assert_close, assert_gradient, leaf, outputs_of, shape_from, stub_context, stub_step

HEADS = [f"{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]


def trained_head(case: Case) -> SSKDHead:
    teacher = shape_from("teacher", outputs_of(case.input("teacher_logits"), case.input("teacher_feat")))
    head = SSKDHead(stub_context(teacher, teacher), SSKDHead.Options()).double()
    head.head.load_state_dict(case.weights("teacher_head."))
    return head


def sskd_step(case: Case) -> tuple[SSKD, Any, Tensor, Tensor]:
    """The method as the case has it, its step, and the student's features and logits."""
    features, logits = leaf(case.input("student_feat")), leaf(case.input("student_logits"))
    student = outputs_of(logits, features)
    teacher = outputs_of(case.input("teacher_logits"), case.input("teacher_feat"))
    ratios = {
        "turned_ratio": float(case.get("hp", "ratio_tf")),
        "similarity_ratio": float(case.get("hp", "ratio_ss")),
    }
    context = stub_context(shape_from("student", student), shape_from("teacher", teacher))
    method = SSKD(context, SSKD.Options(**ratios)).double()
    method.head.load_state_dict(case.weights("student_head."))
    with torch.no_grad():
        projected = trained_head(case).represent(teacher)
    step = stub_step(case.input("labels"), student=student, teacher=teacher, teacher_head=lambda view: projected)
    return method, step, features, logits


def assert_public_step(case: Case) -> None:
    method, step, features, logits = sskd_step(case)
    loss, terms = method.loss(step)
    loss.backward()
    for ours, theirs in (("ce", "ce"), ("kd", "kd"), ("turned", "tf"), ("similarity", "ss")):
        assert_close(terms[ours], case.expected(f"loss_{theirs}"))
    assert_close(loss, case.expected("total_loss"))
    assert_gradient(case, "student_feat", features)
    assert_gradient(case, "student_logits", logits)
    for name in HEADS:
        assert_close(method.head.get_parameter(name).grad, case.expected(f"gradw_student_head.{name}"))


@pytest.mark.parametrize("name", ["default", "partial_tf"])
def test_sskd_step_equals_the_public_one(name: str) -> None:
    assert_public_step(Case("sskd", name))


def test_sskd_step_equals_the_public_one_where_ranks_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of the rows that tie at the cut is kept is arbitrary, so the recorded selection is used, in call order."""
    case = Case("sskd", "with_ties")
    masks = []
    for selected in (case.expected("selected_tf"), case.expected("selected_ss")):
        masks.append(torch.zeros(24, dtype=torch.bool).index_fill_(0, selected, True))
    recorded = iter(masks)
    monkeypatch.setattr(methods.sskd, "least_wrong", lambda rank, ratio: next(recorded))
    assert_public_step(case)


@pytest.mark.parametrize("name", ["default", "partial_tf", "with_ties"])
def test_ranks_and_selection_equal_the_public_ones(name: str) -> None:
    case = Case("sskd", name)
    teacher = outputs_of(case.input("teacher_logits"), case.input("teacher_feat"))
    with torch.no_grad():
        cosines = similarity(trained_head(case).represent(teacher))
    assert_close(cosines, case.expected("teacher_similarity"))
    by_similarity = ranks(cosines, own_image(8, cosines.device))
    by_class = ranks(turned(teacher.logits), case.input("labels").repeat_interleave(3))
    assert int((by_similarity > 0).sum()) == case.expected("wrong_num_ss")
    for rank, short in ((by_class, "tf"), (by_similarity, "ss")):
        assert torch.equal(rank, case.expected(f"rank_{short}"))
        keep = least_wrong(rank, float(case.get("hp", f"ratio_{short}")))
        selected = case.expected(f"selected_{short}")
        assert torch.equal(rank[keep].sort().values, rank[selected].sort().values)
        if not bool(case.get("hp", f"boundary_tie_{short}")):
            assert torch.equal(keep.nonzero().flatten(), selected.sort().values)


def test_head_step_equals_the_public_one_with_its_update() -> None:
    case = Case("sskd", "head_pretrain")
    head = trained_head(case)
    pooled = leaf(case.input("teacher_feat"))
    teacher = outputs_of(case.input("teacher_logits"), pooled.detach())
    assert_close(similarity(head.represent(teacher)), case.expected("similarity"))
    loss, _ = head.loss(stub_step(torch.zeros(8, dtype=torch.long), teacher=teacher))
    hyper = {name: float(case.get("hp", name)) for name in ("t_lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(
        head.parameters(), hyper["t_lr"], momentum=hyper["momentum"], weight_decay=hyper["weight_decay"]
    )
    loss.backward()
    assert_close(loss, case.expected("loss"))
    for name in HEADS:
        assert_close(head.head.get_parameter(name).grad, case.expected(f"gradw_teacher_head.{name}"))
    optimizer.step()
    for name in HEADS:
        assert_close(head.head.get_parameter(name).data, case.expected(f"after_step_teacher_head.{name}"))


def test_turned_and_upright_rows_part_the_rotated_view() -> None:
    rows = torch.arange(12)
    assert upright(rows).tolist() == [0, 4, 8]
    assert turned(rows).tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert own_image(3, rows.device).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.floats(0, 1))
def test_selection_keeps_all_right_rows_and_the_least_wrong(rank: list[int], ratio: float) -> None:
    keep = least_wrong(torch.tensor(rank), ratio).tolist()
    kept = sorted(value for value, chosen in zip(rank, keep, strict=True) if chosen)
    wrong = [value for value in rank if value > 0]
    assert kept == sorted(rank)[: len(rank) - len(wrong) + int(len(wrong) * ratio)]


def test_nothing_selected_is_no_loss() -> None:
    logits = leaf(torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    loss = selected_divergence(logits, logits.detach() * 2, torch.tensor([False]), 4.0)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("option", [{"turned_ratio": 1.1}, {"similarity_temperature": 0}, {"ce_weight": -1}])
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SSKD.Options(**option)
