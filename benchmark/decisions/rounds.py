"""Train a claim's seeds in rounds until it is decided, through the same executors as any other sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from benchmark.core.sequences import FIRST
from benchmark.core.spec import Run
from benchmark.core.text import counted
from benchmark.decisions.cells import Counts, PlannedCells, limit_seeds
from benchmark.decisions.claim import Claim
from benchmark.decisions.decide import Decision, judge, list_pairing_gaps
from benchmark.decisions.render import DecisionReport, describe_decision, list_notes, summarise_decisions
from benchmark.execution.executor import ExecutionPlan, Executor
from benchmark.execution.scheduler import ExecutionSummary
from benchmark.planning.request import RunGroup
from benchmark.results.provenance import describe_environment
from benchmark.results.record import CorruptRun, Record
from benchmark.results.store import Store
from benchmark.targets import Target
from benchmark.training.settings import TrainSettings


@dataclass(frozen=True)
class Round:
    """The seeds that are trained together, and the runs of them that are still wanted, by table or panel."""

    seeds: range
    groups: tuple[RunGroup, ...]
    columns: int

    @property
    def runs(self) -> list[Run]:
        """The runs of all groups."""
        return [run for group in self.groups for run in group.runs]

    @property
    def title(self) -> str:
        """`seed 3 in 2 columns`."""
        first, last = self.seeds[0], self.seeds[-1]
        seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
        return f"{seeds} in {counted(self.columns, 'column')}"


@dataclass
class DecisionSweep:
    """A sweep that ends when its claims are decided, or after `most` seeds.

    subjects: each claim with the cells that it is about. What a round trains depends on the records of the seeds before
    it and on nothing else, so a command that is given again goes on with the very round that another one left.
    """

    subjects: Sequence[tuple[Claim, PlannedCells]]
    most: int
    retry_failed: bool = False
    _done: set[int] = field(default_factory=set, init=False)
    """The first seeds of the rounds that this command has trained."""
    _finished: dict[str, Record] = field(default_factory=dict, init=False)
    """The status and the final figures of finished runs, by digest."""

    def __post_init__(self) -> None:
        self.comparisons = sum(len(cells.list_units(claim)) for claim, cells in self.subjects)

    def judge(self, store: Store, seeds: int | None = None) -> list[Decision]:
        """Judge every column by the seeds below `seeds`, or by all that it may have.

        Raises:
            UserError: the claim cannot be computed.
        """

        def find(run: Run) -> Record | None:
            if run.digest in self._finished:
                return self._finished[run.digest]
            try:
                record = store.record(run)
            except CorruptRun:
                # It is put aside, and the run trained again, by what trains and renders.
                return None
            if record is not None and record["status"] == "finished":
                self._finished[run.digest] = {"status": record["status"], "final": record["final"]}
            return record

        return [
            decision
            for claim, cells in self.subjects
            for decision in judge(
                claim, cells, find, self.most if seeds is None else seeds, self.most, self.comparisons
            )
        ]

    def find_round(self, store: Store) -> Round | None:
        """The first round that has something to train; None where all is decided or all seeds are spent."""
        # The first seeds that can give an interval at once, and then one seed a round.
        for seeds in (range(FIRST), *(range(seed, seed + 1) for seed in range(FIRST, self.most))):
            chosen = self._select(seeds, self.judge(store, seeds[0]))
            if not chosen.columns:
                return None
            if seeds[0] not in self._done and store.missing(chosen.runs, self.retry_failed):
                return chosen
        return None

    def _select(self, seeds: range, decisions: Sequence[Decision]) -> Round:
        """The runs of these seeds in the columns that are not decided."""
        open_units = {(decision.table, decision.column) for decision in decisions if decision.is_open}
        groups, columns = [], 0
        for claim, cells in self.subjects:
            units = cells.list_units(claim)
            wanted = [units[unit] for unit in units if (claim.table, unit) in open_units]
            names = dict.fromkeys(name for some in wanted for name in claim.list_cells(some))
            runs = dict.fromkeys(cells.runs[name][seed] for seed in seeds for name in names)
            columns += len(wanted)
            if runs:
                groups.append(RunGroup(cells.group.title, cells.group.source, cells.group.images, tuple(runs)))
        return Round(seeds, tuple(groups), columns)

    def train(
        self, executor: Executor, title: str, settings: TrainSettings, store: Store, console: Console
    ) -> ExecutionSummary:
        """Train round after round until all is decided, the seeds are spent, or runs end without a record.

        Raises:
            UserError: the user must fix something first.
            Detached: a round's jobs continue without this command.
        """
        summaries: list[ExecutionSummary] = []
        while (chosen := self.find_round(store)) is not None:
            console.print(Text(f"round of {chosen.title}, at most {counted(self.most, 'seed')}"), soft_wrap=True)
            jobs = executor.plan_jobs(chosen.groups, store, self.retry_failed)
            plan = ExecutionPlan(title, chosen.groups, jobs, self.retry_failed)
            summaries.append(executor.train(plan, settings, store, console))
            if summaries[-1].stopped or store.missing(chosen.runs):
                break
            self._done.add(chosen.seeds[0])
            before = {(each.table, each.column) for each in self.judge(store, chosen.seeds[0]) if each.is_open}
            for decision in self.judge(store, chosen.seeds[-1] + 1):
                if (decision.table, decision.column) in before:
                    console.print(Text(describe_decision(decision)), soft_wrap=True)
        return ExecutionSummary.merge(summaries)

    def print_plan(self, executor: Executor, plan: ExecutionPlan, store: Store, console: Console) -> None:
        """Print what the seeds say so far, what the next round would train and the most that all rounds can cost."""
        for decision in self.judge(store):
            if decision.n:
                console.print(Text(describe_decision(decision)), soft_wrap=True)
        chosen = self.find_round(store)
        if chosen is None:
            console.print("Nothing is to be trained: every column is decided, or has all its seeds.")
            return
        # All seeds from this round on, of the columns that are open at it.
        rest = self._select(range(chosen.seeds[0], self.most), self.judge(store, chosen.seeds[0]))
        for heading, part in (
            (f"The next round: {chosen.title}.", chosen),
            (f"At most, if no column is decided before {counted(self.most, 'seed')}: {rest.title}.", rest),
        ):
            console.print(Text(heading, style="bold"), soft_wrap=True)
            jobs = executor.plan_jobs(part.groups, store, self.retry_failed)
            executor.print_plan(
                ExecutionPlan(plan.title, part.groups, jobs, self.retry_failed, plan.verbose), store, console
            )

    def limit(self, targets: Sequence[Target], decisions: Sequence[Decision], store: Store) -> list[Target]:
        """The targets with the seeds that each column was given, so that they are rendered as what was asked for."""
        counts = self._count_seeds(decisions)
        rows = [row for claim, _ in self.subjects for row in claim.rows]
        return [limit_seeds(target, counts, rows, store.has_record) for target in targets]

    def _count_seeds(self, decisions: Sequence[Decision]) -> Counts:
        counts: dict[tuple[str, str], int] = {}
        spent = {(each.table, each.column): self.most if each.is_open else each.spent for each in decisions}
        for claim, cells in self.subjects:
            for unit, columns in cells.list_units(claim).items():
                for column in columns:
                    counts[cells.name, column] = spent[claim.table, unit]
        return counts

    def make_report(self, decisions: Sequence[Decision], target: str) -> DecisionReport:
        """What was decided, with what it rests on; target: the stem of the table's or figure's files."""
        gaps = dict.fromkeys(gap for subject in self.subjects for gap in list_pairing_gaps(*subject))
        first = next(iter(self.subjects[0][1].runs.values()))[0]
        return DecisionReport(
            claim=self.subjects[0][0].text,
            target=target,
            setting=f"scale {first.scale.name}, {', '.join(cells.group.images.name for _, cells in self.subjects)}",
            most=self.most,
            decisions=tuple(decisions),
            notes=list_notes(decisions, list(gaps)),
            summary=summarise_decisions(decisions, self.most),
            generated_from=describe_environment(),
        )
