"""Exclusive claims on what is trained or submitted, on any shared folder; a claim ends when its process or job is gone.

Locks of the operating system end with the node on some shared folders and are missing on others, so a claim is a
file: `claim-000001.json` beside what it claims, made by a hard link, which is atomic everywhere. It names its owner.
The claim of the highest number holds; whoever finds that its owner is gone makes the next one, and only one of several
can. The owner that was wrongly taken for dead reads that it no longer holds, and leaves.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import ValidationError

from benchmark.core.errors import UserError
from benchmark.results.owners import LeaseHolder, is_running, this_machine, this_owner

BEAT_SECONDS = 15.0
"""How often an owner says that it lives."""
HEARTBEAT_TIMEOUT = 300.0
"""After so long without a beat an owner that nobody can ask after is taken for gone."""
STALL_FACTOR = 4
"""So many times as long may an owner be silent of which its cluster says that it runs."""
CLAIM = re.compile(r"claim-(\d{6})\.json")
RELEASED = "released\n"
"""What a claim that was given up holds. One that is empty is being made, where there are no hard links."""
OWNERS = ".owners"
LivenessProbe = Callable[[LeaseHolder], bool | None]
"""Whether an owner that is a cluster's job still runs; None where nobody can say."""


def no_liveness_probe(owner: LeaseHolder) -> bool | None:
    """Where there is no cluster to ask."""
    return None


@dataclass
class Lease:
    """A claim that this process holds until it is released."""

    root: Path
    folder: Path
    number: int
    owner: LeaseHolder
    _done: bool = field(default=False, repr=False)

    @property
    def path(self) -> Path:
        """The claim's file."""
        return self.folder / f"claim-{self.number:06d}.json"

    def is_valid(self) -> bool:
        """Whether nobody has taken this process for gone meanwhile. A folder that cannot be read tells nothing."""
        try:
            return _latest(self.folder) == self.number
        except OSError:
            return True

    def release(self, forget: bool = False) -> None:
        """Give the claim up. `forget`: remove its files, where what was claimed is done and never claimed again."""
        if self._done:
            return
        self._done = True
        _Heartbeat.stop(self.root, self.owner)
        with contextlib.suppress(OSError):
            if forget:
                for path in _lease_files_in(self.folder).values():
                    path.unlink(missing_ok=True)
            else:
                # It is replaced and not removed: a number that is used twice could be held by two.
                _replace(self.path, RELEASED)
                for number, path in _lease_files_in(self.folder).items():
                    if number < self.number:
                        path.unlink(missing_ok=True)


class LeaseManager:
    """Takes claims for this process, and judges those of others.

    root: the folder of all that may be claimed; owners beat there. ask: whether a job of a cluster still runs.
    """

    def __init__(
        self, root: Path, ask: LivenessProbe = no_liveness_probe, silent_seconds: float = HEARTBEAT_TIMEOUT
    ) -> None:
        self.root, self.ask, self.silent_seconds = root, ask, silent_seconds

    def acquire(self, folder: Path) -> Lease | LeaseHolder:
        """The claim on a folder, or the owner that holds it.

        Raises:
            UserError: the folder cannot be written.
        """
        owner = this_owner()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while True:
                number = _latest(folder)
                if number and (holder := self.holder(folder, number)) is not None:
                    return holder
                # It beats before anybody can see the claim.
                _Heartbeat.start(self.root, owner)
                made = False
                try:
                    made = _make(folder / f"claim-{number + 1:06d}.json", owner.model_dump_json())
                finally:
                    if not made:
                        _Heartbeat.stop(self.root, owner)
                if made:
                    return Lease(self.root, folder, number + 1, owner)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"cannot write {folder}: {reason}; choose another folder with --runs") from error

    def holder(self, folder: Path, number: int | None = None) -> LeaseHolder | None:
        """Who holds the latest claim on a folder (or that of a number), if its owner is still there."""
        number = _latest(folder) if number is None else number
        if not number:
            return None
        path = folder / f"claim-{number:06d}.json"
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
            written = path.stat().st_mtime
        except FileNotFoundError:
            return None
        if text == RELEASED:
            return None
        try:
            owner = LeaseHolder.model_validate_json(text)
        except (ValidationError, ValueError):
            # Being written where there are no hard links (so empty, too), or damaged: somebody's until long silent.
            stranger = LeaseHolder(token="", machine="", node="an unknown node", process=0, started=0.0)
            return stranger if _now(self.root) - written < self.silent_seconds else None
        if self.is_alive(owner, written):
            return owner
        with contextlib.suppress(OSError):
            _heartbeat_file(self.root, owner).unlink(missing_ok=True)
        return None

    def is_alive(self, owner: LeaseHolder, written: float = 0.0) -> bool:
        """Whether the owner of a claim, made at `written` by the folder's clock, is still there."""
        if owner.token == this_owner().token:
            return True
        if owner.machine == this_machine():
            if not is_running(owner.process, owner.started):
                return False
            # A process may outlive the job that it belonged to, when what should have ended it was killed.
            return self._said(owner) is not False
        said = self._said(owner)
        if said is False:
            return False
        # A job that the cluster calls running may hang all the same.
        patience = self.silent_seconds * (STALL_FACTOR if said else 1)
        return _now(self.root) - max(_last_beat(self.root, owner), written) < patience

    def _said(self, owner: LeaseHolder) -> bool | None:
        mine = this_owner()
        if owner.job and owner.job == mine.job and owner.restarts < mine.restarts:
            return False
        return self.ask(owner) if owner.job else None


class _Heartbeat:
    """Beats for this process in a root, for as long as it holds claims there."""

    _lock = threading.Lock()
    _hearts: ClassVar[dict[tuple[str, Path], _Heartbeat]] = {}

    @classmethod
    def start(cls, root: Path, owner: LeaseHolder) -> None:
        """One more claim is held."""
        with cls._lock:
            key = (owner.token, root.absolute())
            if key not in cls._hearts:
                cls._hearts[key] = cls(_heartbeat_file(root, owner))
            cls._hearts[key].claims += 1

    @classmethod
    def stop(cls, root: Path, owner: LeaseHolder) -> None:
        """One claim less is held."""
        with cls._lock:
            key = (owner.token, root.absolute())
            heart = cls._hearts[key]
            heart.claims -= 1
            if not heart.claims:
                del cls._hearts[key]
                heart.end()

    def __init__(self, mark: Path) -> None:
        self.mark, self.claims = mark, 0
        self.ended = threading.Event()
        self.mark.parent.mkdir(parents=True, exist_ok=True)
        self.mark.touch()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while not self.ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                self.mark.touch()

    def end(self) -> None:
        self.ended.set()
        with contextlib.suppress(OSError):
            self.mark.unlink(missing_ok=True)
            # The last one leaves no empty folder behind.
            self.mark.parent.rmdir()


def _heartbeat_file(root: Path, owner: LeaseHolder) -> Path:
    """The file whose time says when an owner lived last."""
    return root / OWNERS / owner.token


def _last_beat(root: Path, owner: LeaseHolder) -> float:
    try:
        return _heartbeat_file(root, owner).stat().st_mtime
    except OSError:
        return 0.0


def _now(folder: Path) -> float:
    """The time by the clock that sets the times of files in a folder; that of the nodes may differ from it."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".now-") as file:
            return os.stat(file.name).st_mtime
    except OSError:
        return time.time()


def _lease_files_in(folder: Path) -> dict[int, Path]:
    with os.scandir(folder) as entries:
        matched = ((CLAIM.fullmatch(entry.name), entry.path) for entry in entries)
        return {int(match[1]): Path(path) for match, path in matched if match}


def _latest(folder: Path) -> int:
    """The number of the latest claim on a folder; 0 where there is none."""
    try:
        return max(_lease_files_in(folder), default=0)
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _make(path: Path, text: str) -> bool:
    """Make a file with its whole content unless there is one of that name; whether it was made."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        try:
            os.link(temporary, path)
            return True
        except FileExistsError:
            # Over NFS the answer to a call that succeeded may be lost, and the call repeated.
            return temporary.stat().st_nlink == 2
        except OSError:
            # A folder without hard links.
            with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as opened:
                opened.write(text)
                return True
            return False
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
