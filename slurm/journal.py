"""The journal of a sweep: a file for each note, so that jobs on different nodes never write the same one.

states/*.json         what a job says of itself: its attempts and its progress; only the job writes it
ended/*               how jobs ended, by name: `000012.done`; `000013.failed` holds the reason
submissions/*.json    a file for each call of sbatch, written before the call and again with its answer, so that
                      jobs which SLURM took from a process that died then are found and not submitted twice
refused               why SLURM last refused jobs that are ready; removed once it takes all of them
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import cast

from benchmark.core.errors import UserError
from benchmark.io.files import write_text
from benchmark.io.untrusted import UntrustedInputError, escape_control_chars, read_text_limited
from slurm.states import ENDINGS, JobState, State, Submission

LARGEST_NOTE = 2**24
"""Bytes of a note; that of an array of ten thousand jobs has some hundred kB."""
LONGEST_LINE = 2000
"""Characters of a reason that are shown."""
ENDING = re.compile(rf"([0-9]{{6,9}})\.({'|'.join(ENDINGS)})")


def _read_line(path: Path) -> str:
    """The text of a note of one line, as a terminal may show it."""
    return escape_control_chars(" ".join(_read(path).split()), LONGEST_LINE)


def _read(path: Path) -> str:
    """The text of a note; empty if it is missing, damaged, or no plain file (a pipe, say)."""
    with contextlib.suppress(OSError, UnicodeDecodeError, UntrustedInputError):
        return read_text_limited(path, LARGEST_NOTE)
    return ""


class Journal:
    """Reads and writes the notes in a sweep's folder.

    Whatever writes raises UserError where the shared folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _list(self, kind: str) -> list[str]:
        """The names of the notes of a kind. Unlike a glob, it fails where the folder cannot be read."""
        with contextlib.suppress(FileNotFoundError):
            return os.listdir(self.folder / kind)
        return []

    def read_state(self, job: int) -> State:
        """What a job says of itself; an empty state if it never ran or its file is damaged."""
        with contextlib.suppress(ValueError):
            state = State.model_validate_json(_read(self._state(job)))
            if state.job == job:
                return state
        return State(job=job)

    def write_state(self, state: State) -> None:
        """Write what a job says of itself."""
        write_text(self._state(state.job), state.model_dump_json() + "\n")

    def _state(self, job: int) -> Path:
        return self.folder / "states" / f"{job:06d}.json"

    def read_endings(self) -> dict[int, JobState]:
        """How the jobs that are over have ended."""
        endings: dict[int, JobState] = {}
        for name in self._list("ended"):
            # A journal gives no other names, such as `12.done` or `0000012.done`.
            if (match := ENDING.fullmatch(name)) and match[1] == f"{int(match[1]):06d}":
                endings[int(match[1])] = cast(JobState, match[2])
        return endings

    def read_reason(self, job: int) -> str:
        """Why a job failed; empty if it did not."""
        for ending in ENDINGS:
            if reason := _read_line(self._ending(job, ending)):
                return reason
        return ""

    def write_ending(self, job: int, ending: JobState, reason: str = "") -> None:
        """Note how a job ended."""
        write_text(self._ending(job, ending), reason)
        self.remove_ending(job, *(other for other in ENDINGS if other != ending))

    def remove_ending(self, job: int, *endings: JobState) -> None:
        """Remove the note that a job has ended, in some ways or in any."""
        for ending in endings or ENDINGS:
            self._ending(job, ending).unlink(missing_ok=True)

    def _ending(self, job: int, ending: JobState) -> Path:
        return self.folder / "ended" / f"{job:06d}.{ending}"

    def read_submissions(self) -> list[Submission]:
        """All calls of sbatch, the oldest first."""
        submissions = []
        for name in self._list("submissions"):
            if name.endswith(".json"):
                with contextlib.suppress(ValueError):
                    text = _read(self.folder / "submissions" / name)
                    submissions.append(Submission.model_validate_json(text))
        # By SLURM's own numbers: the clocks of the nodes that submit differ.
        return sorted(submissions, key=lambda submission: (int(submission.array or 10**12), submission.when))

    def write_submission(self, submission: Submission) -> None:
        """Note a call of sbatch."""
        write_text(self._submission(submission), submission.model_dump_json() + "\n")

    def remove_submission(self, submission: Submission) -> None:
        """Remove the note of a call that submitted nothing."""
        self._submission(submission).unlink(missing_ok=True)

    def _submission(self, submission: Submission) -> Path:
        return self.folder / "submissions" / f"{submission.token}.json"

    def read_refusal(self) -> str:
        """Why SLURM last refused jobs that are ready; empty if it took all of them."""
        return _read_line(self.folder / "refused")

    def write_refusal(self, reason: str) -> None:
        """Note why SLURM refuses jobs, for `slurm.status`; empty: it takes all of them."""
        if reason == self.read_refusal():
            return
        with contextlib.suppress(OSError, UserError):
            if reason:
                write_text(self.folder / "refused", f"{reason}\n")
            else:
                (self.folder / "refused").unlink(missing_ok=True)
