"""Finding a finished run by what its user has of it, and saying what is wrong with one that is not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.backbones import build_network
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.export.finished import load_finished_run, load_trained_network
from benchmark.results.store import Store
from tests import engine

RUN = engine.request().run("LSSKD", "ResNet8", None, 0)
ID = RUN.id
Change = Callable[[Store], None]


def finish(store: Store, run: Run, network: str = "ResNet8", part: str = "student", **changes: Any) -> None:
    """Leave a record as training does."""
    record = {"status": "finished", "epochs": [], "final": {"top1": 50.0}, "provenance": {}} | changes
    store.begin(run)
    store.finish(run, record, {part: dict(build_network(network, 10).state_dict())})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    kept = Store(tmp_path / "runs")
    finish(kept, RUN)
    finish(kept, RUN.replace(student="ResNet20"), "ResNet20")
    (kept.cohorts("digits") / "LSSKD_ResNet8").mkdir(parents=True)
    return kept


def test_a_run_is_found_by_folder_record_id_and_the_start_of_its_id(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store.folder(RUN)
    monkeypatch.chdir(folder)
    for name in (str(folder), f"{folder}/", str(folder / "record.json"), ".", "record.json", ID, ID[:14]):
        found = load_finished_run(name, store.root)
        assert (found.run, found.folder.resolve()) == (RUN, folder.resolve())
        weights = load_trained_network(found, 10).state_dict()
        assert all(torch.equal(weights[key], saved) for key, saved in store.weights(RUN).items())


def test_an_id_that_begins_another_one_is_the_one_it_is(tmp_path: Path) -> None:
    store, names = Store(tmp_path), ("LSSKD_ResNet8", "LSSKD_ResNet8_more")
    for name in names:
        (tmp_path / "digits" / name).mkdir(parents=True)
        (tmp_path / "digits" / name / "run.json").write_text(RUN.model_dump_json())
    with pytest.raises(UserError, match=r"/digits/LSSKD_ResNet8 was renamed"):
        load_finished_run(names[0], store.root)


def record_removed(store: Store) -> None:
    (store.folder(RUN) / "record.json").unlink()


def record_emptied(store: Store) -> None:
    (store.folder(RUN) / "record.json").write_text("{}")


def record_cut_short(store: Store) -> None:
    path = store.folder(RUN) / "record.json"
    path.write_text(path.read_text()[:100])


def failed(store: Store) -> None:
    finish(store, RUN, status="failed", reason="loss not finite at epoch 2, step 7")


def head(store: Store) -> None:
    finish(store, RUN, part="method")


def weights_damaged(store: Store) -> None:
    path = store.folder(RUN) / "student.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def weights_removed(store: Store) -> None:
    (store.folder(RUN) / "student.safetensors").unlink()


def renamed(store: Store) -> None:
    store.folder(RUN).rename(store.folder(RUN).with_name(f"{ID}-old"))


def twins(store: Store) -> None:
    for seed in range(1, 8):
        store.begin(RUN.replace(seed=seed))


def nothing(store: Store) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (nothing, "LSKD_ResNet8", f"no run 'LSKD_ResNet8' (did you mean {ID}?): it is neither a run's folder, nor its"),
        (nothing, "nowhere/record.json", "nor the start of the id of one of the 2 runs in "),
        (nothing, "LSSKD_ResNet", "'LSSKD_ResNet' is the start of 2 runs: LSSKD_ResNet20_"),
        (nothing, "", "'' is the start of 2 runs: "),
        (twins, "LSSKD_ResNet8", "is the start of 8 runs: "),
        (twins, "LSSKD_ResNet8", ", ...; give more of the id"),
        (record_removed, ID, f"{ID} is not finished; call the command that trains it again, which goes on with it"),
        (record_emptied, ID, "record.json cannot be read (KeyError); delete its folder to train the run again"),
        (record_cut_short, ID, "record.json cannot be read (JSONDecodeError); delete its folder to train"),
        (failed, ID, f"{ID} has failed (loss not finite at epoch 2, step 7) and left no student; choose another run"),
        (head, ID, f"{ID} is a head on a teacher and has no student; choose a run that trains one"),
        (weights_damaged, ID, "student.safetensors is damaged (its checksum differs); delete its folder to train"),
        (weights_removed, ID, "student.safetensors is not there; delete its folder to train the run again"),
        (renamed, ID, f"{ID}-old was renamed or moved, or is of another version of the suite: this run's place is "),
    ],
)
def test_a_run_that_is_not_fit_is_told_why(store: Store, change: Change, name: str, said: str) -> None:
    change(store)
    with pytest.raises(UserError) as refusal:
        load_finished_run(name, store.root)
    assert said in str(refusal.value)


def test_a_folder_of_runs_that_is_not_there_holds_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"of the 0 runs in .*/gone; name one, or their folder with --runs"):
        load_finished_run("KD", tmp_path / "gone")


def test_weights_of_another_network_are_refused(store: Store) -> None:
    finish(store, RUN, "ResNet20")
    with pytest.raises(UserError, match="are not those of ResNet8 for 10 classes; delete its folder to train"):
        load_trained_network(load_finished_run(ID, store.root), 10)
