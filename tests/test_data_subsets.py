"""Parts of a training set are stratified, nested and named."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmark.core.errors import UserError
from benchmark.data.subsets import split_held_out, stratified_fraction


@st.composite
def label_tensors(draw: st.DrawFn, smallest: int = 1) -> Tensor:
    """Labels of up to five classes, each of its own size, in any order."""
    sizes = draw(st.lists(st.integers(smallest, 30), min_size=1, max_size=5))
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    return torch.tensor(draw(st.permutations(labels)))


@given(label_tensors(), st.floats(0.001, 1), st.floats(0.001, 1), st.integers())
def test_a_smaller_fraction_is_inside_a_larger_one(labels: Tensor, one: float, other: float, seed: int) -> None:
    small, large = sorted((one, other))
    inner, outer = (set(stratified_fraction(labels, part, seed).tolist()) for part in (small, large))
    assert inner <= outer


@given(label_tensors(), st.floats(0.001, 1))
def test_a_fraction_takes_its_share_of_every_class(labels: Tensor, fraction: float) -> None:
    index = stratified_fraction(labels, fraction, "test")
    assert index.dtype == torch.int64
    assert index.tolist() == sorted(set(index.tolist()))
    for label, size in zip(*(part.tolist() for part in labels.unique(return_counts=True)), strict=True):
        kept = int((labels[index] == label).sum())
        assert kept >= 1
        assert kept == 1 or abs(kept - fraction * size) <= 0.5


def test_the_whole_fraction_keeps_every_image() -> None:
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    assert stratified_fraction(labels, 1, "test").tolist() == list(range(7))


def test_a_fraction_depends_on_its_names() -> None:
    labels = torch.arange(200) % 2
    assert torch.equal(stratified_fraction(labels, 0.5, "a", 0), stratified_fraction(labels, 0.5, "a", 0))
    assert not torch.equal(stratified_fraction(labels, 0.5, "a", 0), stratified_fraction(labels, 0.5, "a", 1))


def test_adding_a_class_does_not_move_the_draw_of_another() -> None:
    labels = torch.arange(100) % 2
    more = torch.cat([labels, torch.full((50,), 2)])
    before, after = (stratified_fraction(given, 0.3, "test") for given in (labels, more))
    assert after[after < 100].tolist() == before.tolist()


@given(label_tensors(smallest=2), st.floats(0.001, 0.999), st.integers())
def test_held_out_images_and_the_rest_are_stratified_and_make_up_the_whole(
    labels: Tensor, share: float, seed: int
) -> None:
    kept, held = split_held_out(labels, share, seed)
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(labels)))
    for part in (kept, held):
        assert part.tolist() == sorted(part.tolist())
    for label, size in zip(*(part.tolist() for part in labels.unique(return_counts=True)), strict=True):
        count = int((labels[held] == label).sum())
        assert 1 <= count < size
        assert abs(count - share * size) <= 1


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="above 0 and at most 1"):
        stratified_fraction(torch.tensor([0, 1]), fraction)


def test_an_impossible_held_out_share_is_refused() -> None:
    with pytest.raises(UserError, match="above 0 and below 1"):
        split_held_out(torch.tensor([0, 0, 1, 1]), 1.0)
    with pytest.raises(UserError, match="class number 1 has a single image"):
        split_held_out(torch.tensor([0, 0, 1]), 0.5)
