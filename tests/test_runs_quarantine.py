"""Runs that are damaged, or that need what is damaged, are trained again, and give up where that is no use."""

from __future__ import annotations

import inspect
import json
import pickle
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from benchmark.cli.app import run_app
from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.execution import pool
from benchmark.execution.pool import run_jobs
from benchmark.execution.scheduler import ExecutionSummary, JobCallback, JobOutcome, JobScheduler
from benchmark.planning.jobs import Job, missing_jobs
from benchmark.planning.request import collect_dependencies
from benchmark.results.record import CorruptRun, comparable_part
from benchmark.results.store import Store
from benchmark.run import main
from benchmark.training.job import run_until_done
from benchmark.training.launcher import Failure, _Supervisor
from benchmark.training.settings import TrainSettings
from tests.chaos.fixture import SIZE, Sweep, make_sweep
from tests.commands import arguments, small_dataset, small_table
from tests.damage import RUN, damaged_files, flip, record_path, weights_path
from tests.engine import run_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path]:
    """A teacher, a head and students, trained."""
    place = tmp_path_factory.mktemp("trained")
    sweep = make_sweep(place)
    report = train(sweep, sweep.runs, place / "runs")
    assert report.failures == {}
    return sweep, place / "runs"


class Listening(JobCallback):
    """Remembers what was said and which jobs began; `damage` is damaged whenever its run has been trained."""

    def __init__(self, damage: Path | None = None) -> None:
        self.lines: list[str] = []
        self.begun: list[str] = []
        self.damage = damage

    def on_start(self, job: Job) -> None:
        self.begun += [run.method for run in job.runs]

    def on_message(self, job: Job, line: str) -> None:
        self.lines.append(line)

    def on_end(self, job: Job, outcome: JobOutcome) -> None:
        if self.damage is not None and self.damage.exists():
            flip(self.damage)


def train(
    sweep: Sweep,
    runs: Sequence[Run],
    folder: Path,
    watcher: JobCallback | None = None,
    workers: int = 1,
    first: Callable[[], None] = lambda: None,
) -> ExecutionSummary:
    """Bring runs to their records; `first` is called when all is planned."""
    jobs = missing_jobs(collect_dependencies(runs), Store(folder), workers, SIZE, len(sweep.images.train.labels))
    first()
    return run_jobs(jobs, sweep.settings(folder), workers, watcher or JobCallback())


def method(sweep: Sweep, name: str) -> Run:
    """The run of a method; of Baseline, which the teacher is too, the teacher."""
    taught = {needed for run in sweep.runs for needed in run.dependencies()}
    found = [run for run in sweep.runs if run.method == name]
    (run,) = found if len(found) == 1 else taught.intersection(found)
    return run


def without(trained: tuple[Sweep, Path], folder: Path, *names: str) -> Store:
    """A copy of the trained store in which the records of some methods are missing."""
    sweep, runs = trained
    shutil.copytree(runs, folder)
    for name in names:
        shutil.rmtree(Store(folder).folder(method(sweep, name)))
    return Store(folder)


def assert_same(sweep: Sweep, store: Store, right: Path) -> None:
    for run in sweep.runs:
        found, expected = store.record(run), Store(right).record(run)
        assert found is not None
        assert expected is not None
        assert comparable_part(found) == comparable_part(expected)
        for part in found["weights"]:
            store.weights(run, part)


@pytest.mark.parametrize(
    ("damaged", "needing"), [("Baseline", "KD"), ("SSKD-head", "SSKD"), ("AB-init", "AB"), ("Baseline", "SSKD-head")]
)
@pytest.mark.parametrize("file", ["weights", "record"])
def test_what_a_run_needs_is_trained_again_where_it_is_damaged(trained, tmp_path, damaged, needing, file) -> None:
    sweep, right = trained
    store = without(trained, tmp_path / "runs", needing, *(["SSKD"] if needing == "SSKD-head" else []))
    run = method(sweep, damaged)
    part = "method" if damaged == "SSKD-head" else "student"
    path = record_path(store, run) if file == "record" else store.folder(run) / f"{part}.safetensors"
    watcher = Listening()
    report = train(sweep, [method(sweep, needing)], store.root, watcher, first=lambda: flip(path))
    assert report.failures == {}
    assert report.user_errors == []
    assert f"warning: {path} is damaged; it was put aside as damaged-{path.name}-1" in watcher.lines[0]
    assert watcher.begun.count(damaged) == 1
    assert train(sweep, sweep.runs, store.root).failures == {}
    assert_same(sweep, store, right)


def test_a_teacher_whose_record_has_gone_is_trained_again(trained, tmp_path) -> None:
    sweep, right = trained
    store = without(trained, tmp_path / "runs", "KD")
    jobs = missing_jobs([method(sweep, "KD")], store, 1, SIZE, len(sweep.images.train.labels))
    assert [run.method for job in jobs for run in job.runs] == ["KD"]
    record_path(store, method(sweep, "Baseline")).unlink()
    watcher = Listening()
    assert run_jobs(jobs, sweep.settings(store.root), 1, watcher).failures == {}
    assert watcher.begun == ["Baseline", "KD"]
    assert_same(sweep, store, right)


def test_several_workers_heal_what_several_jobs_need(trained, tmp_path) -> None:
    sweep, right = trained
    store = without(trained, tmp_path / "runs", "KD", "CRD", "SSKD")
    flip(weights_path(store, method(sweep, "Baseline")))
    watcher = Listening()
    runs = [method(sweep, name) for name in ("KD", "CRD", "SSKD")]
    report = train(sweep, runs, store.root, watcher, workers=2)
    assert report.failures == {}
    # Both workers met the damage; it was one.
    assert watcher.begun.count("Baseline") == 1
    assert damaged_files(store, method(sweep, "Baseline")) == ["damaged-record.json-1", "damaged-student.safetensors-1"]
    assert_same(sweep, store, right)


def test_damage_that_is_told_of_after_its_repair_starts_no_training(trained, tmp_path) -> None:
    sweep, _ = trained
    store = without(trained, tmp_path / "runs", "KD")
    jobs = missing_jobs([method(sweep, "KD")], store, 1, SIZE, len(sweep.images.train.labels))
    scheduler = JobScheduler(jobs, store, JobCallback())
    job = scheduler.next_ready()
    assert job is not None
    # The teacher was damaged when a slow worker read it; by now another one has trained it again.
    scheduler.end(job, CorruptRun(method(sweep, "Baseline"), "weights are damaged"))
    assert scheduler.waiting == [job]


@pytest.mark.parametrize("file", ["record.json", "student.safetensors"])
def test_a_run_that_is_damaged_again_and_again_is_given_up(trained, tmp_path, file) -> None:
    sweep, _ = trained
    store = without(trained, tmp_path / "runs", "KD", "SSKD")
    teacher = method(sweep, "Baseline")
    path = store.folder(teacher) / file
    runs = [method(sweep, "KD"), method(sweep, "SSKD")]
    report = train(sweep, runs, store.root, Listening(damage=path), first=lambda: flip(path))
    reasons = set(report.failures.values())
    assert all("damaged 2 times while this command ran: " in reason for reason in reasons), reasons
    assert {run.method for job in report.failures for run in job.runs} >= {"KD", "SSKD"}
    assert len(list(store.folder(teacher).glob("damaged-record.json-*"))) == 2
    # Nobody damages it any more.
    assert train(sweep, sweep.runs, store.root).failures == {}


def test_what_needs_a_failed_teacher_is_struck_off_however_much_it_is(tmp_path: Path) -> None:
    store, run = Store(tmp_path), run_of("KD")
    (teacher,) = run.dependencies()
    store.finish(teacher, {"status": "failed", "reason": "loss not finite", "provenance": {}}, {})
    jobs = [Job((run.replace(seed=seed),), 1.0) for seed in range(300)]
    schedule = JobScheduler(jobs, store, JobCallback())
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        assert schedule.next_ready() is None
    finally:
        sys.setrecursionlimit(limit)
    assert len(schedule.summary.failures) == 300
    (reason,) = set(schedule.summary.failures.values())
    assert reason == f"Baseline of {teacher.student}, which it needs, has failed: loss not finite"


def test_damage_that_one_of_several_processes_meets_is_told_as_such() -> None:
    damage = pickle.loads(pickle.dumps(CorruptRun(RUN, "weights are damaged")))
    assert (damage.run, str(damage)) == (RUN, "weights are damaged")
    conversation = _Supervisor([], lambda: False, lambda progress: None, lambda line: None)
    with pytest.raises(CorruptRun, match="weights are damaged"):
        conversation._fail(0, Failure("weights are damaged", None, damage))


class OwnError(UserError):
    """An error of a plugin; pickle makes it again from its message alone, which its constructor refuses."""

    def __init__(self, option: str, value: int) -> None:
        super().__init__(f"{option} = {value} is too much")


def test_an_error_of_a_methods_own_kind_reaches_the_process_that_waits(monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OwnError("temperature", 9)

    monkeypatch.setattr(pool, "run_until_done", fail)
    error = pool._attempt([RUN], TrainSettings(Path("runs"), "digits"), lambda: False, lambda _: None, lambda _: None)
    received = pickle.loads(pickle.dumps(error))
    assert isinstance(received, UserError)
    assert str(received) == "temperature = 9 is too much"


def test_a_run_that_is_damaged_as_soon_as_it_is_written_is_trained_again_once(trained, tmp_path) -> None:
    sweep, _ = trained
    run = method(sweep, "LSSKD")
    store = without(trained, tmp_path / "runs", "LSSKD")

    class Damaging(JobScheduler):
        def finish(self, job: Job, reason: str | None) -> None:
            flip(record_path(store, run))
            super().finish(job, reason)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("benchmark.execution.pool.JobScheduler", Damaging)
        report = train(sweep, [run], store.root)
    assert ["damaged 2 times" in reason for reason in report.failures.values()] == [True]
    assert damaged_files(store, run) == ["damaged-record.json-1", "damaged-record.json-2"]


def test_a_damaged_checkpoint_of_which_the_header_is_gone_costs_only_time(trained, tmp_path, monkeypatch) -> None:
    sweep, right = trained
    store = without(trained, tmp_path / "runs", "LSSKD")
    run = method(sweep, "LSSKD")
    asked = iter([False] * 4 + [True])
    monkeypatch.setattr("benchmark.training.cohort.COST_OF_A_CHECKPOINT", 0)
    assert not run_until_done([run], sweep.settings(store.root), stop=lambda: next(asked))
    for path in store.cohorts(run.dataset).glob("*/checkpoint-*"):
        path.write_bytes(path.read_bytes()[:100])
    assert run_until_done([run], sweep.settings(store.root))
    assert_same(sweep, store, right)


@pytest.fixture
def command(tmp_path: Path, monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """Runs `benchmark.run` in this process on one small run; gives the exit code and what was said."""
    small_dataset(tmp_path)
    given = arguments(small_table(tmp_path, ("Baseline",), student="ResNet8"), tmp_path, epochs=1)
    monkeypatch.setenv("COLUMNS", "400")

    def run(*more: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["benchmark.run", *given, *more])
        with pytest.raises(SystemExit) as ended:
            run_app(main, "python -m benchmark.run")
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return run


def test_the_command_says_what_it_puts_aside_and_trains_it_again(command, tmp_path: Path) -> None:
    assert command()[0] == 0
    (path,) = (tmp_path / "runs").glob("*/*/record.json")
    record = json.loads(path.read_text())
    path.write_text(path.read_text().replace('"status": "finished"', '"status": "failed"'))
    command("--dry-run")
    assert not list(path.parent.glob("damaged-*"))
    code, said = command()
    assert code == 0
    assert (
        f"warning: {path} is damaged; it was put aside as damaged-record.json-1, and the run is trained again" in said
    )
    assert "finished  ResNet8" in said
    assert comparable_part(json.loads(path.read_text())) == comparable_part(record)


def test_damage_that_is_only_met_when_a_table_is_rendered_costs_a_second_call(
    command, tmp_path: Path, monkeypatch
) -> None:
    assert command()[0] == 0
    (path,) = (tmp_path / "runs").glob("*/*/record.json")
    plan = Store.statuses

    def planned(self: Store, runs: Iterable[Run]) -> object:
        found = plan(self, runs)
        flip(path)
        return found

    monkeypatch.setattr(Store, "statuses", planned)
    code, said = command()
    assert code == 2
    assert f"error: {path.parent.name} was damaged and is put aside; call the same command again" in said
    monkeypatch.setattr(Store, "statuses", plan)
    assert command()[0] == 0
    assert (path.parent / "damaged-record.json-1").exists()
