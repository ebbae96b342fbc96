"""How like its teacher a student predicts: the metrics, which runs are compared, the command and its files."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from sklearn.metrics import accuracy_score
from torch import Tensor

from benchmark.backbones import build_network
from benchmark.core.spec import Run
from benchmark.export.finished import load_finished_run
from benchmark.faithfulness.collecting import FaithfulnessReport, group_runs, summarise_by_setting
from benchmark.faithfulness.comparing import compare_classes, compare_predictions
from benchmark.faithfulness.logits import FILE, compute_logits, read_logits
from benchmark.report.faithfulness import read_faithfulness
from benchmark.results.store import Store
from tests import engine
from tests.commands import run_here

CPU = torch.device("cpu")
LABELS = torch.tensor([0, 1, 2, 2])
TEACHER_LOGITS = torch.tensor([[2.0, 0, 0], [0, 0, 2], [0, 0, 2], [0, 2, 0]])
STUDENT_LOGITS = torch.tensor([[1.0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]])


def one_hot_divergence(own: float, other: float) -> float:
    """KL from softmax(other, 0, 0) to softmax(own, 0, 0), in nats."""
    first, second = ([math.exp(value) / (math.exp(value) + 2), 1 / (math.exp(value) + 2)] for value in (other, own))
    return first[0] * math.log(first[0] / second[0]) + 2 * first[1] * math.log(first[1] / second[1])


def test_the_metrics_of_four_images_are_those_worked_out_by_hand() -> None:
    found = compare_predictions(STUDENT_LOGITS, TEACHER_LOGITS, LABELS)
    # The teacher is wrong on images 1 and 3; the student repeats the first error and corrects the second.
    assert (found.top1, found.agreement, found.repeated, found.corrected) == (50, 50, 50, 50)
    same = one_hot_divergence(1.0, 2.0)
    high, low = math.exp(2) / (math.exp(2) + 2), 1 / (math.exp(2) + 2)
    apart = high * math.log(high) + 2 * low * math.log(low) - low + math.log(math.e + 2)
    assert found.kl == pytest.approx((2 * same + 2 * apart) / 4, rel=1e-12)


def test_a_student_that_is_its_teacher_agrees_wholly() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 10, generator=generator), torch.arange(200) % 10
    found = compare_predictions(logits, logits, labels)
    assert (found.agreement, found.repeated, found.corrected) == (100, 100, 0)
    assert abs(found.kl) < 1e-12
    assert found.top1 == pytest.approx(100 * accuracy_score(labels, logits.argmax(1)))
    right = torch.nn.functional.one_hot(labels, 10).float()
    assert compare_predictions(logits, right, labels).repeated is None


@pytest.mark.parametrize(("rows", "images"), [(3, 4), (0, 0)])
def test_logits_of_other_images_are_refused(rows: int, images: int) -> None:
    with pytest.raises(ValueError, match="images"):
        compare_predictions(STUDENT_LOGITS[:rows], TEACHER_LOGITS[:images], LABELS[:images])


def test_classes_are_listed_from_the_largest_gain_to_the_largest_loss() -> None:
    # Of class 2, both have one of two images right, but not the same one.
    assert compare_classes(TEACHER_LOGITS, STUDENT_LOGITS, LABELS) == ()
    right = torch.nn.functional.one_hot(LABELS, 3).float()
    changes = compare_classes(STUDENT_LOGITS, right, LABELS)
    assert [(change.label, change.points) for change in changes] == [(2, -50), (1, -100)]


def finish(store: Store, run: Run, **changes: Any) -> None:
    """Leave a record as training does, with first weights of the run's own."""
    torch.manual_seed(int(run.digest[:8], 16))
    network = build_network(run.student, 10)
    record = {"status": "finished", "epochs": [], "final": {"top1": 10.0}, "provenance": {}} | changes
    store.begin(run)
    store.finish(run, record, {"student": network.state_dict()})  # type: ignore[arg-type]


def make_runs() -> dict[str, Run]:
    """KD with its teacher, and what has the same student: Baseline and LSSKD of its seed, Baseline of another one."""
    make = engine.request().run
    taught = make("KD", "ResNet8-x1/2", "ResNet8", 0)
    assert isinstance(taught.teacher, Run)
    return {
        "teacher": taught.teacher,
        "taught": taught,
        "baseline": make("Baseline", "ResNet8-x1/2", None, 0),
        "lsskd": make("LSSKD", "ResNet8-x1/2", None, 0),
        "other seed": make("Baseline", "ResNet8-x1/2", None, 1),
        "other student": make("Baseline", "ResNet8-x1/4", None, 0),
    }


def test_students_are_grouped_with_their_teacher_and_controls_of_their_seed() -> None:
    runs = make_runs()
    (group,) = group_runs(runs.values())
    assert (group.teacher, group.taught) == (runs["teacher"], (runs["taught"],))
    assert set(group.controls) == {runs["baseline"], runs["lsskd"]}
    assert group_runs(runs.values(), ["ResNet8>ResNet8-x1/4"]) == []
    assert group_runs(run for name, run in runs.items() if name != "teacher") == []


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    kept = Store(tmp_path_factory.mktemp("faithfulness") / "runs")
    for run in make_runs().values():
        finish(kept, run)
    return kept


@pytest.fixture(scope="module")
def reports(store: Store) -> Path:
    """What the command has written of the store."""
    ended = run_here("--runs", str(store.root), module="benchmark.faithfulness", folder=store.root.parent)
    assert ended.returncode == 0, ended.stderr
    assert "KD" in ended.stdout
    return store.root.parent / "reports"


def test_the_command_compares_every_student_and_leaves_files_that_the_report_reads(store: Store, reports: Path) -> None:
    report = FaithfulnessReport.model_validate_json((reports / "faithfulness.json").read_bytes())
    runs = make_runs()
    assert {each.run: each.taught for each in report.compared} == {
        runs["taught"].id: True,
        runs["baseline"].id: False,
        runs["lsskd"].id: False,
    }
    logits = {name: predict(store, runs[name]) for name in ("teacher", "taught", "baseline")}
    labels = engine.digits().test.labels
    (taught,) = [each for each in report.compared if each.taught]
    assert taught.found == compare_predictions(logits["taught"], logits["teacher"], labels)
    changes = compare_classes(logits["taught"], logits["baseline"], labels)
    assert (*taught.gained, *reversed(taught.lost)) == changes
    with (reports / "faithfulness.csv").open() as file:
        assert [line["run"] for line in csv.DictReader(file)] == [each.run for each in report.compared]
    listed, refused = read_faithfulness(reports)
    assert listed is not None
    assert refused == []
    assert len(listed.listings[0].rows) == 3


def predict(store: Store, run: Run) -> Tensor:
    """The logits of a run's student on the digits' test images, as float16."""
    finished = load_finished_run(str(store.folder(run)), store.root)
    return compute_logits(finished, engine.digits(), CPU, keep=False)


def test_seeds_are_summed_up_and_paired_with_baseline_of_their_seed(reports: Path) -> None:
    report = FaithfulnessReport.model_validate_json((reports / "faithfulness.json").read_bytes())
    again = [each.model_copy(update={"seed": 1}) for each in report.compared]
    better = [
        each.model_copy(update={"found": each.found.model_copy(update={"agreement": each.found.agreement + 10})})
        if each.taught
        else each
        for each in again
    ]
    ((_, lines),) = summarise_by_setting([*report.compared, *better]).items()
    by_method = {line.first.method: line for line in lines}
    first = {each.method: each.found.agreement for each in report.compared}
    assert by_method["KD"].seeds == 2
    assert by_method["KD"].found.agreement == pytest.approx(first["KD"] + 5)
    assert by_method["KD"].above_baseline == pytest.approx(first["KD"] + 5 - first["Baseline"])


def kept_for_other_weights(path: Path) -> None:
    logits = safetensors.torch.load_file(path)
    safetensors.torch.save_file(logits, path, {"weights": "student=0"})


def kept_for_other_images(path: Path) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        notes, logits = file.metadata(), file.get_tensor("logits")
    safetensors.torch.save_file({"logits": logits[1:].contiguous()}, path, notes)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [kept_for_other_weights, kept_for_other_images, cut_short, Path.unlink])
def test_kept_logits_are_used_only_if_they_are_those_of_the_weights(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    kept, run = Store(tmp_path / "runs"), make_runs()["baseline"]
    finish(kept, run)
    finished = load_finished_run(str(kept.folder(run)), kept.root)
    logits = compute_logits(finished, engine.digits(), CPU, keep=True)
    shape = [*logits.shape]
    read = read_logits(finished, *shape)
    assert read is not None
    assert torch.equal(read, logits)
    damage(kept.folder(run) / FILE)
    assert read_logits(finished, *shape) is None
    assert torch.equal(compute_logits(finished, engine.digits(), CPU, keep=True), logits)


def test_runs_without_weights_are_named_and_nothing_to_compare_is_one_line(store: Store, tmp_path: Path) -> None:
    kept, runs = Store(tmp_path / "runs"), make_runs()
    finish(kept, runs["taught"])
    refused = run_here("--runs", str(kept.root), module="benchmark.faithfulness", folder=tmp_path)
    assert refused.returncode == 2
    assert "has no finished student with a teacher" in refused.stderr
    finish(kept, runs["teacher"])
    finish(kept, runs["baseline"])
    (kept.folder(runs["baseline"]) / "student.safetensors").unlink()
    ended = run_here("--runs", str(kept.root), module="benchmark.faithfulness", folder=tmp_path)
    assert ended.returncode == 0
    assert f"left out: {kept.folder(runs['baseline'])}" in ended.stdout
    (kept.folder(runs["teacher"]) / "student.safetensors").unlink()
    refused = run_here("--runs", str(kept.root), module="benchmark.faithfulness", folder=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "no student can be compared" in refused.stderr
