"""A family of networks: the names that it gives to networks, and what each name builds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from benchmark.backbones.auxiliary import AuxiliaryBranches
from benchmark.backbones.network import Network

NUMBER = r"([1-9]\d{0,3})"
"""Pattern of a depth or a width in a name. Leading zeros would give one network two names."""
DIVISOR = r"(?:-x1/(?P<divisor>[24]))?"
"""Pattern of what a name ends with where the channels are divided."""
LARGEST_DEPTH = 1202
"""Layers of the deepest network that He et al. trained on CIFAR-10."""


@dataclass(frozen=True)
class Architecture:
    """What one name stands for.

    network: builds the network from the number of classes; branches: builds its branches from their number of outputs;
    grouped: whether it has grouped or depthwise convolutions;
    mobile: a MobileNet or ShuffleNet, for which the lineage's recipes have a learning rate of their own.
    """

    network: Callable[..., Network]
    branches: Callable[..., AuxiliaryBranches]
    grouped: bool = False
    mobile: bool = False


@dataclass(frozen=True)
class Family:
    """The networks whose names follow one pattern.

    form: the pattern as users read it; pattern: matches a whole name;
    architecture: makes the architecture from the match, or raises ValueError with the numbers that are possible.
    """

    form: str
    pattern: re.Pattern[str]
    architecture: Callable[[re.Match[str]], Architecture]


def with_sizes(named: Mapping[str, Architecture], form: str, units: bool = False) -> Family:
    """Make the family of these networks and of the same in other sizes.

    `-x1/2` and `-x1/4` behind a name divide the channels, which its builders take as `divisor`. With
    `units`, `-u3` gives every stage three units, of 1 to 9, which they take as `units`. The small networks are this
    suite's own, for quick demonstrations; no published number comes from them.
    """
    names = "|".join(map(re.escape, named))
    unit_count = "(?:-u(?P<units>[1-9]))?" if units else ""

    def architecture(match: re.Match[str]) -> Architecture:
        whole = named[match["name"]]
        sizes = {size: int(match[size]) for size in match.re.groupindex if size != "name" and match[size]}
        return replace(whole, network=partial(whole.network, **sizes), branches=partial(whole.branches, **sizes))

    return Family(form, re.compile(f"(?P<name>{names}){unit_count}{DIVISOR}"), architecture)


def blocks_per_stage(depth: int, outside: int) -> int:
    """Compute the blocks of two convolutions in each of three stages, with `outside` layers before and behind them.

    Raises:
        ValueError: no network has such a depth, or it is too large.
    """
    blocks, rest = divmod(depth - outside, 6)
    if rest or blocks < 1 or depth > LARGEST_DEPTH:
        smallest = ", ".join(str(6 * n + outside) for n in range(1, 5))
        raise ValueError(f"its depth must be 6n + {outside} ({smallest}, ..., at most {LARGEST_DEPTH}), not {depth}")
    return blocks


def divide_channels(channels: tuple[int, ...], divisor: int) -> tuple[int, ...]:
    """Divide each number of channels."""
    return tuple(number // divisor for number in channels)
