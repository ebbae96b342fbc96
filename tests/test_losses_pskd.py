"""PS-KD against the public implementation's values, and the two ways to know the past."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from benchmark.method.contract import Network, Outputs, PastNetwork, PredictionHistory
from methods.pskd import PSKD, growing_alpha, soft_cross_entropy, soft_targets
from tests.support import (
    Case,
    TinyNetwork,
    assert_close,
    leaf,
    outputs_of,
    shape_from,
    stub_context,
    stub_step,
    tiny_network,
)


def test_loss_and_both_gradients_equal_the_public_ones() -> None:
    case = Case("pskd", "loss")
    logits, targets = leaf(case.input("logits")), leaf(case.input("soft_targets"))
    loss = soft_cross_entropy(logits, targets)
    loss.backward()
    assert_close(loss, case.expected("loss"))
    assert_close(logits.grad, case.expected("grad_logits"))
    assert_close(targets.grad, case.expected("grad_soft_targets_if_not_detached"))


def test_alpha_grows_as_the_public_one() -> None:
    case = Case("pskd", "alpha_schedule")
    epochs, final = int(case.get("hp", "end_epoch")), float(case.get("hp", "alpha_T"))
    alphas = torch.tensor([growing_alpha(final, epoch, epochs) for epoch in range(epochs)], dtype=torch.float64)
    assert_close(alphas, case.expected("alpha_t"))


class LinearNetwork(Network):
    """A linear classifier of vectors."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 10).double()
        self.load_state_dict(weights)

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        return outputs_of(self.linear(images))


def test_three_epochs_equal_the_public_trajectory(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("pskd", "trajectory")
    labels, inputs, epochs = case.input("labels"), case.input("inputs"), int(case.get("hp", "epochs"))
    network = LinearNetwork(case.weights())
    context = stub_context(shape_from("linear", network(inputs)), labels=labels)
    method = PSKD(context, PSKD.Options(alpha=float(case.get("hp", "alpha_T")), table_dtype="float64"))
    hyper = {name: float(case.get("hp", name)) for name in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(network.parameters(), **hyper, nesterov=True)
    used: list[Tensor] = []

    def remember_targets(hard: Tensor, past: Tensor | None, alpha: float) -> Tensor:
        used.append(soft_targets(hard, past, alpha))
        return used[-1]

    monkeypatch.setattr("methods.pskd.soft_targets", remember_targets)
    number = 0
    for epoch in range(epochs):
        for index in case.input("sample_order")[epoch].split(int(case.get("hp", "batch_size"))):
            student = network(inputs[index])
            loss, _ = method.loss(stub_step(labels[index], index, epoch, epochs, student=student))
            assert_close(loss, case.expected("batch_losses")[number])
            assert_close(student.logits, case.expected("batch_logits")[number])
            assert_close(used[-1], case.expected("soft_targets")[number])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            number += 1
        method.end_epoch(epoch, network)
        assert_close(method.history.table, case.expected("stored_predictions_after_epoch")[epoch])
    assert_close(network.linear.weight.data, case.expected("final_weight"))
    assert_close(network.linear.bias.data, case.expected("final_bias"))


IMAGES = torch.randn(16, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
LABELS = torch.arange(16) % 3


def two_epochs(past: str, through_checkpoint: bool = False) -> list[Tensor]:
    """The losses of two epochs of two batches of a tiny network, with a reload of everything between the epochs."""
    network, options = tiny_network(), PSKD.Options(past=past)
    method = PSKD(stub_context(TinyNetwork.SHAPE, labels=LABELS), options)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    losses = []
    for epoch in range(2):
        for index in torch.arange(16).split(8):
            images = IMAGES[index] + epoch  # another augmentation each epoch
            network.train()
            method.train()
            step = stub_step(
                LABELS[index],
                index,
                epoch,
                2,
                images=lambda view, images=images: images,
                student=lambda view, images=images: network(images),
            )
            loss, _ = method.loss(step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        method.end_epoch(epoch, network)
        if through_checkpoint:
            state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
            method = PSKD(stub_context(TinyNetwork.SHAPE, labels=LABELS), options)
            method.load_state_dict(state)
    return losses


def test_the_two_ways_to_know_the_past_agree_in_the_first_epoch_and_differ_after() -> None:
    table, weights = two_epochs("table"), two_epochs("previous_weights")
    assert torch.equal(torch.stack(table[:2]), torch.stack(weights[:2]))
    assert (table[2] - weights[2]).abs() > 1e-4


@pytest.mark.parametrize("past", ["table", "previous_weights"])
def test_the_past_survives_a_checkpoint(past: str) -> None:
    assert torch.equal(torch.stack(two_epochs(past)), torch.stack(two_epochs(past, through_checkpoint=True)))


def test_previous_weights_are_those_of_the_epoch_end_in_evaluation_mode() -> None:
    network, labels = tiny_network(), LABELS[:8]
    method = PSKD(stub_context(TinyNetwork.SHAPE), PSKD.Options(past="previous_weights"))
    network(IMAGES)
    method.end_epoch(0, network)
    with torch.no_grad():
        past = network.eval()(IMAGES[:8]).logits.softmax(1)
        network.train()
        network.classifier.weight.add_(1.0)
    logits = network(IMAGES[:8]).logits
    step = stub_step(labels, epoch=1, epochs=4, images=lambda view: IMAGES[:8], student=outputs_of(logits))
    loss = method.train()(step)["ce"]
    targets = 0.6 * nn.functional.one_hot(labels, 3).double() + 0.4 * past
    assert_close(loss, -(targets * logits.log_softmax(1)).sum(1).mean())


def test_past_network_stays_frozen_and_in_evaluation_mode() -> None:
    method = PSKD(stub_context(TinyNetwork.SHAPE), PSKD.Options(past="previous_weights")).train()
    past = method.past_network
    assert isinstance(past, PastNetwork)
    assert method.training
    assert not any(module.training for module in past.modules())
    assert not any(parameter.requires_grad for parameter in method.parameters())


def test_history_gives_what_was_stored_last_and_the_alternative_where_nothing_was() -> None:
    history = PredictionHistory(5, (2, 3), "float32")
    first = torch.rand(2, 2, 3, dtype=torch.float32, generator=torch.Generator().manual_seed(0)).double()
    otherwise = torch.full((3, 1, 3), -1.0, dtype=torch.float64)
    history.store(torch.tensor([3, 0]), first)
    found = history.look_up(torch.tensor([0, 1, 3]), otherwise)
    assert found.dtype == torch.float64
    assert torch.equal(found, torch.stack([first[1], torch.full((2, 3), -1.0, dtype=torch.float64), first[0]]))
    history.store(torch.tensor([3]), first[1:])
    assert torch.equal(history.look_up(torch.tensor([3]), otherwise[:1])[0], first[1])


def test_history_is_half_precision_by_default_and_keeps_probabilities_to_a_thousandth() -> None:
    method = PSKD(stub_context(TinyNetwork.SHAPE), PSKD.Options())
    assert method.history.table.dtype == torch.float16
    values = torch.rand(16, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    method.history.store(torch.arange(16), values)
    found = method.history.look_up(torch.arange(16), torch.zeros(16, 3))
    assert (found - values).abs().max() <= 2**-11


@pytest.mark.parametrize("option", [{"alpha": 1.1}, {"alpha": -0.1}, {"past": "future"}, {"table_dtype": "int8"}])
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PSKD.Options(**option)
