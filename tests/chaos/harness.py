"""Rounds of faults: workers are started, killed, their files damaged, until enough faults have counted."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.execution.scheduler import ExecutionSummary
from tests.chaos.compare import DUPLICATED, FAILED, Verdict, compare
from tests.chaos.faults import DAMAGES, Files, Kill, Round, rounds
from tests.chaos.fixture import Sweep, finish, hurry, make_sweep, train, warm_up
from tests.chaos.tracing import Pen, Seen, watch

LOOK_SECONDS = 0.008
"""How often the harness looks what the workers have done."""
PATIENCE_SECONDS = 3.0
"""How long it waits for steps that do not come."""
LEAVING_SECONDS = 300.0
"""How long a worker may take to leave when it was asked to, or to finish the sweep when nobody disturbs it."""
IDLE_ROUNDS = 25
"""After how many rounds in a row without a step or a counted fault nothing is left to disturb."""
STOPPED_SECONDS = 0.1
"""How long a stopped worker stays so before it is killed."""
GIVEN_UP = "times while this command ran"
"""In the reason of a run that was damaged more often than a command heals it."""


@dataclass
class Worker:
    """A process that trains, and how it was ended."""

    name: str
    process: Any
    said: Path
    killed: str = ""
    """How; empty for one that may end only when its work is done."""

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return bool(self.process.is_alive())

    def send(self, number: int) -> None:
        """Send it a signal; one that has ended meanwhile does not mind."""
        if self.is_alive:
            os.kill(self.process.pid, number)


class Harness:
    """A sweep in a folder, undisturbed first, and then disturbed for some rounds."""

    def __init__(self, folder: Path, say: Callable[[str], None] = print) -> None:
        self.folder, self.say = folder, say
        folder.mkdir(parents=True, exist_ok=True)
        self.context = multiprocessing.get_context("fork")
        self.sweep: Sweep = make_sweep(folder)
        warm_up(self.sweep)
        self.calm = folder / "undisturbed"
        self._started = 0

    def train_undisturbed(self) -> None:
        """The records that all others are compared with.

        Raises:
            RuntimeError: the sweep fails also when nobody disturbs it.
        """
        worker = self._start(self.folder, self.calm, lambda: finish(self.sweep, self.calm))
        worker.process.join(LEAVING_SECONDS)
        if worker.process.exitcode != 0:
            worker.send(signal.SIGKILL)
            raise RuntimeError(f"the sweep failed undisturbed; see {worker.said}")

    def disturb(
        self,
        folder: Path,
        faults: int,
        seconds: float,
        seed: int = 0,
        workers: int = 2,
        damages: Mapping[str, int] = DAMAGES,
        kinds: Collection[str] = (),
    ) -> Verdict:
        """Disturb a sweep in a folder until so many faults have counted or so many seconds have passed; compare it.

        damages: how often each kind of file is drawn; kinds: of faults, each of which is to count at least once.
        """
        disturbance = _Disturbance(self, folder)
        began = time.monotonic()
        idle, before = 0, (0, 0)
        for intent in rounds(seed, workers, len(self.sweep.runs), damages):
            disturbance.round(intent)
            counted = disturbance.counted()
            enough = counted.total() >= faults and counted.keys() >= set(kinds)
            # A broken suite may finish, or give up, before so many faults have counted.
            now = (counted.total(), disturbance.seen.steps)
            idle, before = (idle + 1 if now == before else 0), now
            if enough or idle == IDLE_ROUNDS or time.monotonic() - began > seconds:
                break
        return disturbance.end(time.monotonic() - began)

    def _start(self, log: Path, runs: Path, what: Callable[[], ExecutionSummary]) -> Worker:
        self._started += 1
        name = f"worker-{self._started:04d}"
        said = log / "said" / f"{name}.txt"
        said.parent.mkdir(parents=True, exist_ok=True)
        process = self.context.Process(target=_work, args=(name, log, said, what), daemon=True)
        process.start()
        return Worker(name, process, said)


def _work(name: str, log: Path, said: Path, what: Callable[[], ExecutionSummary]) -> None:
    """The whole life of a worker: what it says goes to a file, what came of it to another one."""
    with said.open("w", buffering=1, encoding="utf-8") as out:
        sys.stdout = sys.stderr = out
        hurry()
        watch(Pen(log / "seen.jsonl", name), log)
        try:
            report = what()
        except BaseException:
            traceback.print_exc()
            out.flush()
            os._exit(1)
        reasons = [*report.failures.values(), *report.user_errors]
        said.with_suffix(".json").write_text(json.dumps({"reasons": reasons, "stopped": report.stopped}))
        out.flush()
        os._exit(1 if reasons else 0)


class _Disturbance:
    """The rounds in one folder."""

    def __init__(self, harness: Harness, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # With images of its own: their cache is damaged too.
        self.harness, self.sweep, self.folder = harness, make_sweep(folder), folder
        self.runs = folder / "runs"
        self.files = Files(folder, [run.id for run in self.sweep.runs])
        self.seen = Seen(folder / "seen.jsonl")
        self.verdict = Verdict()
        self.kills: Counter[str] = Counter()

    def counted(self) -> Counter[str]:
        """Count the faults so far that hit a worker at work or a file that was read afterwards, by kind."""
        self.seen.look()
        read = self.files.damaged.keys() & self.seen.read
        # A sum of counters leaves out what is zero.
        return self.kills + Counter(self.files.damaged[stamp][0] for stamp in read)

    def round(self, intent: Round) -> None:
        """Start workers, do to them and to their files what is intended, and end those that are left."""
        self.verdict.rounds += 1
        workers = []
        for numbers in intent.parts:
            runs = [run for run, number in zip(self.sweep.runs, numbers, strict=True) if number >= 0.5]
            workers.append(self._start(functools.partial(train, self.sweep, runs, self.runs)))
        for kill, damage in intent.live:
            self._wait(workers, kill)
            if damage is not None and any(worker.is_alive for worker in workers) and self.files.damage(damage):
                self.verdict.injected[damage.kind] += 1
            self._kill(kill, workers)
        self._end(workers, "kill all")
        for worker in workers:
            self._judge(worker)
        for damage in intent.after:
            if self.files.damage(damage):
                self.verdict.injected[damage.kind] += 1

    def _start(self, what: Callable[[], ExecutionSummary]) -> Worker:
        return self.harness._start(self.folder, self.runs, what)

    def _wait(self, workers: Sequence[Worker], kill: Kill) -> None:
        """Wait until the workers have taken so many steps, or there is nothing more to wait for."""
        self.seen.look()
        wanted, deadline = self.seen.steps + kill.steps, time.monotonic() + PATIENCE_SECONDS
        while self.seen.steps < wanted and time.monotonic() < deadline and any(worker.is_alive for worker in workers):
            time.sleep(LOOK_SECONDS)
            self.seen.look()
        time.sleep(kill.seconds)

    def _kill(self, kill: Kill, workers: Sequence[Worker]) -> None:
        self.seen.look()
        living = [worker for worker in workers if worker.is_alive]
        if kill.how == "kill all":
            self._end(living, kill.how)
            return
        # One that works rather than one that waits for the others.
        chosen = [worker for worker in living if self.seen.holds[worker.name]] or living
        if not chosen:
            return
        worker = chosen[int(kill.pick * len(chosen))]
        if kill.how == "terminate":
            self._terminate(worker)
            return
        if kill.how == "stop, then kill":
            worker.send(signal.SIGSTOP)
            time.sleep(STOPPED_SECONDS)
        self._end([worker], kill.how)

    def _terminate(self, worker: Worker) -> None:
        at_work = bool(self.seen.holds[worker.name])
        worker.killed = "terminate"
        self.verdict.injected["terminate"] += 1
        worker.send(signal.SIGTERM)
        worker.process.join(LEAVING_SECONDS)
        if worker.is_alive:
            self.verdict.problems[FAILED].append(f"{worker.name} did not leave when it was told to")
            self._end([worker], "kill")
        self.kills["terminate"] += at_work

    def _end(self, workers: Sequence[Worker], how: str) -> None:
        """Kill all of some workers that live, and count those that held a claim."""
        living = [worker for worker in workers if worker.is_alive]
        for worker in living:
            worker.send(signal.SIGKILL)
        for worker in living:
            worker.process.join()
            if worker.process.exitcode == -signal.SIGKILL:
                worker.killed = how
                self.verdict.injected[how] += 1
        self.seen.look()
        # What the dead have noted tells whether they held a claim when they died.
        self.kills[how] += sum(bool(worker.killed and self.seen.holds[worker.name]) for worker in living)

    def _judge(self, worker: Worker) -> None:
        """Note an ending that nothing explains."""
        if worker.killed and not worker.said.with_suffix(".json").exists():
            if worker.killed == "terminate":
                self.verdict.problems[FAILED].append(f"{worker.name} died when it was told to leave; see {worker.said}")
            return
        try:
            reasons = json.loads(worker.said.with_suffix(".json").read_text())["reasons"]
        except (OSError, ValueError):
            reasons = [f"it died (exit code {worker.process.exitcode})"]
        self.verdict.problems[FAILED] += [
            f"{worker.name}: {reason}; see {worker.said}" for reason in reasons if GIVEN_UP not in reason
        ]

    def end(self, seconds: float) -> Verdict:
        """Let the sweep finish undisturbed, and compare it."""
        worker = self._start(lambda: finish(self.sweep, self.runs))
        worker.process.join(LEAVING_SECONDS)
        if worker.is_alive:
            self.verdict.problems[FAILED].append(f"{worker.name} does not finish the sweep; see {worker.said}")
            self._end([worker], "kill")
        self._judge(worker)
        self.verdict.seconds = seconds
        self.verdict.counted = self.counted()
        self.verdict.records = compare(self.sweep, self.harness.calm, self.runs, self.verdict.problems)
        self._look_for_duplicates()
        return self.verdict

    def _look_for_duplicates(self) -> None:
        problems = self.verdict.problems[DUPLICATED]
        problems += self.seen.together
        damaged = [path for kind, path in self.files.damaged.values() if kind in ("record", "weights")]
        explained = Counter(path.parent.name for path in damaged)
        for run in self.sweep.runs:
            times, allowed = self.seen.records[run.id], 1 + explained[run.id]
            if times > allowed:
                problems.append(f"{run.id} was brought to its record {times} times; its damage explains {allowed}")
