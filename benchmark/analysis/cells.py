"""Make the cells of tables and figures from the records of their runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from benchmark.core.spec import ReleasedTeacher, Run
from benchmark.planning.request import collect_dependencies
from benchmark.results.record import Record
from tables.result import Cell, Price, Seed, Status
from tables.specification import Column

FindRecord = Callable[[Run], Record | None]
LookUp = Callable[[Sequence[Run]], Mapping[Run, Record | None]]
Number = TypeVar("Number", int, float)


def look_up_exactly(find: FindRecord) -> LookUp:
    """Look up the records of the very runs that are asked for, and of no others in their place."""
    return lambda runs: {run: find(run) for run in runs}


def make_cell(
    row: str, column: Column, records: Mapping[Run, Record | None], find: FindRecord, lost: Mapping[str, str]
) -> Cell:
    """Make the cell of some runs, one for each seed.

    find: finds the record of a run that these depend on; lost: by run id, why a run left no record.
    """
    finished = {run: record for run, record in records.items() if record and record["status"] == "finished"}
    notes = tuple(
        f"{row}, {column.name}, seed {run.seed}: {reason}"
        for run, record in records.items()
        if (reason := lost.get(run.id) if record is None else record.get("reason"))
    )
    status: Status
    if finished and len(finished) == len(records):
        status = "done"
    elif finished:
        status = "partial"
    else:
        status = "failed" if notes else "not run yet"
    seeds = tuple(
        Seed(run.seed, run.id, record["final"], make_price(run, record, find), run.precision)
        for run, record in finished.items()
    )
    return Cell(
        row=row,
        column=column.name,
        values=tuple(float(seed.metrics[column.metric]) for seed in seeds),
        status=status,
        best=tuple(
            float(record["best_on_test"][column.metric]) for record in finished.values() if "best_on_test" in record
        ),
        notes=notes,
        seeds=len(records),
        finished=seeds,
        metric=column.metric,
    )


def make_price(run: Run, record: Record, find: FindRecord) -> Price:
    """Compute what a finished run cost, and what all that it depends on cost."""
    needed = collect_dependencies([run])[:-1]
    records = [find(other) for other in needed]
    # Nobody knows what a teacher from a file has cost.
    known = not any(
        isinstance(part, ReleasedTeacher) for other in (*needed, run) for part in (other.teacher, other.head)
    )
    own = record.get("cost", {})
    costs = [other and other.get("cost", {}).get("training_multiply_adds") for other in records]
    return Price(
        multiply_adds=own.get("training_multiply_adds"),
        teacher_multiply_adds=_total(costs, 0) if known else None,
        seconds=_device_seconds(record),
        teacher_seconds=_total([_device_seconds(other) for other in records], 0.0) if known else None,
        epochs=run.schedule.epochs,
        parameters=own.get("parameters"),
        parameters_in_training=own.get("parameters_in_training"),
        inference_multiply_adds=own.get("multiply_adds"),
        peak_memory_bytes=record["provenance"].get("peak_memory_bytes"),
    )


def _device_seconds(record: Record | None) -> float | None:
    """Seconds times devices; those of the whole cohort on a GPU, where the host cannot time the runs one by one."""
    if record is None:
        return None
    made = record["provenance"]
    if made.get("device") == "cuda":
        seconds = made.get("seconds")
    else:
        own, teacher = made.get("seconds_of_its_own"), made.get("seconds_of_its_teacher", 0.0)
        seconds = None if own is None else own + teacher
    return None if seconds is None else float(seconds) * int(made.get("processes", 1))


def _total(values: Sequence[Number | None], nothing: Number) -> Number | None:
    """Add up values; None where one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known, start=nothing) if len(known) == len(values) else None
