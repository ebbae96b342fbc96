"""Where two values of JSON differ first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple


class JsonDiff(NamedTuple):
    """place: the names and, counted from 0, the numbers of items that lead there; left, right: None for nothing."""

    place: tuple[str | int, ...]
    left: Any
    right: Any


def canonical(value: Any) -> str:
    """A value as JSON, one text for equal values; 1, 1.0 and true are three."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def first_difference(left: Any, right: Any) -> JsonDiff | None:
    """The innermost place, the first in the order of `left`, where two values differ; None where they are equal.

    Lists of different lengths differ as a whole.
    """
    if canonical(left) == canonical(right):
        return None
    pairs: list[tuple[str | int, Any, Any]] = []
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        pairs = [(name, left.get(name), right.get(name)) for name in dict.fromkeys([*left, *right])]
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = [(number, *both) for number, both in enumerate(zip(left, right, strict=True))]
    for step, one, other in pairs:
        if found := first_difference(one, other):
            return found._replace(place=(step, *found.place))
    return JsonDiff((), left, right)
