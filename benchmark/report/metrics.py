"""List what stands behind a table's cells: paired differences, all metrics, and the price of every row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmark.core.statistics import LEAST, LEVEL, PairedDifference, common_seeds, paired_difference, pooled_difference
from benchmark.core.text import format_minus, format_signed
from benchmark.report.table import (
    EMPTY,
    ReportCell,
    ReportColumn,
    ReportTable,
    compute_mean,
    format_count,
    format_difference,
    format_mebibytes,
    format_number,
    format_power,
    format_spread,
    format_word,
    make_word_columns,
)
from tables.result import Cell, Price, TableResult
from tables.specification import BASELINE, TEACHER

HOUR = 3600.0


def find_measured_cells(result: TableResult, teachers: bool = True) -> Iterator[Cell]:
    """Find the cells with a finished run, the teachers' first; of columns that share their runs only the first."""
    seen = set()
    for row in (*([TEACHER] if teachers else []), *(row.name for row in result.table.rows)):
        for column in result.table.columns:
            cell = result.cell(row, column.name)
            key = (cell.row, tuple(run.run for run in cell.finished))
            if cell.finished and key not in seen:
                seen.add(key)
                yield cell


def list_differences(result: TableResult, row: str) -> ReportTable | None:
    """List a row minus every other one, paired by seed, by column and over columns; None where nothing can be paired.

    (Pairing and pooling are those of `benchmark.core.statistics`.)
    """
    columns = [column.name for column in result.table.columns]
    same_metric = len({column.metric for column in result.table.columns}) == 1
    pooled = len(columns) > 1 and same_metric
    lines: list[tuple[ReportCell, ...]] = []
    counts: list[int] = []
    for other in result.table.rows:
        pairs = [(result.cell(row, name).by_seed(), result.cell(other.name, name).by_seed()) for name in columns]
        sharing = [pair for pair in pairs if common_seeds(pair)]
        if other.name == row or not sharing:
            continue
        found = [paired_difference(*pair) if common_seeds(pair) else None for pair in pairs]
        counts += [difference.n for difference in found if difference]
        means = [_pooled(sharing, len(columns))] if pooled else []
        lines.append((format_word(other.name), *map(_difference, found), *means))
    if not lines:
        return None
    headings = [*make_word_columns("minus"), *map(ReportColumn, columns)]
    if pooled:
        headings.append(
            ReportColumn("mean of\nthe columns", "at each seed the mean over the columns that both rows have")
        )
    notes = _caveats(min(counts), max(counts))
    return ReportTable(f"{row} minus the other rows, paired by seed", tuple(headings), tuple(lines), notes)


def _caveats(fewest: int, most: int) -> tuple[str, ...]:
    notes = [
        "In percentage points. At one seed the two methods of a pair saw the same batches and started from the same "
        "weights, as far as their rows allow: AB starts from a first stage of its own, rows with Cutout and CutMix see "
        "other images, and rows that are as long as another go on for more epochs. In "
        f"brackets the {LEVEL:.0%} interval of the mean, by Student's t over seeds; p is two-sided, of no difference, "
        "and not corrected for the number of comparisons."
    ]
    if fewest < LEAST:
        where = f"There are fewer than {LEAST} seeds, so" if most < LEAST else f"Where n is below {LEAST}"
        notes.append(
            f"{where} no interval and no p value is shown: one difference says nothing of how much it varies, "
            "and two give an interval too wide to tell anything."
        )
    return tuple(notes)


def _difference(difference: PairedDifference | None) -> ReportCell:
    if difference is None:
        return EMPTY
    lines = []
    if difference.interval is not None:
        low, high = difference.interval
        lines.append(f"[{format_minus(f'{low:.2f}')}, {format_minus(f'{high:.2f}')}]")
    seeds = f"n={difference.n}"
    if difference.p_value is not None:
        p_value = "p < 0.001" if difference.p_value < 0.001 else f"p = {difference.p_value:.3f}"
        seeds = f"{p_value}, {seeds}"
    return ReportCell(format_signed(difference.mean), difference.mean, "\n".join([*lines, seeds]))


def _pooled(pairs: list[tuple[dict[int, float], dict[int, float]]], columns: int) -> ReportCell:
    if not common_seeds(by_seed for pair in pairs for by_seed in pair):
        return ReportCell("\N{EN DASH}", None, "no seed that all columns have")
    found = _difference(pooled_difference(pairs))
    of = "" if len(pairs) == columns else f", {len(pairs)} of {columns} columns"
    return ReportCell(found.text, found.key, found.below + of)


def list_metrics(result: TableResult) -> ReportTable | None:
    """List every metric of the last epoch, mean and standard deviation over seeds; None where nothing was measured."""
    lines = []
    cells = list(find_measured_cells(result))
    staged = any(_stages(cell, name) is not EMPTY for cell in cells for name in ("stages", "stages_joint"))
    for cell in cells:
        line = [format_word(cell.row), format_word(cell.column), format_number(len(cell.finished), 0)]
        for name, decimals in (("top1", 2), ("top5", 2), ("nll", 3), ("ece", 2)):
            known = [float(seed.metrics[name]) for seed in cell.finished if seed.metrics.get(name) is not None]
            line.append(format_spread(known, decimals))
        if staged:
            line += [_stages(cell, "stages"), _stages(cell, "stages_joint")]
        lines.append(tuple(line))
    if not lines:
        return None
    headings = [
        *make_word_columns("method", "column"),
        ReportColumn("n", "the number of seeds"),
        ReportColumn("top-1, %"),
        ReportColumn("top-5, %"),
        ReportColumn("NLL", "negative log-likelihood, the mean cross entropy in nats"),
        ReportColumn("ECE, %", "expected calibration error, 15 bins of equal width"),
    ]
    if staged:
        headings += [
            ReportColumn(
                "stages, %", "top-1 of the classifier of each stage, from the first on: class scores, upright images"
            ),
            ReportColumn("stages, joint, %", "the same for class and rotation at once, over the four rotated views"),
        ]
    return ReportTable("All metrics of the last epoch", tuple(headings), tuple(lines))


def _stages(cell: Cell, name: str) -> ReportCell:
    """Compute the accuracy of every stage, the mean over the seeds that record it."""
    known = [seed.metrics[name] for seed in cell.finished if seed.metrics.get(name)]
    if not known or len({len(stages) for stages in known}) > 1:
        return EMPTY
    means = [sum(stages) / len(known) for stages in zip(*known, strict=True)]
    return ReportCell(" · ".join(f"{mean:.1f}" for mean in means), means[-1])


def average_price(cell: Cell) -> Price:
    """Average what the runs of a cell cost; None where the record of one does not tell."""
    names = [field.name for field in dataclasses.fields(Price)]
    return Price(*(compute_mean([getattr(seed.price, name) for seed in cell.finished]) for name in names))


def list_costs(result: TableResult, edges: Mapping[str, Mapping[str, Any]] | None = None) -> ReportTable | None:
    """List the price of every measured cell, the mean over seeds; None where nothing was measured.

    edges: by run id, what `benchmark.export` measured; latencies are listed where there is some.
    """
    prices = [(cell, average_price(cell)) for cell in find_measured_cells(result)]
    totals = {cell.column: price.total_multiply_adds for cell, price in prices if cell.row == BASELINE}
    lines = []
    for cell, price in prices:
        total, baseline = price.total_multiply_adds, totals.get(cell.column)
        with_teacher = dataclasses.replace(price, seconds=price.total_seconds)
        lines.append(
            (
                format_word(cell.row),
                format_word(cell.column),
                format_number(len(cell.finished), 0),
                format_number(price.epochs, 0),
                format_power(price.multiply_adds),
                format_power(price.teacher_multiply_adds),
                format_number(total / baseline, 2, "\N{MULTIPLICATION SIGN}") if total and baseline else EMPTY,
                _hours(price.seconds),
                _hours(price.teacher_seconds),
                format_number(price.seconds_per_epoch, 1),
                format_number(with_teacher.seconds_per_epoch, 1),
                format_count(price.parameters or None),
                format_count(price.parameters_in_training),
                format_power(price.inference_multiply_adds or None),
                format_mebibytes(price.peak_memory_bytes),
                *_latencies(cell, edges or {}),
            )
        )
    if not lines:
        return None
    shown = len(_COST_HEADINGS) + (len(_EDGE_HEADINGS) if any(line[-1] is not EMPTY for line in lines) else 0)
    headings = (*_COST_HEADINGS, *_EDGE_HEADINGS)[:shown]
    return ReportTable("What each row costs", headings, tuple(line[:shown] for line in lines), _COST_NOTES)


def _latencies(cell: Cell, edges: Mapping[str, Mapping[str, Any]]) -> tuple[ReportCell, ReportCell]:
    """Compute median milliseconds for one image, in fp32 and int8: the mean over the seeds that were exported."""
    found = [edges[seed.run] for seed in cell.finished if seed.run in edges]
    fp32, int8 = (
        compute_mean([edge[kind]["latency"]["1"]["median_ms"] for edge in found]) for kind in ("fp32", "int8")
    )
    return format_number(fp32, 3), format_number(int8, 3)


def list_prices(result: TableResult) -> ReportTable | None:
    """List the cost and gain of each method, as multiples of Baseline's, averaged over the columns that have both.

    None where nothing was measured.
    """
    cells = list(find_measured_cells(result, teachers=False))
    baselines = {cell.column: cell for cell in cells if cell.row == BASELINE}
    lines = []
    for row in dict.fromkeys(cell.row for cell in cells):
        own = [cell for cell in cells if cell.row == row]
        pairs = [(cell, baselines[cell.column]) for cell in own if cell.column in baselines]
        gains = [
            paired_difference(cell.by_seed(), base.by_seed()).mean
            for cell, base in pairs
            if common_seeds([cell.by_seed(), base.by_seed()])
        ]
        gained = format_difference(compute_mean(gains))
        if gains and len(gains) != len(own):
            gained = dataclasses.replace(gained, below=f"over {len(gains)}")
        prices = [average_price(cell) for cell in own]
        both = [(average_price(cell), average_price(base)) for cell, base in pairs]
        lines.append(
            (
                format_word(row),
                format_number(len(own), 0),
                gained,
                _times(both, "multiply_adds"),
                _times(both, "total_multiply_adds"),
                _times(both, "seconds_per_epoch"),
                _hours(compute_mean([price.total_seconds for price in prices])),
                _times(both, "parameters_in_training"),
                _times(both, "parameters"),
                _times(both, "inference_multiply_adds"),
                format_mebibytes(compute_mean([price.peak_memory_bytes for price in prices])),
            )
        )
    return ReportTable("Price of each method", _PRICE_HEADINGS, tuple(lines), _PRICE_NOTES) if lines else None


def _times(prices: Sequence[tuple[Price, Price]], name: str) -> ReportCell:
    """Average one part of prices, as a multiple of Baseline's, over columns."""
    ratios = [(getattr(own, name), getattr(base, name)) for own, base in prices]
    known = [own / base if own is not None and base else None for own, base in ratios]
    return format_number(compute_mean(known), 2, "\N{MULTIPLICATION SIGN}")


_PRICE_HEADINGS = (
    *make_word_columns("method"),
    ReportColumn("columns", "how many of the table's are measured"),
    ReportColumn("gain,\npoints", "over Baseline, paired by seed, the mean over columns"),
    ReportColumn("training", "multiply-adds of training the row, its teacher's forwards included"),
    ReportColumn("with\nteacher", "the same with the training of all that it depends on"),
    ReportColumn("time of\nan epoch", "its teacher's forwards included, on whatever device the runs had"),
    ReportColumn("device\nhours", "of a run with all that it depends on, the mean over columns"),
    ReportColumn("parameters,\ntraining", "of all that learns"),
    ReportColumn("parameters,\nuse", "of the student as it is used"),
    ReportColumn("multiply-adds,\nuse", "of the student for one image"),
    ReportColumn("peak\nmemory", "of the process that trained it, which may have trained others beside it"),
)
_PRICE_NOTES = (
    "\N{MULTIPLICATION SIGN}: a multiple of what Baseline needs for the same student, the mean over columns.",
)

_COST_HEADINGS = (
    *make_word_columns("method", "column"),
    ReportColumn("n", "the number of seeds"),
    ReportColumn("epochs"),
    ReportColumn("training", "multiply-adds of training the run, its teacher's forwards included"),
    ReportColumn("its\nteacher", "multiply-adds of training all that it depends on: teacher, head, first stage"),
    ReportColumn("of\nBaseline", "training and teacher together, as a multiple of row Baseline's in the same column"),
    ReportColumn("device\nhours", "of training the run, its share of the teacher's forwards included"),
    ReportColumn("its\nteacher's", "device hours of training all that it depends on"),
    ReportColumn("s/epoch", "seconds of an epoch, its teacher's forwards included"),
    ReportColumn("with\nteacher", "the same with the training of its teacher spread over the epochs"),
    ReportColumn("parameters", "of the student as it is used"),
    ReportColumn("in\ntraining", "parameters of all that learns: student, branches, heads"),
    ReportColumn("per\nimage", "multiply-adds of the student for one image, as it is used"),
    ReportColumn("peak\nmemory", "of the process that trained it, which may have trained others beside it"),
)
_EDGE_HEADINGS = (
    ReportColumn(
        "fp32,\nms", "median latency for one image of an exported network, on the processor that it was exported on"
    ),
    ReportColumn("int8,\nms", "the same in int8"),
)
_COST_NOTES = (
    "Means over the n seeds. A teacher that several runs share is counted in full for each of them. Device hours "
    "depend on the device and on what else it did; multiply-adds do not.",
)


def _hours(seconds: float | None) -> ReportCell:
    if seconds is None:
        return EMPTY
    hours = seconds / HOUR
    return ReportCell(f"{hours:,.2f}" if hours >= 0.005 or not hours else "< 0.01", hours)
