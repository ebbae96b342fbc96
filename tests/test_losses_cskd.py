"""CS-KD against the public implementation's values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from benchmark.method.contract import Mixture, Network, Outputs
from methods.cskd import CSKD
from methods.kd import distillation_loss
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


class SmallNetwork(Network):
    """Linear, batch norm, ReLU, linear: the network of the golden step."""

    after_stages = ()

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10)).double()
        self.layers.load_state_dict(weights, strict=False)

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        return outputs_of(self.layers(images))


def method_for(logits: Tensor, **options: Any) -> CSKD:
    return CSKD(stub_context(shape_from("small", outputs_of(logits))), CSKD.Options(**options))


def test_divergence_from_the_partner_and_its_gradient_equal_the_public_ones() -> None:
    case = Case("cskd", "loss")
    anchors, partners = leaf(case.input("anchor_logits")), leaf(case.input("pair_logits"))
    shown = {"plain": anchors, "same_class": partners}
    step = stub_step(torch.arange(8), student=lambda view: outputs_of(shown[view] * 1.0))
    assert float(case.get("hp", "T")) == CSKD.Options().temperature
    term = method_for(anchors)(step)["class"]
    term.backward()
    assert_close(term, case.expected("loss"))
    assert_gradient(case, "anchor_logits", anchors)


def test_step_equals_the_public_training_step() -> None:
    case = Case("cskd", "step")
    network = SmallNetwork(case.weights())
    anchors, partners = case.input("inputs_anchor_then_pair").split(8)
    shown, asked = {"plain": anchors, "same_class": partners}, {}

    def student(view: Any) -> Outputs:
        assert network.training
        asked[view] = network(shown[view])
        return asked[view]

    method = method_for(case.expected("anchor_logits"), class_weight=float(case.get("hp", "lamda")))
    hyper = {name: float(case.get("hp", name)) for name in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(network.parameters(), **hyper)
    loss, terms = method.train().loss(stub_step(case.input("labels"), student=student))
    loss.backward()
    assert list(asked) == ["plain", "same_class"]
    assert_close(loss, case.expected("total_loss"))
    assert_close(terms["ce"], case.expected("loss_ce"))
    assert_close(terms["class"], case.expected("loss_cls"))
    assert_close(asked["plain"].logits, case.expected("anchor_logits"))
    assert_close(asked["same_class"].logits, case.expected("pair_logits"))
    assert not asked["same_class"].logits.requires_grad
    for name, parameter in network.layers.named_parameters():
        assert_close(parameter.grad, case.expected(f"gradw_{name}"))
    optimizer.step()
    for name, parameter in network.layers.named_parameters():
        assert_close(parameter.data, case.expected(f"after_step_{name}"))
    norm = network.layers[1]
    # Images first, then partners: the running statistics depend on the order.
    assert_close(norm.running_mean, case.expected("bn_running_mean"))
    assert_close(norm.running_var, case.expected("bn_running_var"))
    assert norm.num_batches_tracked == case.expected("bn_batches") == 2


def test_mixed_images_have_the_cross_entropy_of_both_labels() -> None:
    case = Case("cskd", "loss")
    shown = {"plain": case.input("anchor_logits"), "same_class": case.input("pair_logits")}
    labels, other = torch.arange(8), torch.arange(8).flip(0)

    def terms(labels: Tensor, mixture: Mixture | None = None) -> dict[str, Tensor]:
        step = stub_step(labels, student=lambda view: outputs_of(shown[view]), mixture=mixture)
        return method_for(shown["plain"])(step)

    mixed = terms(labels, Mixture(other, torch.arange(8).flip(0), 0.75))
    assert_close(mixed["ce"], 0.75 * terms(labels)["ce"] + 0.25 * terms(other)["ce"])
    assert_close(mixed["class"], terms(labels)["class"])


def test_options_weigh_and_soften_the_divergence() -> None:
    case = Case("cskd", "loss")
    shown = {"plain": case.input("anchor_logits"), "same_class": case.input("pair_logits")}
    step = stub_step(torch.arange(8), student=lambda view: outputs_of(shown[view]))
    method = method_for(shown["plain"], class_weight=3, temperature=2)
    assert method.weights == {"ce": 1, "class": 3}
    assert_close(method(step)["class"], distillation_loss(shown["plain"], shown["same_class"], 2.0))


@pytest.mark.parametrize("option", [{"class_weight": -1}, {"temperature": 0}])
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CSKD.Options(**option)
