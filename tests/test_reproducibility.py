"""The rules that make the suite trustworthy: same bits alone, in a cohort, in any order, and after any kill."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmark.backbones.network import Network
from benchmark.core.spec import LRSchedule, Run
from benchmark.method.contract import Step
from benchmark.plugins.registry import all_methods
from benchmark.results.provenance import changed_settings
from benchmark.results.store import Store
from benchmark.training import checkpoint as checkpoints
from benchmark.training import cohort as cohort_module
from benchmark.training.checkpoint import cohort_name
from benchmark.training.evaluation import Evaluation
from benchmark.training.failures import RunsFailed
from benchmark.training.inputs import select_training_data
from benchmark.training.job import run_until_done
from benchmark.training.learner import Learner
from methods.baseline import Baseline, cross_entropy
from methods.crd import CRD
from tests.engine import METHODS, SHORT, assert_same_bits, digits, records, run_of, settings, train_dependencies

needs_bf16 = pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="bf16 has no hardware here")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Run], Path]:
    """The five methods trained as one cohort, and a folder that holds their teacher and heads as well."""
    runs = [run_of(method) for method in METHODS]
    place = settings(tmp_path_factory.mktemp("together"))
    train_dependencies(runs, place)
    shutil.copytree(place.runs, place.runs.with_name(place.runs.name + "-teachers"))
    assert run_until_done(runs, place)
    return runs, place.runs


def fresh_copy_of_teachers(trained: tuple[list[Run], Path], folder: Path) -> Path:
    root = trained[1]
    shutil.copytree(root.with_name(root.name + "-teachers"), folder)
    return folder


@pytest.fixture
def three(trained: tuple[list[Run], Path]) -> tuple[list[Run], Path]:
    """The three quickest of them, for what befalls a cohort whichever methods are in it."""
    runs, place = trained
    return [run for run in runs if run.method in ("CRD", "PS-KD", "LSSKD")], place


def test_a_run_gives_the_same_bits_alone_and_in_a_cohort(trained, tmp_path) -> None:
    runs, together = trained
    apart = fresh_copy_of_teachers(trained, tmp_path / "apart")
    for run in runs:
        assert run_until_done([run], settings(apart))
    assert_same_bits(runs, together, apart)


def test_the_order_of_a_cohort_does_not_matter(trained, tmp_path) -> None:
    runs, together = trained
    other = fresh_copy_of_teachers(trained, tmp_path / "reversed")
    assert run_until_done(runs[::-1], settings(other))
    assert_same_bits(runs, together, other)


@needs_bf16
def test_bf16_gives_the_same_bits_in_another_cohort_and_order_and_after_a_stop(tmp_path: Path) -> None:
    """What the other tests show one by one, at once: precision changes the kernels of a step and nothing around it."""
    runs = [run_of(method, "bf16") for method in METHODS]
    together, apart = settings(tmp_path / "together"), settings(tmp_path / "apart")
    train_dependencies(runs, together)
    shutil.copytree(together.runs, apart.runs)
    assert run_until_done(runs, together)
    alone, *others = runs[::-1]
    assert run_until_done([alone], apart)
    asked = iter([False] * 12 + [True])
    assert not run_until_done(others, apart, stop=lambda: next(asked))
    assert run_until_done(others, apart)
    assert all(record["provenance"]["resumed"] == 1 for record in records(others, apart).values())
    assert_same_bits(runs, together.runs, apart.runs)


def test_a_cohort_killed_at_ten_random_moments_gives_the_same_bits(trained, tmp_path, monkeypatch) -> None:
    runs, undisturbed = trained
    folder = fresh_copy_of_teachers(trained, tmp_path / "killed")
    monkeypatch.setattr(cohort_module, "COST_OF_A_CHECKPOINT", 0)
    place = settings(folder, checkpoint_seconds=0.0)
    chance = random.Random(7)
    context = multiprocessing.get_context("fork")
    cohorts = Store(folder).cohorts(runs[0].dataset) / cohort_name(runs)
    positions = []
    for _ in range(10):
        before = checkpoints.latest_position(cohorts)
        child = context.Process(target=run_until_done, args=(runs, place))
        child.start()
        while child.is_alive() and checkpoints.latest_position(cohorts) == before:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.06)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL, "the cohort ended before the tenth kill"
        positions.append(checkpoints.latest_position(cohorts))
    assert sum(step > 0 for _, step in positions) >= 5, "most kills should fall in the middle of an epoch"
    assert run_until_done(runs, place)
    assert_same_bits(runs, undisturbed, folder)
    assert all(record["provenance"]["resumed"] >= 1 for record in records(runs, place).values())


def test_a_subset_of_an_interrupted_cohort_goes_on_from_its_checkpoint(trained, tmp_path) -> None:
    runs, undisturbed = trained
    place = settings(fresh_copy_of_teachers(trained, tmp_path / "subset"))
    asked = iter([False] * 12 + [True])
    assert not run_until_done(runs, place, stop=lambda: next(asked))
    chosen = [run for run in runs if run.method in ("CRD", "LSSKD")]
    assert run_until_done(chosen, place)
    assert all(record["provenance"]["resumed"] == 1 for record in records(chosen, place).values())
    assert run_until_done(runs, place)
    assert all(record["provenance"]["resumed"] == 1 for record in records(runs, place).values())
    assert_same_bits(runs, undisturbed, place.runs)


def test_a_record_says_what_it_was_pieced_together_from(tmp_path: Path) -> None:
    # Ten steps in all, since those with two threads are slow where the processors are busy.
    run = run_of("Baseline", protocol=SHORT.replace(schedule=LRSchedule(epochs=2), batch_size=32))
    said: list[str] = []
    for threads, steps in ((1, 3), (1, 2), (2, None)):
        asked = iter([False] * (steps or 0) + [True])
        stop = (lambda: False) if steps is None else (lambda asked=asked: next(asked))
        place = settings(tmp_path, threads=threads)
        assert run_until_done([run], place, stop=stop, log=said.append) == (steps is None)
    pieces = Store(tmp_path).record(run)["provenance"]["pieces"]
    per_epoch = -(-len(select_training_data(run, digits()).train) // run.protocol.batch_size)
    assert per_epoch == 5
    begins = [(epoch + 1, step) for epoch, step in (divmod(done, per_epoch) for done in (0, 4, 7))]
    assert [(piece["epoch"], piece["step"]) for piece in pieces] == begins
    assert [piece["threads"] for piece in pieces] == [1, 1, 2]
    assert changed_settings(pieces[:2]) == []
    assert changed_settings(pieces) == ["threads"]
    assert [line for line in said if line.startswith("warning")] == [
        "warning: it was begun with different threads; it will not have the bits of an undisturbed run"
    ]


def test_a_checkpoint_of_before_there_were_pieces_is_gone_on_from(tmp_path: Path) -> None:
    run, place = run_of("Baseline"), settings(tmp_path)
    asked = iter([False] * 12 + [True])
    assert not run_until_done([run], place, stop=lambda: next(asked))
    folder = Store(tmp_path).cohorts(run.dataset) / cohort_name([run])
    found = checkpoints.read_checkpoint(folder)
    assert found is not None
    del found.notes["pieces"]
    found.notes["resumed"] = 3
    shutil.rmtree(folder)
    checkpoints.write_checkpoint(folder, found)
    assert run_until_done([run], place)
    record = Store(tmp_path).record(run)
    assert record is not None
    assert record["provenance"]["resumed"] == 4
    assert [piece["epoch"] for piece in record["provenance"]["pieces"]] == [2]


def test_a_damaged_checkpoint_falls_back_to_the_one_before_it(three, tmp_path, monkeypatch) -> None:
    runs, undisturbed = three
    monkeypatch.setattr(cohort_module, "COST_OF_A_CHECKPOINT", 0)
    place = settings(fresh_copy_of_teachers(three, tmp_path / "damaged"), checkpoint_seconds=0.0)
    asked = iter([False] * 13 + [True])
    assert not run_until_done(runs, place, stop=lambda: next(asked))
    (folder,) = Store(place.runs).cohorts(runs[0].dataset).iterdir()
    newest = max(folder.glob("checkpoint-*"))
    with newest.open("r+b") as file:
        file.seek(newest.stat().st_size // 2)
        file.write(b"\xff" * 64)
    with pytest.warns(UserWarning, match="damaged checkpoint .*falling back"):
        assert run_until_done(runs, place)
    assert_same_bits(runs, undisturbed, place.runs)


class Shrinking(Baseline):
    """A method that nobody knew when the other runs were trained."""

    name = "Shrinking"

    @property
    def weights(self) -> dict[str, float]:
        return {"ce": 1.0, "norm": 1e-3}

    def forward(self, step: Step) -> dict[str, torch.Tensor]:
        logits = step.student("plain").logits
        noise = torch.rand(logits.shape, generator=step.generator("noise"))
        return {"ce": cross_entropy(logits, step.labels), "norm": (logits * noise).square().mean()}


def test_a_new_method_moves_no_other_run(three, tmp_path, monkeypatch) -> None:
    runs, together = three
    known = all_methods() | {"Shrinking": Shrinking}
    for module in ("benchmark.plugins.registry", "benchmark.planning.jobs"):
        monkeypatch.setattr(f"{module}.all_methods", lambda: known, raising=False)
    new = run_of("Shrinking")
    place = settings(fresh_copy_of_teachers(three, tmp_path / "new"))
    assert run_until_done([new, *runs], place)
    assert_same_bits(runs, together, place.runs)
    assert Store(place.runs).missing([new], retry_failed=True) == []


def test_methods_start_from_the_same_weights(trained) -> None:
    runs, _ = trained
    labels = torch.arange(64) % 10
    learners = {run.method: Learner(run, 10, 8, labels, 1, torch.device("cpu")) for run in runs}
    first = learners["CRD"].student.state_dict()
    for learner in learners.values():
        for name, tensor in learner.student.state_dict().items():
            assert torch.equal(tensor, first[name]), (learner.run.method, name)
    branches = learners["HSSAKD"].method.branches.state_dict()
    for name, tensor in learners["LSSKD"].method.branches.state_dict().items():
        assert torch.equal(tensor, branches[name]), name


def test_past_weights_survive_a_resume_and_differ_from_the_table(trained, tmp_path) -> None:
    tables, with_tables = trained
    methods = ("PS-KD", "LSSKD")
    runs = [run_of(method, options={method: {"past": "previous_weights"}}) for method in methods]
    undisturbed, resumed = settings(tmp_path / "undisturbed"), settings(tmp_path / "resumed")
    assert run_until_done(runs, undisturbed)
    asked = iter([False] * 14 + [True])
    assert not run_until_done(runs, resumed, stop=lambda: next(asked))
    assert run_until_done(runs, resumed)
    assert_same_bits(runs, undisturbed.runs, resumed.runs)
    for run, table in zip(runs, [run for run in tables if run.method in methods], strict=True):
        chosen, usual = Store(undisturbed.runs).record(run), Store(with_tables).record(table)
        assert chosen is not None
        assert usual is not None
        assert chosen["epochs"][0]["loss"] == usual["epochs"][0]["loss"], "there is no past in the first epoch"
        assert chosen["final"]["loss"] != usual["final"]["loss"]


def test_the_jointly_trained_teacher_serves_as_its_own_head(tmp_path) -> None:
    run = run_of("HSSAKD*", protocol=SHORT.replace(schedule=LRSchedule(epochs=1)))
    assert isinstance(run.teacher, Run)
    assert run.teacher.method == "HSSAKD-teacher"
    assert run.head == run.teacher
    place = settings(tmp_path)
    train_dependencies([run], place)
    assert run_until_done([run], place)
    (record,) = records([run], place).values()
    assert record["status"] == "finished"
    assert len(record["final"]["stages"]) == 3


def test_finished_cohorts_leave_no_checkpoints_unless_they_are_kept(tmp_path) -> None:
    seeds = [run_of("PS-KD", seed=seed) for seed in (0, 1)]
    left = []
    for run, keep in zip(seeds, (True, False), strict=True):
        place = settings(tmp_path, checkpoint_seconds=0.0, keep=keep)
        asked = iter([False] * 2 + [True])
        assert not run_until_done([run], place, stop=lambda asked=asked: next(asked))
        assert run_until_done([run], place)
        left.append({path.parent.name for path in Store(place.runs).cohorts("digits").glob("*/checkpoint-*")})
    assert left == [{cohort_name(seeds[:1])}] * 2, "kept by the first command, also after the second"


def test_evaluation_teaches_nothing(trained) -> None:
    """Not even the statistics of the branches' batch norms may come from the images that a run is evaluated on."""
    run = next(run for run in trained[0] if run.method == "LSSKD")
    learner = Learner(run, 10, 8, torch.arange(64) % 10, 1, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in learner.state().items()}
    images = torch.randn(20, 3, 8, 8)
    evaluation = Evaluation(learner.student, run.precision, learner.method, rotated=True)
    evaluation.add(images, torch.arange(20) % 10)
    figures = evaluation.figures
    assert len(figures["stages"]) == 3
    for name, tensor in learner.state().items():
        assert torch.equal(tensor, before[name]), name


def test_a_teacher_of_another_precision_gives_the_same_bits_whoever_asks_first(tmp_path) -> None:
    if not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("bf16 has no hardware here")
    students = []
    for student, precision in (("ResNet20", "bf16"), ("ResNet20", "fp32")):
        run = run_of("KD", precision)
        teacher = run.teacher.replace(precision="fp32")
        students.append(run.replace(student=student, teacher=teacher.model_dump(), teacher_precision="fp32"))
    for name, order in (("one", students), ("other", students[::-1])):
        place = settings(tmp_path / name)
        train_dependencies(order, place)
        assert run_until_done(order, place)
    assert_same_bits(students, tmp_path / "one", tmp_path / "other")


def test_a_run_that_raises_leaves_the_rest_of_its_cohort_alone(three, tmp_path, monkeypatch) -> None:
    runs, together = three
    place = settings(fresh_copy_of_teachers(three, tmp_path / "broken"))
    step = CRD.forward

    def out_of_memory(method, at):
        if at.epoch == 1:
            raise MemoryError("no room")
        return step(method, at)

    monkeypatch.setattr(CRD, "forward", out_of_memory)
    with pytest.raises(RunsFailed, match=r"CRD.*no room"):
        run_until_done(runs, place)
    others = [run for run in runs if run.method != "CRD"]
    assert_same_bits(others, together, place.runs)
    monkeypatch.undo()
    assert run_until_done(runs, place)
    assert_same_bits(runs, together, place.runs)


def test_a_student_whose_test_loss_is_no_number_fails_and_the_others_go_on(three, tmp_path, monkeypatch) -> None:
    runs, together = three
    place = settings(fresh_copy_of_teachers(three, tmp_path / "overflowing"))

    def spoil(method: CRD, student: Network) -> None:
        # In training norms take the statistics of the batch, so that nothing is noticed there.
        norm = next(module for module in student.modules() if isinstance(module, nn.BatchNorm2d))
        assert norm.running_var is not None
        norm.running_var.fill_(float("nan"))

    monkeypatch.setattr(CRD, "end_step", spoil)
    assert run_until_done(runs, place)
    spoilt = next(run for run in runs if run.method == "CRD")
    record = Store(place.runs).record(spoilt)
    assert record is not None
    assert (record["status"], record["reason"]) == ("failed", "loss on the test images not finite after epoch 1")
    assert record["failed_at"]["epoch"] == 1
    assert record["epochs"] == []
    assert_same_bits([run for run in runs if run != spoilt], together, place.runs)
