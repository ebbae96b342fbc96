"""Choose a method's options on held-out images: `python -m benchmark.tune --method LSSKD --grid alpha=0.3,0.8`.

The test set is never looked at: every run is trained on what is left of the training set and evaluated on the rest.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmark.analysis.notes import variant_suffix
from benchmark.cli.app import format_command, run_app
from benchmark.cli.options import (
    Assignments,
    DataRoot,
    DatasetName,
    DeviceName,
    Epochs,
    PrecisionName,
    ProtocolName,
    Reports,
    Runs,
    ScaleName,
    Threads,
    Workers,
)
from benchmark.core.errors import UserError, unknown_name
from benchmark.core.protocols import get_protocol, get_scale
from benchmark.core.spec import Run
from benchmark.core.statistics import Summary, summarise
from benchmark.core.text import counted
from benchmark.data import load_dataset
from benchmark.execution.executor import ExecutionPlan
from benchmark.execution.progress import announce_if_slow, exit_code
from benchmark.executors import make_executor
from benchmark.io.files import check_writable, write_text
from benchmark.planning.checks import MANY_RUNS, check_methods, check_records, confirm_size
from benchmark.planning.overrides import parse_pair, parse_settings, parse_value, reject_unused_overrides
from benchmark.planning.request import RunGroup, RunOptions, collect_dependencies
from benchmark.plugins.registry import method_names
from benchmark.results.store import Store
from benchmark.training.settings import TrainSettings
from tables.specification import DEFAULT_PROTOCOL, load_table

MOST_COMBINATIONS = 1000
"""Of a grid: each is a run at least."""
Combination = dict[str, Any]
Ranked = tuple[Combination, Summary | None]


def main(
    method: Annotated[str, typer.Option(help="The method to tune.")],
    grid: Annotated[list[str], typer.Option(help="Values of options: alpha=0.3,0.8,beta=1,2 (may be repeated).")],
    pair: Annotated[str, typer.Option(help="Teacher and student.")] = "WRN-40-2>WRN-16-2",
    validation: Annotated[
        float,
        typer.Option(
            "--val-fraction", "--validation", min=0.01, max=0.9, help="Share of the training images held out."
        ),
    ] = 0.1,
    scale: ScaleName = "demo",
    epochs: Epochs = None,
    protocol: ProtocolName = "lsskd",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs of each combination.")] = 1,
    settings: Assignments = None,
    dataset: DatasetName = "",
    data_root: DataRoot = None,
    device: DeviceName = "auto",
    precision: PrecisionName = "auto",
    workers: Workers = None,
    threads: Threads = 1,
    runs: Runs = Path("runs"),
    reports: Reports = Path("reports"),
    yes: Annotated[bool, typer.Option("--yes", help=f"Plan more than {MANY_RUNS:,} runs without being asked.")] = False,
) -> int:
    """Train every combination of the grid and rank them by held-out accuracy."""
    console = Console()
    teacher, student = parse_pair(pair)
    if method not in method_names():
        raise unknown_name("method", method, method_names())
    combinations = parse_grid(grid)
    reject_grid_overlap(method, combinations, settings or ())
    count = len(combinations) * seeds
    confirm_size(count, yes)
    executor = make_executor("local", device, workers, processes=1, profile=None, waits=True)
    base_options = RunOptions(
        scale=get_scale(scale).name,
        device=executor.device,
        protocol=protocol,
        epochs=epochs,
        precision=precision,
        validation=validation,
        bf16=executor.bf16,
    )
    option_sets = [
        replace(base_options, settings=(*(settings or ()), *to_assignments(method, values))) for values in combinations
    ]
    for each in option_sets:
        parse_settings(list(each.settings), get_protocol(protocol))
    check_writable(runs, "--runs")
    check_writable(reports, "--reports")
    usual = load_table("II").dataset_for(scale)
    source = dataset or usual
    images = load_dataset(source, data_root)
    with announce_if_slow(f"planning {counted(count, 'run')} ..."):
        factories = [each.make_factory(protocol, images) for each in option_sets]
        planned = [[factory.run(method, student, teacher, seed) for seed in range(seeds)] for factory in factories]
        group = RunGroup(f"{method} on {images.name}", source, images, tuple(itertools.chain(*planned)))
        reject_unused_overrides(settings or (), (run.method for run in collect_dependencies(group.runs)))
        check_methods(group.runs, images)
        executor.check_runs(group.runs)
        store = Store(runs)
        for line in check_records(store, collect_dependencies(group.runs)):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        plan = ExecutionPlan(f"tune-{method}", [group], executor.plan_jobs([group], store))
    train_settings = TrainSettings(runs, "", data_root, str(executor.device), threads, command=format_command())
    summary = executor.train(plan, train_settings, store, console)
    if summary.stopped:
        return exit_code(summary, console)
    ranking = rank(combinations, planned, store)
    _print(console, ranking, f"{method} on {student}: accuracy on {validation:.0%} of the training images, held out")
    others = variant_suffix(replace(base_options, settings=tuple(settings or ())).make_factory(protocol, images))
    path = reports / f"{make_stem(planned[0][0], usual, combinations, others)}.csv"
    write_text(path, to_csv(ranking))
    console.print(f"written: {path}", highlight=False, soft_wrap=True)
    return exit_code(summary, console)


def parse_grid(texts: Sequence[str]) -> list[Combination]:
    """List every combination of the values in texts such as `alpha=0.3,0.8,beta=1,2`.

    Raises:
        UserError: a text that does not begin with `option=value`, an option named twice, or too many combinations.
    """
    values: dict[str, list[Any]] = {}
    for text in texts:
        option = None
        for word in filter(None, map(str.strip, text.split(","))):
            name, equals, value = word.partition("=")
            if equals:
                option, word = name.strip(), value.strip()
                if option in values:
                    raise UserError(f"--grid names {option!r} twice; write its values after one another: {option}=1,2")
                values[option] = []
            if option is None or not word:
                raise UserError(f"--grid {text!r} is not of the form option=value,value,option=value")
            values[option].append(parse_value(word))
    if not values:
        raise UserError("--grid is empty; write option=value,value, such as alpha=0.3,0.8")
    if (count := math.prod(map(len, values.values()))) > MOST_COMBINATIONS:
        raise UserError(f"--grid has {count:,} combinations; allowed: at most {MOST_COMBINATIONS:,}")
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def reject_grid_overlap(method: str, combinations: Sequence[Combination], settings: Sequence[str]) -> None:
    """Refuse options that both --grid and --set give.

    Raises:
        UserError: there is one.
    """
    fields = {assignment.partition("=")[0] for assignment in settings}
    for option in combinations[0]:
        if f"{method}.{option}" in fields:
            raise UserError(f"--grid and --set both set {method}.{option}; remove one of them")


def make_stem(run: Run, usual_dataset: str, combinations: Sequence[Combination], variant: str) -> str:
    """Name the file of a ranking, so that every pair, scale, dataset, grid and setting has a file of its own.

    run: any of those that are ranked; variant: other changed options (`benchmark.analysis.notes.variant_suffix`).
    """
    parts = ["tune", run.method, run.student, run.scale.name]
    if run.dataset != usual_dataset:
        parts.append(run.dataset)
    if run.protocol.name != DEFAULT_PROTOCOL:
        parts.append(run.protocol.name)
    made = repr((run.teacher_network, combinations, variant))
    return re.sub(r"[^A-Za-z0-9._-]", "+", "_".join([*parts, hashlib.sha256(made.encode()).hexdigest()[:8]]))


def to_assignments(method: str, combination: Combination) -> list[str]:
    """Write a combination as values of `--set`."""
    return [f"{method}.{name}={format_value(value)}" for name, value in combination.items()]


def format_value(value: Any) -> str:
    """Write a value as on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def rank(combinations: Sequence[Combination], planned: Sequence[Sequence[Run]], store: Store) -> list[Ranked]:
    """Rank combinations by their held-out accuracy over finished seeds; those without any (None) come last."""
    ranked: list[Ranked] = []
    for combination, runs in zip(combinations, planned, strict=True):
        records = [record for run in runs if (record := store.record(run)) and record["status"] == "finished"]
        values = [record["final"]["top1"] for record in records]
        ranked.append((combination, summarise(values) if values else None))
    return sorted(ranked, key=lambda entry: entry[1].mean if entry[1] else -1.0, reverse=True)


def to_csv(ranking: Sequence[Ranked]) -> str:
    """Write the ranking as CSV: the options, the mean held-out accuracy in %, its standard deviation and n."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*ranking[0][0], "held_out_top1", "std", "n"])
    for combination, summary in ranking:
        mean = f"{summary.mean:.4f}" if summary else ""
        std = f"{summary.std:.4f}" if summary and summary.std is not None else ""
        options = [format_value(value) for value in combination.values()]
        writer.writerow([*options, mean, std, summary.n if summary else 0])
    return text.getvalue()


def _print(console: Console, ranking: Sequence[Ranked], title: str) -> None:
    screen = Table(*ranking[0][0], "held-out top-1 %", "n", box=None, pad_edge=False)
    for combination, summary in ranking:
        spread = f" ± {summary.std:.2f}" if summary and summary.std is not None else ""
        accuracy = f"{summary.mean:.2f}{spread}" if summary else "no finished run"
        options = [format_value(value) for value in combination.values()]
        screen.add_row(*options, accuracy, str(summary.n if summary else 0))
    console.print(title, highlight=False, soft_wrap=True)
    console.print(screen)


if __name__ == "__main__":
    run_app(main, "python -m benchmark.tune")
