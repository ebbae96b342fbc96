"""Audits of the shipped claims with other printed numbers, and with made-up runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from benchmark.audit.audit import make_audit
from benchmark.audit.claims import ClaimSet, load_claims
from benchmark.audit.results import make_panel_tables
from benchmark.audit.verdicts import Audit, Finding
from figures.result import FigureResult, PanelResult
from figures.specification import load_figure
from tables.result import Cell, Price, Seed, Status, TableResult
from tables.specification import Table

SHIPPED = load_claims()
PRICE = Price(10, 20, 1.0, 2.0, 240, 1000, 5000, 4000, None)

Values = Callable[[str, str, int], float | None]


def finding(audit: Audit, name: str) -> Finding:
    return next(found for found in audit.findings if found.claim.id == name)


def audited(name: str, results: list[TableResult] | None = None, claims: ClaimSet = SHIPPED) -> Finding:
    return finding(make_audit(claims.selected([name]), results or []), name)


def with_printed(table: str, row: str, column: str, number: float) -> ClaimSet:
    """The shipped claims with another printed number in one cell of a table."""
    old = SHIPPED.loaded[table]
    position = [entry.name for entry in old.columns].index(column)
    rows = []
    for entry in old.rows:
        if entry.name == row:
            printed = list(entry.printed or [float("nan")] * len(old.columns))
            printed[position] = number
            entry = entry.model_copy(update={"printed": tuple(printed)})
        rows.append(entry)
    new = old.model_copy(update={"rows": tuple(rows)})
    return SHIPPED.model_copy(update={"loaded": SHIPPED.loaded | {table: new}})


def measured(
    table: Table, values: Values, seeds: int = 3, scale: str = "paper", price: Price = PRICE, **changes: object
) -> TableResult:
    """A table with made-up values by row, column and seed; None: not run yet."""
    cells = {}
    for row in table.rows:
        for column in table.columns:
            found = {seed: values(row.name, column.name, seed) for seed in range(seeds)}
            runs = tuple(
                Seed(seed, "run", {"top1": value}, price, "fp32") for seed, value in found.items() if value is not None
            )
            status: Status = "done" if runs else "not run yet"
            numbers = tuple(float(run.metrics["top1"]) for run in runs)
            cells[row.name, column.name] = Cell(row.name, column.name, numbers, status, finished=runs)
    result = TableResult(
        table=table,
        scale=scale,
        epochs="240",
        dataset="cifar100" if scale != "demo" else "digits",
        cells=cells,
        teachers={},
        generated_from="test",
        comparable=scale == "paper",
    )
    return dataclasses.replace(result, **changes)  # type: ignore[arg-type]


def spread(seed: int, column: str) -> float:
    """What seeds and columns do to a difference: a little, another at each, zero on average over seeds 0 to 2."""
    return (seed - 1) * 0.02 * (1 + len(column) % 3)


def ahead_by(margin: float | Mapping[str, float], rivals: tuple[str, ...] = ()) -> Values:
    """LSSKD at 75 plus what seeds do, all others (or the rivals) so much below it."""

    def value(row: str, column: str, seed: int) -> float:
        luck = 3.0 * seed
        if row.startswith("LSSKD"):
            return 75.0 + luck + spread(seed, column)
        by = margin if isinstance(margin, float) else margin.get(row, 20.0)
        return 75.0 + luck - (by if not rivals or row in rivals else 20.0)

    return value


def panel(
    figure: str, title: str, values: Callable[[str, float, int], dict[str, object]], scale: str = "paper"
) -> list[TableResult]:
    """The panel of a figure with made-up figures by method, fraction and seed, as a table."""
    specification = load_figure(figure).at(scale)
    drawn = next(entry for entry in specification.panels if entry.title == title)
    cells = {}
    for method in specification.methods:
        for fraction in specification.fractions or (1.0,):
            runs = tuple(Seed(seed, "run", values(method, fraction, seed), PRICE, "fp32") for seed in range(3))
            numbers = tuple(float(str(run.metrics["top1"])) for run in runs)
            cells[method, fraction] = Cell(method, title, numbers, "done", finished=runs)
    dataset = drawn.dataset_for(scale)
    assert dataset is not None
    result = PanelResult(drawn, scale, dataset, "240", cells, comparable=scale == "paper")
    return make_panel_tables([FigureResult(specification, scale, (result,), specification.methods, "test")])
