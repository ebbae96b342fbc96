"""Collects the results of a record store for the tables and figures that claims name."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from benchmark.analysis.figures import collect_figure_runs
from benchmark.analysis.query import RecordQuery
from benchmark.analysis.tables import make_table_results
from benchmark.audit.claims import ClaimSet
from benchmark.audit.expressions import name_panel
from benchmark.backbones import is_network
from benchmark.results.store import Store
from figures.result import FINAL, FigureResult, Number, PanelResult
from figures.specification import figure_names, load_figure
from tables.result import Cell, TableResult
from tables.specification import Column, Row, Table

BRANCHES = "stages"
"""The metric of a stage that claims are about: of the class, on upright images (docs/ledger.md, R15)."""


def collect_measured(papers: Iterable[ClaimSet], runs: Path) -> tuple[list[TableResult], tuple[str, ...]]:
    """Collect all measured results, in every setting, and a line on each record that could not be read."""
    records, damaged = Store(runs).read_all()
    query = RecordQuery(records, Store(runs).teacher_metrics())
    papers = list(papers)
    results = collect_tables(papers, query)
    figures = [load_figure(name) for name in figure_names()] if any(claims.figures for claims in papers) else []
    return [
        *results,
        *make_panel_tables(result for figure in figures for result in collect_figure_runs(figure, query)),
    ], tuple(damaged)


def make_panel_tables(results: Iterable[FigureResult]) -> list[TableResult]:
    """Make a table of every panel of figures, with methods as rows, named as in claims: `Figure5_CIFAR100`.

    Columns are the shares of the training images (`25%`), or the stages (`stage 1`) with the accuracy of their branch.
    """
    tables = []
    for result in results:
        for panel in result.panels:
            wanted = "top1" if result.figure.kind == "few-shot" else BRANCHES
            numbers = [
                number
                for number in result.numbers()
                # The backbone's own classifier is no auxiliary one.
                if number.panel is panel and number.metric == wanted and number.place != FINAL
            ]
            if any(number.values for number in numbers):
                tables.append(_as_table(result, panel, numbers))
    return tables


def collect_tables(papers: Iterable[ClaimSet], query: RecordQuery, but: Collection[str] = ()) -> list[TableResult]:
    """Collect the results of the tables that papers are about, once each; but: names of tables that are left out."""
    settings = query.settings()
    tables = {table.name: table for claims in papers for table in claims.loaded.values()}
    return [
        result
        for name, table in tables.items()
        if name not in but and _can_be_run(table)
        for result in make_table_results(table, query, settings)
    ]


def _can_be_run(table: Table) -> bool:
    """Whether the suite has the networks of a table; one of another paper may name others."""
    networks = {name for column in table.columns for name in (column.student, column.teacher) if name}
    return all(is_network(name) for name in networks)


def _as_table(result: FigureResult, panel: PanelResult, numbers: Sequence[Number]) -> TableResult:
    few_shot = result.figure.kind == "few-shot"
    titles = {number.place: f"{float(number.place):.0%}" if few_shot else f"stage {number.place}" for number in numbers}
    table = Table(
        name=name_panel(result.figure.name, panel.panel.title),
        caption=result.figure.caption,
        dataset=panel.dataset,
        columns=tuple(
            Column(student=panel.panel.student, teacher=panel.panel.teacher, title=title) for title in titles.values()
        ),
        rows=tuple(Row(method=method) for method in result.methods),
    )
    cells = {
        (number.method, titles[number.place]): _as_cell(number, titles[number.place])
        for number in numbers
        if number.values
    }
    return TableResult(
        table=table,
        scale=panel.scale,
        epochs=panel.epochs,
        dataset=panel.dataset,
        cells=cells,
        teachers={},
        generated_from=result.generated_from,
        comparable=panel.reproduces and result.teacher_data == "all",
        remarks=result.remarks,
        protocol=result.protocol,
    )


def _as_cell(number: Number, column: str) -> Cell:
    """Make a table's cell of a number: its values replace those of the runs."""
    seeds = tuple(
        dataclasses.replace(run, metrics={"top1": number.values[run.seed]})
        for run in number.cell.finished
        if run.seed in number.values
    )
    return dataclasses.replace(
        number.cell, column=column, values=tuple(number.values.values()), best=(), finished=seeds, metric="top1"
    )
