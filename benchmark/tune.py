"""Choose a method's options on held-out images: `python -m benchmark.tune --method LSSKD --grid alpha=0.3,0.8`.

The test set is never looked at: every run is trained on what is left of the training set and evaluated on the rest.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmark.command_line import (
    command,
    method_options,
    names,
    parse_pair,
    parse_settings,
    processors,
    run_app,
    value_of,
)
from benchmark.data import load_dataset
from benchmark.errors import UserError, unknown_name
from benchmark.files import check_writable, write_text
from benchmark.options import (
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
from benchmark.plan import Request, check_methods, jobs_for, with_dependencies
from benchmark.progress import exit_code, train
from benchmark.protocols import chosen_scale, protocol_named
from benchmark.registry import method_names
from benchmark.results import Store
from benchmark.spec import Run
from benchmark.statistics import Summary, summarise
from benchmark.training.devices import resolve_device
from benchmark.training.material import Settings
from tables.specification import load_table

app = typer.Typer(add_completion=False, rich_markup_mode=None)
Combination = dict[str, Any]
Ranked = tuple[Combination, Summary | None]


@app.command()
def main(
    method: Annotated[str, typer.Option(help="The method to tune.")],
    grid: Annotated[list[str], typer.Option(help="Values of options: alpha=0.3,0.8,beta=1,2 (may be repeated).")],
    pair: Annotated[str, typer.Option(help="Teacher and student.")] = "WRN-40-2>WRN-16-2",
    validation: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of the training images held out.")] = 0.1,
    scale: ScaleName = "demo",
    epochs: Epochs = None,
    protocol: ProtocolName = "lsskd",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each combination.")] = 1,
    settings: Assignments = None,
    dataset: DatasetName = "",
    data_root: DataRoot = None,
    device: DeviceName = "auto",
    precision: PrecisionName = "auto",
    workers: Workers = None,
    threads: Threads = 1,
    runs: Runs = Path("runs"),
    reports: Reports = Path("reports"),
) -> int:
    """Train every combination of the grid and rank them by held-out accuracy."""
    console = Console()
    teacher, student = parse_pair(pair)
    if method not in method_names():
        raise unknown_name("method", method, method_names())
    combinations = parse_grid(grid)
    recipe, options = parse_settings(settings or [], protocol_named(protocol))
    for combination in combinations:
        method_options([f"{method}.{name}={value_text(value)}" for name, value in combination.items()], recipe)
    check_writable(runs, "--runs")
    check_writable(reports, "--reports")
    source = dataset or load_table("II").dataset_for(scale)
    target = resolve_device(device)
    amount = chosen_scale(scale, epochs, recipe)
    images = load_dataset(source, data_root)

    def run(combination: Combination, seed: int) -> Run:
        request = Request(
            dataset=images.name,
            fingerprint=images.fingerprint,
            protocol=recipe,
            scale=amount,
            device=target,
            precision=precision,
            validation=validation,
            options=options | {method: options.get(method, {}) | combination},
        )
        return request.run(method, student, teacher, seed)

    planned = [[run(combination, seed) for seed in range(seeds)] for combination in combinations]
    store = Store(runs)
    place = Settings(runs, source, data_root, str(target), threads, command=command())
    processes = workers or (1 if target.type == "cuda" else processors())
    check_methods(list(itertools.chain(*planned)), images)
    for line in store.heal(with_dependencies(itertools.chain(*planned))):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    jobs = jobs_for(list(itertools.chain(*planned)), store, processes, images.image_size, len(images.train.labels))
    report = train(jobs, place, processes, console)
    if report.stopped:
        return exit_code(report, console)
    ranking = rank(combinations, planned, store)
    _print(console, ranking, f"{method} on {student}: accuracy on {validation:.0%} of the training images, held out")
    path = reports / f"tune_{method}_{student}.csv".replace("*", "+")
    write_text(path, as_csv(ranking))
    console.print(f"written: {path}", highlight=False, soft_wrap=True)
    return exit_code(report, console)


def parse_grid(texts: Sequence[str]) -> list[Combination]:
    """Every combination of the values in texts such as `alpha=0.3,0.8,beta=1,2`.

    Raises:
        UserError: a text that does not begin with `option=value`, or an option named twice.
    """
    values: dict[str, list[Any]] = {}
    for text in texts:
        option = None
        for part in names(text):
            name, equals, value = part.partition("=")
            if equals:
                option, part = name.strip(), value.strip()
                if option in values:
                    raise UserError(f"--grid names {option!r} twice; write its values after one another: {option}=1,2")
                values[option] = []
            if option is None or not part:
                raise UserError(f"--grid {text!r} is not of the form option=value,value,option=value")
            values[option].append(value_of(part))
    if not values:
        raise UserError("--grid is empty; write option=value,value, such as alpha=0.3,0.8")
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def value_text(value: Any) -> str:
    """A value as it would be written on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def rank(combinations: Sequence[Combination], planned: Sequence[Sequence[Run]], store: Store) -> list[Ranked]:
    """Combinations with their held-out accuracy over finished seeds, best first; those without any (None) last."""
    ranked: list[Ranked] = []
    for combination, runs in zip(combinations, planned, strict=True):
        records = [record for run in runs if (record := store.record(run)) and record["status"] == "finished"]
        values = [record["final"]["top1"] for record in records]
        ranked.append((combination, summarise(values) if values else None))
    return sorted(ranked, key=lambda entry: entry[1].mean if entry[1] else -1.0, reverse=True)


def as_csv(ranking: Sequence[Ranked]) -> str:
    """The ranking as text: the options, the mean held-out accuracy in %, its standard deviation and n."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*ranking[0][0], "held_out_top1", "std", "n"])
    for combination, summary in ranking:
        mean = f"{summary.mean:.4f}" if summary else ""
        std = f"{summary.std:.4f}" if summary and summary.std is not None else ""
        options = [value_text(value) for value in combination.values()]
        writer.writerow([*options, mean, std, summary.n if summary else 0])
    return text.getvalue()


def _print(console: Console, ranking: Sequence[Ranked], title: str) -> None:
    screen = Table(*ranking[0][0], "held-out top-1 %", "n", box=None, pad_edge=False)
    for combination, summary in ranking:
        spread = f" ± {summary.std:.2f}" if summary and summary.std is not None else ""
        accuracy = f"{summary.mean:.2f}{spread}" if summary else "no finished run"
        options = [value_text(value) for value in combination.values()]
        screen.add_row(*options, accuracy, str(summary.n if summary else 0))
    console.print(title, highlight=False, soft_wrap=True)
    console.print(screen)


if __name__ == "__main__":
    run_app(app, "python -m benchmark.tune")
