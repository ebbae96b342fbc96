"""MOKD's heads compute what the public ones compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmark.core.rng import generator
from methods.mokd_heads import MLPHead, THead
from tests.support import Case, TinyNetwork, assert_close, leaf, stub_context


def test_t_head_on_a_map_equals_the_public_one_with_and_without_a_query() -> None:
    case = Case("mokd", "thead_cnn")
    head = THead(10, (3, 3), 12, 2, 3, 24).double()
    head.load_state_dict(case.weights())
    maps = leaf(case.input("feature_map"))
    found = head(maps)
    found.scores.sum().backward()
    assert_close(found.scores, case.expected("out"))
    assert_close(found.pooled, case.expected("pooled"))
    assert_close(maps.grad, case.expected("grad_of_sum"))
    assert_close(head(maps, case.input("query")).scores, case.expected("out_with_query"))


def test_t_head_on_tokens_equals_the_public_one_with_and_without_a_query() -> None:
    case = Case("mokd", "thead_vit")
    head = THead(12, (4, 4), 12, 2, 3, 24).double()
    head.patch_embed = nn.Identity()
    head.load_state_dict(case.weights())
    maps = case.input("tokens").transpose(1, 2).unflatten(2, (4, 4))
    assert_close(head(maps).scores, case.expected("out"))
    assert_close(head(maps, case.input("query")).scores, case.expected("out_with_query"))


def test_mlp_head_equals_the_public_one_and_keeps_its_gains() -> None:
    case = Case("mokd", "dino_head")
    head = MLPHead(10, 14, 8, 24).double()
    head.load_state_dict(case.weights())
    features = leaf(case.input("features"))
    scores = head(features)
    scores.sum().backward()
    assert_close(scores, case.expected("out"))
    assert_close(features.grad, case.expected("grad_of_sum"))
    assert head.last_layer.weight_g.requires_grad == bool(case.expected("weight_g_requires_grad"))
    assert THead(2, (1, 1), 4, 1, 2, 6).last_layer.weight_g.requires_grad


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (6, 6)])
def test_positions_of_other_map_sizes_are_resized_bicubically(size: tuple[int, int]) -> None:
    head = THead(2, (4, 3), 6, 1, 2, 5).double()
    head.fill(lambda name: generator("test", name))
    ours = head.positions(*size)
    as_map = head.pos_embed.transpose(1, 2).unflatten(2, (4, 3))
    resized = F.interpolate(as_map, size=size, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    assert_close(ours, resized)
    weights = torch.arange(ours.numel(), dtype=torch.float64).view(ours.shape)
    gradients = [torch.autograd.grad((values * weights).sum(), head.pos_embed)[0] for values in (ours, resized)]
    assert_close(*gradients)
    assert head.positions(4, 3) is head.pos_embed


def test_queries_beyond_one_an_image_go_with_the_maps_in_turn() -> None:
    head = THead(2, (2, 2), 4, 1, 2, 5)
    stub_context(TinyNetwork.SHAPE).initialise(head, "head")
    head = head.double()
    maps, queries = torch.randn(3, 2, 2, 2, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    together = head(maps, queries).scores
    for row in range(6):
        image = row % 3
        assert_close(together[row : row + 1], head(maps[image : image + 1], queries[row : row + 1]).scores)
