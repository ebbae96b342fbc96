"""Judge a claim by the records of its runs, seed by seed: decided, or go on."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Literal

from benchmark.core.models import FrozenModel
from benchmark.core.sequences import FIRST, Interval, count_until, make_intervals
from benchmark.core.spec import Run
from benchmark.core.statistics import LEVEL, summarise
from benchmark.decisions.cells import PlannedCells
from benchmark.decisions.claim import Claim
from benchmark.results.record import Record

FindRecord = Callable[[Run], Record | None]
Verdict = Literal["holds", "does not hold", "not decided"]


class Decision(FrozenModel):
    """What the seeds say of a claim in one column, or of its mean over columns.

    n: the seeds that its numbers are of; spent: these and the failed ones before the last of them; mean, std, interval:
    of the difference, in percentage points, the interval such that it holds after each seed; at_once: whether it is
    also decided where the error is shared among all columns; saved: seeds that were not needed; variance_cut: the share
    of the variance that pairing removed (negative: it added some).
    """

    table: str
    column: str
    compared: str
    margin: float
    verdict: Verdict
    n: int
    spent: int
    mean: float | None
    std: float | None
    interval: Interval | None
    at_once: bool
    saved: int
    saved_runs: int
    variance_cut: float | None
    failed: tuple[int, ...]

    @property
    def is_open(self) -> bool:
        """Whether further seeds may decide it."""
        return self.verdict == "not decided"


def judge(
    claim: Claim, cells: PlannedCells, find: FindRecord, seeds: int, most: int, comparisons: int
) -> list[Decision]:
    """Judge each column of a claim, or its only number, by the seeds below `seeds`.

    most: how many seeds it could have had; comparisons: how many columns are decided in all.

    Raises:
        UserError: see `PlannedCells.list_units`, `Claim.compute`.
    """
    decisions = []
    for unit, columns in cells.list_units(claim).items():
        names = claim.list_cells(columns)
        found: dict[int, tuple[float, tuple[float, ...]]] = {}
        failed: list[int] = []
        for seed in range(seeds):
            known = {name: record for name in names if (record := find(cells.runs[name][seed])) is not None}
            if any(record["status"] == "failed" for record in known.values()):
                failed.append(seed)
            elif len(known) == len(names):
                values = {name: float(record["final"][cells.metrics[name[1]]]) for name, record in known.items()}
                found[seed] = claim.compute(values, columns)
        differences = [difference for difference, _ in found.values()]
        count = count_until(differences, claim.margin)
        used = list(found)[:count]
        differences = differences[:count]
        interval = make_intervals(differences)[-1] if differences else None
        spent = used[-1] + 1 if used else 0
        saved = most - spent if count is not None else 0
        summary = summarise(differences) if differences else None
        decisions.append(
            Decision(
                table=claim.table,
                column=unit,
                compared=claim.compared,
                margin=claim.margin,
                verdict=_judge_interval(claim, interval),
                n=len(used),
                spent=spent,
                mean=summary.mean if summary else None,
                std=summary.std if summary else None,
                interval=interval,
                at_once=count_until(differences, claim.margin, (1 - LEVEL) / comparisons) is not None,
                saved=saved,
                saved_runs=saved * len(names),
                variance_cut=_measure_pairing(differences, [found[seed][1] for seed in used]),
                failed=tuple(seed for seed in failed if seed < spent or count is None),
            )
        )
    return decisions


def _judge_interval(claim: Claim, interval: Interval | None) -> Verdict:
    if interval is None or interval[0] <= claim.margin <= interval[1]:
        return "not decided"
    return "holds" if (interval[0] > claim.margin) == claim.is_above else "does not hold"


def _measure_pairing(differences: Sequence[float], sides: Sequence[tuple[float, ...]]) -> float | None:
    """How much smaller the variance of the differences is than that of two rows with seeds of their own."""
    if len(differences) < FIRST or not all(sides):
        return None
    apart = sum(statistics.variance(side) for side in zip(*sides, strict=True))
    return 1 - statistics.variance(differences) / apart if apart > 0 else None


def list_pairing_gaps(claim: Claim, cells: PlannedCells) -> list[str]:
    """Say where the runs of a seed share less than their data order and first weights, and what all seeds share."""
    notes: dict[str, None] = {}
    teachers: set[object] = set()
    for columns in cells.list_units(claim).values():
        runs = {name: cells.runs[name] for name in claim.list_cells(columns)}
        for (row, _), of_seeds in runs.items():
            run = of_seeds[0]
            if run.start is not None:
                notes[f"{row} starts from the weights that its first stage leaves, not from its rival's."] = None
            if run.teacher is not None and len({other.teacher for other in of_seeds}) == 1 < len(of_seeds):
                teachers.add(run.teacher)
        for column in columns:
            notes |= dict.fromkeys(_compare_runs([runs[name][0] for name in claim.list_cells([column])]))
    if teachers:
        notes[
            "All seeds share the teachers (--teacher-seeds shared), so no interval covers what another teacher would "
            "change."
        ] = None
    return list(notes)


def _compare_runs(runs: Sequence[Run]) -> list[str]:
    """What runs of one seed do not share."""
    said = []
    if len({run.student for run in runs}) > 1:
        said.append("The students are of several networks, whose first weights have nothing in common.")
    if len({run.augmentation for run in runs}) > 1:
        said.append("Rows with Cutout and CutMix see other images than their rivals, in the same order.")
    if len({run.schedule.epochs for run in runs}) > 1:
        said.append("Rows that are as long as another go on for more epochs than their rivals.")
    if len({run.precision for run in runs}) > 1:
        said.append("The rows are trained in several precisions.")
    return said
