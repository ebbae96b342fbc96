"""Collect everything that a report says from a store of records, once, before any format is written."""

from __future__ import annotations

import datetime
import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.analysis.query import ExperimentSetting, RecordQuery
from benchmark.analysis.tables import empty_result, make_table_results
from benchmark.core.errors import unknown_name
from benchmark.core.protocols import PAPER, SCALES, base_scale, get_scale
from benchmark.core.spec import Run
from benchmark.plugins.registry import method_names
from benchmark.report import coverage, metrics, runs
from benchmark.report.addresses import address_cells, address_table
from benchmark.report.citing import collect_makers
from benchmark.report.coverage import Coverage
from benchmark.report.gains import list_gains
from benchmark.report.table import ReportTable
from benchmark.results.provenance import describe_environment
from benchmark.results.record import Record, anonymise_record
from benchmark.results.store import Store
from tables.escaping import Markup
from tables.result import TableResult
from tables.specification import OWN_METHOD, Table, load_table, table_names
from tables.view import Page, make_page

TITLE = "Knowledge distillation, reproduced"
LEAD = (
    "The tables and figures of the LSSKD paper (arXiv:2506.07055), regenerated from scratch: every measured number "
    "beside the printed one, with the number of seeds that stand behind it."
)


@dataclass(frozen=True)
class TableReport:
    """One table in one setting: its page, and the gains, differences, metrics and costs where they are wanted."""

    result: TableResult
    stem: str
    differences: ReportTable | None = None
    metrics: ReportTable | None = None
    costs: ReportTable | None = None
    prices: ReportTable | None = None
    gains: ReportTable | None = None

    def file(self, ending: str) -> Markup:
        """Name one of its files; the name holds nothing that a format would read (letters, digits and `._-`)."""
        return Markup(f"{self.stem}.{ending}")

    @functools.cached_property
    def page(self) -> Page:
        """All that is said in the table, over it and under it."""
        return make_page(self.result)

    @property
    def name(self) -> str:
        """The table in two words."""
        return f"Table {self.result.table.name}"

    @property
    def address(self) -> str:
        """What a link to it ends with."""
        return address_table(self.stem)

    @functools.cached_property
    def addresses(self) -> dict[tuple[str, str], str]:
        """What a link to a cell ends with, by row and column name."""
        return address_cells(self.result, self.address)

    @functools.cached_property
    def measured(self) -> bool:
        """Whether anything was run."""
        return next(metrics.find_measured_cells(self.result), None) is not None

    @property
    def title(self) -> str:
        """The table and its scale."""
        return f"{self.name}, {self.result.scale}" if self.measured else self.name

    @property
    def setting(self) -> str:
        """Scale, dataset and protocol."""
        return f"scale {self.result.scale}, dataset {self.result.dataset}, protocol {self.result.protocol}"


@dataclass(frozen=True)
class Report:
    """All that is reported.

    method: the one that is compared with all others; scale: the only one that is shown, "" for all; query: the records;
    damaged: a line on each file that could not be read; curves: by the key of their run; written: when, UTC.
    """

    method: str
    scale: str
    query: RecordQuery
    tables: tuple[TableReport, ...]
    covered: tuple[Coverage, ...]
    runs: ReportTable
    provenance: ReportTable
    exported: ReportTable | None
    curves: dict[str, dict[str, Any]]
    weights: dict[str, str]
    damaged: tuple[str, ...]
    generated_from: str
    written: str

    @property
    def records(self) -> list[Record]:
        """Every record that could be read."""
        return self.query.records

    @functools.cached_property
    def makers(self) -> dict[str, str]:
        """What made each record, by the key of its run on the page."""
        return collect_makers(zip(self.query.runs, self.query.records, strict=True))

    @property
    def headline(self) -> str:
        """`7 of 90 cells at paper scale`."""
        return coverage.write_headline(self.covered)

    @property
    def sentences(self) -> list[str]:
        """What can be concluded."""
        limits = coverage.write_limits(table.result for table in self.tables)
        return [*coverage.write_sentences(self.covered), *limits]

    @property
    def coverage(self) -> ReportTable:
        """A line for each table and setting."""
        return coverage.list_coverage(self.covered)

    @property
    def origin(self) -> str:
        """How many records it was made from."""
        counts = Counter(record["status"] for record in self.records)
        parts = [f"{number:,} {status}" for status, number in sorted(counts.items(), reverse=True)]
        by_status = f": {', '.join(parts)}" if len(parts) > 1 else ""
        return f"Made from {counts.total():,} {'record' if counts.total() == 1 else 'records'}{by_status}."


def collect_report(
    root: Path,
    method: str = OWN_METHOD,
    scale: str = "",
    tables: Sequence[str | Path] = (),
    without_host: bool = True,
) -> Report:
    """Collect a report from the records under `root`, which may hold none.

    scale: only this one, and what was stretched from it; tables: by name or path, the suite's own for none;
    without_host: leave what names the machine or the user out of the records.

    Raises:
        UserError: there is no such scale or table.
    """
    if scale:
        get_scale(base_scale(scale))
    specifications = [load_table(table) for table in tables or table_names()]
    rows = dict.fromkeys(row.name for table in specifications for row in table.rows)
    if method != OWN_METHOD and method not in (*rows, *method_names()):
        raise unknown_name("row of the tables or method", method, dict.fromkeys((*rows, *method_names())))
    store = Store(root)
    records, damaged = store.read_all()
    if without_host:
        records = [anonymise_record(record) for record in records]
    query = RecordQuery(records, store.teacher_metrics())
    pairs = list(zip(query.runs, query.records, strict=True))
    settings = [
        found for found in query.settings() if not scale or scale in (found.scale.name, base_scale(found.scale.name))
    ]
    settings.sort(key=_order)
    results = [result for table in specifications for result in make_table_results(table, query, settings)]
    edges, unreadable = runs.load_edges(pairs, {run.id: store.folder(run) for run in query.runs})
    damaged += unreadable
    if without_host:
        damaged = [line.replace(str(root), root.name) for line in damaged]
    return Report(
        method=method,
        scale=scale,
        query=query,
        tables=tuple(_reports(results, method, edges)),
        covered=tuple(_covered(specifications, results)),
        runs=runs.list_runs(pairs),
        provenance=runs.list_provenance(query.records),
        exported=runs.list_edges(pairs, edges),
        curves=runs.collect_curves(pairs),
        weights=_find_weights(store, query.runs),
        damaged=tuple(damaged),
        generated_from=describe_environment(),
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _find_weights(store: Store, found: Sequence[Run]) -> dict[str, str]:
    """Find the students' weights that were kept: files by the id of their run, as paths in the folder of runs."""
    paths = {run.id: store.folder(run) / "student.safetensors" for run in found}
    return {name: str(path.relative_to(store.root)) for name, path in paths.items() if path.is_file()}


def _reports(results: Sequence[TableResult], method: str, edges: runs.Edges) -> list[TableReport]:
    used: Counter[str] = Counter()
    reports = []
    for result in results:
        # A record may say anything of its dataset; a file's name, which formats take as it is, may not.
        stem = re.sub(r"[^A-Za-z0-9._-]", "+", result.stem)
        used[stem] += 1
        # Settings that differ in more than a name says (other images of the same name) must not share a file.
        stem = stem if used[stem] == 1 else f"{stem}_{used[stem]}"
        own = method if any(row.name == method for row in result.table.rows) else None
        reports.append(
            TableReport(
                result=result,
                stem=stem,
                differences=metrics.list_differences(result, own) if own else None,
                metrics=metrics.list_metrics(result),
                costs=metrics.list_costs(result, edges),
                prices=metrics.list_prices(result),
                gains=list_gains(result) if result.table.gains else None,
            )
        )
    return reports


def _covered(tables: Sequence[Table], results: Sequence[TableResult]) -> list[Coverage]:
    """Compute each result's coverage, with a line at paper scale also for tables that were only run at others."""
    covered = []
    for table in tables:
        names = {row.name for row in table.rows}
        own = [coverage.make_coverage(result, names) for result in results if result.table.name == table.name]
        if not any(base_scale(one.scale) == PAPER for one in own):
            own.insert(0, coverage.make_coverage(empty_result(table), names))
        covered += own
    return covered


def _order(setting: ExperimentSetting) -> tuple[int, str, str, str]:
    """Order settings with paper scale first."""
    names = [*reversed(SCALES)]
    base = base_scale(setting.scale.name)
    place = names.index(base) if base in names else len(names)
    return place, setting.scale.name, setting.dataset, setting.protocol.content
