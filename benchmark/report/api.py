"""Write what the page shows for programs: `api/*.json` of tables, cells, claims and methods, with their schemas."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, create_model

from benchmark.audit.verdicts import Audit, Verdict
from benchmark.catalogue import entries
from benchmark.core.models import FrozenModel
from benchmark.io.files import write_text
from benchmark.report.addresses import address_method
from benchmark.report.badges import FOLDER as BADGES
from benchmark.report.badges import list_claims
from benchmark.report.citing import cite
from benchmark.report.data import Report, TableReport
from benchmark.report.runs import make_key
from tables.result import Cell as TableCell
from tables.result import Status
from tables.tiers import Tier
from tables.view import PageCell

FOLDER = "api"
Address = Annotated[str, Field(description="what a link to the page ends with, behind #")]
Percent = Annotated[float, Field(description="top-1 test accuracy in %, unless the table's metric is another")]
Runs = Annotated[tuple[str, ...], Field(description="ids of the records behind it")]
Citation = Annotated[str, Field(description="BibTeX; put the page's own address before index.html")]
Cite = Callable[..., str]
"""Cites what an address leads to, by its title and the keys of the runs behind it."""


class TableEntry(FrozenModel):
    """A table at one scale, on one dataset, under one protocol."""

    address: Address
    name: str
    caption: str
    metric: str
    scale: str
    dataset: str
    protocol: str
    comparable: bool = Field(description="whether its numbers may be set against the printed ones")
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells_done: int
    files: tuple[str, ...]
    citation: Citation


class Reference(FrozenModel):
    """A number that was not measured here."""

    tier: Tier
    mean: float
    std: float | None
    difference: float | None = Field(description="measured minus this one, in points, where the two may be compared")


class CellEntry(FrozenModel):
    """A cell of a table; without a run it has references alone."""

    address: Address
    table: Address
    row: str
    column: str
    status: Status | Literal[""]
    mean: Percent | None
    std: float | None = Field(description="of the sample; null for less than two seeds")
    values: tuple[float, ...] = Field(description="after the last epoch, by seed")
    seeds: tuple[int, ...]
    runs: Runs
    references: tuple[Reference, ...]
    citation: Citation


class ClaimEntry(FrozenModel):
    """A claim of a paper, with the verdicts on it."""

    address: Address
    paper: str
    id: str
    where: str
    text: str
    says: str
    verdict_on_text: Verdict = Field(description="by the paper's own tables and the literature")
    verdict_of_runs: Verdict
    measured: float | None
    interval: tuple[float, float] | None = Field(description="95 %, of the measured difference")
    n: int | None
    badge: str
    citation: Citation


class MethodEntry(FrozenModel):
    """A method, and the cells that it has a number in."""

    address: Address
    name: str
    paper: str
    equation: str
    needs: str
    cost: float = Field(description="multiply-adds of a training step as a multiple of Baseline's")
    extra_parameters: int
    in_default_grid: bool
    cells: tuple[Address, ...]


class _File(FrozenModel):
    """The head that every file has."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    schema_file: str = Field(alias="$schema")
    generated_from: str
    written: str


ENTRIES = {"tables": TableEntry, "cells": CellEntry, "claims": ClaimEntry, "methods": MethodEntry}
FILES: dict[str, type[_File]] = {
    name: create_model(name.title(), __base__=_File, __doc__=f"`{name}.json`.", **{name: tuple[entry, ...]})  # type: ignore[call-overload, valid-type]
    for name, entry in ENTRIES.items()
}


def write_api(report: Report, audit: Audit, folder: Path) -> list[Path]:
    """Write `api/NAME.json` and `api/NAME.schema.json` for each of `FILES`, and return the paths.

    Raises:
        UserError: the folder cannot be written.
    """
    cited = functools.partial(cite, makers=report.makers, suite=report.generated_from, written=report.written)
    cells = [cell for table in report.tables for cell in _list_cells(table, cited)]
    content: dict[str, tuple[FrozenModel, ...]] = {
        "tables": tuple(_describe_table(table, cited) for table in report.tables),
        "cells": tuple(cells),
        "claims": tuple(_list_claims(audit, cited)),
        "methods": tuple(_list_methods(cells)),
    }
    paths = []
    for name, model in FILES.items():
        head = {"$schema": f"{name}.schema.json", "generated_from": report.generated_from, "written": report.written}
        file = model(**head, **{name: content[name]})
        for path, text in (
            (folder / FOLDER / f"{name}.json", file.model_dump_json(indent=1)),
            (folder / FOLDER / f"{name}.schema.json", json.dumps(model.model_json_schema(), indent=1)),
        ):
            write_text(path, text + "\n")
            paths.append(path)
    return paths


def _describe_table(table: TableReport, cited: Cite) -> TableEntry:
    result, page = table.result, table.page
    cells = [*result.cells.values(), *result.teachers.values()]
    keys = dict.fromkeys(make_key(seed.run) for cell in cells for seed in cell.finished)
    return TableEntry(
        address=table.address,
        name=result.table.name,
        caption=result.table.caption,
        metric=result.table.metric,
        scale=result.scale,
        dataset=result.dataset,
        protocol=result.protocol,
        comparable=result.reproduces,
        rows=tuple(row.name for row in page.rows),
        columns=tuple(column.name for column in page.columns),
        cells_done=sum(cell.status == "done" for cell in result.cells.values()),
        files=tuple(f"{table.stem}.{ending}" for ending in ("md", "tex", "csv")),
        citation=cited(table.address, table.title, keys),
    )


def _list_cells(table: TableReport, cited: Cite) -> Iterator[CellEntry]:
    """List the cells of a table that have a number of any tier, or for which a run is known."""
    for row in table.page.rows:
        for column, entry in zip(table.page.columns, row.entries, strict=True):
            cell = table.result.cell(row.name, column.name)
            if entry.references or cell.finished or entry.status in ("failed", "partial"):
                yield _describe_cell(table, cell, entry, cited)


def _describe_cell(table: TableReport, cell: TableCell, entry: PageCell, cited: Cite) -> CellEntry:
    address = table.addresses[cell.row, cell.column]
    keys = [make_key(seed.run) for seed in cell.finished]
    return CellEntry(
        address=address,
        table=table.address,
        row=cell.row,
        column=cell.column,
        status=entry.status,
        mean=entry.summary.mean if entry.summary else None,
        std=entry.summary.std if entry.summary else None,
        values=cell.values,
        seeds=tuple(seed.seed for seed in cell.finished),
        runs=tuple(seed.run for seed in cell.finished),
        references=tuple(
            Reference(
                tier=found.tier,
                mean=_read(found.mean),
                std=_read(found.std) if found.std else None,
                difference=_read(found.difference) if found.difference else None,
            )
            for found in entry.references
        ),
        citation=cited(address, f"{table.title}: {cell.row}, {cell.column}", keys),
    )


def _read(text: str) -> float:
    """Read a number as tables show it."""
    return float(text.replace("\N{MINUS SIGN}", "-"))


def _list_claims(audit: Audit, cited: Cite) -> Iterator[ClaimEntry]:
    for name, one, finding in list_claims(audit):
        claim, difference = finding.claim, finding.measured.difference
        address = f"claim/{name}"
        yield ClaimEntry(
            address=address,
            paper=one.title,
            id=claim.id,
            where=claim.where,
            text=claim.text,
            says=claim.in_words,
            verdict_on_text=finding.paper,
            verdict_of_runs=finding.runs,
            measured=finding.measured.value,
            interval=difference.interval if difference else None,
            n=difference.n if difference else None,
            badge=f"{BADGES}/{name}.svg",
            citation=cited(address, f"{claim.text}: {finding.paper}", ()),
        )


def _list_methods(cells: list[CellEntry]) -> Iterator[MethodEntry]:
    for entry in entries():
        method = entry.method
        yield MethodEntry(
            address=address_method(method.name),
            name=method.name,
            paper=method.paper,
            equation=method.equation,
            needs=entry.needs,
            cost=entry.facts.multiply_adds / entry.baseline,
            extra_parameters=entry.facts.extra_parameters,
            in_default_grid=method.in_default_grid,
            cells=tuple(cell.address for cell in cells if cell.row == method.name),
        )
