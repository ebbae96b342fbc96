"""Make the result of a table from the records of its runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark.analysis.cells import FindRecord, LookUp, make_cell
from benchmark.analysis.notes import is_default_setting, list_notes, precision_note, variant_suffix
from benchmark.analysis.query import ExperimentSetting, RecordQuery
from benchmark.core.protocols import PAPER, SCALES, base_scale, default_seed_count, get_protocol
from benchmark.planning.request import RunFactory
from benchmark.planning.tables import Grid, has_dataset, plan_table
from benchmark.plugins.registry import all_methods, method_class, method_names
from benchmark.results.provenance import describe_environment
from tables.result import Cell, Status, TableResult
from tables.specification import TEACHER, Column, Row, Table


def make_table_result(
    grid: Grid,
    factory: RunFactory,
    look_up: LookUp,
    find: FindRecord,
    released_accuracy: Mapping[str, Mapping[str, float]] | None = None,
    remarks: Sequence[str] = (),
    lost: Mapping[str, str] | None = None,
) -> TableResult:
    """Make the result of a planned table.

    look_up: finds the records of a cell's runs; find: that of a run that they depend on; released_accuracy: the metrics
    of teachers that came from files; lost: by run id, why a run left no record.
    """
    cells = {}
    for row in grid.table.rows:
        for column in grid.table.columns:
            key = (row.name, column.name)
            if key in grid.runs:
                cells[key] = make_cell(row.name, column, look_up(grid.runs[key]), find, lost or {})
            else:
                cells[key] = Cell(*key, (), _status_without_runs(row, column, factory))
    shown = {row for row, _ in grid.selected} | {row for (row, _), cell in cells.items() if cell.values}
    shown |= {row.name for row in grid.table.rows if not _runs_when_named(row)}
    cells |= {
        key: dataclasses.replace(cell, status="runs when named")
        for key, cell in cells.items()
        if key[0] not in shown and cell.status == "not run yet"
    }
    # A method that runs only when it is named has a row if it was run, or if there are numbers of others for it.
    rows = tuple(_with_remark(row) for row in grid.table.rows if row.name in shown or row.printed or row.published)
    table = grid.table.model_copy(update={"rows": rows})
    kept = {row.name for row in rows}
    epochs = factory.protocol.schedule.scaled(factory.scale.factor).epochs
    precisions = {run.precision for cell in cells.values() for run in cell.finished}
    return TableResult(
        table=table,
        scale=factory.scale.name,
        epochs=str(epochs),
        dataset=factory.dataset,
        cells={key: cell for key, cell in cells.items() if key[0] in kept},
        teachers=_teachers(grid, factory, look_up, find, released_accuracy or {}, lost or {}),
        generated_from=describe_environment(),
        comparable=factory.scale.name == "paper"
        and is_default_setting(factory, table.protocol_for(base_scale(factory.scale.name))),
        remarks=(*remarks, *precision_note(precisions, factory.scale.name)),
        variant=variant_suffix(factory),
        protocol=factory.protocol.name,
    )


def _status_without_runs(row: Row | None, column: Column, factory: RunFactory) -> Status:
    """Say why no run of a row was planned in a column; row: None for the teacher's."""
    if row is not None and row.method not in all_methods():
        return "not in the suite"
    if has_dataset(factory, column):
        return "no teacher"
    return "not run yet" if column.probe and column.probe.source_at(factory.scale.name) else "no dataset"


def _runs_when_named(row: Row) -> bool:
    return row.method in all_methods() and not method_class(row.method).in_default_grid


def _with_remark(row: Row) -> Row:
    """Add the remark of its method to the footnotes of a row."""
    remark = method_class(row.method).remark if row.method in all_methods() else ""
    text = f"{row.method}: {remark}."
    return row if not remark else row.model_copy(update={"footnotes": (*row.footnotes, text)})


def _teachers(
    grid: Grid,
    factory: RunFactory,
    look_up: LookUp,
    find: FindRecord,
    released_accuracy: Mapping[str, Mapping[str, float]],
    lost: Mapping[str, str],
) -> dict[str, Cell]:
    """Make the teacher's cell of each column: from its own run, or as measured here if it came from a file."""
    cells = {}
    for column in grid.table.columns:
        if column.teacher is None:
            continue
        if not has_dataset(factory, column):
            cells[column.name] = Cell(TEACHER, column.name, (), _status_without_runs(None, column, factory))
        elif column.teacher in factory.released and column.probe is None:
            accuracy = released_accuracy.get(column.teacher)
            values = () if accuracy is None else (accuracy[column.metric],)
            notes = (f"teacher {column.teacher} comes from a file",)
            status: Status = "done" if values else "not run yet"
            cells[column.name] = Cell(TEACHER, column.name, values, status, (), notes)
        else:
            cells[column.name] = make_cell(TEACHER, column, look_up(grid.teachers[column.name]), find, lost)
    return cells


def add_rows_of_records(table: Table, query: RecordQuery, setting: ExperimentSetting) -> Table:
    """Add a row to the table for each other method that its cells have runs of."""
    scale = base_scale(setting.scale.name)
    students = {column.student for column in table.at(scale).columns}
    methods = {run.method for run in query.runs if run.student in students and run.dataset == setting.dataset}
    methods -= {row.method for row in table.rows}
    more = [Row(method=name) for name in method_names() if name in methods and method_class(name).listed]
    if not more:
        return table
    columns = tuple(column for column in table.columns if column.probe is None)
    alone = table.model_copy(update={"rows": tuple(more), "columns": columns})
    grid = plan_table(alone.at(scale), setting.make_factory(), [0])
    filled = {row for (row, _), runs in grid.runs.items() if query.replicates(runs[0], setting.teacher_seeds)}
    return table.model_copy(update={"rows": (*table.rows, *(row for row in more if row.name in filled))})


def make_table_in_setting(table: Table, query: RecordQuery, setting: ExperimentSetting) -> TableResult:
    """Make the result of a table from the runs of one setting."""
    scale = setting.scale.name
    sources = {column.probe.source_at(scale) for column in table.columns if column.probe}
    factory = setting.make_factory(probed=query.probed(sources))
    grid = plan_table(table.at(base_scale(scale)), factory, range(default_seed_count(scale)))
    accuracy = {
        network: query.teacher_metrics[file.teacher.sha256]
        for network, file in setting.released
        if file.teacher.sha256 in query.teacher_metrics
    }
    remarks = list_notes(factory, table.protocol_for(base_scale(scale)))
    look_up = query.look_up(grid.runs.values(), setting.teacher_seeds)
    return make_table_result(grid, factory, look_up, query.find, accuracy, remarks)


def make_table_results(table: Table, query: RecordQuery, settings: Sequence[ExperimentSetting]) -> list[TableResult]:
    """Make the table in every setting that has a run of it; once with nothing measured where none has."""
    results = [_result(table, query, setting) for setting in settings]
    return [result for result in results if _has_cells(result)] or [empty_result(table)]


def empty_result(table: Table) -> TableResult:
    """Make the table at paper scale without any run: only what was printed and published."""
    scale = PAPER if isinstance(table.dataset, str) or PAPER in table.dataset else next(iter(table.dataset))
    protocol = get_protocol(table.protocol_for(scale))
    setting = ExperimentSetting(Path(table.dataset_for(scale)).stem, "", protocol, SCALES[scale])
    return _result(table, RecordQuery([]), setting)


def _result(table: Table, query: RecordQuery, setting: ExperimentSetting) -> TableResult:
    """Make the table in one setting.

    Counting the multiply-adds of a row that is as long as another takes seconds a network, so such rows are looked up
    only where a run has a schedule of its own; elsewhere they are not run yet.
    """
    stretched = {run.method for run in query.runs if run.protocol.schedule != setting.protocol.schedule}
    whole = add_rows_of_records(table, query, setting)
    looked_up = tuple(row for row in whole.rows if row.as_long_as is None or row.method in stretched)
    result = make_table_in_setting(table.model_copy(update={"rows": looked_up}), query, setting)
    found = {row.name: row for row in result.table.rows}
    left_out = {row.name: row for row in table.at(base_scale(setting.scale.name)).rows if row not in looked_up}
    rows = [found.get(row.name) or left_out.get(row.name) for row in whole.rows]
    kept = tuple(row for row in rows if row is not None)
    return dataclasses.replace(result, table=result.table.model_copy(update={"rows": kept}))


def _has_cells(result: TableResult) -> bool:
    return any(cell.values or cell.status == "failed" for cell in result.cells.values())
