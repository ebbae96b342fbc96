"""The daemons of a one-machine cluster: started, asked, killed and started again, as a test of a sweep needs it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.core.errors import UserError
from tests.devcluster.configuration import munge_socket
from tests.devcluster.processes import MARK, kill_all, missing, program

PATIENCE = 30.0
"""Seconds to wait for a daemon; on a quiet machine all are up in 2."""


@dataclass
class Cluster:
    """A cluster in `folder`, up or not; `nodes` are its nodes' names."""

    folder: Path
    name: str
    nodes: list[str]
    _started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, without what an outer SLURM job put there, with SLURM_CONF: for subprocesses."""
        foreign = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SINFO_", "SCANCEL_", "SALLOC_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign) and name != MARK}
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def command(self, *words: str, patience: float = PATIENCE) -> str:
        """The output of a SLURM command, such as `command("squeue", "-h")`.

        Raises:
            UserError: it failed, with the last line of what it said, or took longer than `patience` seconds.
        """
        try:
            done = subprocess.run(
                words, env=self.environment, capture_output=True, text=True, timeout=patience, check=False
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"{words[0]} gave no answer in {patience:.0f} s; see {self.folder}/log") from None
        if done.returncode != 0:
            raise UserError(f"{' '.join(words)} failed: {' | '.join(done.stderr.strip().splitlines()[-2:])}")
        return done.stdout

    def states(self) -> dict[str, str]:
        """The state of every node in one word, as sinfo says it: idle, mixed, allocated, down, unknown, ..."""
        lines = self.command("sinfo", "--noheader", "--Node", "--partition=main", "--Format=NodeList:20,StateLong:20")
        return {name: state.rstrip("*$~#!%@^-") for name, state in (line.split() for line in lines.splitlines())}

    def wait(self, state: str, nodes: Sequence[str] | None = None, patience: float = PATIENCE) -> None:
        """Wait until the nodes (all by default) are in that state.

        Raises:
            UserError: they are not after `patience` seconds, or a daemon of this process has ended.
        """
        wanted = list(nodes or self.nodes)
        deadline = time.monotonic() + patience
        said = ""
        while True:
            for daemon, process in self._started.items():
                if process.poll() is not None:
                    raise UserError(f"{daemon} ended with code {process.returncode}: {self._ending(daemon)}")
            try:
                states = self.states()
                if all(states.get(node) == state for node in wanted):
                    return
                said = ", ".join(f"{node} {states.get(node, 'unknown')}" for node in wanted)
            except UserError as error:
                said = str(error)
            if time.monotonic() > deadline:
                raise UserError(
                    f"not {state} after {patience:.0f} s: {said}; slurmctld said: {self._ending('slurmctld')}"
                )
            time.sleep(0.1)

    def kill(self, node: str) -> None:
        """SIGKILL the node's slurmd. Its jobs go on; SLURM calls the node down some seconds after SlurmdTimeout."""
        self._end(node, signal.SIGKILL)

    def start(self, node: str) -> None:
        """Start the node's slurmd, which `kill` has ended; wait with `wait("idle", [node])` until it has registered."""
        self._start_slurmd(node)

    def stop_controller(self) -> None:
        """End slurmctld, which saves its state first. The nodes and their jobs go on."""
        self._end("slurmctld", signal.SIGTERM)

    def start_controller(self) -> None:
        """Start slurmctld with the state that was saved, and wait until it answers.

        Raises:
            UserError: it does not.
        """
        self._start("slurmctld", "-D")
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if self._started["slurmctld"].poll() is not None or time.monotonic() > deadline:
                raise UserError(f"slurmctld does not come up: {self._ending('slurmctld')}")
            time.sleep(0.05)

    def end(self) -> None:
        """Kill every daemon, step daemon and job of this cluster; the folder stays.

        Raises:
            UserError: a process did not end in 10 s.
        """
        if living := kill_all(self.folder, self.name):
            raise UserError(f"processes {', '.join(map(str, living))} of {self.folder} do not end")
        for process in self._started.values():
            process.wait()
        self._started.clear()

    def down(self) -> None:
        """Kill every daemon, step daemon and job of this cluster, and remove the folder.

        Raises:
            UserError: a process did not end in 10 s, or the folder cannot be removed.
        """
        self.end()
        try:
            shutil.rmtree(self.folder)
        except OSError as error:
            raise UserError(f"cannot remove {error.filename}: {error.strerror}; remove {self.folder}") from error

    def begin(self) -> None:
        """Start all daemons, with no state of before, and wait until every node is idle.

        Raises:
            UserError: they do not come up.
        """
        (self.folder / "munge.key").touch(mode=0o600)
        (self.folder / "munge.key").write_bytes(secrets.token_bytes(128))
        self._start_munged()
        self._start("slurmctld", "-D", "-c")
        for node in self.nodes:
            self._start_slurmd(node)
        self.wait("idle")

    def _start_munged(self) -> None:
        files = {"key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        places = [f"--{option}={self.folder / name}" for option, name in files.items()]
        socket = munge_socket(self.folder)
        # --force: munged refuses folders that others could write, and /tmp is one.
        self._start("munged", "--foreground", "--force", f"--socket={socket}", *places)
        deadline = time.monotonic() + PATIENCE
        while not socket.exists():
            if self._started["munged"].poll() is not None or time.monotonic() > deadline:
                raise UserError(f"munged does not come up: {self._ending('munged')}")
            time.sleep(0.02)

    def _start_slurmd(self, node: str) -> None:
        self._start(node, "-D", "-N", node, name="slurmd")

    def _start(self, daemon: str, *options: str, name: str | None = None) -> None:
        found = program(name or daemon)
        if found is None:
            raise UserError(f"no SLURM cluster can be made here: {missing()}")
        # In a session of its own, so that Ctrl-C in the terminal does not end it; `down` finds it by its mark.
        with (self.folder / "log" / f"{daemon}.out").open("ab") as out:
            self._started[daemon] = subprocess.Popen(
                [found, *options],
                env={**self.environment, MARK: str(self.folder)},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def _end(self, daemon: str, number: signal.Signals) -> None:
        process = self._started.pop(daemon)
        process.send_signal(number)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise UserError(f"{daemon} (process {process.pid}) does not end: {self._ending(daemon)}") from None

    def _answers(self) -> bool:
        with contextlib.suppress(UserError):
            return " is UP" in self.command("scontrol", "ping")
        return False

    def _text(self, log: str) -> str:
        try:
            return (self.folder / "log" / log).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def _ending(self, daemon: str) -> str:
        # A daemon that refuses its configuration has no log yet and says so on its error output only.
        lines = (self._text(f"{daemon}.out") or self._text(f"{daemon}.log")).strip().splitlines()
        # Debian's SLURM complains about its pmix plugin whatever happens.
        telling = [line for line in lines if re.search("error|fatal", line) and not re.search("(?i)mpi", line)] or lines
        return " | ".join(telling[-3:]) or "its log is empty"
