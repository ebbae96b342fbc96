"""What every method promises, with every family of networks it is used with. New methods are tested without changes."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmark.backbones import build_network, network_names
from benchmark.backbones.network import Network
from benchmark.core.devices import placed
from benchmark.core.errors import UserError
from benchmark.method.contract import Method
from benchmark.plugins.registry import all_methods
from benchmark.training.learner import Learner
from tests.contract_runs import (
    CLASSES,
    CPU,
    FAMILIES,
    NARROW,
    PAIRS,
    UNEQUAL_PAIRS,
    Pair,
    narrow_networks,
    run_of,
    set_up,
    take_steps,
)

__all__ = ["narrow_networks"]

FALL = 1e-4
"""By which share of itself a loss should fall in a step along its gradient."""
UNTAUGHT = {("AB-init", "ResNet18", "ResNet8"): ("layer4",)}
"""Stages that a method which trains nothing but stages leaves, because the teacher has none to match."""
LEAST_PAIRS, LEAST_METHODS = 3, 5
"""How many pairs each method is tested with at least, and how many methods each pair."""
EVERY_PAIR = os.environ.get("KD_TEST_EVERY_PAIR") == "1"
"""Whether to test every method with every pair instead, which takes twice as long."""


def find_smallest_of_each_family() -> list[str]:
    """Return the smallest network of each class, or the one that can be made narrow."""
    smallest: dict[type, tuple[bool, int, str]] = {}
    for name in network_names():
        with torch.device("meta"):
            network = build_network(name, CLASSES)
        size = sum(parameter.numel() for parameter in network.parameters())
        entry = (name not in NARROW, size, name)
        smallest[type(network)] = min(smallest.get(type(network), entry), entry)
    return [name for *_, name in sorted(smallest.values(), key=lambda entry: entry[1])]


def possible_pairs(cls: type[Method]) -> Sequence[Pair]:
    """Return student and teacher: one of each family if a method has no teacher of its choice, else the pairs above."""
    if not cls.needs_teacher or cls.teaches_itself:
        return [(family, None) for family in FAMILIES]
    if not cls.trains_student:
        # The student of a head is its teacher.
        return [(teacher, teacher) for _, teacher in PAIRS]
    # In turn, so that any three neighbours have one of each kind.
    return [pair for both in itertools.zip_longest(PAIRS, UNEQUAL_PAIRS) for pair in both if pair is not None]


def covering_pairs() -> list[tuple[str, str, str | None]]:
    """Return cells (method, student, teacher) in which each method meets several pairs, and each pair several methods.

    A fault belongs to a method (it misreads maps, or moves what it should not), which shows with any few families, or
    to a family (its maps or frozen parts are not as promised), which shows with any few methods; methods that have the
    same pairs to choose from are dealt them in turn, like cards. What is peculiar to one method and one pair is named
    in UNTAUGHT and always tested. A method that is another one with other options is tested with one pair.
    """
    classes = all_methods()
    derived = {name for name, cls in classes.items() if issubclass(cls, tuple({*classes.values()} - {cls}))}
    groups: dict[tuple[Pair, ...], list[str]] = {}
    for name, cls in classes.items():
        if name not in derived:
            groups.setdefault(tuple(possible_pairs(cls)), []).append(name)
    chosen = {(name, *possible_pairs(classes[name])[0]) for name in derived} | UNTAUGHT.keys()
    for pairs, names in groups.items():
        each = max(LEAST_PAIRS, math.ceil(LEAST_METHODS * len(pairs) / len(names)))
        deal = itertools.cycle(pairs)
        for name in names:
            chosen |= {(name, *pair) for pair in (pairs if EVERY_PAIR else itertools.islice(deal, each))}
    return [(name, *pair) for name, cls in classes.items() for pair in possible_pairs(cls) if (name, *pair) in chosen]


CELLS = covering_pairs()


def cell(method: str, student: str, teacher: str | None) -> Any:
    return pytest.param(method, student, teacher, id=f"{method}-{student}" + (f"<{teacher}" if teacher else ""))


class Gradients:
    """Which parameters of a student and its method got a gradient in the steps of an optimiser, and what came of it.

    learning: those that ask for one; seen: those that got one; reached: those that got one that is not all zeros;
    moving: those that the optimiser moves; square: of the length of the last step's gradient.
    """

    def __init__(self, learner: Learner) -> None:
        parts = {"student": learner.student or nn.Identity(), "method": learner.method}
        self.parameters = {
            f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()
        }
        self.learning = {name for name, parameter in self.parameters.items() if parameter.requires_grad}
        self.seen: set[str] = set()
        self.reached: set[str] = set()
        self._momenta = dict(zip(map(id, learner.parameters), learner.optimizer.momenta, strict=True))
        self._take_step = learner.optimizer.step
        learner.optimizer.step = self._look_and_step

    def _look_and_step(self, rate: float) -> None:
        got = {name: parameter.grad for name, parameter in self.parameters.items() if parameter.grad is not None}
        self.seen |= got.keys()
        self.reached |= {name for name, gradient in got.items() if bool(gradient.any())}
        self.square = sum(float(gradient.double().square().sum()) for gradient in got.values())
        self._take_step(rate)

    @property
    def moving(self) -> set[str]:
        held = {name: self._momenta.get(id(parameter)) for name, parameter in self.parameters.items()}
        return {name for name, momentum in held.items() if momentum is not None and bool(momentum.any())}


def assert_none(names: set[str], what: str) -> None:
    assert not names, f"{len(names)} parameters {what}: {', '.join(sorted(names)[:4])}"


def state_of(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


def assert_unchanged(modules: Sequence[nn.Module], before: list[Tensor], what: str) -> None:
    assert all(map(torch.equal, state_of(modules), before)), f"{what} must stay as it is"


def assert_refusal_helps(error: UserError, student: str, teacher: str | None) -> None:
    assert (student, teacher) in UNEQUAL_PAIRS, f"refused: {error}"
    assert re.search(r"; (choose|use|give|take|pass) ", str(error)), f"says not what to do: {error}"


def assert_plain_network_is_left(learner: Learner, images: Tensor) -> None:
    """The saved student is a network like any other, and says the same without its method."""
    student = learner.student
    weights = learner.weights()["student"]
    plain = placed(build_network(learner.run.student, CLASSES), CPU)
    assert list(weights) == list(plain.state_dict())
    plain.load_state_dict(weights)
    with torch.no_grad():
        logits = student.eval()(images).logits
        assert torch.equal(plain.eval()(images).logits, logits)
        for joint in learner.method.eval().stage_logits(student(images)):
            assert joint.shape == (len(images), 4 * CLASSES)


def test_every_family_of_networks_is_tested() -> None:
    assert sorted(FAMILIES) == sorted(find_smallest_of_each_family())


def test_each_method_meets_several_pairs_and_each_pair_several_methods() -> None:
    classes = all_methods()
    by_method = Counter(method for method, *_ in CELLS)
    by_pair = Counter((student, teacher) for _, student, teacher in CELLS if student != teacher)
    assert by_method.keys() == classes.keys()
    for name, count in by_method.items():
        derived = issubclass(classes[name], tuple({*classes.values()} - {classes[name]}))
        assert count >= LEAST_PAIRS or (derived and count == 1), name
    assert {(family, None) for family in FAMILIES} | {*PAIRS, *UNEQUAL_PAIRS} == by_pair.keys()
    assert min(by_pair.values()) >= LEAST_METHODS, by_pair


def resting_parts(network: Network, trains: str) -> list[nn.Module]:
    """The direct parts of a student that stay as they are, running statistics included."""
    after = set(network.after_stages)
    resting: dict[str, set[str]] = {
        "student": set(),
        "stages": after,
        "classifier": {name for name, _ in network.named_children()} - {network.after_stages[-1]},
    }
    return [network.get_submodule(name) for name in sorted(resting[trains])]


@pytest.mark.parametrize(("method", "student", "teacher"), [cell(*each) for each in CELLS])
def test_a_method_learns_and_teaches_only_what_it_should(method: str, student: str, teacher: str | None) -> None:
    run = run_of(method, student, teacher, still=True)
    try:
        learner, guide, source = set_up(run)
    except UserError as error:
        assert_refusal_helps(error, student, teacher)
        pytest.skip(str(error))
    batch = source.batch(source.epoch(0), 0)
    gradients = Gradients(learner)
    frozen = [guide.network, *guide.heads.values()] if guide else []
    network = learner.student
    resting = [] if network is None else resting_parts(network, learner.method.trains)
    before, before_resting = state_of(frozen), state_of(resting)

    # The first step may set what the loss refers to, such as a memory; it tells how steep the loss is.
    losses = take_steps(learner, guide, batch, steps=1)
    rate = FALL * losses[0] / gradients.square
    learner.run = run.replace(protocol=run.protocol.replace(learning_rate=rate))
    losses = take_steps(learner, guide, batch, steps=2)
    assert losses[1] < losses[0], f"the loss must fall on a fixed batch: {losses}"

    assert_unchanged(frozen, before, "the teacher")
    assert_unchanged(resting, before_resting, "what is not trained of the student")
    untaught = tuple(f"student.{part}." for part in UNTAUGHT.get((method, student, teacher), ()))
    taught = {name for name in gradients.learning if not name.startswith(untaught)} if untaught else gradients.learning
    assert_none(taught - gradients.reached, "get no gradient")
    assert_none(taught - gradients.moving, "are not moved by the optimiser")
    assert_none(gradients.seen - taught, "must get no gradient")
    assert_none(gradients.moving - taught, "must not be moved")
    if network is not None:
        resting_names = {id(parameter) for part in resting for parameter in part.parameters()}
        assert all(p.requires_grad != (id(p) in resting_names) for p in network.parameters())
        assert_plain_network_is_left(learner, batch.view("plain"))
