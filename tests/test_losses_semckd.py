"""SemCKD against the public implementation's values."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmark.method.contract import Outputs, Shape, UserError
from methods.semckd import SemCKD, association, calibration_loss
from tests.drawn import DrawnCase
from tests.plain_semckd import make_network, make_pair
from tests.support import (
    assert_close,
    assert_gradient,
    leaf,
    outputs_of,
    shape_from,
    stub_context,
    stub_step,
)

CASES = {"three_by_three": (3, 3), "two_by_four": (2, 4)}


def public_name(name: str, teachers: int) -> str:
    """The name of a parameter in the public code, which has the numbers of both stages in a projection's name."""
    kind, place, layer, parameter = name.split(".")
    if kind == "projections":
        student, teacher = divmod(int(place), teachers)
        return f"regressor{student}{teacher}.regressor.{layer}.{parameter}"
    prefix = {"queries": "query_weight", "keys": "key_weight"}[kind]
    return f"{prefix}{place}.linear{1 + int(layer) // 2}.{parameter}"


def random_outputs(seed: int, stages: tuple[tuple[int, int], ...], rows: int = 8) -> Outputs:
    """Outputs of a network with these channels and heights of its stages."""
    stream = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, dtype=torch.float64, generator=stream)

    return outputs_of(random(10), random(4), [random(2, 8, 8), *(random(c, h, h) for c, h in stages)])


def outputs_from(case: DrawnCase, network: str, count: int) -> Outputs:
    """Random outputs with the stage maps of a case."""
    maps = [case.input(f"{network}_feat_{place}") for place in range(count)]
    outputs = random_outputs(0, ())
    return outputs_of(outputs.logits, outputs.pooled, [outputs.stem, *map(leaf, maps)])


@pytest.mark.parametrize("name", CASES)
def test_calibration_loss_attention_and_gradients_equal_the_public_ones(name: str) -> None:
    case, (students, teachers) = DrawnCase("semckd", name), CASES[name]
    student, teacher = outputs_from(case, "student", students), outputs_from(case, "teacher", teachers)
    context = stub_context(shape_from("student", student), shape_from("teacher", teacher), batch_size=8)
    method = SemCKD(context, SemCKD.Options()).double()
    weights = case.weights()
    missing = method.load_state_dict(
        {own: weights.pop(public_name(own, teachers)) for own, _ in method.named_parameters()}, strict=False
    )
    assert not weights, "every public weight has its place"
    assert all(re.search(r"running|tracked", key) for key in missing.missing_keys)
    projected: dict[int, Tensor] = {}
    for place, module in enumerate(method.projections):
        module.register_forward_hook(lambda _, __, made, place=place: projected.update({place: made.mean()}))
    assert_close(method.attention(student.stages, teacher.stages), case.expected("attention"))
    terms = method(stub_step(torch.arange(8), student=student, teacher=teacher))
    assert terms.keys() == {"ce", "kd", "calibration"}
    terms["calibration"].backward()
    assert_close(terms["calibration"], case.expected("loss"))
    for place, mean in projected.items():
        assert_close(mean, case.expected("projected_{}{}_mean".format(*divmod(place, teachers))))
    for place, tensor in enumerate(student.stages):
        assert_gradient(case, f"student_feat_{place}", tensor)
    compared = 0
    for own, parameter in method.named_parameters():
        key = public_name(own, teachers)
        # Of the projections, the gradients of two are stored, and of their 3x3 convolutions those of the first output.
        if (
            key.startswith("regressor")
            and key[9:11] not in {"three_by_three": ("02", "20"), "two_by_four": ("00", "12")}[name]
        ):
            continue
        expected = case.expected(f"gradw_{key}")
        assert_close(parameter.grad[: len(expected)], expected)
        compared += 1
    assert compared == 4 * (students + teachers) + 2 * 7


def test_the_weighted_loss_adds_labels_and_kd_with_the_public_weights() -> None:
    student, teacher = random_outputs(1, ((3, 8), (4, 4))), random_outputs(2, ((5, 8),))
    method = SemCKD(stub_context(shape_from("s", student), shape_from("t", teacher)), SemCKD.Options()).double()
    loss, terms = method.loss(stub_step(torch.arange(8), student=student, teacher=teacher))
    assert_close(loss, terms["ce"] + terms["kd"] + 400 * terms["calibration"])


@pytest.mark.parametrize("size", [28, 33])
def test_loss_and_gradients_equal_the_plain_formula_where_heights_do_not_divide_each_other(size: int) -> None:
    """Of MobileNetV2, for which both diverge at high rates; the goldens have heights that halve."""
    names, stream = ("MobileNetV2-x1/4", "ResNet8"), torch.Generator().manual_seed(size)
    images = torch.randn(8, 3, size, size, dtype=torch.float64, generator=stream)
    student, teacher = (make_network(name, seed=0).double() for name in names)
    with torch.no_grad():
        other = teacher(images)
    gradients = []
    for loss in make_pair(*names, size, batch=8):
        student.zero_grad()
        own = student(images)
        if isinstance(loss, SemCKD):
            value, _ = loss.double().loss(stub_step(torch.arange(8), student=own, teacher=other))
        else:
            value = loss.double()(own, other, torch.arange(8))
        value.backward()
        gradients.append([value, *(p.grad.clone() for net in (student, loss) for p in net.parameters())])
    assert len({maps.shape[2] for maps in (*own.stages, *other.stages)}) > 3
    for ours, plain in zip(*gradients, strict=True):
        assert_close(ours, plain)


@pytest.mark.parametrize("rows", [3, 9])
def test_a_batch_of_another_size_teaches_labels_and_kd_only(rows: int) -> None:
    shapes = [shape_from(name, random_outputs(0, ((3, 8), (4, 4)))) for name in ("s", "t")]
    method = SemCKD(stub_context(*shapes, batch_size=8), SemCKD.Options()).double()
    student, teacher = random_outputs(1, ((3, 8), (4, 4)), rows), random_outputs(2, ((3, 8), (4, 4)), rows)
    student = outputs_of(leaf(student.logits), student.pooled, [student.stem, *student.stages])
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    loss, terms = method.loss(stub_step(torch.arange(rows), student=student, teacher=teacher))
    loss.backward()
    assert terms["calibration"] == 0
    assert_close(loss, terms["ce"] + terms["kd"])
    assert student.logits.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in method.parameters())
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 4))
def test_the_attention_of_each_student_stage_is_a_share_of_the_teachers_stages(
    seed: int, students: int, teachers: int
) -> None:
    stream = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randn(5, n, 3, dtype=torch.float64, generator=stream) for n in (students, teachers))
    attention = association(queries, keys)
    assert_close(attention.sum(2), torch.ones(5, students, dtype=torch.float64))
    # Cosines lie within 1 of 0, so no stage is ever shut out.
    assert float((attention.amax(2) / attention.amin(2)).max()) < math.e**2 + 1e-9
    # Errors that are the same for all stages come through as they are.
    assert_close(calibration_loss(attention, torch.full_like(attention, 0.5)), torch.tensor(0.5, dtype=torch.float64))


def test_a_dead_embedding_gives_equal_attention_instead_of_no_number() -> None:
    attention = association(torch.zeros(2, 1, 3), torch.randn(2, 4, 3))
    torch.testing.assert_close(attention, torch.full((2, 1, 4), 0.25))


def test_a_batch_too_small_for_the_attention_is_refused() -> None:
    shape = Shape("net", 10, (4, 8, 8), ((4, 8, 8),), 4)
    with pytest.raises(UserError, match=r"batches of 3 images and reduction = 4 .* at least 4"):
        SemCKD(stub_context(shape, shape, batch_size=3), SemCKD.Options())
    assert SemCKD(stub_context(shape, shape, batch_size=3), SemCKD.Options(reduction=3)).queries
