"""A sweep's folder that somebody sent: its plan, its settings and its notes stop no reader and lead to no other job."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmark.core.errors import UserError
from benchmark.core.spec import Run
from benchmark.io.untrusted import UntrustedInputError
from benchmark.results.leases import this_owner
from slurm import client, status
from slurm.cancel import cancel_jobs
from slurm.client import QueuedTask
from slurm.dependencies import retry
from slurm.dispatcher import MOST_LOG_BYTES, _read_last_line
from slurm.journal import Attempt, ShownProgress, State, Submission
from slurm.look import Look
from slurm.monitor import take_snapshot
from slurm.plan import LARGEST_RUN, decompress_limited
from slurm.screen import render_screen
from slurm.sweep import PLAN, SETTINGS, Sweep
from tests.commands import ROOT
from tests.slurm_sweeps import commanded, planned


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with a sweep of two jobs."""
    return planned(tmp_path_factory.mktemp("sent"), ("Baseline",), seeds=2).sweep().folder


@pytest.fixture
def sweep(sent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A copy of it, on a machine whose SLURM knows no job."""
    monkeypatch.setattr(client, "queue", lambda arrays: {})
    folder = tmp_path / "runs" / "sweeps" / sent.name
    for kind in ("states", "ended", "submissions", "logs/x"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name in (PLAN, SETTINGS):
        (folder / name).write_bytes((sent / name).read_bytes())
    return Sweep(folder)


def read_whole(sweep: Sweep, runs: Sequence[Run] = ()) -> list[Run]:
    """Read everything that a command reads of a plan, and look up some runs; returns those that it holds."""
    for fact in ("command", "grouping"):
        sweep.plan.read_fact(fact)
    assert sweep.plan.needs.keys() == set(range(len(sweep.plan.jobs)))
    assert sweep.plan.targets
    for run in runs:
        sweep.plan.find_job(run)
    return [run for job in sweep.plan.jobs for run in sweep.plan.read_runs(job.number)]


BOMB = zlib.compress(b'{"a": "' + b"0" * 2**24 + b'"}')
DAMAGES = [
    f"update runs set content = x'{BOMB.hex()}'",
    f"update runs set content = x'{zlib.compress(b'[' * 100_000).hex()}'",
    f"update runs set content = x'{zlib.compress(b'{}').hex()}'",
    "update runs set content = substr(content, 1, 40)",
    "update runs set content = 3",
    "update runs set job = 77",
    "update runs set job = -1",
    "update runs set job = 'all'",
    "update runs set id = x'ff', dataset = null",
    "update runs set id = char(27) || '[2J'",
    "update jobs set number = 7 where number = 1",
    "update jobs set title = char(27) || ']0;title'",
    "update jobs set name = null",
    "update jobs set seconds = 'long'",
    "update jobs set seconds = 1e999",
    "insert into needs values (0, 1)",
    "insert into needs values (55, 1)",
    "insert into needs values ('x', 1)",
    "update about set content = '['",
    "update about set content = null",
    "delete from about",
    "drop table needs",
    "alter table jobs add column more text",
    "alter table jobs rename to others; create view jobs as select * from others",
    "alter table jobs rename to others; create view jobs as with recursive n(x) as (select 1 union all select x + 1 "
    "from n) select x from n",
    "create virtual table endless using fts5(a)",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_plan_of_other_content_is_refused_in_one_line(sweep: Sweep, damage: str) -> None:
    runs = read_whole(Sweep(sweep.folder))
    with sqlite3.connect(sweep.folder / PLAN) as database:
        database.executescript(damage)
    database.close()
    with pytest.raises(UserError) as refused:
        read_whole(sweep, runs)
    message = str(refused.value)
    assert "plan.sqlite" in message
    assert "remove" in message
    assert message.isprintable()
    assert len(message) < 500


def test_a_run_that_is_its_own_teacher_ends(sweep: Sweep) -> None:
    (job,) = {run.digest for run in sweep.plan.read_runs(0)}
    with sqlite3.connect(sweep.folder / PLAN) as database:
        content = zlib.compress(json.dumps({"teacher": job, "head": None, "start": None}).encode())
        database.execute("update runs set content = ?", (content,))
    database.close()
    with pytest.raises(UserError, match="cannot be read"):
        Sweep(sweep.folder).plan.read_runs(0)


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir(), lambda path: path.touch()],
)
def test_a_plan_or_settings_that_are_no_such_file_are_not_waited_for(sweep: Sweep, make: Callable[[Path], Any]) -> None:
    for name in (PLAN, SETTINGS):
        (sweep.folder / name).unlink()
        make(sweep.folder / name)
    with pytest.raises(UserError, match=r"plan\.sqlite cannot be read"):
        read_whole(sweep)
    with pytest.raises(UserError, match=r"sweep\.json cannot be read"):
        sweep.read_settings()


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{}", '{"settings": 3, "profile": {}}', '{"settings": {}}'])
def test_settings_of_another_form_are_refused(sweep: Sweep, text: str) -> None:
    (sweep.folder / SETTINGS).write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json cannot be read"):
        sweep.read_settings()


def test_what_is_decompressed_has_a_bound() -> None:
    assert decompress_limited(zlib.compress(b"x" * LARGEST_RUN), LARGEST_RUN) == b"x" * LARGEST_RUN
    for content in (zlib.compress(b"x" * (LARGEST_RUN + 1)), zlib.compress(b"x" * 100)[:-6]):
        with pytest.raises(UntrustedInputError):
            decompress_limited(content, LARGEST_RUN)


def test_endings_and_submissions_of_jobs_that_the_plan_lacks_are_left_alone(sweep: Sweep) -> None:
    for name in (
        "000077.failed",
        "000001.failed.old",
        "1.failed",
        "\N{ARABIC-INDIC DIGIT ONE}00000.failed",
        f"{'9' * 200}.failed",
    ):
        (sweep.folder / "ended" / name).touch()
    assert sweep.journal.read_endings() == {77: "failed"}
    assert not sweep.is_over
    assert retry(sweep) == []
    sweep.journal.write_submission(Submission(token="a", when=1.0, jobs=(77,), array="12"))
    (sweep.folder / "submissions" / "b.json").write_text('{"token": "b", "when": 1.0, "jobs": [-1], "array": "13"}')
    assert not Look.begin(sweep, print).open
    assert take_snapshot(sweep).counts == {"held back": 2}


def test_only_jobs_with_a_name_of_the_sweep_are_cancelled(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    for token, array in (("0a", "12"), ("0b", "13")):
        sweep.journal.write_submission(Submission(token=token, when=1.0, jobs=(0,), array=array))
    named = {"12": "kd-0123abcd-0a", "13": "my other job"}
    queue = {task: QueuedTask(task, "RUNNING", "None", "n1", name) for task, name in named.items()}
    monkeypatch.setattr(client, "queue", lambda arrays: {task: queue[task] for task in arrays})
    cancelled: list[str] = []
    monkeypatch.setattr(client, "cancel", cancelled.extend)
    assert cancel_jobs(sweep, wait_seconds=-1) == 1
    assert cancelled == ["12"]


def test_what_notes_say_does_not_speak_to_the_terminal(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    owner = this_owner().replace(node="\x1b[2J" + "n" * 1000)
    attempt = Attempt(owner=owner, began=1.0, beat=2.0, ended=3.0, leaving="failed", reason="\x1b]0;title\x07" * 1000)
    shown = ShownProgress(epoch=10**12, epochs=1, images_per_second=1e12, seconds_left=1e12)
    sweep.journal.write_state(State(job=0, attempts=(attempt,), shown=shown))
    sweep.journal.write_ending(1, "failed", "\x1b[31mred")
    sweep.journal.write_refusal("\x1b[1mno room")
    code, said = commanded(capsys, status.main, runs=sweep.store.root, sweep=sweep.name, once=True, verbose=True)
    assert code == 1
    assert "\\x1b[31mred" in said
    assert "\\x1b[1mno room" in said
    assert "\x1b" not in said
    assert len(said) < 10_000
    assert sweep.journal.read_state(0).failed_on == frozenset()
    assert render_screen(take_snapshot(sweep))


@pytest.mark.parametrize(
    "changes",
    [
        {"shown": {"epoch": 10**30, "epochs": 1, "images_per_second": 1.0, "seconds_left": 1.0}},
        {"shown": {"epoch": 1, "epochs": 1, "images_per_second": 1.0, "seconds_left": 1e300}},
        {"waits_for": "--help"},
        {"waits_for": "12:13"},
        {"began": float("nan")},
    ],
)
def test_a_state_of_other_values_counts_as_none(sweep: Sweep, changes: dict[str, Any]) -> None:
    fields = json.loads(State(job=0, attempts=(Attempt(owner=this_owner(), began=1.0, beat=2.0),)).model_dump_json())
    path = sweep.folder / "states" / "000000.json"
    path.write_text(json.dumps(fields))
    assert sweep.journal.read_state(0).attempts
    target = fields if "shown" in changes else fields["attempts"][0]
    target |= changes
    path.write_text(json.dumps(fields))
    assert sweep.journal.read_state(0) == State(job=0)


def test_of_a_log_only_the_end_is_read(sweep: Sweep) -> None:
    log = sweep.folder / "logs" / "x" / "12_0_log.err"
    with log.open("wb") as opened:
        opened.truncate(100 * MOST_LOG_BYTES)
        opened.seek(0, os.SEEK_END)
        opened.write(b"\n\x1b[31mlast line\n")
    assert _read_last_line(sweep, "12") == f"\\x1b[31mlast line ({log})"
    log.unlink()
    os.mkfifo(log)
    assert _read_last_line(sweep, "12") == ""


@pytest.mark.parametrize(("value", "pace"), [("abc", 1.0), ("nan", 1.0), ("-1", 1.0), ("1e9", 1.0), ("0.2", 0.2)])
def test_a_pace_that_is_no_such_number_is_told_and_not_taken(value: str, pace: float) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "import slurm.pace; print(slurm.pace.PACE)"],
        cwd=ROOT,
        env=os.environ | {"KD_SLURM_PACE": value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(ended.stdout) == pace
    assert len(ended.stderr.splitlines()) == (value != "0.2")
