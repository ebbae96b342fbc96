"""Students are loaded by name, from a folder of runs, a folder for a hub, or an address with a checksum."""

from __future__ import annotations

import functools
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmark import zoo
from benchmark.backbones import build_network
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.data import load_dataset
from benchmark.data.dataset import Dataset
from benchmark.export.finished import load_finished_run, load_predictor
from benchmark.export.hub import write_hub_folder
from benchmark.results.store import Store
from tests.report_records import record_of, request

IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
NAMES = ("digits", "KD", "ResNet8")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    root = tmp_path_factory.mktemp("zoo") / "runs"
    store = Store(root)
    for seed in (0, 1):
        run = request("demo", "digits").run("KD", "ResNet8", "ResNet20", seed).replace(fingerprint=dataset.fingerprint)
        torch.manual_seed(seed)
        network = build_network("ResNet8", dataset.num_classes)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(std=0.1)
        record = record_of(run, 2)
        store.begin(run)
        store.finish(run, record | {"cost": record["cost"] | {"image_size": 8}}, {"student": network.state_dict()})
    return root


@pytest.fixture(scope="module")
def hub(runs: Path, dataset: Dataset) -> Path:
    finished = load_finished_run("KD_ResNet8_from_ResNet20_demo_seed0", runs)
    network = load_predictor(finished, dataset.num_classes, dataset.image_size)
    write_hub_folder(finished, network, dataset, runs.parent / "hub")
    return runs.parent / "hub"


def compute_logits(network: torch.nn.Module) -> torch.Tensor:
    assert not network.training
    with torch.no_grad():
        logits: torch.Tensor = network(IMAGES).logits
    return logits


def test_a_student_is_loaded_by_name_and_seed(runs: Path) -> None:
    first, second = (compute_logits(zoo.load(*NAMES, seed=seed, source=runs)) for seed in (0, 1))
    assert first.shape == (2, 10)
    assert not torch.equal(first, second)


def test_what_is_not_there_is_said_in_a_line(runs: Path) -> None:
    with pytest.raises(UserError, match="no finished run of dataset digits, method KD, network ResNet8, seed 7"):
        zoo.load(*NAMES, seed=7, source=runs)
    with pytest.raises(UserError, match="scale quick"):
        zoo.load(*NAMES, scale="quick", source=runs)


def test_one_of_several_runs_must_be_named(runs: Path, dataset: Dataset, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for scale in ("demo", "quick"):
        run: Run = request(scale, "digits").run("KD", "ResNet8", "ResNet20", 0)
        store.begin(run)
        store.finish(run, record_of(run, 2), {"student": build_network("ResNet8", 10).state_dict()})
    with pytest.raises(UserError, match=r"has 2 runs of .*say which with scale="):
        zoo.load(*NAMES, source=tmp_path)
    assert zoo.load(*NAMES, scale="quick", source=tmp_path) is not None


def test_a_student_whose_classifier_is_a_convolution_is_loaded(tmp_path: Path) -> None:
    name, store = "MobileNetV2-TFKD-x1/2", Store(tmp_path)
    run = request("demo", "digits").run("Baseline", name, None, 0)
    store.begin(run)
    store.finish(run, record_of(run, 2), {"student": build_network(name, 10).state_dict()})
    assert compute_logits(zoo.load("digits", "Baseline", name, source=tmp_path)).shape == (2, 10)


def test_the_folder_for_a_hub_gives_the_same_network_and_says_what_it_is(runs: Path, hub: Path) -> None:
    assert {path.name for path in hub.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    expected = compute_logits(zoo.load(*NAMES, source=runs))
    assert torch.equal(compute_logits(zoo.load(*NAMES, source=hub)), expected)
    config = json.loads((hub / "config.json").read_text(encoding="utf-8"))
    assert (config["num_classes"], config["image_size"], len(config["mean"])) == (10, 8, 3)
    card = (hub / "README.md").read_text(encoding="utf-8")
    found = re.fullmatch(r"---\n(\{.*?\n\})\n---\n.*", card, flags=re.DOTALL)
    assert found is not None
    (model,) = json.loads(found[1])["model-index"]
    (result,) = model["results"]
    top1 = next(metric for metric in result["metrics"] if metric["type"] == "accuracy")
    assert top1["value"] == pytest.approx(config["metrics"]["top1"] / 100, abs=1e-6)
    assert config["sha256"] in card
    assert "secret-host-name" not in card + json.dumps(config)


def test_a_file_that_holds_another_student_is_refused(hub: Path) -> None:
    with pytest.raises(UserError, match=r"holds .*'method': 'KD'"):
        zoo.load("digits", "LSSKD", "ResNet8", source=hub)
    with pytest.raises(UserError, match="is another file than the one of sha256"):
        zoo.load(*NAMES, source=hub, sha256="0" * 64)


@pytest.fixture(scope="module")
def address(hub: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(hub))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/model.safetensors"
        server.shutdown()


def test_an_address_needs_the_right_checksum(
    address: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="pass sha256="):
        zoo.load(*NAMES, source=address)
    with pytest.raises(UserError, match="checksum of what came from"):
        zoo.load(*NAMES, source=address, sha256="0" * 64)
    digest = json.loads((hub / "config.json").read_text(encoding="utf-8"))["sha256"]
    network = zoo.load(*NAMES, source=address, sha256=digest)
    assert torch.equal(compute_logits(network), compute_logits(zoo.load(*NAMES, source=hub)))
    with pytest.raises(UserError, match="cannot be fetched"):
        zoo.load(*NAMES, source=address + "x", sha256=digest)
