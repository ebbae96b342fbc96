"""SDD against the public implementation's values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmark.method.contract import Method, Outputs
from benchmark.training.cost import StepProbe
from methods.dkd import decoupled_by_row
from methods.kd import divergence_by_row
from methods.nkd import normalised_by_row
from methods.sdd import SDDDKD, SDDKD, SDDNKD, pool_regions, region_logits, region_loss, region_weights
from tests import engine
from tests.golden_networks import StagedNetwork, assert_staged_steps_equal
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


@pytest.mark.parametrize("height", [2, 6, 8])
def test_regions_are_the_public_ones(height: int) -> None:
    case = Case("sdd", f"pool_{height}")
    for scales, name in (("1+2", "regions_1_2"), ("1+2+4", "regions_1_2_4")):
        assert_close(pool_regions(case.input("map"), scales), case.expected(name))


def loss_by_row(case: Case) -> tuple[Tensor, Tensor]:
    """The loss of the given logits of regions by the method that the case's name tells, and the student's logits."""
    student, teacher = leaf(case.input("student_patch_logits")), case.input("teacher_patch_logits")

    def by_row(own: Tensor, other: Tensor, labels: Tensor) -> Tensor:
        if case.name.startswith("kd"):
            return divergence_by_row(own, other, float(case.get("hp", "T")))
        if case.name.startswith("dkd"):
            target, others = decoupled_by_row(own, other, labels, float(case.get("hp", "T")))
            return float(case.get("hp", "alpha")) * target + float(case.get("hp", "beta")) * others
        target, others = normalised_by_row(own, other, labels, float(case.get("hp", "temp")), True)
        return target + float(case.get("hp", "gamma")) * others

    return region_loss(student.mT, teacher.mT, case.input("labels"), by_row, 2.0), student


@pytest.mark.parametrize(
    "name", ["kd_5_regions", "dkd_5_regions", "nkd_5_regions", "kd_all_whole_maps_right", "kd_all_whole_maps_wrong"]
)
def test_losses_of_regions_and_gradients_equal_the_public_ones(name: str) -> None:
    case = Case("sdd", name)
    loss, student = loss_by_row(case)
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_gradient(case, "student_patch_logits", student)


def test_a_loss_that_the_public_code_gives_up_stays_finite() -> None:
    case = Case("sdd", "dkd_huge_logits")
    assert not case.expected("loss_has_graph")
    loss, student = loss_by_row(case)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
    assert student.grad.any()


def test_a_region_counts_twice_where_it_and_the_whole_disagree() -> None:
    labels = torch.tensor([0, 0])
    right, wrong = [3.0, 1.0], [1.0, 3.0]
    teacher = torch.tensor([[right, right, wrong], [wrong, right, wrong]])
    assert region_weights(teacher, labels, 2.0).tolist() == [[1, 1, 2], [1, 2, 1]]


def given_regions(case: Case, network: str) -> tuple[Outputs, Tensor]:
    """Outputs whose classifier says of the 5 regions what the case has, and these logits."""
    logits, regions = leaf(case.input(f"{network}_logits")), leaf(case.input(f"{network}_patch_logits"))
    outputs = replace(
        outputs_of(logits),
        averaged=torch.zeros(len(logits), 1, 4, 4, dtype=torch.float64),
        classifier=lambda vectors: regions.mT.flatten(0, 1),
    )
    return outputs, regions


@pytest.mark.parametrize(("name", "cls"), [("kd", SDDKD), ("dkd", SDDDKD), ("nkd", SDDNKD)])
def test_steps_equal_the_public_ones(name: str, cls: type[Method]) -> None:
    case = Case("sdd", f"{name}_step_epoch_7")
    student, regions = given_regions(case, "student")
    teacher, _ = given_regions(case, "teacher")
    context = stub_context(
        *(shape_from(name, outputs) for name, outputs in (("student", student), ("teacher", teacher)))
    )
    method = cls(context, cls.Options(scales="1+2"))
    loss, _ = method.loss(stub_step(case.input("labels"), None, 6, 240, student=student, teacher=teacher.detach()))
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert_gradient(case, "student_logits", student.logits)
    assert_gradient(case, "student_patch_logits", regions)


def test_two_steps_with_a_cut_gradient_equal_the_public_ones() -> None:
    assert SDDDKD.Options().clip_norm == 40
    assert_staged_steps_equal(Case("sdd", "dkd_two_steps_clipped"), SDDDKD, epoch=6, beta=4000)


def test_the_whole_map_has_the_networks_own_logits() -> None:
    network = StagedNetwork((3, 4, 5, 6)).train()
    outputs = network(torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    regions = region_logits(outputs, "1+2+4")
    assert regions.shape == (2, 21, 10)
    assert_close(regions[:, 0], outputs.logits)


@pytest.mark.parametrize(("clip_norm", "cut"), [(1e-3, True), (0.0, False)])
def test_a_training_step_cuts_the_gradient(clip_norm: float, cut: bool) -> None:
    run = engine.run_of("SDD-KD", options={"SDD-KD": {"clip_norm": clip_norm}})
    probe = StepProbe(run, 10, 8, torch.arange(40) % 10)
    assert probe.teacher is not None
    lengths: list[float] = []

    def measure(rate: float) -> None:
        gradients = [weight.grad for weight in probe.learner.parameters if weight.grad is not None]
        lengths.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))

    probe.learner.optimizer.step = measure  # type: ignore[method-assign]
    probe.learner.step(probe.batch, probe.teacher.on(probe.batch), 0, 0)
    assert (lengths == [pytest.approx(1e-3, rel=1e-2)]) == cut
    assert (lengths[0] > 0.1) != cut


def test_weights_and_the_gradients_length_are_the_published_ones() -> None:
    outputs = outputs_of(torch.zeros(2, 3))
    context = stub_context(*(shape_from(name, outputs) for name in ("student", "teacher")))
    assert SDDKD(context, SDDKD.Options()).weights == {"ce": 0.1, "kd": 0.9}
    assert SDDDKD(context, SDDDKD.Options()).weights == {"ce": 1, "target": 1, "others": 8}
    assert SDDNKD(context, SDDNKD.Options()).weights == {"ce": 1, "target": 1, "others": 8}
    assert SDDKD(context, SDDKD.Options()).longest_gradient == 40
    assert SDDKD(context, SDDKD.Options(clip_norm=0)).longest_gradient is None
    pair = ("VGG13", "VGG8")
    assert SDDDKD.pair_options[pair] == {"beta": 6, "scales": "1+2"}
    assert SDDNKD.pair_options[pair] == {"others_weight": 6, "scales": "1+2"}
