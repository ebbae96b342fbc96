"""Leases: exclusive locks on a folder, on any shared file system, that end when their process or job has ended.

File locks of the operating system are unreliable on shared file systems: some forget them when a node restarts, some
do not have them. So a lease is a file, `claim-000001.json`, in the folder that it locks. It names its holder and is
made by a hard link, which is atomic on all of them. The file with the highest number is the valid one. A process that
finds the holder dead makes the file with the next number, and only one process can. A holder that was wrongly taken
for dead sees the higher number and stops.

Anybody can put such a file into a folder that they send, so its content is untrusted: it is bounded, checked against
a model, and its token can only name a file in `.owners`.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import psutil
from pydantic import Field

from benchmark.core.errors import UserError
from benchmark.core.spec import Frozen
from benchmark.io.files import write_text
from benchmark.io.untrusted import UntrustedInputError, escape_control_chars, read_text_limited

BEAT_SECONDS = 15.0
"""Seconds between two heartbeats of a holder."""
HEARTBEAT_TIMEOUT = 300.0
"""Seconds without a heartbeat after which a holder counts as dead, if nothing else tells whether it runs."""
STALL_FACTOR = 4
"""Factor on the heartbeat timeout for holders that SLURM still reports as running: they may hang."""
LEASE_FILE = re.compile(r"claim-([0-9]{6,12})\.json")
MAX_LEASE_BYTES = 2**14
RELEASED = "released\n"
"""Content of the file of a released lease. Without hard links, a file that is still being written may be empty."""
OWNERS = ".owners"
START_SLACK = 5.0
"""Seconds by which two readings of a process's start time may differ, because the clock may have been set."""
UNKNOWN_TOKEN = "0" * 32
"""Token of a holder whose lease cannot be read."""
MAX_PROCESS = 2**31 - 1
JobId = Annotated[str, Field(pattern=r"^([0-9]{1,18}(_[0-9]{1,18})?)?$")]
"""A SLURM job, such as `12_3` for a task of an array; empty outside of SLURM."""


class LeaseHolder(Frozen):
    """A process that holds a lease. It is read from files that others may have written, so every field is checked."""

    token: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Names the process, and its heartbeat file."""
    machine: str
    """The node, its boot and its process namespace."""
    node: str
    process: int
    started: float
    user: str = ""
    job: JobId = ""
    restarts: int = 0
    """How often SLURM has restarted that job."""

    @property
    def label(self) -> str:
        """The job or process and its node, for messages."""
        what = f"job {self.job}" if self.job else f"process {self.process}"
        return f"{what} on {escape_control_chars(self.node, 60)}"


@functools.cache
def this_machine() -> str:
    """Identifies what shares process numbers with this process: one boot of a node, and one container on it."""
    boot = str(round(psutil.boot_time()))
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    container = ""
    with contextlib.suppress(OSError):
        container = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot} {container}".strip()


def this_user() -> str:
    """The user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@functools.lru_cache(maxsize=1)
def _owner_of(process: int) -> LeaseHolder:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return LeaseHolder(
        token=uuid.uuid4().hex,
        machine=this_machine(),
        node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        process=process,
        started=psutil.Process(process).create_time(),
        user=this_user(),
        job=f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", ""),
        restarts=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
    )


def this_owner() -> LeaseHolder:
    """This process as a lease holder."""
    return _owner_of(os.getpid())


def is_running(process: int, started: float) -> bool:
    """Whether a process of this machine that was started at that time still runs; a zombie does not."""
    if not 0 < process <= MAX_PROCESS:
        return False
    try:
        running = psutil.Process(process)
        return running.status() != psutil.STATUS_ZOMBIE and abs(running.create_time() - started) < START_SLACK
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


LivenessProbe = Callable[[LeaseHolder], bool | None]
"""Tells whether a holder that is a SLURM job still runs; None where that is unknown, as it is without a cluster."""


@dataclass
class Lease:
    """A lease that this process holds until it releases it."""

    root: Path
    folder: Path
    number: int
    owner: LeaseHolder
    _released: bool = field(default=False, repr=False)

    @property
    def path(self) -> Path:
        """The lease's file."""
        return _lease_file(self.folder, self.number)

    def is_valid(self) -> bool:
        """Whether no other process took the lease over. It counts as valid if the folder cannot be read."""
        try:
            return _latest_number(self.folder) == self.number
        except OSError:
            return True

    def release(self, forget: bool = False) -> None:
        """Release the lease. forget: remove its files, for a folder that will never be leased again."""
        if self._released:
            return
        self._released = True
        _Heartbeat.stop(self.root, self.owner)
        with contextlib.suppress(OSError, UserError):
            if forget:
                for path in _lease_files_in(self.folder).values():
                    path.unlink(missing_ok=True)
            else:
                # Replaced rather than removed: if a number were used twice, two processes could hold it.
                write_text(self.path, RELEASED)
                for number, path in _lease_files_in(self.folder).items():
                    if number < self.number:
                        path.unlink(missing_ok=True)


class LeaseManager:
    """Acquires leases for this process, and tells whether the leases of others are still valid.

    root: a folder above all that is leased; heartbeats are written there. probe: tells whether a SLURM job still runs.
    timeout: seconds without a heartbeat after which a holder counts as dead.
    """

    def __init__(
        self, root: Path, probe: LivenessProbe = lambda holder: None, timeout: float = HEARTBEAT_TIMEOUT
    ) -> None:
        self.root, self.probe, self.timeout = root, probe, timeout

    def acquire(self, folder: Path) -> Lease | LeaseHolder:
        """Acquire the lease on a folder, or return its current holder.

        Raises:
            UserError: the folder cannot be written, or it or the folder of heartbeats is a link.
        """
        owner = this_owner()
        for path in (folder, self.root / OWNERS):
            # The holder of a lease removes files there, and a link could lead it to other files.
            if path.is_symlink():
                raise UserError(f"{path} is a link, which may lead anywhere; put a real folder in its place")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while True:
                number = _latest_number(folder)
                if number and (holder := self.current_holder(folder, number)) is not None:
                    return holder
                # The heartbeat starts before anybody can see the lease.
                _Heartbeat.start(self.root, owner)
                made = False
                try:
                    made = _create(_lease_file(folder, number + 1), owner.model_dump_json())
                finally:
                    if not made:
                        _Heartbeat.stop(self.root, owner)
                if made:
                    return Lease(self.root, folder, number + 1, owner)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"cannot write {folder}: {reason}; choose another folder with --runs") from error

    def current_holder(self, folder: Path, number: int | None = None) -> LeaseHolder | None:
        """The holder of the latest lease on a folder (or of the lease with a number), if it is still alive."""
        number = _latest_number(folder) if number is None else number
        if not number:
            return None
        path = _lease_file(folder, number)
        try:
            written = path.stat().st_mtime
            text = read_text_limited(path, MAX_LEASE_BYTES)
            if text == RELEASED:
                return None
            holder = LeaseHolder.model_validate_json(text)
        except FileNotFoundError:
            return None
        except (UntrustedInputError, ValueError):
            # Damaged, or still being written where there are no hard links: valid until the timeout.
            unknown = LeaseHolder(token=UNKNOWN_TOKEN, machine="", node="an unknown node", process=0, started=0.0)
            return unknown if _is_recent(self.root, written, self.timeout) else None
        if self.is_alive(holder, written):
            return holder
        with contextlib.suppress(OSError):
            heartbeat = _heartbeat_file(self.root, holder)
            # A foreign folder could hold a link in the place of `.owners`.
            if not heartbeat.parent.is_symlink():
                heartbeat.unlink(missing_ok=True)
        return None

    def is_alive(self, holder: LeaseHolder, written: float = 0.0) -> bool:
        """Whether the holder of a lease that was written at a time (by the folder's clock) still runs."""
        if holder.token == this_owner().token:
            return True
        if holder.machine == this_machine():
            if not is_running(holder.process, holder.started):
                return False
            # A process may outlive its job, if what should have ended it was killed.
            return self._job_runs(holder) is not False
        job_runs = self._job_runs(holder)
        if job_runs is False:
            return False
        # A job that SLURM reports as running may hang.
        timeout = self.timeout * (STALL_FACTOR if job_runs else 1)
        return _is_recent(self.root, max(_last_heartbeat(self.root, holder), written), timeout)

    def _job_runs(self, holder: LeaseHolder) -> bool | None:
        """Whether a holder's job still runs; None where that is unknown or it has no job."""
        mine = this_owner()
        if holder.job and holder.job == mine.job and holder.restarts < mine.restarts:
            return False
        return self.probe(holder) if holder.job else None


class _Heartbeat:
    """Touches this process's heartbeat file in a root for as long as it holds leases there."""

    _lock = threading.Lock()
    _active: ClassVar[dict[tuple[str, Path], _Heartbeat]] = {}

    @classmethod
    def start(cls, root: Path, owner: LeaseHolder) -> None:
        """Count one more lease in a root."""
        with cls._lock:
            key = (owner.token, root.absolute())
            if key not in cls._active:
                cls._active[key] = cls(_heartbeat_file(root, owner))
            cls._active[key].leases += 1

    @classmethod
    def stop(cls, root: Path, owner: LeaseHolder) -> None:
        """Count one lease less in a root."""
        with cls._lock:
            key = (owner.token, root.absolute())
            heartbeat = cls._active[key]
            heartbeat.leases -= 1
            if not heartbeat.leases:
                del cls._active[key]
                heartbeat.end()

    def __init__(self, file: Path) -> None:
        self.file, self.leases = file, 0
        self.ended = threading.Event()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.touch()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while not self.ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                self.file.touch()

    def end(self) -> None:
        self.ended.set()
        with contextlib.suppress(OSError):
            self.file.unlink(missing_ok=True)
            # The last one removes the empty folder.
            self.file.parent.rmdir()


def _heartbeat_file(root: Path, holder: LeaseHolder) -> Path:
    """The file whose modification time is a holder's last heartbeat; tokens are checked, so it lies in `.owners`."""
    return root / OWNERS / holder.token


def _last_heartbeat(root: Path, holder: LeaseHolder) -> float:
    try:
        return _heartbeat_file(root, holder).stat().st_mtime
    except OSError:
        return 0.0


def _is_recent(folder: Path, moment: float, timeout: float) -> bool:
    """Whether a moment is less than a timeout away by the clock of a folder's file system.

    That clock may differ from the node's. A moment far in the future is no sign of life: files may come from elsewhere.
    """
    now = time.time()
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=folder, prefix=".now-") as file:
        now = os.stat(file.name).st_mtime
    return abs(now - moment) < timeout


def _lease_file(folder: Path, number: int) -> Path:
    return folder / f"claim-{number:06d}.json"


def _lease_files_in(folder: Path) -> dict[int, Path]:
    with os.scandir(folder) as entries:
        matched = ((LEASE_FILE.fullmatch(entry.name), entry.path) for entry in entries)
        return {int(match[1]): Path(path) for match, path in matched if match}


def _latest_number(folder: Path) -> int:
    """The number of the latest lease on a folder; 0 where there is none."""
    try:
        return max(_lease_files_in(folder), default=0)
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _create(path: Path, text: str) -> bool:
    """Create a file with its whole content unless the name is taken; returns whether it was created."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        try:
            os.link(temporary, path)
            return True
        except FileExistsError:
            # NFS may lose the answer to a call that succeeded, and repeat the call.
            return temporary.stat().st_nlink == 2
        except OSError:
            # A file system without hard links.
            with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as opened:
                opened.write(text)
                return True
            return False
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
