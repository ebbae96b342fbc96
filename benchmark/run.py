"""Plan a table, train what is missing, render it: `python -m benchmark.run --table II`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import torch
import typer
from rich.console import Console
from rich.table import Table as ScreenTable

from benchmark.backbones import build_branches, build_network, network_names
from benchmark.backbones.released import apply_to, load_released
from benchmark.catalogue import to_terminal
from benchmark.command_line import (
    assigned_files,
    command,
    names,
    parse_settings,
    processors,
    run_app,
)
from benchmark.data import dataset_names, load_dataset
from benchmark.data.augmentation import evaluation_batches
from benchmark.data.dataset import Dataset
from benchmark.errors import UserError, unknown_name
from benchmark.executor import Report
from benchmark.files import check_writable
from benchmark.grid import Grid, grid_of, results_of, selected
from benchmark.method import ROTATIONS
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
from benchmark.plan import Job, ReleasedFile, Request, check_methods, jobs_for, training_multiply_adds
from benchmark.progress import duration, exit_code, train
from benchmark.protocols import PROTOCOLS, SCALES, chosen_scale, protocol_named
from benchmark.registry import method_class, method_names
from benchmark.results import Store
from benchmark.spec import Augmentation, Protocol, ReleasedTeacher
from benchmark.training.devices import make_deterministic, placed, resolve_device
from benchmark.training.evaluation import BATCH_SIZE, evaluate
from benchmark.training.job import remove_finished_checkpoints
from benchmark.training.material import Settings, recipe_for
from tables import render
from tables.render import write_reports
from tables.result import TableResult
from tables.specification import Table, load_table, table_names

SEEDS = {"demo": 1, "quick": 1, "paper": 3}

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    table: Annotated[str, typer.Option(help="A table by name (see --list), or the TOML file of one of your own.")] = "",
    scale: ScaleName = "demo",
    protocol: ProtocolName = "lsskd",
    methods: Annotated[
        str, typer.Option(help="Only these rows: a list such as KD,LSSKD; any method of --list may be named.")
    ] = "",
    pairs: Annotated[str, typer.Option(help="Only these columns: a list such as 'WRN-40-2>WRN-16-2'.")] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs a cell. [demo, quick: 1; paper: 3]")] = None,
    epochs: Epochs = None,
    augment: Annotated[
        str, typer.Option(help="On top of the protocol's: cutout, cutmix or cutout+cutmix, for every row.")
    ] = "standard",
    dataset: DatasetName = "",
    data_root: DataRoot = None,
    device: DeviceName = "auto",
    precision: PrecisionName = "auto",
    workers: Workers = None,
    threads: Threads = 1,
    settings: Assignments = None,
    teacher_checkpoint: Annotated[
        list[str] | None, typer.Option(help="A teacher of your own: WRN-40-2=FILE (may be repeated).")
    ] = None,
    teacher_seeds: Annotated[
        Literal["shared", "paired"], typer.Option(help="One teacher for all seeds, or one for each.")
    ] = "shared",
    validation: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Evaluate on this share of the training images, held out.")
    ] = 0.0,
    runs: Runs = Path("runs"),
    reports: Reports = Path("reports"),
    checkpoint_seconds: Annotated[float, typer.Option(min=1.0, help="How often a checkpoint is written.")] = 60.0,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the checkpoints of finished runs.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Train failed runs again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run and its cost; start nothing.")
    ] = False,
    catalogue: Annotated[bool, typer.Option("--list", help="List methods, networks, datasets, tables.")] = False,
) -> int:
    """Regenerate a table: plan its runs, train those that are missing, and render it."""
    console = Console()
    if catalogue:
        _print_catalogue(console)
        return 0
    if not table:
        raise UserError(f"which table? pass --table with one of: {', '.join(table_names())}, or a TOML file")
    specification = load_table(table).at(scale)
    recipe, chosen_options = parse_settings(settings or [], protocol_named(protocol))
    amount = chosen_scale(scale, epochs, recipe)
    target = resolve_device(device)
    source = dataset or specification.dataset_for(scale)
    files = _teacher_files(teacher_checkpoint or [], selected(specification, names(methods), names(pairs)))
    check_writable(runs, "--runs")
    check_writable(reports, "--reports")
    images = load_dataset(source, data_root, download=not dry_run)
    make_deterministic(target, threads)
    released, accuracy = _read_teachers(files, images, recipe, target, console)
    request = Request(
        dataset=images.name,
        fingerprint=images.fingerprint,
        protocol=recipe,
        scale=amount,
        device=target,
        precision=precision,
        validation=validation,
        options=chosen_options,
        augmentation=augmentation_named(augment),
        teacher_seeds=teacher_seeds,
        released=released,
    )
    grid = grid_of(specification, request, range(seeds or SEEDS[scale]), names(methods), names(pairs))
    store = Store(runs)
    check_methods(grid.to_train(), images)
    processes = workers or (1 if target.type == "cuda" else processors())
    jobs = jobs_for(grid.to_train(), store, processes, images.image_size, len(images.train.labels), retry_failed)
    if dry_run:
        _print_plan(console, grid, jobs, store, images, processes)
        return 0
    for run in (run for job in jobs for run in job.runs if retry_failed):
        store.forget_failure(run)
    place = Settings(
        runs=runs,
        dataset=source,
        data_root=data_root,
        device=str(target),
        threads=threads,
        released=tuple((item.teacher.sha256, files[network]) for network, item in released.items()),
        checkpoint_seconds=checkpoint_seconds,
        keep=keep,
        command=command(),
    )
    report = train(jobs, place, processes, console)
    if not report.stopped:
        if not keep:
            remove_finished_checkpoints(store, images.name)
        _render(results_of(grid, store, request, accuracy, _remarks(request), _lost(report, store)), reports, console)
    return exit_code(report, console)


def augmentation_named(name: str) -> Augmentation:
    """What is added to the protocol's augmentation.

    Raises:
        UserError: there is none of that name.
    """
    kinds = get_args(Augmentation)
    if name not in kinds:
        raise unknown_name("augmentation", name, kinds)
    return cast(Augmentation, name)


def _teacher_files(assignments: Sequence[str], table: Table) -> dict[str, Path]:
    files = assigned_files(list(assignments), "--teacher-checkpoint")
    teachers = dict.fromkeys(column.teacher for column in table.columns if column.teacher)
    if any(row.method in method_names() and method_class(row.method).teaches_itself for row in table.rows):
        teachers |= dict.fromkeys(column.student for column in table.columns)
    if files and not teachers:
        raise UserError(f"--teacher-checkpoint: table {table.name} has no teachers; choose a table of pairs")
    for network in files:
        if network not in network_names():
            raise unknown_name("network", network, network_names())
        if network not in teachers:
            raise unknown_name(f"teacher of table {table.name}", network, teachers)
    return files


def _render(result: TableResult, reports: Path, console: Console) -> None:
    """Write the reports and print the table; it is printed also where they cannot be written."""
    written: list[Path] = []
    try:
        written = write_reports(result, reports)
    finally:
        console.print(render.to_terminal(result, console.width, written))


def _read_teachers(
    files: dict[str, Path], dataset: Dataset, protocol: Protocol, device: torch.device, console: Console
) -> tuple[dict[str, ReleasedFile], dict[str, float]]:
    """The released teachers, and the accuracy that each has on this dataset's test images."""
    released, accuracy = {}, {}
    for name, path in files.items():
        weights = load_released(path)
        network = build_network(name, dataset.num_classes)
        apply_to(network, weights, name)
        if weights.auxiliary is not None:
            apply_to(build_branches(name, ROTATIONS * dataset.num_classes), weights, name)
        placed(network, device)
        batches = evaluation_batches(dataset.test, recipe_for(protocol, dataset), BATCH_SIZE, device)
        accuracy[name] = evaluate(network, batches, "fp32")["top1"]
        released[name] = ReleasedFile(
            ReleasedTeacher(network=name, sha256=weights.sha256), weights.auxiliary is not None
        )
        branches = ", with branches" if weights.auxiliary is not None else ""
        console.print(
            f"teacher {name} from {path} ({weights.layout}{branches}): "
            f"{accuracy[name]:.2f} % on the test images of {dataset.name}",
            highlight=False,
            soft_wrap=True,
        )
    return released, accuracy


def _remarks(request: Request) -> list[str]:
    """What a reader of the table must know of how its runs differ from the default."""
    remarks = []
    changed = request.protocol.changes_from(protocol_named(request.protocol.name))
    if request.protocol.name != "lsskd" or changed:
        values = ", ".join(f"{name} = {value}" for name, value in changed.items())
        remarks.append(f"Protocol {request.protocol.name}{' with ' + values if values else ''}.")
    if request.protocol.name == "tfkd":
        remarks.append("TF-KD's random rotation of the images by up to 15 degrees is left out.")
    if request.precision != "auto" and request.scale.name == "paper":
        remarks.append(f"Precision {request.precision}.")
    if request.augmentation != "standard":
        remarks.append(f"Students are trained with {request.augmentation} on top of the protocol's augmentation.")
    if request.teacher_seeds == "paired":
        remarks.append("Each seed has a teacher of its own.")
    if request.validation:
        remarks.append(f"Evaluated on {request.validation:.0%} of the training images, held out; not on the test set.")
    for method, chosen in request.options.items():
        values = ", ".join(f"{name} = {value}" for name, value in chosen.items())
        remarks.append(f"{method} with {values}.")
    return remarks


def _lost(report: Report, store: Store) -> dict[str, str]:
    """Why runs without a record have none, by run id."""
    return {run.id: reason for job, reason in report.failures.items() for run in job.runs if store.record(run) is None}


def _print_plan(
    console: Console, grid: Grid, jobs: Sequence[Job], store: Store, dataset: Dataset, workers: int
) -> None:
    runs = grid.to_train()
    finished = sum(store.is_finished(run) for run in runs)
    missing = [run for job in jobs for run in job.runs]
    images = len(dataset.train.labels)
    total = sum(run.schedule.epochs * images * training_multiply_adds(run, dataset.image_size) for run in missing)
    console.print(f"Table {grid.table.name} on {dataset.name}: {len(runs)} runs asked for, {finished} done.")
    screen = ScreenTable("job", "runs", "epochs", "multiply-adds", "on one core, about", box=None, pad_edge=False)
    for job in jobs:
        madds = sum(run.schedule.epochs * images * training_multiply_adds(run, dataset.image_size) for run in job.runs)
        epochs = max(run.schedule.epochs for run in job.runs)
        screen.add_row(job.name, str(len(job.runs)), str(epochs), f"{madds:.1e}", duration(job.seconds))
    if jobs:
        console.print(screen)
    # No plan is faster than its longest job, however many processes there are.
    seconds = max(sum(job.seconds for job in jobs) / workers, max((job.seconds for job in jobs), default=0.0))
    console.print(
        f"To train: {len(missing)} runs (teachers and their heads included) in {len(jobs)} jobs, {total:.2e} "
        f"multiply-adds, roughly {duration(seconds)} with {workers} "
        f"CPU {'process' if workers == 1 else 'processes'} (a GPU is not reckoned with). Nothing was started.",
        highlight=False,
        soft_wrap=True,
    )


def _print_catalogue(console: Console) -> None:
    console.print(to_terminal(), highlight=False)
    for kind, entries in (
        ("networks", network_names()),
        ("datasets", dataset_names()),
        ("tables", table_names()),
        ("protocols", list(PROTOCOLS)),
        ("scales", list(SCALES)),
    ):
        console.print(f"[bold]{kind}[/bold]: {', '.join(entries)}", highlight=False)


if __name__ == "__main__":
    run_app(app, "python -m benchmark.run")
