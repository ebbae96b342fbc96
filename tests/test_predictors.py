"""Methods that predict with more than the student: what is evaluated, counted, kept and exported is what predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from benchmark.backbones import build_network
from benchmark.backbones.cost import multiply_adds, parameters
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.data import load_dataset
from benchmark.data.augmentation import evaluation_batches
from benchmark.export import load_edge
from benchmark.export.edge import compute_logits, open_session
from benchmark.export.finished import load_finished_run, load_predictor
from benchmark.results.store import Store
from benchmark.training.inputs import recipe_for
from benchmark.training.job import run_until_done
from tests import engine
from tests.test_export import export

OPTIONS: dict[str, dict[str, Any]] = {
    "SimKD": {},
    "SLA": {"inference": "aggregated"},
    "BYOT": {"inference": "ensemble"},
}


class Trained:
    """A run of a method whose predictor is more than the student, with its record."""

    def __init__(self, method: str, runs: Path) -> None:
        self.runs, place = runs, engine.settings(runs)
        self.run: Run = engine.run_of(method, options={method: OPTIONS[method]})
        # What an earlier test has trained is there.
        if not Store(runs).record(self.run):
            engine.train_dependencies([self.run], place)
            assert run_until_done([self.run], place)
        record = Store(runs).record(self.run)
        assert record is not None
        self.record = record

    @property
    def folder(self) -> Path:
        return Store(self.runs).folder(self.run)

    def predictor(self) -> nn.Module:
        return load_predictor(load_finished_run(str(self.folder), self.runs), 10, 8)

    def test_images(self) -> tuple[Tensor, Tensor]:
        digits = load_dataset("digits")
        ((images, labels),) = evaluation_batches(digits.test, recipe_for(self.run.protocol, digits), 1000, "cpu")
        return images.contiguous(), labels


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predictors") / "runs"


@pytest.fixture(params=OPTIONS)
def trained(request: pytest.FixtureRequest, runs: Path) -> Trained:
    return Trained(request.param, runs)


def test_the_recorded_accuracy_and_counts_are_those_of_what_predicts(trained: Trained) -> None:
    predictor = trained.predictor()
    images, labels = trained.test_images()
    with torch.no_grad():
        right = (predictor(images).logits.argmax(1) == labels).double().mean().item()
    assert trained.record["final"]["top1"] == pytest.approx(100 * right)
    cost = trained.record["cost"]
    assert cost["parameters"] == parameters(predictor)
    assert cost["multiply_adds"] == multiply_adds(predictor, images[:1])
    assert cost["parameters"] > parameters(build_network(trained.run.student, 10))


def test_the_student_beside_it_is_still_a_plain_network(trained: Trained) -> None:
    assert set(trained.record["weights"]) == {"student", "method"}
    weights = safetensors.torch.load_file(trained.folder / "student.safetensors")
    build_network(trained.run.student, 10).load_state_dict(weights)


def test_the_export_holds_all_that_predicts(trained: Trained) -> None:
    ended = export(trained.run.id, "--onnx", "--runs", str(trained.runs), "--seconds", "0.02")
    assert (ended.code, ended.err) == (0, "")
    edge = load_edge(trained.folder)
    assert edge is not None
    images, _ = trained.test_images()
    session = open_session((trained.folder / "student.onnx").read_bytes())
    with torch.no_grad():
        expected = trained.predictor()(images[:70]).logits
    for batch in (1, 70):
        given = torch.from_numpy(compute_logits(session, images[:batch].numpy()))
        torch.testing.assert_close(given, expected[:batch], rtol=0, atol=edge["logits"]["allowed"])
    cost = trained.record["cost"]
    assert (edge["parameters"], edge["multiply_adds"]) == (cost["parameters"], cost["multiply_adds"])
    baseline = build_network(trained.run.student, 10)
    assert edge["baseline"] == {"parameters": parameters(baseline), "multiply_adds": multiply_adds(baseline, images)}
    said = f"parameters: {cost['parameters']:,} in the file, {parameters(baseline):,} in the Baseline ResNet8"
    assert said in ended.out
    assert edge["fp32"]["top1"] == pytest.approx(trained.record["final"]["top1"], abs=0.5)


def test_simkd_predicts_with_the_classifier_of_its_teacher(runs: Path) -> None:
    trained = Trained("SimKD", runs)
    assert trained.run.teacher is not None
    teacher = Store(runs).weights(trained.run.teacher)
    kept = Store(runs).weights(trained.run, "method")
    for name in ("weight", "bias"):
        assert torch.equal(kept[f"classifier.{name}"], teacher[f"fc.{name}"])


def test_modules_of_another_version_of_the_method_are_refused(runs: Path) -> None:
    trained = Trained("SimKD", runs)
    found = load_finished_run(str(trained.folder), runs)
    assert found.method_weights is not None
    found.method_weights.pop("classifier.bias")
    with pytest.raises(UserError, match="has kept are not those of SimKD as it is now; delete its folder to train"):
        load_predictor(found, 10, 8)
