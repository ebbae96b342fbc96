"""A mistake of a method that shows in training: one line with its place, its traceback kept, and all others go on."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmark.results.store import Store
from benchmark.training import job
from benchmark.training.failures import RunsFailed
from benchmark.training.job import run_until_done
from tests import engine
from tests.commands import arguments, run_here, small_dataset, small_table
from tests.new_methods import NewMethods, line_of, new_methods

__all__ = ["new_methods"]

LOGITS = '"logits": distance(logits, step.teacher("plain").logits)'
TERMS = "terms ['ce'] do not match weights ['ce', 'logits']"
MISTAKES = [
    ((f", {LOGITS}", ""), TERMS, "def forward"),
    ((LOGITS, f'{LOGITS}, "more": 0'), "terms ['ce', 'logits', 'more'] do not match", "def forward"),
    (
        ('return {"ce": label', 'return logits.sum() or {"ce": label'),
        "forward returns Tensor, and not loss terms by name",
        "def forward",
    ),
    ((" ** 2).mean()", " ** 2)"), "the term 'logits' is of shape [16, 10], and must be a scalar", "def forward"),
    ((LOGITS, '"logits": 0.0'), "the term 'logits' is float, and must be a scalar tensor", "def forward"),
    (('teacher("plain").logits', 'teacher("plain").logits[1:]'), "RuntimeError: The size of tensor a", "return (("),
    (('student("plain")', 'student("plane")'), "ValueError: unknown view 'plane'; allowed: plain,", "logits = step"),
    (('teacher("plain").logits', 'teacher("plain").logitz'), "AttributeError: 'Outputs' object has no", LOGITS),
    (('step.teacher("plain").logits', 'step.teacher_head("plain")'), "asks for a head of a teacher", LOGITS),
    (("needs_teacher = True", "needs_teacher = False"), "Follow asks for a teacher, and does not say", LOGITS),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs that holds the teacher alone, the same for all of these tests."""
    folder = tmp_path_factory.mktemp("teacher") / "runs"
    engine.train_dependencies([engine.run_of("KD")], engine.settings(folder))
    return folder


@pytest.mark.parametrize(("change", "said", "place"), MISTAKES)
def test_a_mistake_ends_one_run_with_a_line_and_keeps_its_traceback(
    new_methods: NewMethods, teacher: Path, tmp_path: Path, change: tuple[str, str], said: str, place: str
) -> None:
    line = line_of(place)
    new_methods(change)
    shutil.copytree(teacher, tmp_path / "runs")
    place_of_runs, store = engine.settings(tmp_path / "runs"), Store(tmp_path / "runs")
    broken, well = engine.run_of("Follow"), engine.run_of("KD")
    # Together with one that has a teacher: what a method may ask for does not depend on who else is there.
    with pytest.raises(RunsFailed) as ended:
        run_until_done([broken, well], place_of_runs)
    reason = str(ended.value)
    assert reason.startswith(f"run {broken.id} failed: Follow")
    assert said in reason
    assert reason.endswith(f"(methods/follow.py:{line})")
    assert store.has_record(well)
    assert not store.has_record(broken)
    kept = store.traceback(broken).read_text()
    assert kept.startswith("Traceback (most recent call last):\n")
    assert reason.partition(" failed: Follow")[2].lstrip(": ")[:20] in kept
    assert not store.traceback(well).exists()


def test_the_traceback_goes_when_the_run_is_trained_again(
    new_methods: NewMethods, teacher: Path, tmp_path: Path
) -> None:
    place, store, run = engine.settings(tmp_path / "runs"), Store(tmp_path / "runs"), engine.run_of
    shutil.copytree(teacher, tmp_path / "runs")
    new_methods((f", {LOGITS}", ""))
    with pytest.raises(RunsFailed):
        run_until_done([run("Follow")], place)
    assert store.traceback(run("Follow")).exists()
    new_methods()
    assert run_until_done([run("Follow")], place)
    assert not store.traceback(run("Follow")).exists()


def test_what_ends_a_whole_cohort_is_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object) -> bool:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(job, "train", train)
    place, store = engine.settings(tmp_path), Store(tmp_path)
    runs = [engine.run_of("Baseline"), engine.run_of("CS-KD")]
    with pytest.raises(RunsFailed, match=rf"^run {runs[0].id} and 1 more failed: RuntimeError: the device is lost$"):
        run_until_done(runs, place)
    assert [store.traceback(run).exists() for run in runs] == [True, False]
    with pytest.raises(RunsFailed, match=rf"^run {runs[1].id} failed: CS-KD: RuntimeError: the device is lost$"):
        run_until_done(runs[1:], place)


@pytest.fixture
def command(new_methods: NewMethods, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """A command whose method has a mistake, which ends in the first step."""
    new_methods((f", {LOGITS}", ""))
    data = tmp_path / "data"
    data.mkdir()
    small_dataset(data)
    table = small_table(data, methods=("Baseline", "KD"))
    return run_here(*arguments(table, tmp_path, "--methods", "KD,Follow", epochs=1), folder=tmp_path)


def test_the_command_ends_with_the_line_that_names_the_traceback(
    command: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    said = command.stdout.splitlines()
    assert (command.returncode, command.stderr) == (1, "")
    assert "Traceback" not in command.stdout
    assert len(said) < 40
    assert said[-1] == "1 of the jobs failed"
    found = re.fullmatch(
        rf"run \S+ failed: Follow: {re.escape(TERMS)} \(methods/follow.py:{line_of('def forward')}\); "
        r"traceback: (\S+/error\.txt)",
        said[-2],
    )
    assert found
    assert "ContractError" in (tmp_path / found[1]).read_text()
    assert any(line.startswith("Open ") for line in said[:-2])
