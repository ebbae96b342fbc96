"""Workers that decode images: any number of them gives the same bits, and none is left behind."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmark.core.errors import UserError
from benchmark.data import Dataset, load_dataset
from benchmark.data import decoding as decoding_module
from benchmark.data.augmentation import View, evaluation_batches
from benchmark.data.decoding import decode_workers
from tests.photographs import WNIDS, dataset, made_up_imagenet, root, shown, small_crops, source_of

__all__ = ["dataset", "root", "small_crops"]

VIEWS: tuple[View, ...] = ("plain", "rotated", "second", "same_class")
PATIENCE = 60.0
"""Seconds after which something that should have happened is given up."""


def digest(root: Path) -> str:
    """A hash of all views of an epoch and of the evaluation images."""
    dataset = load_dataset("imagenet", root)
    source = source_of(dataset)
    found = shown(source, source.epoch(0), VIEWS)
    found += [images for images, _ in evaluation_batches(dataset.test, source.recipe, 5, "cpu")]
    return hashlib.sha256(b"".join(images.contiguous().numpy().tobytes() for images in found)).hexdigest()


def test_the_number_of_workers_does_not_move_a_bit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.data.streaming.CHUNK", 3)
    monkeypatch.setattr("benchmark.data.streamed.CHUNK", 2)
    expected = digest(root)
    for workers in ("1", "2"):
        monkeypatch.setenv("KD_DATA_WORKERS", workers)
        assert digest(root) == expected


def send_digest(root: Path, workers: str, connection: Any) -> None:
    os.environ["KD_DATA_WORKERS"] = workers
    connection.send(digest(root))


def test_a_process_that_may_have_no_children_decodes_in_threads(root: Path) -> None:
    context = multiprocessing.get_context("fork")
    for workers in ("0", "2"):
        here, there = context.Pipe()
        child = context.Process(target=send_digest, args=(root, workers, there), daemon=True)
        child.start()
        there.close()
        assert here.recv() == digest(root)
        child.join()
        assert child.exitcode == 0


def test_the_usual_number_of_workers_leaves_a_processor_to_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KD_DATA_WORKERS")
    for processors, expected in ((1, 0), (2, 1), (16, 15), (256, 32)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, count=processors: set(range(count)), raising=False)
        assert decode_workers() == expected
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: 8)
        assert decode_workers() == 31
    # A daemonic process is one of several that train.
    monkeypatch.setattr(decoding_module, "_may_have_children", lambda: False)
    assert decode_workers() == 1


@pytest.mark.parametrize("value", ["-1", "two", "", "1.5"])
def test_a_number_of_workers_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_DATA_WORKERS", value)
    with pytest.raises(UserError, match=f"^KD_DATA_WORKERS={value} is refused; set it to the number"):
        decode_workers()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def sixteen_bits(path: Path) -> None:
    Image.new("I;16", (30, 30)).save(path, "PNG")


DAMAGE = {
    "cut short": (cut_short, "image {} is damaged or no image; replace it or remove it"),
    "empty": (lambda path: path.write_bytes(b""), "image {} is damaged or no image; replace it or remove it"),
    "no image": (lambda path: path.write_text("x" * 500), "image {} is damaged or no image; replace it or remove it"),
    "gone": (lambda path: path.unlink(), "cannot read image {}: No such file or directory"),
    "16 bits": (sixteen_bits, "image {} has mode I;16; save it as 8-bit colour, grey or palette"),
}


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_an_image_that_cannot_be_decoded_is_named_in_one_line(
    damage: str, workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, line = DAMAGE[damage]
    dataset = load_dataset("imagenet", made_up_imagenet(tmp_path, train=4, val=4, classes=2))
    monkeypatch.setenv("KD_DATA_WORKERS", workers)
    folder = tmp_path / "imagenet"
    train, val = (folder / split / WNIDS[1] / f"{WNIDS[1]}_0.JPEG" for split in ("train", "val"))
    spoil(train)
    spoil(val)
    source = source_of(dataset, 4)
    for path, read in (
        (train, lambda: shown(source, source.epoch(0))),
        (val, lambda: list(evaluation_batches(dataset.test, source.recipe, 3, "cpu"))),
    ):
        with pytest.raises(UserError) as raised:
            read()
        assert str(raised.value) == line.format(path)


def test_a_file_whose_name_is_no_text_can_be_named_too(tmp_path: Path) -> None:
    folder = made_up_imagenet(tmp_path, train=2, val=1, classes=2) / "imagenet" / "train" / WNIDS[0]
    (folder / os.fsdecode(b"\xff.JPEG")).write_bytes(b"nonsense")
    source = source_of(load_dataset("imagenet", tmp_path))
    with pytest.raises(UserError, match="is damaged") as raised:
        shown(source, source.epoch(0))
    assert str(raised.value).encode()


def children() -> set[int]:
    """The processes that this one started and that are still there."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.add(int(entry.parent.name))
    return found


def wait_for(happened: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes through /proc")


@pytest.fixture
def two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.data.streaming.CHUNK", 2)
    monkeypatch.setenv("KD_DATA_WORKERS", "2")


@on_linux
def test_workers_leave_with_the_epoch_or_with_the_source(dataset: Dataset, two_workers: None) -> None:
    before = children()
    source = source_of(dataset, 4)
    plan = source.epoch(0)
    source.batch(plan, 0)
    assert len(children() - before) == 2
    for step in range(1, source.batches):
        source.batch(plan, step)
    assert not children() - before
    source.batch(plan, 0)
    assert len(children() - before) == 2
    del source
    assert not children() - before


@on_linux
def test_a_worker_that_dies_is_replaced(dataset: Dataset, two_workers: None) -> None:
    plan = source_of(dataset, 4).epoch(0)
    expected = shown(source_of(dataset, 4), plan)
    before = children()
    source = source_of(dataset, 4)
    found = [source.batch(plan, 0).view("plain")]
    for worker in children() - before:
        os.kill(worker, signal.SIGKILL)
    with pytest.warns(UserWarning, match="a process that decodes images died; other processes do its work"):
        found += shown(source, plan, first=1)
    assert all(torch.equal(left, right) for left, right in zip(expected, found, strict=True))
    assert not children() - before


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@on_linux
def test_workers_that_die_again_and_again_are_given_up(
    dataset: Dataset, two_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding_module, "_prepare_worker", die)
    monkeypatch.setattr(decoding_module, "RESTARTS", 0)
    source = source_of(dataset, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=r"died 1 times, perhaps for want of .* set KD_DATA_WORKERS to a smaller"):
            source.batch(source.epoch(0), 0)


def decode_for_ever(root: Path, connection: Any) -> None:
    source = source_of(load_dataset("imagenet", root), 4)
    plan = source.epoch(0)
    source.batch(plan, 0)
    connection.send(sorted(children()))
    while True:
        source.batch(plan, 1)
        source.batch(plan, 2)
        time.sleep(0.1)


@on_linux
def test_workers_do_not_outlive_a_process_that_was_killed(root: Path, two_workers: None) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=decode_for_ever, args=(root, there))
    child.start()
    workers = here.recv()
    assert len(workers) == 2
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), "the workers are still there")


@on_linux
def test_ctrl_c_does_not_reach_the_workers_and_leaves_no_alarm(dataset: Dataset, two_workers: None) -> None:
    before, handler = children(), signal.getsignal(signal.SIGCHLD)
    source = source_of(dataset, 4)
    plan = source.epoch(0)
    found = [source.batch(plan, 0).view("plain")]
    # torch's own handler would raise wherever the main thread is when a worker dies.
    assert signal.getsignal(signal.SIGCHLD) == handler
    for worker in children() - before:
        os.kill(worker, signal.SIGINT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found += shown(source, plan, first=1)
    assert len(found) == source.batches
