"""The cells that a claim can be about: those of a planned table, or of a panel of a planned few-shot figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmark.audit.expressions import name_panel
from benchmark.core.errors import UserError, unknown_name
from benchmark.core.spec import Run
from benchmark.decisions.claim import OPTION, CellName, Claim, Subject
from benchmark.planning.request import RunGroup
from benchmark.plugins.registry import method_names
from benchmark.targets import TableTarget, Target
from figures.specification import Figure
from tables.specification import Table

Counts = Mapping[tuple[str, str], int]
"""How many seeds of a column are wanted, by the name of its table or panel and its own."""


@dataclass(frozen=True)
class PlannedCells:
    """The runs of a table or a panel by cell, one for each seed from 0 on, in the columns that were asked for.

    metrics: which figure of a record a column shows.
    """

    name: str
    columns: tuple[str, ...]
    runs: Mapping[CellName, tuple[Run, ...]]
    metrics: Mapping[str, str]
    group: RunGroup

    def list_units(self, claim: Claim) -> dict[str, tuple[str, ...]]:
        """List what is decided separately, with its columns: each column, or all of them together.

        A column is left out if a row cannot be run in it, because it has no teacher.

        Raises:
            UserError: the claim names a column that was not asked for, or nothing is left to decide.
        """
        for reference in claim.difference.references:
            if reference.column is not None and reference.column not in self.columns:
                raise unknown_name(f"column of {OPTION}", reference.column, self.columns)
        usable = tuple(
            column for column in self.columns if all(cell in self.runs for cell in claim.list_cells([column]))
        )
        if not usable:
            raise UserError(
                f"{OPTION} {claim.text!r}: no column has all of {', '.join(claim.rows)}; choose other rows or --pairs"
            )
        if claim.by_column:
            return {column: (column,) for column in usable}
        named = tuple(dict.fromkeys(column for _, column in claim.list_cells(usable)))
        return {named[0] if len(named) == 1 else f"{len(named)} columns": usable}


def list_subjects(entry: Table | Figure, methods: Sequence[str], pairs: Sequence[str]) -> list[Subject]:
    """What a claim may be about in a table or a figure, where further methods were named.

    Raises:
        UserError: it is a figure of another kind than few-shot.
    """
    more = {name: name for name in methods if name in method_names()}
    if isinstance(entry, Table):
        rows = {row.name: row.method for row in entry.rows}
        return [Subject(entry.name, f"table {entry.name}", rows | {n: m for n, m in more.items() if n not in rows})]
    if entry.kind != "few-shot":
        raise UserError(
            f"{OPTION} only applies to tables and few-shot figures, and figure {entry.name} shows the stages of one "
            "network; name a table or figure 5"
        )
    rows = {name: name for name in entry.all_methods} | more
    return [
        Subject(name_panel(entry.name, panel.title), f"figure {entry.name}, {panel.title}", rows)
        for panel in entry.panels
        if not pairs or panel.title in pairs
    ]


def list_cells(target: Target) -> list[PlannedCells]:
    """The planned cells of a target, those of a figure by panel."""
    if isinstance(target, TableTarget):
        grid = target.grid
        chosen = {column for _, column in grid.selected}
        # A probe waits for a student on another dataset, which a round does not plan.
        columns = [column for column in grid.table.columns if column.name in chosen and column.probe is None]
        metrics = {column.name: column.metric for column in columns}
        return [PlannedCells(grid.table.name, tuple(metrics), grid.runs, metrics, target.groups[0])]
    found = []
    # The groups of probes stand behind those of the panels.
    for (title, points), group in zip(target.points.items(), target.groups, strict=False):
        if points.panel.probe is not None:
            continue
        runs = {(method, name_share(share)): made for (method, share), made in points.runs.items()}
        metrics = {name_share(share): "top1" for share in target.figure.fractions}
        found.append(PlannedCells(name_panel(target.figure.name, title), tuple(metrics), runs, metrics, group))
    return found


def name_share(share: float) -> str:
    """A share of the training images as a column: `25%`."""
    return f"{share:.0%}"


def limit_seeds(target: Target, counts: Counts, rows: Sequence[str], is_recorded: Callable[[Run], bool]) -> Target:
    """Limit the seeds in the cells of some rows to those of `counts`, so that only what was asked for is shown.

    All other cells keep the seeds that have a record, or else the first seed.
    """

    def limit(name: str, cell: CellName, runs: tuple[Run, ...]) -> tuple[Run, ...]:
        count = counts.get((name, cell[1])) if cell[0] in rows else None
        if count is None:
            return tuple(run for run in runs if is_recorded(run)) or runs[:1]
        return runs[:count]

    if isinstance(target, TableTarget):
        grid = target.grid
        kept = {cell: limit(grid.table.name, cell, runs) for cell, runs in grid.runs.items()}
        return dataclasses.replace(target, grid=dataclasses.replace(grid, runs=kept))
    points = {
        title: dataclasses.replace(
            some,
            runs={
                (method, share): limit(name_panel(target.figure.name, title), (method, name_share(share)), runs)
                for (method, share), runs in some.runs.items()
            },
        )
        for title, some in target.points.items()
    }
    return dataclasses.replace(target, points=points)
