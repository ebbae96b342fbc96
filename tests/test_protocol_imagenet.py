"""Training on images that stay on disk under protocol `imagenet`: same bits however it is decoded or interrupted."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmark.core.protocols import PROTOCOLS, SCALES
from benchmark.core.spec import LRSchedule, Run, Scale
from benchmark.data import Dataset, imagenet, load_dataset
from benchmark.execution.pool import run_jobs
from benchmark.execution.scheduler import JobCallback
from benchmark.method.contract import PastNetwork, PredictionHistory
from benchmark.planning.checks import check_methods
from benchmark.planning.jobs import missing_jobs
from benchmark.planning.request import RunFactory
from benchmark.plugins.registry import all_methods
from benchmark.results.store import Store
from benchmark.training import checkpoint as checkpoints
from benchmark.training import cohort as cohort_module
from benchmark.training.checkpoint import cohort_name
from benchmark.training.inputs import load_run_dataset, recipe_for, select_training_data
from benchmark.training.job import run_until_done
from benchmark.training.learner import build_method
from benchmark.training.settings import TrainSettings
from tests.engine import assert_same_bits, train_dependencies
from tests.photographs import WNIDS, made_up_imagenet

PROTOCOL = PROTOCOLS["imagenet"]
SHORT = PROTOCOL.replace(schedule=LRSchedule(epochs=2, milestones=(1,)), batch_size=8, learning_rate=0.02)
WHOLE = Scale(name="test", factor=1)
SIZE = 32
IMAGES = 30
PATIENCE = 600.0
"""Seconds after which a test gives up waiting; long, since the machine may be busy."""


@pytest.fixture(scope="module", autouse=True)
def small_crops() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet, "IMAGE_SIZE", SIZE)
        patch.setenv("KD_DATA_WORKERS", "1")
        load_run_dataset.cache_clear()
        yield
    load_run_dataset.cache_clear()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_imagenet(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def dataset(root: Path) -> Dataset:
    return load_dataset("imagenet", root)


def request(dataset: Dataset, scale: Scale = WHOLE) -> RunFactory:
    return RunFactory(
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        protocol=SHORT,
        scale=scale,
        device=torch.device("cpu"),
        precision="fp32",
    )


def runs_of(
    dataset: Dataset, methods: tuple[str, ...], student: str = "ResNet8", teacher: str = "ResNet20"
) -> list[Run]:
    return [request(dataset).run(method, student, teacher, 0) for method in methods]


def settings(folder: Path, root: Path, **changes: float) -> TrainSettings:
    return TrainSettings(runs=folder, dataset="imagenet", data_root=root, **changes)  # type: ignore[arg-type]


METHODS = ("Baseline", "KD", "CS-KD", "PS-KD", "LSSKD")


@pytest.fixture(scope="module")
def trained(root: Path, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Run], Path]:
    """Runs that ask for every way to show images, trained as one cohort, and a folder with their teacher alone."""
    runs = runs_of(dataset, METHODS)
    place = settings(tmp_path_factory.mktemp("runs"), root)
    train_dependencies(runs, place)
    shutil.copytree(place.runs, place.runs.with_name(place.runs.name + "-teacher"))
    assert run_until_done(runs, place)
    return runs, place.runs


def with_teacher(trained: tuple[list[Run], Path], folder: Path) -> Path:
    shutil.copytree(trained[1].with_name(trained[1].name + "-teacher"), folder)
    return folder


def of(runs: list[Run], *methods: str) -> list[Run]:
    """The runs of these methods."""
    return [run for run in runs if run.method in methods]


def test_the_protocol_is_hsakds() -> None:
    assert PROTOCOL.schedule == LRSchedule(epochs=100, milestones=(30, 60, 90))
    rates = [PROTOCOL.learning_rate, PROTOCOL.momentum, PROTOCOL.weight_decay, PROTOCOL.decay]
    assert rates == [0.1, 0.9, 1e-4, 0.1]
    assert (PROTOCOL.batch_size, PROTOCOL.nesterov, PROTOCOL.warmup_epochs) == (256, False, 0)
    schedules = PROTOCOL.method_schedules
    assert schedules["HSSAKD-branches"] == PROTOCOL.schedule
    assert schedules["SSKD-head"] == LRSchedule(epochs=25, milestones=(13, 19))
    assert schedules["AB-init"] == LRSchedule(epochs=13)
    assert schedules.keys() == PROTOCOLS["lsskd"].method_schedules.keys()


def test_no_method_keeps_a_table_of_what_it_said_of_each_image() -> None:
    with_past = {name for name, method in all_methods().items() if "past" in method.Options.model_fields}
    assert {"LSSKD", "PS-KD"} <= with_past
    for name, options in PROTOCOL.method_options.items():
        assert (options.get("past") == "previous_weights") == (name in with_past), name
    assert with_past <= PROTOCOL.method_options.keys()


@pytest.mark.parametrize("name", ["LSSKD", "PS-KD"])
def test_memory_of_the_past_fits_the_whole_of_imagenet(name: str) -> None:
    whole = RunFactory("imagenet", "0" * 64, PROTOCOL, SCALES["paper"], torch.device("cpu"), precision="fp32")
    run = whole.run(name, "ImageNet-ResNet18", None, 0)
    method = build_method(run, 1000, 224, torch.zeros(1_281_167, dtype=torch.int64), fill=False)
    kinds = {type(module) for module in method.modules()}
    assert PastNetwork in kinds
    assert PredictionHistory not in kinds


def test_images_are_cropped_and_normalised_as_the_dataset_says_under_any_protocol(dataset: Dataset) -> None:
    for protocol in (PROTOCOL, PROTOCOLS["pskd"], PROTOCOLS["sskd"]):
        recipe = recipe_for(protocol, dataset)
        assert (recipe.mean, recipe.std, recipe.flip) == (imagenet.MEAN, imagenet.STD, True)
    assert recipe_for(PROTOCOL, dataset, "cutout+cutmix").cutout == SIZE // 4


def test_the_networks_of_table_i_train_on_images_of_all_kinds(tmp_path: Path) -> None:
    root = made_up_imagenet(tmp_path / "data", train=4, val=4)
    dataset = load_dataset("imagenet", root)
    one_epoch = Scale(name="one epoch", factor=0.5)
    baseline = request(dataset, one_epoch).run("Baseline", "ImageNet-ResNet34", None, 0)
    distilled = request(dataset, one_epoch).run("KD", "ImageNet-ResNet18", "ImageNet-ResNet34", 0)
    assert distilled.teacher == baseline
    check_methods([distilled], dataset)
    place = settings(tmp_path / "runs", root)
    assert run_until_done([baseline], place)
    assert run_until_done([distilled], place)
    for run in (baseline, distilled):
        record = Store(place.runs).record(run)
        assert record is not None
        assert record["status"] == "finished"
        assert len(record["epochs"]) == 1
        assert 0 <= record["final"]["top1"] <= 100
        assert record["final"]["top5"] == 100
        assert record["final"]["loss"] > 0


def test_a_run_gives_the_same_bits_alone_and_in_a_cohort(trained, root, tmp_path) -> None:
    runs, together = trained
    apart = with_teacher(trained, tmp_path / "apart")
    for run in of(runs, "KD", "CS-KD"):
        assert run_until_done([run], settings(apart, root))
        assert_same_bits([run], together, apart)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_number_of_decoding_workers_moves_no_bit(trained, root, tmp_path, monkeypatch, workers) -> None:
    everything, by_one = trained
    runs = of(everything, "KD", "CS-KD")
    monkeypatch.setenv("KD_DATA_WORKERS", workers)
    place = settings(with_teacher(trained, tmp_path / "runs"), root)
    assert run_until_done(runs, place)
    assert_same_bits(runs, by_one, place.runs)


def test_a_cohort_that_was_stopped_or_killed_in_an_epoch_gives_the_same_bits(
    trained, root, tmp_path, monkeypatch
) -> None:
    runs, undisturbed = trained
    monkeypatch.setattr(cohort_module, "COST_OF_A_CHECKPOINT", 0)
    place = settings(with_teacher(trained, tmp_path / "runs"), root, checkpoint_seconds=0.0)
    asked = iter([False, False, True])
    assert not run_until_done(runs, place, stop=lambda: next(asked))
    folder = Store(place.runs).cohorts("imagenet") / cohort_name(runs)
    assert checkpoints.latest_position(folder) == (0, 3)
    child = multiprocessing.get_context("fork").Process(target=run_until_done, args=(runs, place))
    child.start()
    deadline = time.monotonic() + PATIENCE
    while (checkpoints.latest_position(folder) or (0, 0)) < (1, 2) and child.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert checkpoints.latest_position(folder) >= (1, 2)
    assert run_until_done(runs, place)
    assert_same_bits(runs, undisturbed, place.runs)


def train_in_a_group(runs: list[Run], place: TrainSettings) -> None:
    """Train as a command in a terminal does, where Ctrl-C reaches every process of the group."""
    os.setsid()
    report = run_jobs(missing_jobs(runs, Store(place.runs), 1, SIZE, IMAGES), place, 1, JobCallback())
    os._exit(7 if report.stopped and not report.failures else 1)


def test_ctrl_c_lets_the_cohort_write_a_checkpoint_and_leave(trained, root, tmp_path, monkeypatch) -> None:
    everything, undisturbed = trained
    runs = of(everything, "KD", "CS-KD")
    monkeypatch.setenv("KD_DATA_WORKERS", "2")
    monkeypatch.setattr(cohort_module, "COST_OF_A_CHECKPOINT", 0)
    place = settings(with_teacher(trained, tmp_path / "runs"), root, checkpoint_seconds=0.0)
    folder = Store(place.runs).cohorts("imagenet") / cohort_name(runs)
    child = multiprocessing.get_context("fork").Process(target=train_in_a_group, args=(runs, place))
    child.start()
    deadline = time.monotonic() + PATIENCE
    while checkpoints.latest_position(folder) is None and child.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(child.pid or 0, signal.SIGINT)
    child.join(PATIENCE)
    assert child.exitcode == 7
    assert run_until_done(runs, place)
    assert_same_bits(runs, undisturbed, place.runs)


def test_parts_of_the_training_images_are_files_too(dataset: Dataset) -> None:
    (run,) = runs_of(dataset, ("Baseline",))
    whole = select_training_data(run, dataset)
    assert (len(whole.train), len(whole.evaluation)) == (IMAGES, 12)
    half = select_training_data(run.replace(fraction=0.5), dataset)
    assert torch.bincount(half.train.labels).tolist() == [5, 5, 5]
    held = select_training_data(run.replace(validation=0.2), dataset)
    assert (len(held.train), len(held.evaluation)) == (24, 6)
    assert held.evaluation.image_size == SIZE


def test_a_damaged_image_ends_the_job_with_its_name(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(root, copy)
    path = copy / "imagenet" / "train" / WNIDS[2] / f"{WNIDS[2]}_5.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    runs = runs_of(load_dataset("imagenet", copy), ("Baseline",))
    place = settings(tmp_path / "runs", copy)
    report = run_jobs(missing_jobs(runs, Store(place.runs), 1, SIZE, IMAGES), place, 1, JobCallback())
    assert report.user_errors == [f"image {path} is damaged or no image; replace it or remove it"]
