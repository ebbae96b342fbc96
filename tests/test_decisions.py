"""Sweeps that are to decide a claim: which claims there are, when they are decided, and what is trained until then."""

from __future__ import annotations

import io
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from rich.console import Console

from benchmark.core.errors import UserError
from benchmark.core.sequences import count_until
from benchmark.core.spec import Run
from benchmark.decisions.cells import PlannedCells, list_cells
from benchmark.decisions.claim import Subject, parse_claims
from benchmark.decisions.decide import list_pairing_gaps
from benchmark.decisions.render import write_decisions
from benchmark.decisions.rounds import DecisionSweep
from benchmark.decisions.simulation import draw_differences, simulate, simulate_students
from benchmark.execution.executor import ExecutionPlan, Executor
from benchmark.execution.scheduler import ExecutionSummary
from benchmark.planning.request import RunGroup
from benchmark.planning.tables import plan_table
from benchmark.report.decisions import read_decisions
from benchmark.results.store import Store
from benchmark.targets import TableTarget
from benchmark.training.settings import TrainSettings
from tables.specification import Column, Row, Table
from tests import engine

TABLE = Table(
    name="t",
    caption="A table.",
    dataset="digits",
    columns=(
        Column(teacher="ResNet20", student="ResNet8", title="wide"),
        Column(teacher="ResNet14", student="ResNet8", title="narrow"),
    ),
    rows=(Row(method="Baseline"), Row(method="KD"), Row(method="AB"), Row(method="Elsewhere", printed=(1.0, 2.0))),
)
SUBJECT = Subject("t", "table t", {row.name: row.method for row in TABLE.rows})
MOST = 8
CLEAR, NOISY = (2.0, 2.3, 1.9, 2.1, 2.0, 2.2, 1.8, 2.1), (0.5, -0.4, 0.2, -0.1, 0.6, -0.5, 0.1, 0.0)
"""Differences by seed: decided after 3 seeds, and not after 8."""


def target_of(rows: Sequence[str] = ("Baseline", "KD"), table: Table = TABLE) -> TableTarget:
    factory = engine.request()
    grid = plan_table(table, factory, range(MOST), rows)
    group = RunGroup("Table t on digits", "digits", engine.digits(), tuple(grid.requested_runs()))
    return TableTarget(grid, factory, [group])


def cells_of(rows: Sequence[str] = ("Baseline", "KD")) -> PlannedCells:
    (cells,) = list_cells(target_of(rows))
    return cells


class Records:
    """A store whose records are made up: accuracies by seed for KD, 50 for Baseline and a little that both share."""

    def __init__(self, differences: dict[str, Sequence[float]], failing: Sequence[tuple[str, int]] = ()) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        self.values: dict[str, float | None] = {}
        for (row, column), runs in cells_of().runs.items():
            for seed, run in enumerate(runs):
                gain = differences[column][seed] if row == "KD" else 0.0
                self.values[run.digest] = None if (column, seed) in failing and row == "KD" else 50 + seed % 3 + gain

    def record(self, run: Run) -> Any:
        return self.found.get(run.digest)

    def has_record(self, run: Run) -> bool:
        return run.digest in self.found

    def missing(self, runs: Sequence[Run], retry_failed: bool = False) -> list[Run]:
        return [
            run
            for run in runs
            if run.digest not in self.found or (retry_failed and self.found[run.digest]["status"] == "failed")
        ]

    def train(self, runs: Sequence[Run]) -> None:
        for run in runs:
            value = self.values[run.digest]
            final = {"status": "finished", "final": {"top1": value}}
            self.found[run.digest] = {"status": "failed", "reason": "loss not finite"} if value is None else final


class FakeExecutor:
    """Trains by taking the made-up records; `trained` are the seeds of each round by column."""

    def __init__(self, records: Records, broken: bool = False) -> None:
        self.records, self.broken = records, broken
        self.trained: list[list[tuple[str, int]]] = []

    def plan_jobs(self, groups: Sequence[RunGroup], store: Store, retry_failed: bool) -> Any:
        return {}

    def train(self, plan: ExecutionPlan, settings: Any, store: Any, console: Console) -> ExecutionSummary:
        runs = [run for group in plan.groups for run in group.runs]
        titles = {run: column for (_, column), cell in cells_of().runs.items() for run in cell}
        self.trained.append([(titles[run], run.seed) for run in runs if run.method == "KD"])
        assert {run.method for run in runs} == {"KD", "Baseline"}
        if not self.broken:
            self.records.train(self.records.missing(runs, plan.retry_failed))
        return ExecutionSummary()


def sweep_of(text: str, retry_failed: bool = False) -> DecisionSweep:
    return DecisionSweep([(claim, cells_of()) for claim in parse_claims(text, [SUBJECT])], MOST, retry_failed)


def train(sweep: DecisionSweep, executor: FakeExecutor) -> str:
    console = Console(file=io.StringIO(), width=200)
    store, settings = cast(Store, executor.records), cast(TrainSettings, None)
    sweep.train(cast(Executor, executor), "t", settings, store, console)
    return cast(io.StringIO, console.file).getvalue()


@pytest.mark.parametrize(
    ("text", "compared", "margin", "is_above", "by_column"),
    [
        ("KD > Baseline", "KD - Baseline", 0.0, True, True),
        ("KD>Baseline + 0.5", "KD - Baseline", 0.5, True, True),
        ("KD < AB - .5", "KD - AB", -0.5, False, True),
        ('t["KD"] - t["AB"] >= -1', "KD - AB", -1.0, True, True),
        ('t["KD", "wide"] > t["AB", "wide"]', "KD (wide) - AB (wide)", 0.0, True, False),
        ('mean(t["KD"] - t["AB"]) > 1', "mean(KD - AB)", 1.0, True, False),
        ('mean(t["KD"]) > mean(t["AB"]) + 2', "mean(KD) - mean(AB)", 2.0, True, False),
        ('t["KD"] / t["AB"] > 1.01', "KD / AB", 1.01, True, True),
    ],
)
def test_a_claim_names_two_rows_or_is_an_expression_of_the_audit(
    text: str, compared: str, margin: float, is_above: bool, by_column: bool
) -> None:
    (claim,) = parse_claims(text, [SUBJECT])
    assert (claim.compared, claim.margin, claim.is_above, claim.by_column) == (compared, margin, is_above, by_column)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("KD >", "compares no two rows"),
        ("KD", "compares no two rows"),
        ("KD > Baseline > AB", "compares no two rows"),
        ("KD == AB", "compares no two rows"),
        ("KD > KD", "has no rival"),
        ('t["KD"] > 50', "has no rival"),
        ("KT > AB", "did you mean 'KD'"),
        ("KD > LSSKD", "LSSKD is no row of table t; add it with --methods"),
        ("KD > Elsewhere", "only numbers of others for Elsewhere"),
        ('t["KD"] == t["AB"]', "is no comparison"),
        ('all(t["KD"] > t["AB"])', "is no comparison"),
        ('max(t["KD"]) > max(t["AB"])', "max() cannot be decided by seeds"),
        ('t["KD"] > mean(t["AB"])', "compares the columns of a row with a mean"),
        ('t["KD"] > published(t["AB"])', "does not vary with the seed"),
        ('t["KD"].parameters > t["AB"].parameters', "does not vary with the seed"),
        ('II["KD"] > II["AB"]', "unknown table"),
        ('II["KD"] > t["AB"]', "names several tables"),
        ('t["KD"] > ' + "(" * 200, "cannot be read"),
    ],
)
def test_a_claim_that_seeds_cannot_decide_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_claims(text, [SUBJECT])
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_claim_on_a_column_that_was_not_asked_for_is_refused() -> None:
    with pytest.raises(UserError, match="unknown column of --until-decided 'none'"):
        sweep_of('t["KD", "none"] > t["Baseline", "none"]')


def test_a_column_gets_no_more_seeds_once_it_is_decided() -> None:
    records = Records({"wide": CLEAR, "narrow": NOISY})
    executor = FakeExecutor(records)
    sweep = sweep_of("KD > Baseline")
    said = train(sweep, executor)
    first = [(column, seed) for seed in range(3) for column in ("wide", "narrow")]
    assert executor.trained == [first, *([("narrow", seed)] for seed in range(3, MOST))]
    wide, narrow = sweep.judge(cast(Store, records))
    assert (wide.verdict, wide.n, wide.saved, wide.saved_runs) == ("holds", 3, 5, 10)
    assert (narrow.verdict, narrow.n, narrow.saved) == ("not decided", MOST, 0)
    assert "wide: KD - Baseline +2.07" in said
    report = sweep.make_report([wide, narrow], "table_t_test")
    assert "1 of 2 columns decided (1 hold, 0 do not); 5 of 16 seeds saved" in report.summary
    assert "at most 10%; with 5% for all 2 together, 1 are decided" in report.summary


def test_a_claim_is_judged_by_the_seeds_until_its_decision() -> None:
    records = Records({"wide": CLEAR, "narrow": NOISY})
    train(sweep_of("KD > Baseline"), FakeExecutor(records))
    records.train([run for cell in cells_of().runs.values() for run in cell])
    wide, _ = sweep_of("Baseline > KD").judge(cast(Store, records))
    assert (wide.verdict, wide.n, wide.mean) == ("does not hold", 3, pytest.approx(-statistics.fmean(CLEAR[:3])))
    assert sweep_of("KD > Baseline + 1.5").judge(cast(Store, records))[0].n == count_until(CLEAR, 1.5)
    assert sweep_of("KD < Baseline + 5").judge(cast(Store, records))[0].verdict == "holds"


def test_pairing_is_measured_by_the_variance_that_the_rows_share() -> None:
    records = Records({"wide": CLEAR, "narrow": NOISY})
    records.train([run for cell in cells_of().runs.values() for run in cell])
    _, narrow = sweep_of("KD > Baseline").judge(cast(Store, records))
    base = [50 + seed % 3 for seed in range(MOST)]
    apart = statistics.variance(base) + statistics.variance(map(sum, zip(base, NOISY, strict=True)))
    assert narrow.variance_cut == pytest.approx(1 - statistics.variance(NOISY) / apart)


def test_a_mean_over_columns_is_decided_once_by_seeds_that_have_all_columns() -> None:
    records = Records({"wide": CLEAR, "narrow": NOISY}, failing=[("narrow", 1)])
    executor = FakeExecutor(records)
    sweep = sweep_of('mean(t["KD"] - t["Baseline"]) > 0')
    train(sweep, executor)
    (decision,) = sweep.judge(cast(Store, records))
    both = [statistics.fmean(pair) for seed, pair in enumerate(zip(CLEAR, NOISY, strict=True)) if seed != 1]
    assert decision.column == "2 columns"
    assert decision.failed == (1,)
    assert decision.n == count_until(both, 0.0)
    assert decision.mean == pytest.approx(statistics.fmean(both[: decision.n]))
    assert all(len(trained) % 2 == 0 for trained in executor.trained)


def test_another_command_goes_on_from_the_records() -> None:
    differences: dict[str, Sequence[float]] = {"wide": CLEAR, "narrow": NOISY}
    whole, parts = FakeExecutor(Records(differences)), FakeExecutor(Records(differences))
    train(sweep_of("KD > Baseline"), whole)
    # One round each, as if the command had been left and given again; the third time in the middle of a round.
    for _ in range(2):
        sweep = sweep_of("KD > Baseline")
        chosen = sweep.find_round(cast(Store, parts.records))
        assert chosen is not None
        parts.records.train(chosen.runs[:1])
        again = sweep_of("KD > Baseline").find_round(cast(Store, parts.records))
        assert again is not None
        assert again.runs == chosen.runs
        parts.records.train(chosen.runs)
    train(sweep_of("KD > Baseline"), parts)
    assert parts.records.found == whole.records.found
    assert sweep_of("KD > Baseline").find_round(cast(Store, parts.records)) is None


def test_a_failed_seed_is_left_out_and_tried_again_when_asked() -> None:
    records = Records({"wide": NOISY, "narrow": NOISY}, failing=[("wide", 0)])
    train(sweep_of("KD > Baseline"), FakeExecutor(records))
    wide, _ = sweep_of("KD > Baseline").judge(cast(Store, records))
    assert (wide.failed, wide.n, wide.spent) == ((0,), MOST - 1, MOST)
    again = FakeExecutor(records)
    # It fails again; the command does not try for ever.
    train(sweep_of("KD > Baseline", retry_failed=True), again)
    assert len(again.trained) == 1


def test_a_round_that_leaves_no_records_ends_the_sweep() -> None:
    executor = FakeExecutor(Records({"wide": CLEAR, "narrow": NOISY}), broken=True)
    train(sweep_of("KD > Baseline"), executor)
    assert len(executor.trained) == 1


def test_what_is_shown_was_asked_for() -> None:
    records = Records({"wide": CLEAR, "narrow": NOISY})
    sweep = sweep_of("KD > Baseline")
    train(sweep, FakeExecutor(records))
    store = cast(Store, records)
    (shown,) = sweep.limit([target_of()], sweep.judge(store), store)
    assert isinstance(shown, TableTarget)
    counts = {cell: len(runs) for cell, runs in shown.grid.runs.items()}
    assert counts["KD", "wide"] == counts["Baseline", "wide"] == 3
    assert counts["KD", "narrow"] == MOST
    assert counts["AB", "wide"] == 1


def test_notes_say_where_pairing_is_not_whole() -> None:
    (claim,) = parse_claims("KD > AB", [SUBJECT])
    cells = cells_of(("KD", "AB"))
    first, teacher = list_pairing_gaps(claim, cells)
    assert first.startswith("AB starts from the weights that its first stage leaves")
    assert "share the teachers" in teacher
    sizes = Table(
        name="t",
        caption="A table.",
        dataset="digits",
        columns=(Column(student="ResNet8"), Column(student="ResNet14")),
        rows=(Row(method="Baseline"),),
    )
    (alone,) = list_cells(target_of(("Baseline",), sizes))
    (crossed,) = parse_claims('t["Baseline", "ResNet14"] > t["Baseline", "ResNet8"]', [SUBJECT])
    (note,) = list_pairing_gaps(crossed, alone)
    assert note.startswith("The students are of several networks")


def test_simulated_sweeps_keep_the_error_and_are_those_of_the_intervals() -> None:
    differences = draw_differences("normal", 0.0, 2000, 10)
    found = simulate(differences, 0.0)
    # Standard error 0.004; 0.030 in the long run.
    assert 0.015 < found.wrong == found.missed < 0.05
    assert simulate_students(differences, 0.0, fixed=False).missed > 0.12
    assert 0.035 < simulate_students(differences, 0.0, fixed=True).missed < 0.065
    apart = draw_differences("normal", 2.0, 50, 10)
    counts = [count_until([float(value) for value in row], 0.0) for row in apart]
    assert simulate(apart, 2.0).seeds == pytest.approx(np.mean([count or 10 for count in counts]))
    assert simulate(apart, 2.0).right == pytest.approx(np.mean([count is not None for count in counts]))


def test_the_files_of_two_claims_or_limits_have_two_names() -> None:
    records = Records({"wide": CLEAR, "narrow": NOISY})
    sweep = sweep_of("KD > Baseline")
    report = sweep.make_report(sweep.judge(cast(Store, records)), "table_t_test")
    names = {
        report.file_name,
        *(report.model_copy(update=change).file_name for change in ({"claim": "x"}, {"most": 3})),
    }
    assert len(names) == 3


def test_a_report_lists_what_sweeps_decided_and_leaves_other_files_out(tmp_path: Path) -> None:
    records = Records({"wide": CLEAR, "narrow": NOISY})
    sweep = sweep_of("KD > Baseline + 0.5")
    train(sweep, FakeExecutor(records))
    report = sweep.make_report(sweep.judge(cast(Store, records)), "table_t_test")
    path = write_decisions(report, tmp_path)
    (tmp_path / "decision_table_x.json").write_text('{"claim": "A > B"}')
    os.mkfifo(tmp_path / "decision_table_y.json")
    (decided,), (refused, pipe) = read_decisions(tmp_path)
    assert decided.report == report
    assert path.name == report.file_name
    assert refused.startswith("decision_table_x.json is no file of decisions")
    assert pipe.startswith("decision_table_y.json is no file of decisions"), "nobody writes into it, so nothing waits"
    assert [line[5].text for line in decided.listing.rows] == ["holds", "not decided"]
    assert decided.listing.rows[0][1].below == "margin +0.50"
