"""Released teachers are read whatever their layout."""

from __future__ import annotations

import argparse
import hashlib
import io
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from benchmark.backbones import build_branches, build_network
from benchmark.backbones.network import Network, Outputs
from benchmark.backbones.released import apply_to, load_released
from benchmark.core import rng
from benchmark.core.errors import UserError
from tests.released_files import NAME, archived, assert_same, network, prefixed, released, weights
from tests.test_backbones import FACTS, PUBLIC, PUBLIC_BRANCHES

ACCURACY = np.float64(72.5)
LAYOUTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "model": lambda tensors: {"epoch": 240, "model": tensors, "accuracy": ACCURACY, "optimizer": {"state": {}}},
    "state_dict": lambda tensors: {"epoch": 240, "state_dict": tensors, "acc": np.float32(0.7), "best": np.int64(3)},
    "net": lambda tensors: {"net": tensors, "acc": torch.tensor(70.0), "epoch": 200, "optimizer": {"state": {}}},
    "state dict": lambda tensors: tensors,
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "backbone.module."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_round_trips(tmp_path: Path, layout: str, prefix: str, zipped: bool) -> None:
    path = tmp_path / "teacher.pth"
    torch.save(LAYOUTS[layout](prefixed(prefix, weights())), path, _use_new_zipfile_serialization=zipped)
    read = load_released(path)
    assert (read.layout, read.auxiliary, read.ignored) == (layout, None, ())
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    target = network(seed=1)
    apply_to(target, read, NAME)
    assert_same(dict(target.state_dict()), weights())


@pytest.mark.parametrize("name", ["teacher.safetensors", "TEACHER.SAFETENSORS"])
def test_safetensors_round_trips(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    safetensors.torch.save_file(prefixed("module.", weights()), path)
    read = load_released(path)
    assert read.layout == "safetensors"
    assert_same(read.backbone, weights())


def compile_module(module: nn.Module) -> nn.Module:
    """Wrap a module as torch.compile does; nothing is compiled before its first forward."""
    return cast(nn.Module, torch.compile(module))


def compile_a_part(module: nn.Module) -> nn.Module:
    module.layer2 = compile_module(module.get_submodule("layer2"))
    return module


WRAPPED: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "torch.compile": (compile_module, "_orig_mod."),
    "a compiled part": (compile_a_part, ""),
    "DataParallel of torch.compile": (lambda plain: nn.DataParallel(compile_module(plain)), "module._orig_mod."),
    "torch.compile of DataParallel": (lambda plain: compile_module(nn.DataParallel(plain)), "_orig_mod.module."),
    "AveragedModel": (torch.optim.swa_utils.AveragedModel, "module."),
    "Lightning's model": (lambda plain: nn.ModuleDict({"model": plain}), "model."),
    "Lightning's compiled net": (lambda plain: nn.ModuleDict({"net": compile_module(plain)}), "net._orig_mod."),
    "a student": (lambda plain: nn.DataParallel(nn.ModuleDict({"student": plain})), "module.student."),
}
"""How training scripts wrap a network, and what stands before its keys then."""


@pytest.mark.parametrize("kind", WRAPPED)
def test_what_wraps_a_network_is_removed_from_its_keys_and_told(tmp_path: Path, kind: str) -> None:
    wrap, prefix = WRAPPED[kind]
    torch.save({"state_dict": wrap(network()).state_dict()}, tmp_path / "teacher.pth")
    read = load_released(tmp_path / "teacher.pth")
    assert_same(read.backbone, weights())
    assert read.prefix == prefix
    assert (f"without the prefix {prefix}" in read.summary) == bool(prefix)
    assert read.ignored == (("n_averaged",) if kind == "AveragedModel" else ())


class AttributeDict(dict[str, Any]):
    """As Lightning keeps a model's arguments."""


def training_checkpoints() -> dict[str, tuple[Any, str, tuple[str, ...]]]:
    """Make whole training checkpoints: what is stored, what is told of the layout, and what is ignored."""
    arguments = argparse.Namespace(epochs=240, output=Path("runs"), lr=0.05)
    of_arguments = ("argparse.Namespace", f"{type(Path()).__module__}.{type(Path()).__name__}")
    lightning = {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": prefixed("model.", weights()),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'acc'}": {"best_model_score": torch.tensor(0.7)}},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(2)}}}],
        "hyper_parameters": AttributeDict(lr=0.1, layers=[1, 2]),
    }
    distiller = prefixed("module.student.", weights()) | prefixed("module.teacher.", weights(seed=1))
    distiller["module.connector.0.weight"] = torch.ones(3)
    timm = {
        "epoch": 3,
        "arch": "resnet",
        "state_dict": weights(),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "args": arguments,
        "state_dict_ema": weights(seed=1),
        "metric": np.float64(71.2),
    }
    torchvision = {"model": weights(), "args": arguments, "history": np.arange(6).reshape(2, 3), "scaler": {}}
    return {
        "Lightning": (lightning, "state_dict, without the prefix model.", (f"{__name__}.AttributeDict",)),
        "mdistiller": (
            {"epoch": 3, "model": distiller, "best_acc": np.float64(72.5)},
            "model, the student of a distiller, without the prefix module.student.",
            ("teacher.*", "connector.*"),
        ),
        "timm": (timm, "state_dict", of_arguments),
        "torchvision": (torchvision, "model", of_arguments),
        "model_state_dict": ({"model_state_dict": weights(), "loss": torch.tensor(0.1)}, "model_state_dict", ()),
        "state": ({"state": weights(), "rng": np.random.RandomState(0).get_state()}, "state", ()),
        "other entries": ({"net": {**weights(), "version": 3, 7: "seven"}}, "net", ("version", "int")),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", training_checkpoints())
def test_the_weights_in_a_whole_training_checkpoint_are_read_and_the_rest_is_ignored(
    tmp_path: Path, kind: str, zipped: bool
) -> None:
    stored, told, ignored = training_checkpoints()[kind]
    torch.save(stored, tmp_path / "last.ckpt", _use_new_zipfile_serialization=zipped)
    read = load_released(tmp_path / "last.ckpt")
    assert_same(read.backbone, weights())
    assert sorted(read.ignored) == sorted(ignored)
    assert read.summary.startswith(told)
    assert ("ignored: " in read.summary) == bool(ignored)


def test_counters_of_thop_are_ignored(tmp_path: Path) -> None:
    module = network()
    for part in module.modules():
        part.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
        part.register_buffer("total_params", torch.zeros(1, dtype=torch.float64))
    torch.save({"model": nn.DataParallel(module).state_dict()}, tmp_path / "teacher.pth")
    read = load_released(tmp_path / "teacher.pth")
    assert_same(read.backbone, weights())
    assert read.prefix == "module."
    assert "ignored: module.total_ops, module.total_params, " in read.summary


def test_a_prefix_that_not_all_keys_share_stays_and_is_listed(tmp_path: Path) -> None:
    stored = prefixed("model.", weights()) | {"criterion.weight": torch.ones(3)}
    torch.save({"state_dict": stored}, tmp_path / "teacher.pth")
    with pytest.raises(UserError, match=r"missing: conv1\.weight.*unexpected: model\.conv1\.weight"):
        apply_to(network(), load_released(tmp_path / "teacher.pth"), NAME)


def test_numpy_numbers_under_their_old_module_name_are_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"model": {"weight": torch.ones(2)}, "accuracy": ACCURACY}, buffer, _use_new_zipfile_serialization=False)
    new, old = b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"
    content = buffer.getvalue().replace(old, new)
    assert new in content
    for number, package in enumerate((new, old)):
        path = tmp_path / f"{number}.pth"
        path.write_bytes(content.replace(new, package))
        assert torch.equal(load_released(path).backbone["weight"], torch.ones(2))


def test_branches_are_split_off_and_the_projection_is_left_out(tmp_path: Path) -> None:
    branches = build_branches(NAME, 40)
    branches.initialise(lambda name: rng.generator(name, 5))
    stored = prefixed("backbone.", weights()) | prefixed("auxiliary_classifier.", dict(branches.state_dict()))
    stored["proj_head.0.weight"] = torch.ones(2, 2)
    torch.save({"net": prefixed("module.", stored)}, tmp_path / "teacher.pth.tar")
    read = load_released(tmp_path / "teacher.pth.tar")
    assert read.ignored == ("proj_head.0.weight",)
    assert_same(read.backbone, weights())
    target = build_branches(NAME, 40)
    apply_to(target, read, NAME)
    assert_same(dict(target.state_dict()), dict(branches.state_dict()))


def public_tensors(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Tensors under the names that the public code gives them, each filled with a number of its own."""
    return {key: torch.tensor(zlib.crc32(key.encode()) / 2**32).expand(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "num_classes", "layout"),
    [
        ("ResNet110", 100, "model"),  # RepDistiller
        ("VGG13", 100, "model"),
        ("ResNet50", 100, "model"),
        ("ResNet18", 100, "state_dict"),  # Tf-KD
        ("ResNet101", 100, "net"),  # PS-KD
        ("ImageNet-ResNet18", 1000, "state dict"),  # torchvision
        ("ImageNet-ResNet34", 1000, "model"),  # torchvision's, wrapped by SemCKD
    ],
)
def test_a_teacher_of_every_family_loads_from_its_public_layout(
    tmp_path: Path, name: str, num_classes: int, layout: str
) -> None:
    tensors = public_tensors(FACTS[PUBLIC[name]]["state_dict"])
    torch.save(LAYOUTS[layout](tensors), tmp_path / "teacher.pth")
    read = load_released(tmp_path / "teacher.pth")
    assert read.layout == layout
    target = build_network(name, num_classes)
    apply_to(target, read, name)
    expected = {key: tensor.to(target.state_dict()[key].dtype) for key, tensor in tensors.items()}
    assert_same(dict(target.state_dict()), expected)


@pytest.mark.parametrize(("name", "num_outputs"), [("VGG8", 400), ("ResNet50", 400), ("ImageNet-ResNet18", 4000)])
def test_branches_of_every_family_load_from_their_public_layout(tmp_path: Path, name: str, num_outputs: int) -> None:
    tensors = public_tensors(FACTS[PUBLIC_BRANCHES[name]]["branches"])
    backbone = public_tensors(FACTS[PUBLIC[name]]["state_dict"])
    stored = prefixed("backbone.", backbone) | prefixed("auxiliary_classifier.", tensors)
    torch.save(LAYOUTS["net"](stored), tmp_path / "teacher.pth.tar")
    read = load_released(tmp_path / "teacher.pth.tar")
    assert read.backbone.keys() == backbone.keys()
    target = build_branches(name, num_outputs)
    apply_to(target, read, name)
    assert_same(
        {key: value for key, value in target.state_dict().items() if value.is_floating_point()},
        {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")},
    )


def test_counters_missing_from_old_files_start_at_zero() -> None:
    target = network(seed=1).train()
    target(torch.randn(2, 3, 8, 8))
    assert target.state_dict()["bn1.num_batches_tracked"] == 1
    apply_to(target, released({k: v for k, v in weights().items() if not k.endswith("num_batches_tracked")}), NAME)
    assert_same(dict(target.state_dict()), weights())


class Classified(Network):
    """A network whose last layer is called as in the two public MobileNetV2s."""

    def __init__(self, nested: bool) -> None:
        super().__init__()
        layer = nn.Linear(2, 3)
        self.classifier = nn.Sequential(layer) if nested else layer

    def forward(self, images: Tensor, preactivations: bool = False) -> Outputs:
        raise NotImplementedError


@pytest.mark.parametrize("nested", [True, False])
def test_a_classifier_fits_with_and_without_its_index(nested: bool) -> None:
    source, target = Classified(not nested), Classified(nested)
    apply_to(target, released(dict(source.state_dict())), "MobileNetV2")
    assert_same(
        {key.replace("classifier.0.", "classifier."): value for key, value in target.state_dict().items()},
        {key.replace("classifier.0.", "classifier."): value for key, value in source.state_dict().items()},
    )


def test_what_a_file_attaches_to_its_objects_hides_none_of_their_methods(tmp_path: Path) -> None:
    tensors = OrderedDict(weights())
    # `torch.save` itself needs the items.
    tensors.__dict__.update(dict.fromkeys(("itemz", "keys", "get", "values", "__len__"), 3))
    for tensor in dict.values(tensors):
        tensor.is_floating_point = 3  # type: ignore[method-assign,assignment]
    torch.save(OrderedDict(model=tensors), tmp_path / "saved.pth")
    with zipfile.ZipFile(tmp_path / "saved.pth") as archive:
        files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    files["data.pkl"] = files["data.pkl"].replace(b"itemz", b"items")
    assert_same(load_released(archived(tmp_path / "teacher.pth", files)).backbone, weights())
