"""A teacher's atlas: its views are those of augmentation, its logits the teacher's, and nothing ends it early."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.core.protocols import get_scale
from benchmark.core.spec import Run
from benchmark.data import dataset_names
from benchmark.data.augmentation import EpochPlan, Recipe, TrainingSource
from benchmark.data.dataset import ImageSet
from benchmark.data.stubs import find_stub
from benchmark.data.views import count_views, make_view, number_views
from benchmark.method.contract import ContractError
from benchmark.planning.atlas import SHOWN_AS_BOXES, AtlasPrice, price_atlases
from benchmark.planning.jobs import missing_jobs
from benchmark.planning.request import RunFactory, RunOptions
from benchmark.results.leases import Lease, LeaseManager
from benchmark.results.store import Store
from benchmark.training import atlas_making, inputs
from benchmark.training.atlas import Atlas
from benchmark.training.atlas_making import make_atlas
from benchmark.training.cohort import Cohort
from benchmark.training.cost import reads_plain_logits_only
from benchmark.training.inputs import find_atlas, load_teacher, select_training_data
from benchmark.training.job import run_until_done
from benchmark.training.learner import fresh_network
from benchmark.training.settings import TrainSettings
from benchmark.training.teacher import LogitsAlone
from tables.specification import load_table
from tests import engine
from tests.commands import run_here

CPU = torch.device("cpu")
HALF = 2**-11
"""The largest relative error of rounding to half precision."""


def teach(folder: Path) -> TrainSettings:
    """Settings of a store that has the teacher of `kd`, with its first weights."""
    teacher = kd().teacher
    assert isinstance(teacher, Run)
    network = fresh_network(engine.TEACHER, 10, 0)
    result = {"status": "finished", "final": {"top1": 10.0}, "provenance": {}}
    Store(folder).finish(teacher, result, {"student": network.state_dict()})
    return engine.settings(folder)


def kd(seed: int = 0, method: str = "KD", teacher_outputs: Any = "atlas") -> Run:
    return engine.run_of(method, seed=seed, teacher_outputs=teacher_outputs)


def shared_images(run: Run) -> Run:
    """The run on the images of seed 0, whatever its own seed."""
    return run.replace(fraction_seed=0)


def make(
    place: TrainSettings, stop: Callable[[], bool] = lambda: False, run: Run | None = None, log: list[str] | None = None
) -> bool:
    said = [] if log is None else log
    return make_atlas([run or kd()], place, LeaseManager(place.runs), stop, lambda progress: None, said.append)


def atlas_of(place: TrainSettings) -> Atlas:
    return find_atlas(kd(), select_training_data(kd(), engine.digits()), place)


def files_of(atlas: Atlas) -> dict[str, int]:
    """The files of an atlas and the times at which they were written."""
    found = atlas.folder.glob("view-*/logits-*.npy")
    return {str(path.relative_to(atlas.folder)): path.stat().st_mtime_ns for path in found}


@pytest.mark.parametrize(("padding", "flip", "count"), [(4, True, 162), (1, False, 9)])
def test_every_view_is_the_one_that_augmentation_makes(padding: int, flip: bool, count: int) -> None:
    assert count_views(padding, flip) == count
    pixels = torch.randint(1, 256, (1, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels.expand(count, -1, -1, -1).contiguous(), torch.zeros(count, dtype=torch.int64))
    source = TrainingSource(images, Recipe(padding, flip, (0.5,) * 3, (0.25,) * 3), count, CPU, ("views",))
    side = 2 * padding + 1
    rows, columns, mirrored = torch.meshgrid(
        torch.arange(side), torch.arange(side), torch.arange(2 if flip else 1), indexing="ij"
    )
    offsets = torch.stack([rows.flatten(), columns.flatten()], dim=1)[:, None]
    plan = EpochPlan(0, torch.arange(count), offsets, mirrored.flatten() == 1)
    numbers = number_views(source.recipe, plan)
    assert sorted(numbers.tolist()) == list(range(count))
    augmented = source.batch(plan, 0).view("plain")
    padded = torch.nn.functional.pad(pixels[0].permute(2, 0, 1).float() / 255, (padding,) * 4)
    for place, number in enumerate(numbers.tolist()):
        (view,) = make_view(source, number, torch.tensor([place]))
        assert torch.equal(view, augmented[place])
        # The same by hand, as torchvision crops and mirrors.
        row, column = plan.offsets[place, 0].tolist()
        crop = padded[:, row : row + 8, column : column + 8]
        crop = crop.flip(2) if plan.flips[place] else crop
        assert torch.equal(view, (crop - 0.5) / 0.25)
    for number in (-1, count):
        with pytest.raises(ValueError, match="view"):
            make_view(source, number, torch.tensor([0]))


def test_logits_are_those_of_the_live_teacher_in_half_precision(tmp_path: Path) -> None:
    place = teach(tmp_path)
    assert make(place)
    atlas = atlas_of(place)
    assert len(files_of(atlas)) == 9
    assert json.loads((atlas.folder / "atlas.json").read_text())["teacher_network"] == engine.TEACHER
    runs = [kd(), kd(teacher_outputs="live")]
    data = select_training_data(runs[0], engine.digits())
    teacher = load_teacher(runs, data, place, CPU)
    cohort = Cohort(runs, data, teacher, place)
    assert teacher is not None
    seen = set()
    for epoch in range(2):
        plan = cohort.source.epoch(epoch)
        seen |= set(number_views(cohort.recipe, plan).tolist())
        for step in range(cohort.source.batches):
            on_batch = teacher.on(cohort.source.batch(plan, step))
            live, read = on_batch.outputs("plain").logits, on_batch.logits_read()
            assert read.dtype == torch.float32
            # Batches of other sizes are summed in another order.
            assert bool(((live - read).abs() <= HALF * live.abs() + 1e-5).all())
    assert seen == set(range(9))


def test_a_run_reads_the_atlas_and_needs_no_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = teach(tmp_path)
    live, read = kd(teacher_outputs="live"), kd()
    assert run_until_done([live, read], place)
    records = [Store(tmp_path).record(run) for run in (live, read)]
    losses = [[figures["loss"] for figures in record["epochs"]] for record in records if record]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    before = files_of(atlas_of(place))

    def refuse(*_: Any) -> Any:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(inputs, "teacher_network", refuse)
    monkeypatch.setattr(atlas_making, "teacher_network", refuse)
    # Another method and another seed, alone in their cohorts; without the teacher beside it, KD has the same bits.
    others = [shared_images(kd(1)), kd(method="DKD")]
    for run in others:
        assert run_until_done([run], place)
        assert Store(tmp_path).record(run) is not None
    assert files_of(atlas_of(place)) == before
    (tmp_path / "digits" / read.id / "record.json").unlink()
    assert run_until_done([read], place)
    again = Store(tmp_path).record(read)
    assert again is not None
    assert records[1] is not None
    assert again["epochs"] == records[1]["epochs"]
    assert again["weights"] == records[1]["weights"]
    assert again["cost"]["training_multiply_adds"] < records[0]["cost"]["training_multiply_adds"]  # type: ignore[index]


def test_an_atlas_goes_on_after_its_process_was_killed(tmp_path: Path) -> None:
    place, whole = teach(tmp_path / "killed"), teach(tmp_path / "whole")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        write = Atlas.write

        def write_or_die(self: Atlas, view: int, logits: np.ndarray) -> None:
            if view == 4:
                (self.view_folder(view) / ".logits.npy.0.tmp").write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, view, logits)

        Atlas.write = write_or_die  # type: ignore[method-assign]
        make(place)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    atlas = atlas_of(place)
    before = files_of(atlas)
    assert len(before) == 4
    assert atlas.list_missing() == [4, 5, 6, 7, 8]
    assert make(place)
    after = files_of(atlas)
    assert before.items() <= after.items()
    assert make(whole)
    # Their names are their checksums.
    assert after.keys() == files_of(atlas_of(whole)).keys()
    assert [path.name for path in atlas.view_folder(4).iterdir()] == [
        path.rpartition("/")[2] for path in after if path.startswith("view-0004")
    ]


def test_a_stop_leaves_between_two_batches(tmp_path: Path) -> None:
    place = teach(tmp_path)
    calls = iter([False] * 3 + [True] * 100)
    assert not make(place, stop=lambda: next(calls))
    assert 0 < len(files_of(atlas_of(place))) < 9
    assert not (atlas_of(place).folder / "atlas.json").exists()
    assert make(place)


def test_a_view_that_another_process_makes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = teach(tmp_path)
    atlas = atlas_of(place)
    lease = LeaseManager(place.runs).acquire(atlas.view_folder(2))
    assert isinstance(lease, Lease)
    waited = []

    def other_process_ends(seconds: float) -> None:
        waited.append(seconds)
        assert atlas.list_missing() == [2]
        lease.release()

    monkeypatch.setattr(atlas_making.time, "sleep", other_process_ends)
    assert make(place)
    assert len(waited) == 1
    assert atlas.list_missing() == []


def test_what_another_process_made_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    place = teach(tmp_path)
    files: list[dict[str, int]] = []

    def other_process_makes_all(line: str) -> None:
        # Said once this one has looked at what is missing.
        assert "9 of 9 views are missing" in line
        assert make(place)
        files.append(files_of(atlas_of(place)))

    leases = LeaseManager(place.runs)
    assert make_atlas([kd()], place, leases, lambda: False, lambda progress: None, other_process_makes_all)
    assert [files_of(atlas_of(place))] == files


@pytest.mark.parametrize("damage", ["flipped", "cut short", "emptied"])
def test_a_damaged_view_is_put_aside_and_made_again(tmp_path: Path, damage: str) -> None:
    place = teach(tmp_path)
    assert make(place)
    atlas = atlas_of(place)
    before = files_of(atlas)
    (path,) = atlas.view_folder(5).glob("logits-*.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes({"flipped": content, "cut short": content[:-9], "emptied": b""}[damage])
    assert atlas.find(5) is None
    said: list[str] = []
    assert make(place, log=said)
    assert any("is damaged; it was put aside" in line for line in said)
    assert len(list(atlas.view_folder(5).glob("damaged-*"))) == 1
    after = files_of(atlas)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == [str(path.relative_to(atlas.folder))]


def test_the_atlas_of_other_weights_is_another(tmp_path: Path) -> None:
    first = atlas_of(teach(tmp_path))
    teacher = kd().teacher
    assert isinstance(teacher, Run)
    weights = fresh_network(engine.TEACHER, 10, 1).state_dict()
    result = {"status": "finished", "final": {"top1": 10.0}, "provenance": {}}
    Store(tmp_path).finish(teacher, result, {"student": weights})
    assert atlas_of(engine.settings(tmp_path)).folder != first.folder


def test_identity_has_the_atlas_only_where_it_is_read() -> None:
    live, read = kd(teacher_outputs="live"), kd()
    assert live.digest != read.digest
    assert live == engine.run_of("KD")
    for text in (live.content, live.model_dump_json(), json.dumps(live.model_dump(mode="json"))):
        assert "teacher_outputs" not in text
    assert '"teacher_outputs":"atlas"' in read.content
    for run in (live, read):
        assert Run.model_validate_json(run.model_dump_json()) == run
        assert run.replace(seed=3).teacher_outputs == run.teacher_outputs
    assert live.replace(teacher_outputs="atlas") == read
    # Seeds are made from one run and share its parts.
    assert [kd(seed).teacher_outputs for seed in range(2)] == ["atlas", "atlas"]
    assert isinstance(read.teacher, Run)
    assert read.teacher == live.teacher


@pytest.mark.parametrize(
    ("method", "can_read"),
    [("KD", True), ("DKD+LS", True), ("DIST", True), ("TF-KD-self", True), ("Baseline", False), ("FitNet", False)]
    + [(method, False) for method in ("CRD", "SDD-KD", "SSKD", "SimKD", "ReviewKD", "LSSKD")],
)
def test_a_method_says_by_its_needs_whether_it_can_read(method: str, can_read: bool) -> None:
    run = engine.run_of(method)
    assert reads_plain_logits_only(run) == can_read
    assert kd(method=method).teacher_outputs == ("atlas" if can_read else "live")


def test_the_needs_of_a_method_do_not_depend_on_the_batches_of_a_scale() -> None:
    # SemCKD compares maps in whole batches only. Options of its own, so that nothing is known of it yet.
    run = engine.run_of("SemCKD", options={"SemCKD": {"reduction": 2}})
    assert not reads_plain_logits_only(run.replace(scale=get_scale("demo")))


def test_a_method_that_reads_more_than_logits_after_all_is_told() -> None:
    outputs = LogitsAlone("Own", torch.zeros(2, 10))
    assert outputs.logits.shape == (2, 10)
    with pytest.raises(ContractError, match=r"Own reads the teacher's pooled, .* without --teacher-outputs atlas"):
        _ = outputs.pooled


def price_of(methods: tuple[str, ...], folder: Path) -> AtlasPrice:
    """The price of Table II's columns at scale paper with three seeds."""
    images = find_stub("cifar100", folder)
    assert images is not None
    options = RunOptions(scale="paper", device=CPU, seeds=3, teacher_outputs="atlas")
    factory: RunFactory = options.make_factory("lsskd", images)
    runs = [
        factory.run(method, column.student, column.teacher, seed)
        for column in load_table("II").at("paper").columns
        for seed in options.seed_numbers
        for method in methods
    ]
    jobs = missing_jobs(runs, Store(folder), 1, images.image_size, len(images.train.labels))
    price = price_atlases([job.runs for job in jobs], images, Store(folder))
    assert price is not None
    return price


def test_prices_of_table_two_with_three_seeds(tmp_path: Path) -> None:
    price = price_of(("KD", "DKD"), tmp_path)
    assert (price.runs, price.atlases, price.views, price.size) == (36, 3, 162, 3 * 162 * 50_000 * 100 * 2)
    assert (price.without, price.made, price.left) == (4320, 486, 0)
    assert "486 (486 of them" in price.describe()[1]
    assert "instead of 4,320." in price.describe()[1]
    # Where other methods of a job run the teacher all the same, nothing is saved, and the plan says so.
    mixed = price_of(("KD", "FitNet"), tmp_path)
    assert (mixed.without, mixed.made, mixed.left) == (4320, 486, 4320)
    assert mixed.describe()[1].endswith("4,320: more than it saves here.")


def test_datasets_that_are_shown_as_boxes_are_those_without_padded_images(tmp_path: Path) -> None:
    unpadded = [name for name in dataset_names() if (stub := find_stub(name, tmp_path)) and not stub.padding]
    assert sorted(unpadded) == sorted(SHOWN_AS_BOXES)


def test_what_is_made_already_costs_nothing(tmp_path: Path) -> None:
    place = teach(tmp_path)
    first = price_atlases([[kd()]], engine.digits(), Store(tmp_path))
    assert make(place)
    second = price_atlases([[kd()]], engine.digits(), Store(tmp_path))
    assert first is not None
    assert second is not None
    assert (first.made, second.made) == (9, 0)
    assert second.multiply_adds == second.seconds == 0


REFUSED = {
    ("--augment", "cutmix"): "cutmix makes views that no atlas has",
    ("--protocol", "sskd"): "in protocol sskd each rotation has its own crop",
    ("--dataset", "imagenet"): "crops of imagenet are random boxes",
    ("--dataset", "stl10"): "crops of stl10 are random boxes",
    ("--methods", "FitNet"): "changes nothing: no method of this command needs only its teacher's logits",
    ("--methods", "KD", "--set", "protocol.rotated_crop=per_rotation"): "each rotation has its own crop",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_what_can_have_no_atlas_is_refused_in_a_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    where = ("--runs", str(tmp_path / "runs"), "--reports", str(tmp_path / "reports"))
    ended = run_here("--table", "II", "--teacher-outputs", "atlas", *arguments, *where)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: --teacher-outputs atlas")
    assert REFUSED[arguments] in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
