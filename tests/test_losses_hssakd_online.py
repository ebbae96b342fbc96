"""HSSAKD online against the public implementation's values, and its peer in training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from benchmark.method.contract import Context, Mixture, Network, Outputs
from benchmark.results.record import comparable_part
from benchmark.results.store import Store
from benchmark.training.job import run_until_done
from methods.hssakd_online import HSSAKDOnline
from tests.engine import run_of, settings, train_dependencies
from tests.support import (
    Case,
    StubBranches,
    TinyBranches,
    TinyNetwork,
    assert_close,
    assert_gradient,
    leaf,
    outputs_of,
    shape_from,
    stub_context,
    stub_step,
    tiny_network,
)

LABELS = torch.tensor([0, 2])
VIEWS = torch.randn(8, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class StoredNetwork(Network):
    """A network that gives stored logits, whatever the images."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        return outputs_of(self.logits)


def tiny_context() -> Context:
    """A context whose streams of other names give other branches, as the engine's do."""

    def branches(shape: Any, outputs: int, stream: str = "", /) -> nn.Module:
        return context.initialise(TinyBranches(shape, outputs), f"{stream} branches").double()

    context = stub_context(TinyNetwork.SHAPE)
    return dataclasses.replace(context, branches=branches)


def tiny_step(network: TinyNetwork, mixture: Mixture | None = None) -> Any:
    return stub_step(LABELS, images=lambda view: VIEWS, student=lambda view: network(VIEWS), mixture=mixture)


def test_step_of_both_peers_equals_the_public_one() -> None:
    case = Case("hssakd_online", "online")
    logits = [leaf(case.input(f"net{net}_logits")) for net in range(2)]
    branches = [[leaf(case.input(f"net{net}_aux_logits_{stage}")) for stage in range(3)] for net in range(2)]
    student = outputs_of(logits[0])
    by_stream = {"": StubBranches(branches[0]), "peer": StubBranches(branches[1])}
    context = dataclasses.replace(
        stub_context(shape_from("student", student), network=lambda shape: StoredNetwork(logits[1])),
        branches=lambda shape, outputs, stream="", /: by_stream[stream],
    )
    step = stub_step(case.input("labels"), student=student, images=lambda view: torch.zeros(()))
    loss, terms = HSSAKDOnline(context, HSSAKDOnline.Options()).loss(step)
    loss.backward()
    assert_close(loss, case.expected("total_loss"))
    assert_close(terms["ce"] + terms["joint"] + terms["peer_ce"] + terms["peer_joint"], case.expected("loss_cls"))
    assert_close(terms["kd"] + terms["branches"], case.expected("loss_div"))
    for net in range(2):
        assert_gradient(case, f"net{net}_logits", logits[net])
        for stage in range(3):
            assert_gradient(case, f"net{net}_aux_logits_{stage}", branches[net][stage])


def test_both_networks_and_all_branches_learn_from_different_first_weights() -> None:
    network, method = tiny_network(), HSSAKDOnline(tiny_context(), HSSAKDOnline.Options())
    for own, other in ((network, method.peer), (method.branches, method.peer_branches)):
        weights = zip(own.named_parameters(), other.parameters(), strict=True)
        assert all(not torch.equal(one, two) for (name, one), two in weights if "norm" not in name)
    method.loss(tiny_step(network))[0].backward()
    for parameter in (*network.parameters(), *method.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_labels_of_a_mixture_count_by_their_shares_for_both_networks() -> None:
    network, method = tiny_network(), HSSAKDOnline(tiny_context(), HSSAKDOnline.Options())
    of_partner = torch.tensor([1, 1])
    mixed = method(tiny_step(network, Mixture(of_partner, torch.tensor([4, 5]), 0.3)))
    plain = method(tiny_step(network))
    partners = method(dataclasses.replace(tiny_step(network), labels=of_partner))
    for name in ("ce", "joint", "peer_ce", "peer_joint"):
        assert_close(mixed[name], 0.3 * plain[name] + 0.7 * partners[name])
        assert abs(plain[name] - partners[name]) > 1e-3
    for name in ("kd", "branches"):
        assert torch.equal(mixed[name], plain[name])


def test_stage_logits_are_those_of_the_students_own_branches() -> None:
    method = HSSAKDOnline(tiny_context(), HSSAKDOnline.Options())
    outputs = tiny_network().eval()(VIEWS)
    stages = method.stage_logits(outputs)
    for logits, branch in zip(stages, method.branches(outputs.stages), strict=True):
        assert_close(logits, branch.logits)


def test_a_resumed_run_beside_a_taught_one_gives_the_same_bits_as_one_alone(tmp_path: Path) -> None:
    run, taught = run_of("HSSAKD-online"), run_of("KD")
    assert run.teacher is None
    alone, resumed = settings(tmp_path / "alone"), settings(tmp_path / "resumed")
    assert run_until_done([run], alone)
    train_dependencies([taught], resumed)
    asked = iter([False] * 12 + [True])
    assert not run_until_done([taught, run], resumed, stop=lambda: next(asked))
    assert run_until_done([taught, run], resumed)
    first, second = Store(alone.runs).record(run), Store(resumed.runs).record(run)
    assert first is not None
    assert second is not None
    assert second["provenance"]["resumed"] == 1
    assert first["status"] == "finished"
    assert len(first["final"]["stages"]) == 3
    assert comparable_part(first) == comparable_part(second)


@pytest.mark.parametrize("option", [{"temperature": 0}, {"joint_weight": -1}, {"peers": 3}], ids=str)
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HSSAKDOnline.Options(**option)
