"""LSSKD against a second computation of its equations, written with loops, for every option and over two epochs.

There is no public code to compare with: the second computation follows docs/ledger.md term by term.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from benchmark.method.contract import Shape, UserError
from methods.lsskd import LSSKD
from tests.support import TinyBranches, TinyNetwork, assert_close, stub_context, stub_step, tiny_network

CLASSES, TURNS, STAGES, BATCH, EPOCHS = 3, 4, 3, 4, 3
LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1])
IMAGES = torch.randn(8, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def softmax(logits: Tensor, temperature: float) -> Tensor:
    powers = torch.exp(logits / temperature)
    return powers / powers.sum()


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return -(target * torch.log(softmax(logits, 1.0))).sum()


def divergence(deep: Tensor, shallow: Tensor) -> Tensor:
    return (deep * (torch.log(deep) - torch.log(shallow))).sum()


def classes_of(joint: Tensor) -> Tensor:
    return torch.stack([sum(joint[label * TURNS + turn] for turn in range(TURNS)) for label in range(CLASSES)])


def one_hot(place: int, length: int) -> Tensor:
    target = torch.zeros(length, dtype=torch.float64)
    target[place] = 1.0
    return target


class SecondComputation:
    """The equations of the ledger for one network and its branches, a view and a branch at a time."""

    def __init__(self, options: LSSKD.Options) -> None:
        self.options = options
        self.past: dict[Any, Tensor] = {}
        self.past_network: tuple[TinyNetwork, TinyBranches] | None = None

    def alpha(self, t: int) -> float:
        final = self.options.alpha if self.options.softening is None else self.options.softening
        if t == 1:
            return 0.0
        return final * t / EPOCHS if self.options.alpha_schedule == "linear" else final

    def predictions(self, head: Tensor, joint: list[Tensor], index: list[int]) -> dict[Any, Tensor]:
        """p(x) of the images, and q_l of their views, by (image,) and (image, turn, stage)."""
        temperature, found = self.options.past_temperature, {}
        for row, image in enumerate(index):
            for turn in range(TURNS):
                for stage in range(STAGES):
                    found[image, turn, stage] = softmax(joint[stage][row * TURNS + turn].detach(), temperature)
            found[(image,)] = softmax(head[row].detach(), temperature)
            if self.options.class_target == "all_stages":
                of_stages = sum(classes_of(found[image, 0, stage]) for stage in range(STAGES))
                found[(image,)] = (found[(image,)] + of_stages) / (1 + STAGES)
        return found

    def terms(
        self, network: TinyNetwork, branches: TinyBranches, plain: Tensor, rotated: Tensor, index: list[int], t: int
    ) -> dict[str, Tensor]:
        options = self.options
        student = network(rotated)
        own_branches = branches(
            student.stages if options.branch_gradients else tuple(maps.detach() for maps in student.stages)
        )
        joint = [branch.logits for branch in own_branches]
        head = student.logits[::TURNS] if options.class_forward == "shared" else network(plain).logits
        past = self.past
        if self.past_network is not None:
            with torch.no_grad():
                old = self.past_network[0].eval()(rotated)
                old_joint = [branch.logits for branch in self.past_network[1](old.stages)]
            past = self.predictions(old.logits[::TURNS], old_joint, index)
        a = self.alpha(t)
        ce = hierarchical = kl = feature = torch.zeros((), dtype=torch.float64)
        for row, image in enumerate(index):
            label = int(LABELS[image])
            target = one_hot(label, CLASSES)
            if t > 1:
                target = (1 - a) * target + a * past[(image,)]
            ce = ce + cross_entropy(head[row], target) / len(index)
            for turn in range(TURNS):
                view = row * TURNS + turn
                share = 1 / (len(index) * TURNS)
                for stage in range(STAGES):
                    target = one_hot(label * TURNS + turn, CLASSES * TURNS)
                    if t > 1 and options.soften_joint:
                        target = (1 - a) * target + a * past[image, turn, stage]
                    over_stages = 1 if options.branch_reduction == "sum" else STAGES
                    hierarchical = hierarchical + share * cross_entropy(joint[stage][view], target) / over_stages
                kl = kl + share * self.kl_of_view([logits[view] for logits in joint], student.logits[view])
                feature = feature + share * self.feature_of_view(
                    [branch.pooled[view] for branch in own_branches], student.pooled[view]
                )
        if options.past == "table":
            rounded = self.predictions(head, joint, index).items()
            self.past |= {key: value.to(getattr(torch, options.table_dtype)).double() for key, value in rounded}
        return {"ce": ce, "hierarchical": hierarchical, "kl": kl, "feature": feature}

    def kl_of_view(self, joint: list[Tensor], head: Tensor) -> Tensor:
        options, total = self.options, torch.zeros((), dtype=torch.float64)
        q = [softmax(logits, options.temperature) for logits in joint]
        p = softmax(head, options.temperature)
        if options.stop_gradient:
            sources, p = [values.detach() for values in q], p.detach()
        else:
            sources = q
        for shallow in range(STAGES - 1):
            if options.source == "deepest":
                total = total + divergence(sources[STAGES - 1], q[shallow])
            elif options.source == "next":
                total = total + divergence(sources[shallow + 1], q[shallow])
            elif options.source == "all_deeper":
                for deep in range(shallow + 1, STAGES):
                    total = total + divergence(sources[deep], q[shallow])
            else:
                total = total + divergence(p, classes_of(q[shallow]))
        return total * (options.temperature**2 if options.squared_temperature else 1.0)

    def feature_of_view(self, pooled: list[Tensor], backbone: Tensor) -> Tensor:
        options, total = self.options, torch.zeros((), dtype=torch.float64)
        target = (backbone if options.feature_target == "backbone" else pooled[STAGES - 1]).detach()
        for stage in range(STAGES if options.feature_branches == "all" else STAGES - 1):
            distance = sum((pooled[stage][unit] - target[unit]) ** 2 for unit in range(len(target)))
            total = total + (distance if options.feature_reduction == "batch_mean" else distance / len(target))
        return total

    def weights(self) -> list[float]:
        """Weights of L_ce, L_h, L_kl and L_f in the total."""
        alpha, beta, gamma = self.options.alpha, self.options.beta, self.options.gamma
        return {
            "separate": [1.0, 1.0, beta, gamma],
            "alpha_beta": [alpha, alpha, beta, beta * gamma],
            "beta_on_hierarchical": [1.0, beta, 1.0, gamma],
        }[self.options.weighting]

    def end_epoch(self, network: TinyNetwork, branches: TinyBranches) -> None:
        if self.options.past == "previous_weights":
            self.past_network = copy.deepcopy(network), copy.deepcopy(branches)


def turn_all(images: Tensor) -> Tensor:
    return torch.stack([torch.rot90(image, turn, (1, 2)) for image in images for turn in range(TURNS)])


def gradients(term: Tensor, modules: tuple[nn.Module, ...]) -> list[Tensor]:
    parameters = [parameter for module in modules for parameter in module.parameters()]
    found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return [torch.zeros_like(parameter) if gradient is None else gradient for gradient, parameter in pairs]


def make_step(network: TinyNetwork, index: list[int], epoch: int) -> tuple[Any, Tensor, Tensor]:
    plain = IMAGES[index] * (1 + 0.3 * epoch)  # another augmentation each epoch
    views = {"plain": plain, "rotated": turn_all(plain)}
    step = stub_step(
        LABELS[index],
        torch.tensor(index),
        epoch,
        EPOCHS,
        images=lambda view: views[view],
        student=lambda view: network(views[view]),
    )
    return step, plain, views["rotated"]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"alpha": 0.3},
    {"alpha": 0.0},
    {"alpha_schedule": "constant"},
    {"soften_joint": False},
    {"temperature": 2.0},
    {"beta": 0.4, "gamma": 0.2},
    {"feature_reduction": "element_mean"},
    {"source": "next"},
    {"source": "all_deeper"},
    {"source": "backbone"},
    {"branch_gradients": False},
    {"past": "previous_weights"},
    {"table_dtype": "float16"},
    {"table_dtype": "float32"},
    {"class_forward": "own"},
    {"feature_target": "last_branch"},
    {"feature_branches": "all"},
    {"feature_branches": "all", "feature_target": "last_branch"},
    {"past_temperature": 2.5},
    {"class_target": "all_stages"},
    {"weighting": "alpha_beta", "beta": 0.4, "gamma": 0.2},
    {"weighting": "beta_on_hierarchical", "beta": 0.4, "gamma": 0.2},
    {"softening": 0.2, "weighting": "alpha_beta"},
    {"branch_reduction": "mean"},
    {"squared_temperature": False},
    {"stop_gradient": False},
    {"stop_gradient": False, "source": "all_deeper"},
    {"stop_gradient": False, "source": "backbone"},
    {"past": "previous_weights", "class_target": "all_stages", "past_temperature": 2.5},
    {"past": "previous_weights", "class_forward": "own", "soften_joint": False},
    {"class_target": "all_stages", "soften_joint": False},
]


@pytest.mark.parametrize("changes", OPTIONS, ids=lambda changes: ",".join(map(str, changes.values())) or "default")
def test_terms_and_gradients_equal_a_second_computation_over_two_epochs(changes: dict[str, Any]) -> None:
    options = LSSKD.Options(**({"table_dtype": "float64"} | changes))
    network = tiny_network()
    method = LSSKD(stub_context(TinyNetwork.SHAPE, labels=LABELS), options)
    second = SecondComputation(options)
    trained = [*network.parameters(), *(one for one in method.parameters() if one.requires_grad)]
    optimizer = torch.optim.SGD(trained, 0.2)
    for epoch in range(2):
        for index in ([0, 1, 2, 3], [4, 5, 6, 7]):
            step, plain, rotated = make_step(network, index, epoch)
            twins = copy.deepcopy(network), copy.deepcopy(method.branches)
            expected = second.terms(*twins, plain, rotated, index, epoch + 1)
            loss, terms = method.train().loss(step)
            assert terms.keys() == expected.keys()
            for name, term in terms.items():
                assert_close(term, expected[name])
                assert term.requires_grad
                ours, theirs = gradients(term, (network, method.branches)), gradients(expected[name], twins)
                for gradient, other in zip(ours, theirs, strict=True):
                    assert_close(gradient, other)
            assert_close(loss, sum(w * term for w, term in zip(second.weights(), expected.values(), strict=True)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        method.end_epoch(epoch, network)
        second.end_epoch(network, method.branches)


def losses_of(through_checkpoint: bool = False, **changes: Any) -> Tensor:
    """Losses of two epochs, with a reload of the method's whole state between them if asked for."""
    options, network = LSSKD.Options(**changes), tiny_network()
    method = LSSKD(stub_context(TinyNetwork.SHAPE, labels=LABELS), options)
    losses = []
    for epoch in range(2):
        for index in ([0, 1, 2, 3], [4, 5, 6, 7]):
            loss, _ = method.loss(make_step(network, index, epoch)[0])
            network.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter -= 0.2 * parameter.grad
            losses.append(loss.detach())
        method.end_epoch(epoch, network)
        if through_checkpoint:
            state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
            method = LSSKD(stub_context(TinyNetwork.SHAPE, labels=LABELS), options)
            method.load_state_dict(state)
    return torch.stack(losses)


def test_every_choice_changes_the_second_epoch_of_training() -> None:
    default = losses_of()
    for changes in OPTIONS[1:]:
        # The precision of the table changes too little to be told apart here.
        if "table_dtype" not in changes:
            assert (losses_of(**changes)[2:] - default[2:]).abs().max() > 1e-6, changes


@pytest.mark.parametrize("past", ["table", "previous_weights"])
def test_the_past_survives_a_checkpoint(past: str) -> None:
    assert torch.equal(losses_of(past=past), losses_of(through_checkpoint=True, past=past))


def test_the_first_epoch_learns_hard_labels_whatever_the_past_is_made_of() -> None:
    first = losses_of(alpha=0.0)[:2]
    for changes in ({"past": "previous_weights"}, {"alpha_schedule": "constant"}, {"class_target": "all_stages"}):
        assert torch.equal(losses_of(**changes)[:2], first)


def test_past_network_takes_no_gradient_and_stays_in_evaluation_mode() -> None:
    method = LSSKD(stub_context(TinyNetwork.SHAPE), LSSKD.Options(past="previous_weights")).train()
    past = method.past_network
    assert past is not None
    assert not any(parameter.requires_grad for parameter in past.parameters())
    assert all(parameter.requires_grad for parameter in method.branches.parameters())
    assert method.branches.training
    assert not any(module.training for module in past.modules())


def test_tables_hold_half_precision_and_only_what_is_used() -> None:
    method = LSSKD(stub_context(TinyNetwork.SHAPE, labels=LABELS), LSSKD.Options())
    assert method.class_history.table.shape == (8, CLASSES)
    assert method.joint_history.table.shape == (8, TURNS * STAGES * CLASSES * TURNS)
    assert method.joint_history.shape == (TURNS, STAGES, CLASSES * TURNS)
    assert method.joint_history.table.dtype == torch.float16
    hard = LSSKD(stub_context(TinyNetwork.SHAPE, labels=LABELS), LSSKD.Options(soften_joint=False))
    assert hard.joint_history is None


def test_stage_logits_are_the_joint_logits_of_each_branch() -> None:
    method = LSSKD(stub_context(TinyNetwork.SHAPE), LSSKD.Options())
    outputs = tiny_network().eval()(IMAGES)
    stages = method.stage_logits(outputs)
    assert [tuple(logits.shape) for logits in stages] == [(8, 4 * CLASSES)] * STAGES
    assert_close(stages[1], method.branches(outputs.stages)[1].logits)


def test_a_network_of_one_stage_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="flat has one stage"):
        LSSKD(stub_context(Shape("flat", 3, (2, 4, 4), ((2, 4, 4),), 2)), LSSKD.Options())


@pytest.mark.parametrize(
    "option",
    [
        {"alpha": 1.5},
        {"alpha_schedule": "cosine"},
        {"temperature": 0},
        {"beta": -1},
        {"gamma": -0.1},
        {"source": "shallowest"},
        {"past": "future"},
        {"class_forward": "none"},
        {"feature_target": "stem"},
        {"past_temperature": 0},
        {"class_target": "branches"},
        {"weighting": "equal"},
        {"softening": 2},
        {"delta": 1},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LSSKD.Options(**option)


def test_trust_in_the_past_starts_at_zero_and_ends_at_alpha() -> None:
    def alphas(**changes: Any) -> list[float]:
        method = LSSKD(stub_context(TinyNetwork.SHAPE), LSSKD.Options(**changes))
        return [method.alpha_in(epoch, 4) for epoch in range(4)]

    assert alphas() == pytest.approx([0.0, 0.4, 0.6, 0.8])
    assert alphas(alpha_schedule="constant", alpha=0.5) == [0.0, 0.5, 0.5, 0.5]
    assert alphas(softening=0.4) == pytest.approx([0.0, 0.2, 0.3, 0.4])
