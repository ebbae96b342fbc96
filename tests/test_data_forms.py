"""What a dry run plans with where a dataset is not there, and that nothing of it reaches a record."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmark.core.errors import UserError
from benchmark.data import dataset_names, load_dataset
from benchmark.data.stubs import STUBS, UNREAD, find_stub
from benchmark.results.store import Store
from tests.commands import files_under, run_here
from tests.engine import run_of


@pytest.mark.parametrize(
    ("name", "train", "test", "classes", "image_size"),
    [
        ("cifar100", 50_000, 10_000, 100, 32),
        ("tiny-imagenet", 100_000, 10_000, 200, 64),
        ("tiny-imagenet-32", 100_000, 10_000, 200, 32),
        ("stl10", 5_000, 8_000, 10, 32),
        ("imagenet", 1_281_167, 50_000, 1000, 224),
    ],
)
def test_a_dataset_that_is_not_there_has_its_known_form(tmp_path, name, train, test, classes, image_size) -> None:
    form = find_stub(name, tmp_path)
    assert form is not None
    assert (len(form.train), len(form.test), form.num_classes, form.image_size) == (train, test, classes, image_size)
    assert form.train.labels.bincount().numel() == classes
    assert form.fingerprint == UNREAD
    with pytest.raises(ValueError, match="never read"):
        form.train.batches(1)


def test_only_datasets_that_come_with_no_images_have_a_known_form(tmp_path) -> None:
    assert set(STUBS) == set(dataset_names()) - {"digits", "digits-0-4", "digits-5-9"}
    assert find_stub("digits", tmp_path) is None
    assert find_stub("leaves.toml", tmp_path) is None


@pytest.mark.parametrize("name", sorted(STUBS))
def test_a_folder_that_is_there_is_read_whatever_is_in_it(tmp_path, name) -> None:
    (tmp_path / STUBS[name].folders[0]).mkdir()
    assert find_stub(name, tmp_path) is None
    with pytest.raises(UserError):
        load_dataset(name, tmp_path, download=False)


@pytest.mark.parametrize("work", ["begin", "finish"])
def test_nothing_is_kept_of_a_run_on_images_that_nobody_read(tmp_path, work) -> None:
    store, run = Store(tmp_path), run_of("Baseline").replace(fingerprint=UNREAD)
    with pytest.raises(ValueError, match="of images that were never read"):
        store.begin(run) if work == "begin" else store.finish(run, {"status": "failed"}, {})
    assert files_under(tmp_path) == []


def test_a_dry_run_tells_the_cost_without_the_data_and_says_that_it_is_not_there(tmp_path) -> None:
    where = ["--runs", str(tmp_path / "runs"), "--reports", str(tmp_path / "reports"), "--data-root", str(tmp_path)]
    asked = ["--table", "II", "--scale", "paper", "--methods", "KD", "--pairs", "WRN-40-2>WRN-16-2", "--seeds", "1"]
    ended = run_here(*where, *asked, "--dry-run")
    assert ended.returncode == 0
    # A slow machine says after a second that it is still planning.
    assert all(line.startswith("planning ") for line in ended.stderr.splitlines())
    assert "Table II on cifar100: 1 run asked for, 0 done." in ended.stdout
    assert "To train: 2 runs (teachers and their heads included) in 2 jobs, " in ended.stdout
    assert f"cifar100 is not in {tmp_path}: planned for 50,000 training images of 32x32 pixels" in ended.stdout
    assert "all its runs count as not yet run" in ended.stdout
    assert files_under(tmp_path) == []


def test_a_dry_run_of_a_damaged_dataset_is_refused(tmp_path) -> None:
    folder = tmp_path / "cifar100" / "train" / "one"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(folder / "0.png")
    ended = run_here("--table", "II", "--scale", "quick", "--data-root", str(tmp_path), "--dry-run")
    assert ended.returncode == 2
    assert "cifar100" in ended.stderr
    assert "To train" not in ended.stdout
