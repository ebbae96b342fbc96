"""Which names stand for a network, what each builds, and what an impossible one is answered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from benchmark.backbones import (
    build_network,
    check_network,
    is_mobile_network,
    is_network,
    uses_grouped_convolutions,
)
from benchmark.backbones.family import blocks_per_stage
from benchmark.backbones.shapes import network_shape
from benchmark.core.errors import UserError


@pytest.mark.parametrize("ask", [is_mobile_network, uses_grouped_convolutions, lambda name: build_network(name, 10)])
def test_an_unknown_network_is_refused_with_the_nearest_name(ask: Callable[[str], object]) -> None:
    with pytest.raises(UserError, match=r"network 'wrn-40-3'.*did you mean 'WRN-40-[12]'.*ShuffleNetV2.*WRN-<depth>-"):
        ask("wrn-40-3")


def test_depths_outside_a_family_are_refused() -> None:
    with pytest.raises(ValueError, match=r"6n \+ 4 \(10, 16, 22, 28, .*not 20"):
        blocks_per_stage(20, outside=4)
    with pytest.raises(ValueError, match=r"6n \+ 2 \(8, 14, 20, 26, .*at most 1202\), not 1208"):
        blocks_per_stage(1208, outside=2)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "WRN-17-2",
            "unknown network 'WRN-17-2' (did you mean 'WRN-16-2'?): its depth must be 6n + 4 (10, 16, ",
        ),
        ("WRN-4-2", "its depth must be 6n + 4"),
        ("WRN-16-21", "its width must be at most 20, not 21"),
        ("WRN-016-2", "allowed: WRN-16-2, "),
        (
            "ResNet21",
            "unknown network 'ResNet21' (did you mean 'ResNet20'?): its depth must be 6n + 2 (8, 14, ",
        ),
        ("ResNet18x4", "its depth must be 6n + 2"),
        ("ResNet20-x1/3", "allowed: WRN-16-2, "),
        ("WRN-17-2-x1/2", "its depth must be 6n + 4"),
        ("ShuffleNetV1-x1/3", "-x1/2 or -x1/4 behind the name"),
        ("ShuffleNetV2-u0", "-u<units in every stage, 1 to 9>"),
        ("ShuffleNetV1-u10", "-u<units in every stage, 1 to 9>"),
        ("MobileNetV2-u0", "MobileNetV2-u<units in every group, 1 to 9>"),
        ("ResNet10-u2", "-u<units in every stage, 1 to 9>"),
        ("VGG9", "VGG<8, 11, 13, 16 or 19>"),
        (f"ResNet{'2' * 5000}", "allowed: WRN-16-2, "),
    ],
)
def test_an_impossible_network_is_refused_with_what_is_possible(name: str, reason: str) -> None:
    assert not is_network(name)
    with pytest.raises(UserError) as refused:
        check_network(name)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "convolutions", "stages"),
    [
        # Beside those that the depth counts, one for each change of width: two of WRN-10-1, whose depth counts three.
        ("WRN-10-1", 9, (16, 32, 64)),
        ("WRN-10-1-x1/2", 9, (8, 16, 32)),
        ("ResNet14", 13 + 2, (16, 32, 64)),
        ("ResNet14x4", 13 + 3, (64, 128, 256)),
        ("VGG11-x1/4", 8, (32, 64, 128, 128)),
        ("ShuffleNetV1-x1/4", 3 * 16 + 1, (60, 120, 240)),
        ("MobileNetV2-x1/4", 3 * 17 + 2, (3, 4, 12, 40)),
        ("ShuffleNetV1-u1-x1/2", 3 * 3 + 1, (120, 240, 480)),
        # A down unit has five convolutions, another one three; stem and head.
        ("ShuffleNetV2-u1-x1/4", 3 * 5 + 2, (24, 48, 96)),
        ("ShuffleNetV2-u2-x1/4", 3 * (5 + 3) + 2, (24, 48, 96)),
        ("ResNet14-x1/4", 13 + 2, (4, 8, 16)),
        ("MobileNetV2-s1-u1", 3 * 7 + 2, (12, 16, 48, 160)),
        ("ResNet10-x1/4", 9 + 3, (16, 32, 64, 128)),
        ("ResNet18", 17 + 3, (64, 128, 256, 512)),
    ],
)
def test_a_name_from_a_pattern_builds_what_it_says(name: str, convolutions: int, stages: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = build_network(name, 10)
    assert sum(isinstance(part, nn.Conv2d) for part in network.modules()) == convolutions
    assert tuple(channels for channels, *_ in network_shape(name, 10, 16).stages) == stages
