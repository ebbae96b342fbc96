"""A sweep: a plan on the shared folder, and what became of its jobs. Nothing of it is in the memory of any process.

`<runs>/sweeps/<name>/` holds

    plan.sqlite           what is to be trained, in which jobs, and what they need; written once, never changed
    sweep.json            how jobs are run: the profile, the data, the device; the last command's
    submissions/*.json    what was given to the cluster, a file for each call of sbatch
    states/*.json         what a job says of itself, its attempts and its progress; written by the job alone
    ended/*               how jobs ended, by name: `000012.done`; with the reason in it `000013.failed`
    refused               why jobs that are ready were last not taken; gone once all were
    stopped               there while the sweep is cancelled
    resumed               when a command last went on with it after that, in seconds since 1970
    logs/                 what jobs print
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sqlite3
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmark.core.errors import UserError, unknown_name
from benchmark.core.spec import Run
from benchmark.io.files import write_text
from benchmark.results.store import Store
from benchmark.training.settings import TrainSettings
from slurm.profile import Profile
from slurm.states import ENDINGS, JobState, State, Submission

FOLDER = "sweeps"
PLAN = "plan.sqlite"
SETTINGS = "sweep.json"
REFUSED = "refused"
STOPPED = "stopped"
RESUMED = "resumed"
PARTS = ("teacher", "head", "start")
"""The fields of a run that are runs themselves; in a plan each stands once."""


@dataclass(frozen=True)
class SweepJob:
    """A job of a plan without its runs. seconds: estimated; priority: with all that waits for it."""

    number: int
    title: str
    name: str
    source: str
    seconds: float
    priority: float


class Sweep:
    """A sweep in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder.parent.parent)
        self._runs: dict[str, Run] = {}

    @property
    def name(self) -> str:
        """What it is called by."""
        return self.folder.name

    @property
    def job_name(self) -> str:
        """What its jobs are called in the cluster's queue, before what tells them apart."""
        return f"kd-{hashlib.sha256(str(self.folder.absolute()).encode()).hexdigest()[:8]}"

    @functools.cached_property
    def plan(self) -> sqlite3.Connection:
        """The plan, to be read.

        Raises:
            UserError: it is damaged, or not there.
        """
        path = self.folder / PLAN
        try:
            # Immutable: nothing is locked, which shared folders are bad at.
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)
            connection.execute("select count(*) from jobs").fetchone()
        except sqlite3.Error as error:
            raise UserError(
                f"{path} cannot be read ({error}); remove {self.folder} and plan the sweep again"
            ) from error
        return connection

    def about(self, name: str) -> Any:
        """A fact of the plan: `title`, `command`, `grouping`, `by`, `created` (seconds since 1970)."""
        (text,) = self.plan.execute("select content from about where name = ?", (name,)).fetchone()
        return json.loads(text)

    @functools.cached_property
    def jobs(self) -> list[SweepJob]:
        """All jobs by number; what a job needs has a lower one."""
        return [SweepJob(*row) for row in self.plan.execute("select * from jobs order by number")]

    @functools.cached_property
    def needs(self) -> dict[int, frozenset[int]]:
        """The jobs that must have ended before a job starts, for those that need any."""
        found: dict[int, set[int]] = {}
        for job, needed in self.plan.execute("select job, needed from needs"):
            found.setdefault(job, set()).add(needed)
        return {job: frozenset(needed) for job, needed in found.items()}

    def runs_of(self, number: int) -> list[Run]:
        """What a job trains."""
        rows = self.plan.execute("select digest from runs where job = ? order by place", (number,)).fetchall()
        return [self._run(digest) for (digest,) in rows]

    def job_of(self, run: Run) -> int | None:
        """The job that trains a run."""
        row = self.plan.execute("select job from runs where digest = ?", (run.digest,)).fetchone()
        return row[0] if row else None

    def _run(self, digest: str) -> Run:
        if digest not in self._runs:
            (content,) = self.plan.execute("select content from runs where digest = ?", (digest,)).fetchone()
            fields = json.loads(zlib.decompress(content))
            for part in PARTS:
                if isinstance(fields[part], str):
                    fields[part] = self._run(fields[part])
            self._runs[digest] = Run.model_validate(fields)
            if self._runs[digest].digest != digest:
                raise UserError(f"sweep {self.name} was planned by another version of the suite; plan it again")
        return self._runs[digest]

    def targets(self) -> dict[str, list[tuple[int, str, str]]]:
        """By table and figure the runs that they show: their job, dataset and id."""
        found: dict[str, list[tuple[int, str, str]]] = {}
        for title, *run in self.plan.execute(
            "select title, job, dataset, id from targets join wanted on target = number join runs on digest = run"
        ):
            found.setdefault(title, []).append(tuple(run))
        return found

    def outline(self) -> list[tuple[int, str, str]]:
        """Of every run its job, its dataset and its id."""
        return self.plan.execute("select job, dataset, id from runs order by place").fetchall()

    def is_recorded(self, dataset: str, run_id: str) -> bool:
        """Whether a run of the outline has a record, of success or of failure.

        Neither the record is read nor the run, which for all runs of a large sweep would keep whoever looks waiting.
        """
        return (self.store.root / dataset / run_id / "record.json").exists()

    # How jobs are run.

    def settings(self) -> tuple[TrainSettings, Profile]:
        """How its jobs are trained, and what they ask the cluster for, as the last command said.

        Raises:
            UserError: that cannot be read.
        """
        path = self.folder / SETTINGS
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            fields = content["settings"]
            released = tuple((sha256, Path(file)) for sha256, file in fields.pop("released"))
            data_root = Path(fields["data_root"]) if fields["data_root"] else None
            settings = TrainSettings(**fields | {"released": released, "data_root": data_root, "runs": self.store.root})
            return settings, Profile.model_validate(content["profile"])
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise UserError(
                f"{path} cannot be read ({type(error).__name__}); give the sweep's command again"
            ) from error

    def write_settings(self, settings: TrainSettings, profile: Profile) -> None:
        """Say how jobs are run from now on."""
        fields = asdict(settings) | {
            "runs": "",
            "data_root": str(settings.data_root.absolute()) if settings.data_root else None,
            "released": [[sha256, str(path.absolute())] for sha256, path in settings.released],
        }
        content = {"settings": fields, "profile": profile.model_dump(mode="json")}
        write_text(self.folder / SETTINGS, json.dumps(content, indent=1) + "\n")

    # What jobs say, and how they ended.

    def state(self, number: int) -> State:
        """What a job says of itself; of one that never ran, or whose file is damaged, nothing."""
        path = self.folder / "states" / f"{number:06d}.json"
        with contextlib.suppress(OSError, ValueError, ValidationError):
            return State.model_validate_json(path.read_text(encoding="utf-8"))
        return State(job=number)

    def write_state(self, state: State) -> None:
        """What a job says of itself, by the job.

        Raises:
            UserError: the shared folder cannot be written.
        """
        write_text(self.folder / "states" / f"{state.job:06d}.json", state.model_dump_json() + "\n")

    def ended(self) -> dict[int, JobState]:
        """How jobs have ended, by number."""
        found: dict[int, JobState] = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder / "ended") as entries:
            for entry in entries:
                number, _, ending = entry.name.partition(".")
                if number.isdigit() and ending in ENDINGS:
                    found[int(number)] = ending
        return found

    def reason(self, number: int) -> str:
        """Why a job failed; empty if it did not."""
        for ending in ENDINGS:
            with contextlib.suppress(OSError):
                return (self.folder / "ended" / f"{number:06d}.{ending}").read_text(encoding="utf-8").strip()
        return ""

    def end(self, number: int, ending: JobState, reason: str = "") -> None:
        """Note how a job ended.

        Raises:
            UserError: the shared folder cannot be written.
        """
        write_text(self.folder / "ended" / f"{number:06d}.{ending}", reason)
        for other in ENDINGS:
            if other != ending:
                (self.folder / "ended" / f"{number:06d}.{other}").unlink(missing_ok=True)

    def reopen(self, number: int) -> None:
        """Take it back that a job has ended."""
        for ending in ENDINGS:
            (self.folder / "ended" / f"{number:06d}.{ending}").unlink(missing_ok=True)

    @property
    def is_stopped(self) -> bool:
        """Whether the sweep is cancelled, so that nothing of it is submitted or trained."""
        return (self.folder / STOPPED).exists()

    def resume(self) -> None:
        """Go on with a sweep that may be cancelled.

        Raises:
            UserError: the shared folder cannot be written.
        """
        if self.is_stopped:
            write_text(self.folder / RESUMED, f"{time.time()}\n")
            (self.folder / STOPPED).unlink(missing_ok=True)

    @property
    def resumed(self) -> float:
        """When it was last gone on with after it had been cancelled, in seconds since 1970; 0 if never."""
        with contextlib.suppress(OSError, ValueError):
            return float((self.folder / RESUMED).read_text(encoding="utf-8"))
        return 0.0

    # What was given to the cluster.

    @property
    def refused(self) -> str:
        """Why the cluster last did not take jobs that were ready; empty where it took them all."""
        with contextlib.suppress(OSError):
            return (self.folder / REFUSED).read_text(encoding="utf-8").strip()
        return ""

    def note_refusal(self, reason: str) -> None:
        """Keep why the cluster did not take jobs, for who looks later; empty: it took them all."""
        with contextlib.suppress(OSError, UserError):
            if reason and reason != self.refused:
                write_text(self.folder / REFUSED, f"{reason}\n")
            elif not reason:
                (self.folder / REFUSED).unlink(missing_ok=True)

    def submissions(self) -> list[Submission]:
        """All calls of sbatch, the oldest first."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in (self.folder / "submissions").iterdir():
                with contextlib.suppress(OSError, ValueError, ValidationError):
                    if path.suffix == ".json":
                        found.append(Submission.model_validate_json(path.read_text(encoding="utf-8")))
        # By SLURM's own numbers: the clocks of the nodes from which it was called differ.
        return sorted(found, key=lambda submission: (int(submission.array or 10**12), submission.when))

    def write_submission(self, submission: Submission) -> None:
        """Note a call of sbatch: before it, and once it is answered again."""
        write_text(self.folder / "submissions" / f"{submission.token}.json", submission.model_dump_json() + "\n")

    def remove_submission(self, submission: Submission) -> None:
        """Forget a call that came to nothing."""
        (self.folder / "submissions" / f"{submission.token}.json").unlink(missing_ok=True)


def sweeps_in(runs: Path) -> list[Sweep]:
    """All sweeps of a folder of runs, the one that a command took up last at the end."""

    def used(folder: Path) -> float:
        with contextlib.suppress(OSError):
            return (folder / SETTINGS).stat().st_mtime
        return 0.0

    return [Sweep(folder) for folder in sorted((path.parent for path in (runs / FOLDER).glob(f"*/{PLAN}")), key=used)]


def find_sweep(runs: Path, name: str = "", doubtless: bool = False) -> Sweep:
    """The sweep of a name, or the one that a command took up last.

    doubtless: of several that are not over, none is chosen without a name.

    Raises:
        UserError: there is none, or there are several.
    """
    found = sweeps_in(runs)
    if not found:
        raise UserError(
            f"there is no sweep in {runs}; start one with python -m benchmark.run --table II --executor slurm "
            "--profile FILE, or name another folder with --runs"
        )
    if not name:
        going = [sweep for sweep in found if len(sweep.ended()) < len(sweep.jobs)] if doubtless else []
        if len(going) > 1:
            names = ", ".join(sweep.name for sweep in going)
            raise UserError(f"{len(going)} sweeps are not over: {names}; name one with --sweep")
        return going[0] if going else found[-1]
    for sweep in found:
        if sweep.name == name:
            return sweep
    raise unknown_name("sweep", name, [sweep.name for sweep in found])
