"""Where two values of JSON differ first."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from benchmark.io.json_diff import JsonDiff, canonical, first_difference

LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, float("nan")]) | st.text("ab")
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=1), inner, max_size=3)
)


@given(VALUES, VALUES)
def test_a_difference_is_named_where_and_only_where_the_texts_differ(left: Any, right: Any) -> None:
    found = first_difference(left, right)
    assert (found is None) == (canonical(left) == canonical(right))
    if found is None:
        return
    for step in found.place:
        left, right = (side[step] if isinstance(step, int) else side.get(step) for side in (left, right))
    assert canonical([left, right]) == canonical([found.left, found.right])
    assert canonical(left) != canonical(right)


def test_the_first_in_the_order_of_the_left_is_given_and_the_innermost() -> None:
    left = {"b": [1, {"c": 2}], "a": 3}
    assert first_difference(left, {"a": 4, "b": [1, {"c": 5}]}) == JsonDiff(("b", 1, "c"), 2, 5)
    assert first_difference(left, {"a": 3}) == JsonDiff(("b",), [1, {"c": 2}], None)
    assert first_difference([1], [1, 2]) == JsonDiff((), [1], [1, 2])


def test_a_whole_number_is_no_other_number_and_the_order_of_names_says_nothing() -> None:
    assert first_difference({"a": 1}, {"a": 1.0}) == JsonDiff(("a",), 1, 1.0)
    assert first_difference([True], [1]) is not None
    assert first_difference(json.loads('{"a": 1, "b": 2}'), json.loads('{"b": 2, "a": 1}')) is None
