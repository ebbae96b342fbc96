"""Networks as ONNX files: the same logits and counts for every family, int8 near float32, accuracy and latency."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmark.backbones import network_names
from benchmark.backbones.cost import multiply_adds, parameters
from benchmark.core.errors import UserError
from benchmark.export import load_edge
from benchmark.export.edge import (
    ROUNDINGS,
    Accuracy,
    WrongFile,
    compare,
    compute_logits,
    count_multiply_adds,
    count_parameters,
    measure_latencies,
    open_session,
    quantise,
    to_onnx,
)
from tests.onnx_files import changed, noise, settled

LARGE = {
    "WRN-40-1": "WRN-16-2",
    "WRN-40-2": "WRN-16-2",
    "ResNet20": "ResNet8",
    "ResNet32": "ResNet8",
    "ResNet56": "ResNet8",
    "ResNet110": "ResNet8",
    "ResNet8x4": "ResNet8",
    "ResNet32x4": "ResNet8",
    "ResNet18": "ResNet18-x1/4",
    "ResNet34": "ResNet18-x1/4",
    "ResNet34-x1/4": "ResNet18-x1/4",
    "ResNet50": "ResNet50-x1/4",
    "ResNet101": "ResNet50-x1/4",
    "ResNet101-x1/4": "ResNet50-x1/4",
    "VGG13": "VGG8",
    "ImageNet-ResNet34": "ImageNet-ResNet18",
    "MobileNetV2-TFKD": "MobileNetV2-TFKD-x1/2",
    "PreActResNet18": "PreActResNet18-x1/4",
}
"""Networks that differ from another one only in depth or width; tried by hand, too slow for every test run."""


EXPORTED = [
    pytest.param(name, marks=pytest.mark.slow) if name == "ResNeXt29" else name
    for name in network_names()
    if name not in LARGE
]
"""ResNeXt29 takes longer than any three others."""


@pytest.mark.parametrize("name", EXPORTED)
def test_every_network_is_exported_with_the_same_logits_and_counts(name: str) -> None:
    size = 32 if name.startswith("ImageNet") else 8 if name == "ResNeXt29" else 16
    network = settled(name, size)
    model = to_onnx(network, size)
    images = noise(2, size)
    comparison = compare(network, open_session(model.SerializeToString()), images)
    # Untrained and deep: what float32 loses is not always below 1e-5, but far below any real difference.
    assert comparison.difference <= comparison.allowed < 1e-3 * comparison.largest
    assert count_parameters(model) == parameters(network)
    assert count_multiply_adds(model, size) == multiply_adds(network, images)
    holds = {tuple(tensor.dims) for tensor in model.graph.initializer}
    assert {tuple(weights.shape) for weights in network.parameters()} <= holds


def test_only_networks_that_have_a_smaller_relative_are_left_out() -> None:
    assert set(LARGE) | set(LARGE.values()) <= set(network_names())
    assert not set(LARGE) & set(LARGE.values())


def test_a_difference_is_allowed_only_where_float32_loses_as_much() -> None:
    network, images = settled("ResNet8", 16), noise(8, 16)
    model = to_onnx(network, 16)
    small = compare(network, open_session(model.SerializeToString()), images)
    assert ROUNDINGS * small.rounding < small.allowed == 1e-5
    with torch.no_grad():
        for weights in (network.get_parameter("fc.weight"), network.get_parameter("fc.bias")):
            weights.mul_(1000)
    large = to_onnx(network, 16)
    comparison = compare(network, open_session(large.SerializeToString()), images)
    assert comparison.rounding == pytest.approx(1000 * small.rounding, rel=0.9)
    assert 1e-5 < comparison.difference <= comparison.allowed == ROUNDINGS * comparison.rounding
    assert comparison.allowed < 1e-5 * comparison.largest
    with pytest.raises(WrongFile):
        compare(network, open_session(changed(large, "epsilon").SerializeToString()), images)


@pytest.mark.parametrize(("name", "error"), [("ResNet20", 0.4), ("WRN-16-2", 0.4), ("ShuffleNetV1", 1.0)])
def test_int8_stays_near_float32_and_has_a_scale_for_each_channel(name: str, error: float) -> None:
    network = settled(name, 16)
    model = to_onnx(network, 16)
    small = quantise(model, noise(64, 16).numpy())
    images = noise(32, 16).numpy()
    plain, rounded = (compute_logits(open_session(each.SerializeToString()), images) for each in (model, small))
    # On noise, and through up to 50 layers of random weights, rounding grows; but an image is still told from others.
    assert 0 < np.linalg.norm(rounded - plain) < error * np.linalg.norm(plain - plain.mean(0))
    nearest = np.linalg.norm(rounded[:, None] - plain, axis=2).argmin(1)
    assert (nearest == np.arange(32)).mean() > 0.25
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in small.graph.initializer}
    convolutions = [node for node in small.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == sum(isinstance(part, nn.Conv2d) for part in network.modules())
    scaled_weights = {node.output[0]: node.input for node in small.graph.node if node.op_type == "DequantizeLinear"}
    for node in convolutions:
        weights, scales, _ = (tensors[name] for name in scaled_weights[node.input[1]])
        assert weights.dtype == np.int8
        assert scales.shape == weights.shape[:1]
        # 7 bits, so that two products with uint8 fit into 16.
        assert 0 < np.abs(weights.astype(int)).max() <= 64


def test_a_latency_takes_the_time_that_it_is_given() -> None:
    session = open_session(to_onnx(settled("ResNet8", 8), 8).SerializeToString())
    batch = noise(1, 8).numpy()
    assert measure_latencies({"one": session}, batch, 1e-6)["one"]["repeats"] == 5
    started = time.perf_counter()
    both = measure_latencies({"one": session, "other": session}, batch, 0.1)
    assert time.perf_counter() - started > 0.2
    assert both["one"]["repeats"] == both["other"]["repeats"] > 5


def logits_and_labels() -> st.SearchStrategy[list[tuple[list[int], int]]]:
    """Logits of a few values, so that some are equal, and the right class, of some images."""

    def of(classes: int) -> st.SearchStrategy[list[tuple[list[int], int]]]:
        row = st.lists(st.integers(0, 9), min_size=classes, max_size=classes)
        return st.lists(st.tuples(row, st.integers(0, classes - 1)), min_size=1, max_size=9)

    return st.integers(2, 8).flatmap(of)


@settings(max_examples=50)
@given(logits_and_labels(), st.integers(1, 4))
def test_accuracy_over_batches_is_the_share_of_right_answers(drawn: list[tuple[list[int], int]], size: int) -> None:
    accuracy = Accuracy()
    for start in range(0, len(drawn), size):
        rows, labels = zip(*drawn[start : start + size], strict=True)
        accuracy.add(np.array(rows, np.float32), torch.tensor(labels))
    before = [
        sum(value > row[label] or (value == row[label] and place < label) for place, value in enumerate(row))
        for row, label in drawn
    ]
    for name, among in (("top1", 1), ("top5", 5)):
        assert accuracy.figures[name] == pytest.approx(100 * sum(rank < among for rank in before) / len(drawn))


def figures(folder: Path, weights: str = "a" * 64) -> Path:
    """A run's folder, exported."""
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps({"weights": {"student": weights}}))
    (folder / "edge.json").write_text(json.dumps({"format": 1, "weights": "a" * 64, "parameters": 7}))
    return folder


def test_figures_are_those_of_the_weights_that_are_there(tmp_path: Path) -> None:
    exported = figures(tmp_path / "exported")
    found = load_edge(exported)
    assert found is not None
    assert found["parameters"] == 7
    assert load_edge(figures(tmp_path / "trained anew", "b" * 64)) is None
    (exported / "edge.json").unlink()
    assert load_edge(exported) is None
    assert load_edge(tmp_path / "nowhere") is None


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"format": 2}', b'{"format": 1}', b"\xff"])
@pytest.mark.parametrize("file", ["edge.json", "record.json"])
def test_damaged_figures_are_told(tmp_path: Path, file: str, text: bytes) -> None:
    exported = figures(tmp_path / "exported")
    (exported / file).write_bytes(text)
    with pytest.raises(UserError, match=r"edge\.json cannot be read .*; delete it and export the run again"):
        load_edge(exported)
