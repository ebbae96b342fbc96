"""ONNX files of trained networks: writing, counting, quantising to int8, timing with onnxruntime."""

from __future__ import annotations

import copy
import json
import math
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

INPUT, OUTPUT = "images", "logits"
OPSET = 17
"""Old enough for the runtimes of small devices; int8 with a scale for each channel needs 13."""
TOLERANCE = 1e-5
"""How far logits of the file may be from those of the training network, if float32 is exact enough for that."""
ROUNDINGS = 8
"""Of 129 trained networks, 30 had logits further apart than 1e-5, at worst 3.1 times their rounding in float32."""
TIMED_BATCHES = (1, 64)
WARM_UP = 3
LEAST_REPEATS = 5
BATCH = 50


class WrongFile(Exception):
    """The exported file is not the network that was trained."""


class _Logits(nn.Module):
    """A network whose forward returns the logits alone, because an exported graph can return only tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).logits


def to_onnx(network: nn.Module, image_size: int) -> onnx.ModelProto:
    """Make an ONNX graph of the network in evaluation mode: `images` [batch, 3, size, size] to logits [batch, classes].

    The batch may have any length, the size is fixed. Weights and statistics are written as they are: nothing is folded
    or merged, so that they can be counted in the file.
    """
    # The wrapper itself stays in training mode: in evaluation mode, equal tensors would be written only once.
    module = _Logits(network)
    images = torch.zeros(2, 3, image_size, image_size)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The exporter that replaces this one needs one more package; a warning says so at every call.
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript-based ONNX export", DeprecationWarning)
        warnings.filterwarnings("ignore", "The feature will be removed", DeprecationWarning)
        # Some networks choose a layer by the size of the image, which is fixed here.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        file = Path(folder, "network.onnx")
        torch.onnx.export(
            module,
            (images,),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
        model = onnx.load_model(file)
    onnx.checker.check_model(model, full_check=True)
    return model


def add_notes(model: onnx.ModelProto, notes: Mapping[str, Any]) -> onnx.ModelProto:
    """Copy the model and add notes to its metadata: texts as they are, anything else as JSON."""
    noted = onnx.ModelProto()
    noted.CopyFrom(model)
    for key, value in notes.items():
        noted.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    return noted


def open_session(model: bytes, threads: int = 1, optimised: bool = True) -> onnxruntime.InferenceSession:
    """Open an onnxruntime session on the CPU, with all of its optimisations or with none."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def compute_logits(session: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    """Compute the logits [batch, classes] of normalised images, float32 [batch, 3, size, size]."""
    (logits,) = session.run([OUTPUT], {INPUT: images})
    return logits


@dataclass(frozen=True)
class Comparison:
    """How far the logits of a file are from those of the training network, over some images.

    difference: the largest of any image and class; rounding: the largest difference between the training network's
    logits in float32 and in float64; allowed: the limit of the difference; largest: the largest logit.
    """

    images: int
    difference: float
    rounding: float
    allowed: float
    largest: float


@torch.no_grad()
def compare(network: nn.Module, session: onnxruntime.InferenceSession, images: Tensor) -> Comparison:
    """Compare the logits of a file and of the network it was made of on images [batch, 3, size, size], all in float32.

    The limit is 1e-5. If the network is so deep or its logits so large that float32 itself is less exact (its own
    logits in float64 show this), the limit is eight times that rounding: the file adds up the same numbers in another
    order, and differs by about as much.

    Raises:
        WrongFile: the difference is larger than what is allowed, or is not a number.
    """
    network.eval()
    exact_network = copy.deepcopy(network).double()
    rounding = difference = largest = 0.0
    for batch in images.split(BATCH):
        ours = network(batch).logits.double()
        theirs = torch.from_numpy(compute_logits(session, batch.numpy())).double()
        largest = max(largest, ours.abs().max().item())
        rounding = max(rounding, (ours - exact_network(batch.double()).logits).abs().max().item())
        difference = max(difference, (theirs - ours).nan_to_num(math.inf).abs().max().item())
    allowed = max(TOLERANCE, ROUNDINGS * rounding)
    if difference > allowed:
        raise WrongFile(
            f"the logits of the ONNX file differ from those of the training network by {difference:.2g} (allowed: "
            f"{allowed:.2g}) on {len(images)} images; nothing was written"
        )
    return Comparison(len(images), difference, rounding, allowed, largest)


def count_parameters(model: onnx.ModelProto) -> int:
    """Count the learnable values in a file of `to_onnx`: all its weights but the statistics of norms."""
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    measured = {name for norm in norms for name in norm.input[3:5]}
    weights = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    return sum(math.prod(tensor.dims) for tensor in weights if tensor.name not in measured)


def count_multiply_adds(model: onnx.ModelProto, image_size: int) -> int:
    """Count the multiply-adds of a file's convolutions and linear layers for one image, from the maps it computes."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=layer.output[0]) for layer in layers)
    session = open_session(probe.SerializeToString(), optimised=False)
    maps = session.run(None, {INPUT: np.zeros((1, 3, image_size, image_size), np.float32)})
    return sum(made.size * _summands(layer, shapes) for layer, made in zip(layers, maps, strict=True))


def _summands(layer: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of products in one value of a layer's output."""
    shape = shapes[layer.input[1]]
    transposed = any(attribute.name == "transB" and attribute.i for attribute in layer.attribute)
    return math.prod(shape[1:]) if layer.op_type == "Conv" or transposed else shape[0]


class _Calibration(CalibrationDataReader):
    """Gives the quantiser its images, a batch at a time."""

    def __init__(self, images: np.ndarray) -> None:
        starts = range(0, len(images), BATCH)
        self._batches = iter([images[start : start + BATCH] for start in starts])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def quantise(model: onnx.ModelProto, images: np.ndarray) -> onnx.ModelProto:
    """Quantise the model to int8 after training, calibrated on normalised images [batch, 3, size, size].

    Weights have a scale for each output channel, activations one for each map, set by the least and the largest value
    on the images. Norms are merged into the convolutions before them; the others stay in float32. Weights use 7 of the
    8 bits: processors without instructions for int8 add two products in 16 bits, which would overflow with 8, and the
    accuracy of the file would depend on the processor.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, merged, quantised = (str(Path(folder, name)) for name in ("plain", "merged", "quantised"))
        onnx.save_model(model, plain)
        quant_pre_process(plain, merged, skip_symbolic_shape=True)
        quantize_static(
            merged,
            quantised,
            _Calibration(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[
                node.name for node in onnx.load_model(merged).graph.node if node.op_type == "BatchNormalization"
            ],
            calibrate_method=CalibrationMethod.MinMax,
            # With 256 steps, logits of some classes would be equal, and the first class would win.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        return onnx.load_model(quantised)


class Accuracy:
    """Counts right answers over batches: top-1 and top-5 in %. Of classes with equal logits the first is the answer."""

    def __init__(self) -> None:
        self.images = self.first = self.among_five = 0

    def add(self, logits: np.ndarray, labels: Tensor) -> None:
        """Count a batch: logits [batch, classes], labels [batch]."""
        ranked = torch.from_numpy(logits).sort(dim=1, descending=True, stable=True).indices
        hits = ranked[:, :5] == labels[:, None]
        self.images += len(labels)
        self.first += int(hits[:, 0].sum())
        self.among_five += int(hits.sum())

    @property
    def figures(self) -> dict[str, float]:
        """top1 and top5."""
        return {"top1": 100 * self.first / self.images, "top5": 100 * self.among_five / self.images}


def measure_latencies(
    sessions: Mapping[str, onnxruntime.InferenceSession], images: np.ndarray, seconds: float
) -> dict[str, dict[str, float]]:
    """Measure the milliseconds of each session for one batch `images`: median, 10th and 90th percentile, repeats.

    The sessions take turns, so that a machine that is shared or changes its clock slows all alike, until each has had
    `seconds` (and 5 repeats). The first 3 calls are not counted.
    """
    spent: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        for _ in range(WARM_UP):
            compute_logits(session, images)
    while any(len(times) < LEAST_REPEATS or sum(times) < seconds for times in spent.values()):
        for name, session in sessions.items():
            started = time.perf_counter()
            compute_logits(session, images)
            spent[name].append(time.perf_counter() - started)
    measured = {}
    for name, times in spent.items():
        median, low, high = (1000 * np.percentile(times, [50, 10, 90])).tolist()
        measured[name] = {"median_ms": median, "p10_ms": low, "p90_ms": high, "repeats": len(times)}
    return measured
