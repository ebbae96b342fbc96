"""A batch shared by several processes gives what one process makes of it, and nothing is left hanging when one fails.

The processes are real ones on the CPU, so some of these tests take seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmark.core.errors import UserError
from benchmark.core.spec import LRSchedule, Run
from benchmark.data import load_dataset
from benchmark.data.augmentation import Batch, Recipe, Source
from benchmark.data.streaming import training_source
from benchmark.execution.pool import run_jobs
from benchmark.execution.scheduler import JobCallback
from benchmark.method import all_gather_rows, all_reduce_mean
from benchmark.method.collectives import FEWEST_ROWS, ProcessGroup, fewest_rows, rows_of
from benchmark.planning.jobs import Job
from benchmark.plugins.registry import method_class
from benchmark.results.record import comparable_part
from benchmark.results.store import Store
from benchmark.training import checkpoint as checkpoints
from benchmark.training.checkpoint import cohort_folder
from benchmark.training.cohort import train
from benchmark.training.dummies import random_images
from benchmark.training.job import run_until_done
from benchmark.training.launcher import WorkerProcessDied, check_sharing
from benchmark.training.learner import Learner
from benchmark.training.settings import TrainSettings
from tests.engine import SHORT, request, settings, shrunk
from tests.photographs import made_up_imagenet
from tests.two_processes import (
    FEW,
    TOGETHER,
    EagerSettings,
    cohort_of,
    exactly,
    failures_of,
    gatherings_of,
    in_two_processes,
    interrupted_by,
    killed,
    methods_to_compare,
    out_of_memory,
    place_of,
    runs_of_cohort,
    states_of,
)

SAME = 1e-12
"""Relative to the largest magnitude: what float64 leaves of another order of sums after two steps of 1e-15 each."""
SAME_AFTER_EPOCHS = 1e-9
"""The same after 18 steps, each of which starts where the last one ended."""
PATIENCE = 600.0
"""Seconds after which a test gives up waiting; long, since the machine may be busy."""

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes through /proc")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[Any]], Path]:
    """What two processes made of all that is asked of them but single steps, and the folder of their records."""
    folder = tmp_path_factory.mktemp("shared")
    return in_two_processes(folder, exactly, gatherings_of, failures_of, cohort_of), folder


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found after two steps of every method."""
    return in_two_processes(tmp_path_factory.mktemp("states"), exactly, states_of)["states_of"]


def states_in(states: list[dict[str, Any]], method: str) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The state that one process leaves, and what was found in each of two."""
    found = [each[method] for each in states]
    (alone,) = (each["alone"] for each in found if "alone" in each)
    return alone, found


def difference(left: Tensor, right: Tensor) -> float:
    """The largest difference, relative to the largest magnitude."""
    if left.shape != right.shape:
        return float("inf")
    largest = float(left.double().abs().max())
    return float((left.double() - right.double()).abs().max()) / (largest or 1.0)


def worst(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(difference(left[name], right[name]) for name in left)


@given(images=st.integers(1, 400), size=st.integers(1, 9))
def test_every_row_of_a_batch_has_one_process_and_every_process_two_rows(images: int, size: int) -> None:
    parts = [rows_of(rank, size, images) for rank in range(size)]
    if images < FEWEST_ROWS * size or size == 1:
        assert parts == [slice(images)] * size, "what is too small to be shared, all have"
        assert fewest_rows(size, images) == images
        return
    counts = [part.stop - part.start for part in parts]
    assert [row for part in parts for row in range(images)[part]] == list(range(images))
    assert min(counts) == fewest_rows(size, images) >= FEWEST_ROWS
    assert max(counts) <= min(counts) + 1


def test_outside_a_shared_batch_nothing_is_gathered() -> None:
    values = torch.rand(3, 2, requires_grad=True)
    for same in (all_gather_rows(values), all_reduce_mean(values)):
        assert torch.equal(same, values)
        assert not same.requires_grad


def test_rows_and_means_of_all_processes_come_together(shared) -> None:
    first, second = shared[0]["gatherings_of"]
    for rank, found in enumerate((first, second)):
        assert found["gathered"], "of every type and shape, in the order of the batch"
        assert found["averaged"] == 4.0, "each row counts once, whoever has it"
        assert found["refused"] == f"9 values of {5 - rank} images cannot be gathered"
        assert found["small"] == ([0, 1, 2], 2.0)
        assert found["outside"] == [rank]
        assert found["decided"] == (7, {"rank": 0}), "the first process decides"
        assert found["differing"] == ["other"]


def test_what_is_wrong_in_one_process_all_find_out(shared) -> None:
    for said in shared[0]["failures_of"]:
        assert said["loss"] == "not finite at step 1"
        assert re.search(r"different method\.own after epoch 1; .* --processes-per-run 1$", said["state"])


@pytest.mark.parametrize("method", methods_to_compare())
def test_two_processes_without_batch_norm_leave_what_one_leaves(states, method: str) -> None:
    """Weights, momentum, tables, memories, centres and losses, after a shared batch and one too small for it."""
    compares = method_class(method).compares_images
    alone, both = states_in(states, method)
    for found in both:
        assert found["differing"] == []
        assert (worst(alone, found["shared"]) > SAME) == compares
        assert ("losses that compare images" in found["remark"]) == compares
        assert found["remark"].startswith("2 processes share each batch")
        assert "batch norms" not in found["remark"]


@pytest.mark.parametrize("method", ["PS-KD", "LSSKD", "CRD"])
def test_every_process_keeps_the_tables_that_one_would_have(states, method: str) -> None:
    alone, both = states_in(states, method)
    for found in both:
        tables = [name for name in found["shared"] if name.endswith((".table", ".seen")) or ".memory_" in name]
        assert len(tables) == {"PS-KD": 2, "LSSKD": 4, "CRD": 2}[method]
        for name in tables:
            assert difference(alone[name], found["shared"][name]) <= SAME, name
            assert bool(found["shared"][name].any(dim=-1).all() if name.endswith(".table") else True)


@pytest.mark.parametrize("method", TOGETHER)
def test_two_processes_without_batch_norm_train_as_one_does_over_epochs(shared, method: str) -> None:
    results, folder = shared
    assert results["cohort_of"] == [True, True]
    store = Store(place_of(folder).runs)
    one, two = (runs_of_cohort(processes)[TOGETHER.index(method)] for processes in (1, 2))
    assert one.id != two.id
    assert worst(store.weights(one), store.weights(two)) <= SAME_AFTER_EPOCHS
    alone, together = (comparable_part(store.record(run) or {}) for run in (one, two))
    assert alone["cost"] == together["cost"]
    for before, after in zip(alone["epochs"], together["epochs"], strict=True):
        assert before.keys() == after.keys()
        assert after["loss"] == pytest.approx(before["loss"], rel=SAME_AFTER_EPOCHS)
        assert after["terms"] == pytest.approx(before["terms"], rel=SAME_AFTER_EPOCHS)
        assert after["nll"] == pytest.approx(before["nll"], rel=SAME_AFTER_EPOCHS)
        assert after["top1"] == before["top1"]


RECIPE = Recipe(padding=2, flip=True, mean=(0.4,) * 3, std=(0.2,) * 3, cutout=3, cutmix=1.0)


def small_source(recipe: Recipe, root: Path) -> Source:
    return training_source(random_images(11, 8).train, recipe, 7, "cpu", ("test",))


def streamed_source(recipe: Recipe, root: Path) -> Source:
    images = load_dataset("imagenet", root).train.subset(torch.arange(11))
    return training_source(replace(images, image_size=16), recipe, 7, "cpu", ("test",))


@pytest.mark.parametrize("source_of", [small_source, streamed_source])
@pytest.mark.parametrize(
    "recipe", [RECIPE, replace(RECIPE, cutmix=0.0), replace(RECIPE, rotated_crop="per_rotation", cutmix=0.5)]
)
def test_each_process_is_shown_its_rows_of_the_batch(
    source_of: Callable[[Recipe, Path], Source], recipe: Recipe, tmp_path: Path, monkeypatch
) -> None:
    """Also of a mixed one, where partners may be another process's."""
    monkeypatch.setenv("KD_DATA_WORKERS", "0")
    made_up_imagenet(tmp_path)
    whole_source, parts = source_of(recipe, tmp_path), [source_of(recipe, tmp_path) for _ in range(3)]
    for rank, part in enumerate(parts):
        part.rows = lambda images, rank=rank: rows_of(rank, 3, images)
    for epoch in range(2):
        for step in range(whole_source.batches):
            whole = whole_source.batch(whole_source.epoch(epoch), step)
            plans = [part.epoch(epoch) for part in parts]
            for rank, (part, plan) in enumerate(zip(parts, plans, strict=True)):
                assert_rows(part.batch(plan, step), whole, rows_of(rank, 3, len(whole.index)))


def assert_rows(part: Batch, whole: Batch, rows: slice) -> None:
    assert torch.equal(part.index, whole.index[rows])
    assert torch.equal(part.labels, whole.labels[rows])
    assert (part.mixture is None) == (whole.mixture is None)
    if part.mixture and whole.mixture:
        assert torch.equal(part.mixture.index, whole.mixture.index[rows])
        assert torch.equal(part.mixture.labels, whole.mixture.labels[rows])
        assert part.mixture.share == whole.mixture.share
    images = len(whole.index)
    for view in ("plain", "rotated", "second", "same_class"):
        seen, all_of_it = part.view(view), whole.view(view).unflatten(0, (images, -1))
        assert torch.equal(seen, all_of_it[rows].flatten(0, 1)), view
        assert seen.is_contiguous(memory_format=torch.channels_last)


def shared_runs(epochs: int = 3) -> list[Run]:
    """Two runs with batch norm and a past: a table, and the network of the epoch before with its statistics."""
    protocol = SHORT.replace(schedule=LRSchedule(epochs=epochs))
    asked = request(protocol=protocol, options={"PS-KD": {"past": "previous_weights"}}, **FEW)
    return [shrunk(asked.run(name, "ResNet8", None, 0)).replace(processes=2) for name in ("PS-KD", "LSSKD")]


def trained(runs: list[Run], place: TrainSettings, group: ProcessGroup, folder: Path) -> None:
    assert train(runs, place, group=group)


def results_of(runs: list[Run], place: TrainSettings) -> list[dict[str, Any]]:
    return [comparable_part(Store(place.runs).record(run) or {}) for run in runs]


def remade(kind: type[TrainSettings], place: TrainSettings, **changes: Any) -> TrainSettings:
    fields = {field.name: getattr(place, field.name) for field in dataclasses.fields(place)}
    return kind(**fields | changes)


def children_of(parent: int) -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(entry.read_text().rpartition(")")[2].split()[1]) == parent:
                found.add(int(entry.parent.name))
        except OSError:
            continue
    return found


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


@contextlib.contextmanager
def processes_forked() -> Iterator[None]:
    """Fork processes, which start at once then; how they stop or fail does not depend on how they were started."""
    forked = multiprocessing.get_context("fork")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda method: forked)
        yield


@on_linux
def test_stopped_and_killed_and_resumed_gives_the_same_bits(tmp_path: Path) -> None:
    """The processes to be killed are started as those of a command are; those that only stop are forked."""
    runs, undisturbed, place = shared_runs(), settings(tmp_path / "undisturbed"), settings(tmp_path / "disturbed")
    in_two_processes(tmp_path / "first", partial(trained, runs, undisturbed))
    folder = cohort_folder(Store(place.runs), runs)

    with processes_forked():
        assert not run_until_done(runs, place, stop=lambda: True)
    stopped = checkpoints.latest_position(folder)
    assert stopped is not None, "a stop leaves a checkpoint"

    eager = remade(EagerSettings, place, checkpoint_seconds=0.0)
    parent = multiprocessing.get_context("fork").Process(target=run_until_done, args=(runs, eager))
    parent.start()
    assert parent.pid is not None
    try:
        wait_for(lambda: (checkpoints.latest_position(folder) or stopped) >= (1, 4), "nothing is trained")
        crew = children_of(parent.pid)
    finally:
        parent.kill()
        parent.join()
    assert len(crew) >= 2
    wait_for(lambda: not any(map(is_running, crew)), "processes outlive the one that started them")

    in_two_processes(tmp_path / "last", partial(trained, runs, place))
    assert results_of(runs, place) == results_of(runs, undisturbed)
    for run in runs:
        provenance = (Store(place.runs).record(run) or {})["provenance"]
        assert provenance["processes"] == 2
        assert provenance["resumed"] == 2
        assert provenance["shared"] == (
            "2 processes share each batch; batch norms take the statistics of each process's own rows and keep those "
            "of the first process"
        )


@on_linux
@pytest.mark.parametrize(
    ("happening", "reason"),
    [
        (out_of_memory, r"^process 2 of 2: run PS-KD_\S+ failed: PS-KD: MemoryError: no room$"),
        (killed, r"^process 2 of 2 died \(exit code -9\)$"),
    ],
)
def test_the_failure_of_one_process_ends_all_with_one_reason(
    happening: Callable[[], None], reason: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(Learner, "step", interrupted_by(happening))
    run, before = shared_runs()[0], children_of(os.getpid())
    with processes_forked(), pytest.raises(WorkerProcessDied, match=reason):
        run_until_done([run], settings(tmp_path))
    assert Store(tmp_path).record(run) is None
    assert not {child for child in children_of(os.getpid()) - before if is_running(child)}
    assert all(not member.is_alive() for member in multiprocessing.active_children())


def test_what_cannot_be_shared_is_refused(tmp_path: Path, monkeypatch) -> None:
    run = shared_runs()[0]
    with pytest.raises(UserError, match=r"batch of 16 images .* for 3 processes; .* from 1, 2, 4, 8$"):
        check_sharing(run.replace(processes=3), "cpu")
    with pytest.raises(UserError, match=r"equal parts of 2 or more for 16 processes"):
        check_sharing(run.replace(processes=16), "cpu")
    with pytest.raises(UserError, match=r"one after another; use --workers 1$"):
        run_jobs([Job((run,), 1.0)], settings(tmp_path), 2, JobCallback())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"2 processes need as many CUDA devices, and there is 1; .*--device cpu$"):
        check_sharing(run, "cuda")
    with pytest.raises(UserError, match=r"not 'cuda:0' alone; use --device cuda$"):
        check_sharing(run, "cuda:0")
    check_sharing(run.replace(processes=1), "cuda:0", workers=4)
