"""Plans a table as a grid of runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmark.backbones import check_network
from benchmark.core.errors import UserError, unknown_name
from benchmark.core.spec import Run
from benchmark.planning.request import PROBE, RunFactory, match_compute
from benchmark.plugins.registry import method_class, method_names
from tables.specification import BASELINE, Column, Row, Table


@dataclass(frozen=True)
class Grid:
    """The runs of a table by row and column, one for each seed, of the methods that the suite has."""

    table: Table
    runs: Mapping[tuple[str, str], tuple[Run, ...]]
    selected: frozenset[tuple[str, str]]
    """The cells that the user asked for."""
    teachers: Mapping[str, tuple[Run, ...]] = field(default_factory=dict)
    """The runs of the teacher's row by column: teachers, or the probes of them. Teachers from files have none."""

    def requested_runs(self) -> list[Run]:
        """List the runs of the cells that the user asked for, and the probes of the teachers that these learn from."""
        runs = [run for cell, runs in self.runs.items() if cell in self.selected for run in runs]
        probed = {run.start.teacher for run in runs if run.method == PROBE and run.start}
        columns = {column for _, column in self.selected}
        teachers = [run for column, row in self.teachers.items() if column in columns for run in row]
        runs += [run for run in teachers if run.method == PROBE and run.start in probed]
        return list(dict.fromkeys(runs))


def plan_table(
    table: Table, factory: RunFactory, seeds: Iterable[int], methods: Sequence[str] = (), pairs: Sequence[str] = ()
) -> Grid:
    """Plan the runs of a table. If no rows or columns are named, those of the default grid are selected.

    Raises:
        UserError: see `select_rows`; or a named row needs a teacher, and no column has one; or a named column probes on
            no dataset at the scale.
    """
    table = select_rows(table, methods, pairs)
    for column in table.columns:
        if column.name in pairs and column.probe and column.probe.source_at(factory.scale.name) is None:
            raise UserError(
                f"{column.name} probes on no dataset at scale {factory.scale.name}; choose another or other --pairs"
            )
    seeds = tuple(seeds)
    rows = [row for row in table.rows if row.method in method_names()]
    runs = {
        (row.name, column.name): probe_as_asked(factory, column, plan_students(factory, row, column, seeds))
        for row in rows
        for column in table.columns
        if (column.teacher or not needs_pair(row.method)) and has_dataset(factory, column)
    }
    wanted_rows = methods or [row.name for row in rows if method_class(row.method).in_default_grid]
    wanted_columns = pairs or [column.name for column in table.columns]
    chosen = frozenset((row, column) for row in wanted_rows for column in wanted_columns) & runs.keys()
    for row in rows:
        if factory.augmentation != "standard" != row.augment and any(name == row.name for name, _ in chosen):
            raise UserError(
                f"--augment {factory.augmentation}: row {row.name} has an augmentation of its own, {row.augment}; "
                "leave --augment out, or choose other rows with --methods"
            )
    for method in methods:
        if not any(name == method for name, _ in chosen):
            raise UserError(
                f"{method} needs a teacher, which no column of table {table.name} has; choose a table of pairs"
            )
    teachers = {column.name: plan_teachers(factory, column, seeds) for column in table.columns}
    return Grid(table, runs, chosen, teachers)


def needs_pair(method: str) -> bool:
    """Return whether a method can only run in a column that has a teacher."""
    cls = method_class(method)
    return cls.needs_teacher and not cls.teaches_itself


def has_dataset(factory: RunFactory, column: Column) -> bool:
    """Return whether the dataset that the column's students are probed on was loaded, if they are probed."""
    return column.probe is None or column.probe.source_at(factory.scale.name) in factory.probed


def probe_as_asked(factory: RunFactory, column: Column, runs: tuple[Run, ...]) -> tuple[Run, ...]:
    """Make the runs that probe some runs of a column; the runs themselves where nothing is probed."""
    source = column.probe.source_at(factory.scale.name) if column.probe else None
    if column.probe is None or source is None:
        return runs
    return tuple(factory.probe(run, source, column.probe.protocol) for run in runs)


def plan_teachers(factory: RunFactory, column: Column, seeds: Iterable[int]) -> tuple[Run, ...]:
    """Make the runs of the teacher of a column's students, or the probes of it; none if it comes from a file."""
    if column.teacher is None or column.teacher in factory.released or not has_dataset(factory, column):
        return ()
    own = dict.fromkeys(factory.teacher_seed(column.student, column.teacher, seed) for seed in seeds)
    return probe_as_asked(factory, column, tuple(factory.run(BASELINE, column.teacher, None, seed) for seed in own))


def plan_students(factory: RunFactory, row: Row, column: Column, seeds: Iterable[int]) -> tuple[Run, ...]:
    """Make the runs of the students of a cell, one for each seed."""
    augmentation = None if row.augment == "standard" else row.augment

    def run(method: str, seed: int) -> Run:
        return factory.run(method, column.student, column.teacher, seed, augmentation)

    runs = tuple(run(row.method, seed) for seed in seeds)
    if row.as_long_as is None or not runs:
        return runs
    return match_compute(runs, run(row.as_long_as, runs[0].seed))


def select_rows(table: Table, methods: Sequence[str] = (), pairs: Sequence[str] = ()) -> Table:
    """Add a row to the table for each named method that it lacks.

    Raises:
        UserError: a method is neither in the table nor in the suite, a row has no numbers and its method is not in the
            suite, the table does not have a pair, or the suite does not have a network.
    """
    columns = [column.name for column in table.columns]
    rows = [row.name for row in table.rows if row.method in method_names()]
    for network in (name for column in table.columns for name in (column.teacher, column.student) if name):
        check_network(network, f"network of table {table.name}")
    for row in table.rows:
        if row.method not in method_names() and not _has_numbers(row):
            unknown = unknown_name(f"method of table {table.name}", row.method, method_names())
            raise UserError(f"{unknown}; only a row with printed or published numbers may be of another method")
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


def _has_numbers(row: Row) -> bool:
    """Return whether anything was printed, published or reproduced elsewhere for a row."""
    others = [number for numbers in row.from_elsewhere.values() for number in numbers.mean]
    return not all(math.isnan(number) for number in (*row.printed, *others))
