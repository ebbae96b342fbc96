"""List all runs of a store, their curves, what made them, and what was measured of exported ones."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError
from benchmark.core.protocols import CHANGEABLE, PROTOCOLS
from benchmark.core.spec import Protocol, Run
from benchmark.core.text import counted, format_minus
from benchmark.export import FIGURES, load_edge
from benchmark.planning.request import describe_run as describe_planned_run
from benchmark.report.table import (
    ReportCell,
    ReportColumn,
    ReportTable,
    format_count,
    format_number,
    format_power,
    format_word,
    make_word_columns,
)
from benchmark.results.provenance import changed_settings
from benchmark.results.record import Record
from tables.escaping import plain

MEBIBYTE = 2**20
MOST_POINTS = 40_000
"""Of all curves of a page together: half a megabyte."""

Pairs = Sequence[tuple[Run, Record]]
Edges = dict[str, dict[str, Any]]


def make_key(run_id: str) -> str:
    """Make the key of a run on the page: the digits that its id ends with."""
    return run_id.rpartition("-")[2]


def describe_run(run: Run) -> str:
    """Describe a run by its method and what differs from the default; by the name alone if the method is gone."""
    try:
        return describe_planned_run(run)
    except UserError:
        return run.method


def describe_protocol_changes(protocol: Protocol) -> str:
    """Describe what was changed of a named protocol: `weight_decay = 0.0001`; empty for nothing."""
    usual = PROTOCOLS.get(protocol.name, protocol)
    changes = {name: value for name, value in protocol.changes_from(usual).items() if name in CHANGEABLE}
    return ", ".join(f"{name} = {value}" for name, value in changes.items())


def list_runs(pairs: Pairs) -> ReportTable:
    """List every record, with what differs from the default."""
    headings = (
        *make_word_columns("run", "student", "teacher", "dataset", "scale", "protocol"),
        ReportColumn("epochs"),
        *make_word_columns("precision"),
        ReportColumn("seed"),
        *make_word_columns("status"),
        ReportColumn("top-1, %", "after the last epoch"),
        *make_word_columns("written"),
    )
    return ReportTable("All runs", headings, tuple(_line(run, record) for run, record in pairs))


def _line(run: Run, record: Record) -> tuple[ReportCell, ...]:
    changes = describe_protocol_changes(run.protocol)
    made = record["provenance"]
    name = describe_run(run)
    return (
        ReportCell(name, name.casefold(), "", make_key(run.id) if has_curves(record) else ""),
        format_word(run.student),
        format_word(
            run.teacher_network or "", "from a file" if run.teacher and not isinstance(run.teacher, Run) else ""
        ),
        format_word(run.dataset, f"{run.validation:.0%} held out" if run.validation else ""),
        format_word(run.scale.name),
        format_word(run.protocol.name, changes),
        format_number(run.schedule.epochs, 0),
        format_word(run.precision),
        format_number(run.seed, 0),
        format_word(*_status(record)),
        format_number(record.get("final", {}).get("top1")),
        format_word(str(made.get("written", ""))[:10]),
    )


def _status(record: Record) -> tuple[str, str]:
    """Describe how a run ended and what differed between its pieces; then why, or in how many pieces."""
    pieces = record["provenance"].get("pieces")
    pieces = [part for part in pieces if isinstance(part, dict)] if isinstance(pieces, list) else []
    mixed = [name.replace("_", " ") for name in changed_settings(pieces)]
    text = record["status"] + (f", pieces on different {', '.join(mixed)}" if mixed else "")
    return text, str(record.get("reason", "")) or (f"in {len(pieces)} pieces" if len(pieces) > 1 else "")


def has_curves(record: Record) -> bool:
    """Check whether there is more than a point to draw."""
    return len(record.get("epochs", ())) > 1


def collect_curves(pairs: Pairs) -> dict[str, dict[str, Any]]:
    """Collect by run what is drawn of it: its name `n`, and by epoch the loss `l` and the test accuracy `a` in %.

    Numbers are rounded to what a drawing can show. Of more than `MOST_POINTS` epochs in all only every k-th one of a
    run is kept, counted from its last; its curve then has `e`: its first epoch and k.
    """
    drawn = {}
    pairs = [(run, record) for run, record in pairs if has_curves(record)]
    step = math.ceil(sum(len(record["epochs"]) for _, record in pairs) / MOST_POINTS)
    for run, record in pairs:
        first = (len(record["epochs"]) - 1) % step
        epochs = record["epochs"][first::step]
        name = f"{describe_run(run)}, {run.student}, {run.scale.name}, seed {run.seed}"
        curve: dict[str, Any] = {"n": plain(name), "l": [_rounded(epoch.get("loss")) for epoch in epochs]}
        if any("top1" in epoch for epoch in epochs):
            curve["a"] = [_hundredths(epoch.get("top1")) for epoch in epochs]
        if step > 1:
            curve["e"] = [first + 1, step]
        drawn[make_key(run.id)] = curve
    return drawn


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def _hundredths(value: float | None) -> float | None:
    return round(value, 2) if value is not None and math.isfinite(value) else None


def list_provenance(records: Iterable[Record]) -> ReportTable:
    """List what made the runs, a line for each different environment. Hosts and commands stay in the records."""
    fields = ("version", "commit", "torch", "cuda", "python", "device_name", "threads", "precision")
    written: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for record in records:
        made = record["provenance"]
        values = tuple("" if made.get(field) is None else str(made[field]) for field in fields)
        written[values].append(str(made.get("written", ""))[:10])
    lines = []
    for (version, commit, *rest), days in sorted(written.items(), key=lambda entry: -len(entry[1])):
        short = commit[:12] + ("+dirty" if commit.endswith("+dirty") else "")
        first, last = min(days), max(days)
        period = first if first == last else f"{first} to {last}"
        words = map(format_word, (version, short, *rest))
        lines.append((*words, format_number(len(days), 0), format_word(period)))
    headings = (
        *make_word_columns("version"),
        ReportColumn("commit", "+dirty: files differed from it", numeric=False),
        *make_word_columns("torch", "CUDA", "Python", "device"),
        ReportColumn("threads"),
        *make_word_columns("precision"),
        ReportColumn("runs"),
        *make_word_columns("written"),
    )
    return ReportTable("What made the runs", headings, tuple(lines))


def load_edges(pairs: Pairs, folders: Mapping[str, Path]) -> tuple[Edges, list[str]]:
    """Load what `benchmark.export` measured, by run id, and a line on each of its files that cannot be read.

    folders: of the runs, by id.
    """
    found: Edges = {}
    damaged = []
    for run, _ in pairs:
        try:
            edge = load_edge(folders[run.id])
            if edge is not None:
                _edge_line(run, edge)
                found[run.id] = edge
        except UserError as error:
            damaged.append(str(error))
        except (KeyError, TypeError, ValueError) as error:
            path = folders[run.id] / FIGURES
            damaged.append(f"{path} cannot be read ({type(error).__name__}); delete it and export the run again")
    return found, damaged


def list_edges(pairs: Pairs, found: Edges) -> ReportTable | None:
    """List the exported runs; None if there are none."""
    lines = [_edge_line(run, found[run.id]) for run, _ in pairs if run.id in found]
    return ReportTable("Exported networks", _EDGE_HEADINGS, tuple(lines)) if lines else None


_EDGE_HEADINGS = (
    *make_word_columns("run", "student"),
    ReportColumn("seed"),
    *make_word_columns("scale"),
    ReportColumn("parameters", "in the file: the Baseline network's, or more where the method's own modules predict"),
    ReportColumn("per\nimage", "multiply-adds, equal to the Baseline network's"),
    ReportColumn("logits\noff by", "largest difference between the file's logits and the training network's"),
    ReportColumn("fp32,\nMiB"),
    ReportColumn("int8,\nMiB"),
    ReportColumn("fp32\ntop-1, %"),
    ReportColumn("int8\ntop-1, %"),
    ReportColumn("lost,\npoints", "top-1 in fp32 minus top-1 in int8"),
    ReportColumn("fp32, ms,\nbatch 1", "median milliseconds for a batch of one image; below, 10th to 90th percentile"),
    ReportColumn("int8, ms,\nbatch 1", "the same in int8"),
    ReportColumn("fp32, ms,\nbatch 64", "the same for a batch of 64"),
    ReportColumn("int8, ms,\nbatch 64", "the same in int8"),
    ReportColumn("processor", "with the threads used and the version of onnxruntime", numeric=False),
)


def _edge_line(run: Run, edge: Mapping[str, Any]) -> tuple[ReportCell, ...]:
    small, large = edge["int8"], edge["fp32"]
    threads = counted(edge["threads"], "thread")
    return (
        format_word(describe_run(run)),
        format_word(run.student),
        format_number(run.seed, 0),
        format_word(run.scale.name),
        format_count(edge["parameters"]),
        format_power(edge["multiply_adds"]),
        ReportCell(format_minus(f"{edge['logits']['difference']:.1e}"), edge["logits"]["difference"]),
        format_number(large["bytes"] / MEBIBYTE),
        format_number(small["bytes"] / MEBIBYTE),
        format_number(large["top1"]),
        format_number(small["top1"]),
        format_number(edge["loss"]["top1"]),
        *(_milliseconds(kind["latency"][batch]) for batch in ("1", "64") for kind in (large, small)),
        format_word(edge["processor"], f"{threads}, onnxruntime {edge['onnxruntime']}"),
    )


def _milliseconds(latency: dict[str, float]) -> ReportCell:
    return ReportCell(
        f"{latency['median_ms']:.3g}", latency["median_ms"], f"{latency['p10_ms']:.3g} to {latency['p90_ms']:.3g}"
    )
