"""A table as a grid of runs, and the records of those runs as the table's cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import benchmark
from benchmark.backbones import network_names
from benchmark.errors import UserError, unknown_name
from benchmark.plan import TEACHER_SEED, Request
from benchmark.protocols import protocol_named
from benchmark.provenance import commit
from benchmark.registry import all_methods, method_class, method_names
from benchmark.results import Record, Store
from benchmark.spec import Run
from tables.result import Cell, Status, TableResult
from tables.specification import Column, Row, Table


@dataclass(frozen=True)
class Grid:
    """The runs of a table by row and column, one for each seed, as far as the suite can run them."""

    table: Table
    runs: Mapping[tuple[str, str], tuple[Run, ...]]
    chosen: frozenset[tuple[str, str]]
    """The cells that were asked for."""

    def to_train(self) -> list[Run]:
        """The runs of the cells that were asked for."""
        return list(dict.fromkeys(run for cell, runs in self.runs.items() if cell in self.chosen for run in runs))


def grid_of(
    table: Table, request: Request, seeds: Iterable[int], methods: Sequence[str] = (), pairs: Sequence[str] = ()
) -> Grid:
    """The runs of a table, and which of its cells were asked for (all of the default grid if none are named).

    Raises:
        UserError: see `selected`; or a row was asked for that no column has a teacher for.
    """
    table = selected(table, methods, pairs)
    seeds = tuple(seeds)
    rows = [row for row in table.rows if row.method in method_names()]
    runs = {
        (row.name, column.name): tuple(_run(request, row, column, seed) for seed in seeds)
        for row in rows
        for column in table.columns
        if column.teacher or not needs_pair(row)
    }
    wanted_rows = methods or [row.name for row in rows if method_class(row.method).in_default_grid]
    wanted_columns = pairs or [column.name for column in table.columns]
    chosen = frozenset((row, column) for row in wanted_rows for column in wanted_columns) & runs.keys()
    for row in rows:
        if request.augmentation != "standard" != row.augment and any(name == row.name for name, _ in chosen):
            raise UserError(
                f"--augment {request.augmentation}: row {row.name} has an augmentation of its own, {row.augment}; "
                "leave --augment out, or choose other rows with --methods"
            )
    for method in methods:
        if not any(name == method for name, _ in chosen):
            raise UserError(
                f"{method} needs a teacher, which no column of table {table.name} has; choose a table of pairs"
            )
    return Grid(table, runs, chosen)


def needs_pair(row: Row) -> bool:
    """Whether a row can only be run in columns that have a teacher."""
    cls = method_class(row.method)
    return cls.needs_teacher and not cls.teaches_itself


def _run(request: Request, row: Row, column: Column, seed: int) -> Run:
    augmentation = None if row.augment == "standard" else row.augment
    return request.run(row.method, column.student, column.teacher, seed, augmentation)


def selected(table: Table, methods: Sequence[str] = (), pairs: Sequence[str] = ()) -> Table:
    """The table with a row more for each method that was named and is not in it.

    Raises:
        UserError: a method that is neither a row of the table nor in the suite, a pair that the table does not have, or
            a network that the suite does not have.
    """
    columns = [column.name for column in table.columns]
    rows = [row.name for row in table.rows if row.method in method_names()]
    for network in (name for column in table.columns for name in (column.teacher, column.student) if name):
        if network not in network_names():
            raise unknown_name(f"network of table {table.name}", network, network_names())
    for pair in pairs:
        if pair not in columns:
            unknown = unknown_name(f"pair of table {table.name}", pair, columns)
            raise UserError(f"{unknown}; any other pair goes into a table file of your own")
    more = [method for method in dict.fromkeys(methods) if method not in rows]
    for method in more:
        if method not in method_names():
            raise unknown_name("method", method, dict.fromkeys([*rows, *method_names()]))
    kept = [row for row in table.rows if row.name not in more]
    return table.model_copy(update={"rows": (*kept, *(Row(method=method) for method in more))})


def results_of(
    grid: Grid,
    store: Store,
    request: Request,
    released_accuracy: Mapping[str, float],
    remarks: Sequence[str] = (),
    lost: Mapping[str, str] | None = None,
) -> TableResult:
    """What the store holds of a grid; `lost` tells by run id why a run left no record."""
    cells = {}
    for row in grid.table.rows:
        for column in grid.table.columns:
            key = (row.name, column.name)
            if key in grid.runs:
                cells[key] = _cell(*key, grid.runs[key], store, lost or {})
            else:
                cells[key] = Cell(*key, (), "no teacher" if row.method in all_methods() else "not in the suite")
    shown = {row for row, _ in grid.chosen} | {row for (row, _), cell in cells.items() if cell.values}
    rows = tuple(_with_remark(row) for row in grid.table.rows if row.name in shown or not _runs_when_named(row))
    table = grid.table.model_copy(update={"rows": rows})
    kept = {row.name for row in rows}
    epochs = request.protocol.schedule.scaled(request.scale.factor).epochs
    seeds = sorted({run.seed for runs in grid.runs.values() for run in runs})
    teacher_seeds = seeds if request.teacher_seeds == "paired" else [TEACHER_SEED]
    standard = request.protocol == protocol_named("lsskd") and request.validation == 0 and not request.options
    standard = standard and request.augmentation == "standard"
    return TableResult(
        table=table,
        scale=request.scale.name,
        epochs=str(epochs),
        dataset=request.dataset,
        cells={key: cell for key, cell in cells.items() if key[0] in kept},
        teachers=_teachers(grid, store, request, released_accuracy, teacher_seeds, lost or {}),
        generated_from=f"kd-benchmark {benchmark.__version__}, commit {(commit() or 'unknown')[:12]}",
        comparable=request.scale.name == "paper" and standard,
        remarks=tuple(remarks),
    )


def _runs_when_named(row: Row) -> bool:
    return row.method in all_methods() and not method_class(row.method).in_default_grid


def _with_remark(row: Row) -> Row:
    """The row with its method's own remark among its footnotes."""
    remark = method_class(row.method).remark if row.method in all_methods() else ""
    text = f"{row.method}: {remark}."
    return row if not remark else row.model_copy(update={"footnotes": (*row.footnotes, text)})


def _cell(row: str, column: str, runs: Sequence[Run], store: Store, lost: Mapping[str, str]) -> Cell:
    records = {run: store.record(run) for run in runs}
    finished = [record for record in records.values() if record and record["status"] == "finished"]
    notes = tuple(
        f"{row}, {column}, seed {run.seed}: {reason}"
        for run, record in records.items()
        if (reason := _failure(run, record, lost))
    )
    status: Status
    if len(finished) == len(runs):
        status = "done"
    elif finished:
        status = "partial"
    else:
        status = "failed" if notes else "not run yet"
    values = tuple(record["final"]["top1"] for record in finished)
    best = tuple(record["best_on_test"]["top1"] for record in finished)
    return Cell(row, column, values, status, best, notes, seeds=len(runs))


def _failure(run: Run, record: Record | None, lost: Mapping[str, str]) -> str | None:
    if record is not None:
        return str(record["reason"]) if record["status"] == "failed" else None
    return lost.get(run.id)


def _teachers(
    grid: Grid,
    store: Store,
    request: Request,
    released_accuracy: Mapping[str, float],
    seeds: Sequence[int],
    lost: Mapping[str, str],
) -> dict[str, Cell]:
    """The accuracy of each teacher of the table: of its own run, or as measured here if it came from a file."""
    cells = {}
    for teacher in dict.fromkeys(column.teacher for column in grid.table.columns if column.teacher):
        if teacher in request.released:
            accuracy = released_accuracy.get(teacher)
            values = () if accuracy is None else (accuracy,)
            cells[teacher] = Cell(
                "Teacher",
                teacher,
                values,
                "done" if values else "not run yet",
                (),
                (f"teacher {teacher} comes from a file",),
            )
        else:
            runs = [request.run("Baseline", teacher, None, seed) for seed in seeds]
            cells[teacher] = _cell("Teacher", teacher, runs, store, lost)
    return cells
