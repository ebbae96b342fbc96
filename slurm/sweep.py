"""A sweep: a plan in the shared folder and the journal of its jobs. No process keeps any of it in memory alone.

`<runs>/sweeps/<name>/` holds

    plan.sqlite           the runs, the jobs and what each job needs; written once, never changed (slurm.plan)
    sweep.json            how jobs run: the profile, the data, the device; written by the latest command
    states/, ended/,
    submissions/, refused the journal: what jobs did, and what was submitted (slurm.journal)
    stopped               exists while the sweep is cancelled
    logs/                 what jobs print
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter

from benchmark.core.errors import UserError, unknown_name
from benchmark.io.files import write_text
from benchmark.io.untrusted import UntrustedInputError, read_text_limited
from benchmark.results.store import Store
from benchmark.training.settings import TrainSettings
from slurm.journal import LARGEST_NOTE, Journal, Submission
from slurm.plan import Plan, SweepRequest, write_plan
from slurm.profile import Profile

FOLDER = "sweeps"
PLAN = "plan.sqlite"
SETTINGS = "sweep.json"
_ADAPTER = TypeAdapter(TrainSettings)


class Sweep:
    """A sweep in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder.parent.parent)
        self.journal = Journal(folder)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    def queue_name(self, submission: Submission) -> str:
        """The name of a submission's jobs in SLURM's queue; no other jobs have it."""
        return f"kd-{hashlib.sha256(str(self.folder.absolute()).encode()).hexdigest()[:8]}-{submission.token}"

    @functools.cached_property
    def plan(self) -> Plan:
        """Its plan.

        Raises:
            UserError: the plan is damaged or missing.
        """
        return Plan(self.folder / PLAN)

    def read_settings(self) -> tuple[TrainSettings, Profile]:
        """How its jobs train and what they ask of the cluster, as the latest command set it.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.folder / SETTINGS
        try:
            content = json.loads(read_text_limited(path, LARGEST_NOTE))
            settings = _ADAPTER.validate_python(content["settings"] | {"runs": self.store.root})
            return settings, Profile.model_validate(content["profile"])
        except (OSError, UntrustedInputError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path} cannot be read ({type(error).__name__}); give the sweep's command again"
            ) from error

    def write_settings(self, settings: TrainSettings, profile: Profile) -> None:
        """Set how jobs run from now on."""
        settings = replace(
            settings,
            data_root=settings.data_root.absolute() if settings.data_root else None,
            released=tuple((sha256, path.absolute()) for sha256, path in settings.released),
        )
        fields = _ADAPTER.dump_python(settings, mode="json") | {"runs": ""}
        content = {"settings": fields, "profile": profile.model_dump(mode="json")}
        write_text(self.folder / SETTINGS, json.dumps(content, indent=1) + "\n")

    @property
    def is_over(self) -> bool:
        """Whether all jobs have ended."""
        ended = self.journal.read_endings()
        return all(job.number in ended for job in self.plan.jobs)

    @property
    def is_cancelled(self) -> bool:
        """Whether it is cancelled, so that none of its jobs is submitted or trained."""
        return (self.folder / "stopped").exists()

    def cancel(self) -> None:
        """Mark it as cancelled.

        Raises:
            UserError: the shared folder cannot be written.
        """
        write_text(self.folder / "stopped", "")

    def undo_cancel(self) -> None:
        """Remove the mark again."""
        (self.folder / "stopped").unlink(missing_ok=True)


def create_or_open_sweep(runs: Path, request: SweepRequest) -> tuple[Sweep, bool]:
    """The sweep of a request, and whether it is new. Whoever asks for the same runs gets the same sweep.

    Raises:
        UserError: the folder cannot be written.
    """
    digests = sorted({run.digest for runs in request.targets.values() for run in runs})
    name = f"{request.title}-{hashlib.sha256(''.join(digests).encode()).hexdigest()[:8]}"
    sweep = Sweep(runs.absolute() / FOLDER / name)
    is_new = not (sweep.folder / PLAN).exists()
    if is_new:
        write_plan(sweep.folder / PLAN, request)
    return sweep, is_new


def list_sweeps(runs: Path) -> list[Sweep]:
    """All sweeps of a folder of runs; the one that a command used last is at the end."""

    def used(folder: Path) -> float:
        with contextlib.suppress(OSError):
            return (folder / SETTINGS).stat().st_mtime
        return 0.0

    return [Sweep(folder) for folder in sorted((path.parent for path in (runs / FOLDER).glob(f"*/{PLAN}")), key=used)]


def find_sweep(runs: Path, name: str = "", is_ambiguity_refused: bool = False) -> Sweep:
    """The sweep of a name; without a name, the sweep that a command used last.

    is_ambiguity_refused: without a name, it is the only sweep that is not over.

    Raises:
        UserError: there is none, or there are several.
    """
    sweeps = list_sweeps(runs)
    if not sweeps:
        raise UserError(
            f"there is no sweep in {runs}; start one with python -m benchmark.run --table II --executor slurm "
            "--profile FILE, or name another folder with --runs"
        )
    if not name:
        unfinished = [sweep for sweep in sweeps if not sweep.is_over] if is_ambiguity_refused else []
        if len(unfinished) > 1:
            names = ", ".join(sweep.name for sweep in unfinished)
            raise UserError(f"{len(unfinished)} sweeps are not over: {names}; name one with --sweep")
        return unfinished[0] if unfinished else sweeps[-1]
    for sweep in sweeps:
        if sweep.name == name:
            return sweep
    raise unknown_name("sweep", name, [sweep.name for sweep in sweeps])
