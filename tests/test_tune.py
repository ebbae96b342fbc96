"""Choosing options on held-out training images: the grid, the ranking, and that the test set plays no part."""

from __future__ import annotations

import csv
import io
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.core.errors import UserError
from benchmark.core.spec import Run, Scale
from benchmark.data import load_dataset
from benchmark.data.dataset import Dataset, ImageSet
from benchmark.planning.request import RunFactory
from benchmark.results.record import Record
from benchmark.results.store import Store
from benchmark.training.inputs import select_training_data
from benchmark.training.job import run_until_done
from benchmark.training.settings import TrainSettings
from benchmark.tune import make_stem, parse_grid, rank, to_csv
from tests.commands import records_in, run_here, small_dataset
from tests.engine import SHORT, run_of


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["alpha=0.3,0.8"], [{"alpha": 0.3}, {"alpha": 0.8}]),
        (["alpha=1,beta=2,3"], [{"alpha": 1, "beta": 2}, {"alpha": 1, "beta": 3}]),
        (
            ["alpha=1", "past=table,previous_weights"],
            [{"alpha": 1, "past": "table"}, {"alpha": 1, "past": "previous_weights"}],
        ),
        ([" soften_joint = true , false "], [{"soften_joint": True}, {"soften_joint": False}]),
        (["softening=null"], [{"softening": None}]),
    ],
)
def test_a_grid_is_every_combination_of_its_values(texts, expected) -> None:
    assert parse_grid(texts) == expected


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["0.3,0.8"], "'0.3,0.8' is not of the form option=value,value"),
        (["alpha="], "'alpha=' is not of the form"),
        (["alpha=1", "alpha=2"], "names 'alpha' twice; write its values after one another: alpha=1,2"),
        ([","], "--grid is empty"),
        ([], "--grid is empty"),
    ],
)
def test_a_grid_of_another_form_is_refused(texts, said) -> None:
    with pytest.raises(UserError) as raised:
        parse_grid(texts)
    assert said in str(raised.value)


def test_combinations_are_ranked_by_their_finished_seeds(tmp_path) -> None:
    store = Store(tmp_path)
    combinations = [{"alpha": alpha} for alpha in (0.2, 0.4, 0.6, 0.8)]
    planned = [[run_of("LSSKD", seed=seed, options={"LSSKD": values}) for seed in (0, 1)] for values in combinations]
    finished: dict[tuple[int, int], float] = {(0, 0): 60.0, (0, 1): 62.0, (1, 0): 70.0, (2, 0): 10.0}
    for (position, seed), top1 in finished.items():
        record: Record = {"status": "finished", "final": {"top1": top1}, "provenance": {}}
        store.finish(planned[position][seed], record, {})
    store.finish(planned[2][1], {"status": "failed", "reason": "loss not finite", "provenance": {}}, {})
    ranking = rank(combinations, planned, store)
    assert [values["alpha"] for values, _ in ranking] == [0.4, 0.2, 0.6, 0.8]
    rows = list(csv.reader(io.StringIO(to_csv(ranking))))
    assert rows == [
        ["alpha", "held_out_top1", "std", "n"],
        ["0.4", "70.0000", "", "1"],
        ["0.2", "61.0000", "1.4142", "2"],
        ["0.6", "10.0000", "", "1"],
        ["0.8", "", "", "0"],
    ]


def rows_of(images: ImageSet) -> list[bytes]:
    return [
        image.numpy().tobytes() + bytes([int(label)]) for image, label in zip(images.images, images.labels, strict=True)
    ]


def test_held_out_images_come_from_the_training_set_and_are_not_learned_from() -> None:
    digits = load_dataset("digits")
    data = select_training_data(run_of("Baseline", validation=0.2).replace(fraction=1.0), digits)
    kept, held = rows_of(data.train), rows_of(data.evaluation)
    assert sorted(kept + held) == sorted(rows_of(digits.train))
    assert len(held) == pytest.approx(0.2 * len(digits.train), abs=len(digits.classes))
    # Two images may be the same to the last pixel; no more than those of the training set can be on both sides.
    assert set(held).isdisjoint(set(rows_of(digits.test)) - set(rows_of(digits.train)))


def test_teacher_and_student_are_kept_from_the_same_images() -> None:
    digits = load_dataset("digits")
    student = run_of("SSKD", validation=0.2, seed=3)
    held = [select_training_data(run, digits).evaluation for run in (student, *student.dependencies())]
    assert len(held) == 3
    for part in held[1:]:
        assert torch.equal(part.images, held[0].images)


def tuned_record(dataset: Dataset, toml: Path, folder: Path, **changes: Any) -> Record:
    """The record of a run that was trained for tuning on a dataset."""
    scale = Scale(name="test", factor=1)
    request = RunFactory(
        dataset.name, dataset.fingerprint, SHORT, scale, torch.device("cpu"), precision="fp32", **changes
    )
    run = request.run("LSSKD", "ResNet20", None, 0)
    assert run_until_done([run], TrainSettings(runs=folder, dataset=str(toml)))
    record = Store(folder).record(run)
    assert record is not None
    return record


def test_other_test_images_give_the_same_tuning(tmp_path) -> None:
    tomls = [small_dataset(tmp_path / name) for name in ("one", "other")]
    tests = tmp_path / "other" / "images" / "test"
    # Every class is tested on images of another one.
    for name, source in (("blue", "green"), ("green", "red"), ("red", "blue")):
        shutil.rmtree(tests / name)
        shutil.copytree(tmp_path / "one" / "images" / "test" / source, tests / name)
    datasets = [load_dataset(str(toml)) for toml in tomls]
    assert datasets[0].fingerprint != datasets[1].fingerprint

    def figures(**changes: Any) -> list[list[dict[str, Any]]]:
        folder = tmp_path / f"runs{len(changes)}"
        pairs = zip(datasets, tomls, strict=True)
        return [tuned_record(dataset, toml, folder, **changes)["epochs"] for dataset, toml in pairs]

    tuned, ordinary = figures(validation=0.25), figures()
    assert tuned[0] == tuned[1]
    assert ordinary[0] != ordinary[1], "the test images are not what was thought"


def test_tuning_trains_every_combination_and_ranks_them(tmp_path) -> None:
    toml = small_dataset(tmp_path)
    where = ["--dataset", str(toml), "--runs", str(tmp_path / "runs"), "--reports", str(tmp_path / "reports")]
    grid = ["--method", "KD", "--grid", "temperature=2,4", "--grid", "ce_weight=0.5", "--pair", "ResNet20>ResNet20"]
    command = [*grid, *where, "--validation", "0.25", "--epochs", "2", "--workers", "1"]
    ended = run_here(*command, module="benchmark.tune")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    records = [record for record in records_in(tmp_path).values() if record["run"]["method"] == "KD"]
    assert sorted(record["run"]["options"]["temperature"] for record in records) == [2.0, 4.0]
    assert all(record["run"]["validation"] == 0.25 for record in records_in(tmp_path).values())
    (file,) = (tmp_path / "reports").iterdir()
    assert re.fullmatch(r"tune_KD_ResNet20_demo-2-epochs_blocks_[0-9a-f]{8}\.csv", file.name)
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    figures = {str(record["run"]["options"]["temperature"]): record["final"]["top1"] for record in records}
    assert [float(row["held_out_top1"]) for row in rows] == pytest.approx(
        sorted(figures.values(), reverse=True), abs=1e-4
    )
    for row in rows:
        assert float(row["held_out_top1"]) == pytest.approx(figures[str(float(row["temperature"]))], abs=1e-4)
        assert (row["ce_weight"], row["n"], row["std"]) == ("0.5", "1", "")
    assert "KD on ResNet20: accuracy on 25% of the training images, held out" in ended.stdout
    assert all(Run.model_validate(record["run"]).id == run_id for run_id, record in records_in(tmp_path).items())


def test_no_ranking_takes_the_place_of_another() -> None:
    grid = [{"temperature": 2}, {"temperature": 4}]
    run = run_of("KD")
    assert isinstance(run.teacher, Run)
    from_other = run.replace(teacher=run.teacher.replace(student="WRN-16-2"))
    usual = make_stem(run, run.dataset, grid, "")
    assert usual == make_stem(run.replace(seed=1), run.dataset, list(grid), ""), "the same ranking once more"
    others = [
        make_stem(run.replace(dataset="leaves"), run.dataset, grid, ""),
        make_stem(run.replace(scale=Scale(name="quick", factor=1)), run.dataset, grid, ""),
        make_stem(run.replace(protocol=run.protocol.replace(name="crd")), run.dataset, grid, ""),
        make_stem(run, run.dataset, [*grid, {"temperature": 8}], ""),
        make_stem(run, run.dataset, grid, "0123abcd"),
        make_stem(from_other, run.dataset, grid, ""),
    ]
    assert len({usual, *others}) == 1 + len(others)
    assert all(re.fullmatch(r"[A-Za-z0-9._+-]+", stem) for stem in (usual, *others))
