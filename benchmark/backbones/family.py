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
LARGEST_DEPTH = 1202
"""Layers of the deepest network that He et al. trained on CIFAR-10."""


@dataclass(frozen=True)
class Architecture:
    """What one name stands for.

    network: builds the network from the number of classes; branches: builds its branches from their number of outputs;
    public: the name in the public code and in the file names of its released teachers (RepDistiller's where it has the
    network); None for a network that only this suite has;
    public_branches: the name of network and branches in HSAKD's code, None if it has no such branches or they fail;
    grouped: whether it has grouped or depthwise convolutions;
    mobile: a MobileNet or ShuffleNet, for which the lineage's recipes have a learning rate of their own.
    """

    network: Callable[..., Network]
    branches: Callable[..., AuxiliaryBranches]
    public: str | None = None
    public_branches: str | None = None
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


def with_fractions(named: Mapping[str, Architecture], form: str) -> Family:
    """Make the family of these networks and of the same with a half or a quarter of the channels.

    Their builders take the number that the channels are divided by as `divisor`. The narrow networks are this suite's
    own, for quick demonstrations; no published number comes from them.
    """
    names = "|".join(map(re.escape, named))

    def architecture(match: re.Match[str]) -> Architecture:
        whole = named[match[1]]
        if match[2] is None:
            return whole
        divisor = int(match[2])
        return replace(
            whole,
            network=partial(whole.network, divisor=divisor),
            branches=partial(whole.branches, divisor=divisor),
            public=None,
            public_branches=None,
        )

    return Family(form, re.compile(f"({names})(?:-x1/([24]))?"), architecture)


def with_units(named: Mapping[str, Architecture], fewest: int, form: str) -> Family:
    """Make the family of these networks with as many units in every stage as the name says, from `fewest` to 9.

    Their builders take that number as `units`, and `divisor` as in `with_fractions`. The short
    networks are this suite's own: they learn in a hundred steps, which the published depth does not.
    """
    names = "|".join(map(re.escape, named))

    def architecture(match: re.Match[str]) -> Architecture:
        whole = named[match[1]]
        sizes = {"units": int(match[2]), "divisor": int(match[3] or 1)}
        return replace(
            whole,
            network=partial(whole.network, **sizes),
            branches=partial(whole.branches, **sizes),
            public=None,
            public_branches=None,
        )

    return Family(form, re.compile(f"({names})-u([{fewest}-9])(?:-x1/([24]))?"), architecture)


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
