"""LSSKD with one part less, and with fewer branches."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmark.method.contract import Context, Network, Outputs, Shape, UserError
from methods.baseline import cross_entropy
from methods.hssakd import joint_cross_entropy
from methods.lsskd import LSSKD
from methods.lsskd_variants import (
    LSSKDHard,
    LSSKDHeadOnly,
    LSSKDOneBranch,
    LSSKDTwoBranches,
    LSSKDWithoutFeatures,
    LSSKDWithoutKL,
)
from tests.support import TinyBranches, TinyNetwork, assert_close, stub_context, stub_step, tiny_network

VARIANTS: dict[type[LSSKD], dict[str, Any]] = {
    LSSKDHard: {"alpha": 0.0},
    LSSKDWithoutKL: {"beta": 0.0},
    LSSKDWithoutFeatures: {"gamma": 0.0},
    LSSKDHeadOnly: {"soften_joint": False},
    LSSKDOneBranch: {"branches": 1},
    LSSKDTwoBranches: {"branches": 2},
}
LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1])
IMAGES = torch.randn(8, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
CUT = dataclasses.replace(TinyNetwork.SHAPE, name="Cut", stages=TinyNetwork.SHAPE.stages[1:])


class CutNetwork(TinyNetwork):
    """The same network, which shows its two deepest stages only."""

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        outputs = super().forward(images)
        return dataclasses.replace(outputs, stages=outputs.stages[1:])


def cut(network: nn.Module) -> CutNetwork:
    copy = CutNetwork().double()
    copy.load_state_dict(network.state_dict())
    return copy


def context_of(shape: Shape = TinyNetwork.SHAPE) -> Context:
    """A context with the branches of all stages, or those of the cut shape with the same weights."""

    def branches(shape: Shape, outputs: int) -> nn.Module:
        module = context.initialise(TinyBranches(TinyNetwork.SHAPE, outputs), "branches").double()
        if shape is CUT:
            module.extractors, module.classifiers = module.extractors[1:], module.classifiers[1:]
        return module

    def network(shape: Shape) -> Network:
        return cut(tiny_network("fresh")) if shape is CUT else tiny_network("fresh")

    context = stub_context(shape, labels=LABELS, branches=branches, network=network)
    return context


def turned(images: Tensor) -> Tensor:
    return torch.stack([image.rot90(turn, (1, 2)) for image in images for turn in range(4)])


def trained(method: LSSKD, network: TinyNetwork) -> list[Tensor]:
    """The losses of two epochs and the network's weights after them."""
    optimizer = torch.optim.SGD([*network.parameters(), *method.branches.parameters()], 0.2)
    losses = []
    for epoch in range(2):
        for index in (torch.arange(4), torch.arange(4, 8)):
            views = {"plain": IMAGES[index], "rotated": turned(IMAGES[index])}
            step = stub_step(
                LABELS[index],
                index,
                epoch,
                2,
                images=views.__getitem__,
                student=lambda view, views=views: network(views[view]),
            )
            loss, _ = method.loss(step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        method.end_epoch(epoch, network)
    return [torch.stack(losses), *(parameter.detach() for parameter in network.parameters())]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_variant_is_lsskd_with_one_default_changed(variant: type[LSSKD]) -> None:
    (option, value), *more = VARIANTS[variant].items()
    assert not more
    for name, field in variant.Options.model_fields.items():
        original = LSSKD.Options.model_fields[name]
        assert field.default == (value if name == option else original.default)
        assert (field.annotation, field.metadata, field.description) == (
            original.annotation,
            original.metadata,
            original.description,
        )
    assert variant.version == LSSKD.version
    own = trained(variant(context_of(), variant.Options()), tiny_network())
    changed = trained(LSSKD(context_of(), LSSKD.Options(**{option: value})), tiny_network())
    assert all(torch.equal(one, other) for one, other in zip(own, changed, strict=True))
    default = trained(LSSKD(context_of(), LSSKD.Options()), tiny_network())
    assert (own[0] - default[0]).abs().max() > 1e-6


def test_only_lsskd_itself_and_the_rows_of_table_iv_are_in_the_default_grid() -> None:
    assert LSSKD.in_default_grid
    assert [variant.name for variant in VARIANTS if variant.in_default_grid] == ["LSSKD-hard"]
    assert len({variant.name for variant in VARIANTS} - {LSSKD.name}) == len(VARIANTS)


def test_as_many_branches_as_stages_is_the_default_bit_for_bit() -> None:
    all_named = trained(LSSKD(context_of(), LSSKD.Options(branches=3)), tiny_network())
    default = trained(LSSKD(context_of(), LSSKD.Options()), tiny_network())
    assert all(torch.equal(one, other) for one, other in zip(all_named, default, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"past": "previous_weights"},
        {"class_target": "all_stages"},
        {"source": "next"},
        {"source": "backbone"},
        {"branch_reduction": "mean"},
        {"feature_branches": "all", "feature_target": "last_branch"},
    ],
    ids=str,
)
def test_two_branches_train_like_a_network_that_has_no_other_stages(changes: dict[str, Any]) -> None:
    kept = trained(LSSKD(context_of(), LSSKD.Options(branches=2, **changes)), tiny_network())
    other = trained(LSSKD(context_of(CUT), LSSKD.Options(**changes)), cut(tiny_network()))
    for one, two in zip(kept, other, strict=True):
        assert_close(one, two)


def test_one_branch_learns_labels_alone_and_the_others_are_not_there() -> None:
    network, method = tiny_network(), LSSKD(context_of(), LSSKD.Options(branches=1))
    outputs = network(turned(IMAGES))
    loss, terms = method.loss(stub_step(LABELS, student=outputs))
    branches = method.branches(outputs.stages)
    assert terms.keys() == method.weights.keys() == {"ce", "hierarchical"}
    assert_close(terms["ce"], cross_entropy(outputs.logits[::4], LABELS))
    assert_close(terms["hierarchical"], joint_cross_entropy([branches[-1].logits], LABELS))
    loss.backward()
    assert len(branches) == 1
    assert all(parameter.grad is not None for parameter in method.branches.parameters())


@pytest.mark.parametrize("weighting", ["separate", "alpha_beta", "beta_on_hierarchical"])
@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"source": "backbone"}, set()),
        ({"source": "all_deeper"}, set()),
        ({"feature_branches": "all"}, {"feature"}),
        ({"feature_branches": "all", "feature_target": "last_branch"}, set()),
    ],
    ids=str,
)
def test_one_branch_leaves_out_every_loss_with_nothing_to_teach(
    changes: dict[str, Any], more: set[str], weighting: str
) -> None:
    method = LSSKD(context_of(), LSSKD.Options(branches=1, weighting=weighting, **changes))
    loss, terms = method.loss(stub_step(LABELS, student=tiny_network()(turned(IMAGES))))
    assert terms.keys() == {"ce", "hierarchical"} | more
    assert all(term > 0 for term in terms.values())
    assert torch.isfinite(loss)


def test_tables_and_stage_logits_follow_the_number_of_branches() -> None:
    method = LSSKD(context_of(), LSSKD.Options(branches=2))
    assert method.joint_history.shape == (4, 2, 12)
    outputs = tiny_network().eval()(IMAGES)
    stages = method.stage_logits(outputs)
    assert len(stages) == 2
    for logits, branch in zip(stages, method.branches(outputs.stages), strict=True):
        assert torch.equal(logits, branch.logits)


def test_more_branches_than_stages_are_refused_with_what_is_allowed() -> None:
    with pytest.raises(UserError, match=r"LSSKD: Tiny has 3 stages for branches, not 4; choose branches from 1 to 3"):
        LSSKD(context_of(), LSSKD.Options(branches=4))
    flat = Shape("flat", 3, (2, 4, 4), ((2, 4, 4),), 2)
    with pytest.raises(UserError, match="LSSKD-2-branches: flat has one stage"):
        LSSKDTwoBranches(stub_context(flat), LSSKDTwoBranches.Options())
