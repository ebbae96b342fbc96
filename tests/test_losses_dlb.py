"""DLB against the public implementation's values, and what it keeps between steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from benchmark.backbones.network import Outputs
from benchmark.method.contract import Mixture
from methods.dlb import DLB
from tests.golden_networks import assert_state, optimiser_of
from tests.support import Case, TinyNetwork, assert_close, assert_gradient, leaf, outputs_of, stub_context, stub_step

CASES = (
    "basic",
    "unequal_batches",
    "temperature_1",
    "two_classes",
    "batch_of_2",
    "large_logits",
    "identical",
    "alpha_half",
    "equal_logits",
)


def method_of(case: Case, classes: int) -> DLB:
    shape = TinyNetwork.SHAPE.__class__("student", classes, (2, 4, 4), TinyNetwork.SHAPE.stages, 5)
    options = DLB.Options(alpha=float(case.get("hp", "alpha")), temperature=float(case.get("hp", "T")))
    return DLB(stub_context(shape), options).double()


def images_of(rows: int, value: float = 0.0) -> Tensor:
    return torch.full((rows, 3, 2, 2), value, dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_a_step_with_a_last_batch_equals_the_public_one(name: str) -> None:
    case = Case("dlb", name)
    logits, again = leaf(case.input("logits")), leaf(case.input("previous_images_logits"))
    kept = case.input("kept_logits") if name != "identical" else again.detach().clone()
    method = method_of(case, logits.shape[1])
    method.logits = kept.clone()
    method.images = images_of(len(again), 1.0)
    method.targets = F.one_hot(case.input("previous_labels"), logits.shape[1]).double()

    def student(shown: Any) -> Outputs:
        return outputs_of(logits if shown == "plain" else again)

    step = stub_step(case.input("labels"), student=student, images=lambda view: images_of(len(logits), 2.0))
    loss, terms = method.loss(step)
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert_gradient(case, "logits", logits)
    assert_gradient(case, "previous_images_logits", again)
    assert_close(method.logits, logits.detach())
    assert torch.equal(method.images, images_of(len(logits), 2.0)), "seen again in the next step"
    assert not method.logits.requires_grad
    if name == "identical":
        assert abs(float(terms["past"].detach())) < 1e-12


def test_the_first_step_equals_the_public_one() -> None:
    case = Case("dlb", "first_step")
    logits = leaf(case.input("logits"))
    method = method_of(case, 10)
    step = stub_step(case.input("labels"), student=outputs_of(logits), images=lambda view: images_of(len(logits)))
    loss, _ = method.loss(step)
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert_gradient(case, "logits", logits)


def test_two_epochs_equal_the_public_ones_also_when_resumed_between_them() -> None:
    case = Case("dlb", "trajectory")
    views, labels, order = case.input("views"), case.input("labels"), case.input("sample_order")
    # Vectors are no images: the buffer holds what the network is shown, whatever its shape.
    network = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10)).double()
    network.load_state_dict(case.weights(), strict=False)
    method = method_of(case, 10)
    optimizer = optimiser_of(case, network)
    losses: list[Tensor] = []
    forwards: list[Tensor] = []
    for epoch in range(2):
        for batch in order[epoch].split([8, 8, 4]):
            shown = {"plain": views[batch, 0], "second": views[batch, 1]}

            def student(asked: Any, shown: dict[str, Tensor] = shown) -> Outputs:
                forwards.append(network(shown[asked] if isinstance(asked, str) else asked))
                return outputs_of(forwards[-1])

            loss, _ = method.loss(stub_step(labels[batch], student=student, images=shown.__getitem__))
            losses.append(loss.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert_state(case, {"": network}, f"after_epoch{epoch + 1}_")
        saved = {name: tensor.clone() for name, tensor in method.state_dict().items()}
        method = method_of(case, 10)
        method.load_state_dict(saved)
    assert_close(torch.stack(losses), case.expected("losses"))
    assert len(forwards) == int(case.get("out64", "forwards"))
    for number, logits in enumerate(forwards):
        assert_close(logits.detach(), case.expected(f"forward_{number:02}_logits"))


def test_mixed_images_keep_the_labels_of_both_for_the_next_step() -> None:
    method = DLB(stub_context(TinyNetwork.SHAPE), DLB.Options()).double()
    mixture = Mixture(torch.tensor([2, 2]), torch.arange(2), 0.25)
    logits = torch.zeros(2, 3, dtype=torch.float64)
    method(
        stub_step(torch.tensor([0, 1]), student=outputs_of(logits), images=lambda view: images_of(2), mixture=mixture)
    )
    assert_close(method.targets, torch.tensor([[0.25, 0, 0.75], [0, 0.25, 0.75]], dtype=torch.float64))


@pytest.mark.parametrize("option", [{"alpha": -0.1}, {"temperature": 0}, {"beta": 1}])
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DLB.Options(**option)
