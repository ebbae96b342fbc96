"""Plan tables and figures, train what is missing, render them: `python -m benchmark.run --table II`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import typer
from rich.console import Console
from rich.table import Table as ScreenTable
from rich.text import Text

from benchmark.backbones import network_names
from benchmark.catalogue import to_terminal
from benchmark.cli.app import command, given_options, run_app, split_names
from benchmark.cli.options import (
    Assignments,
    DataRoot,
    DatasetName,
    DeviceName,
    Epochs,
    PrecisionName,
    Reports,
    Runs,
    ScaleName,
    Threads,
    Workers,
)
from benchmark.core.devices import make_deterministic
from benchmark.core.errors import UserError, unknown_name
from benchmark.core.protocols import PROTOCOLS, SCALES, scale_named
from benchmark.core.spec import Augmentation
from benchmark.data import dataset_names
from benchmark.execution.executor import Detached, ExecutionPlan, Executor
from benchmark.execution.progress import exit_code
from benchmark.execution.scheduler import ExecutionSummary
from benchmark.executors import ExecutorName, executor_named
from benchmark.io.files import check_writable
from benchmark.planning.checks import check_methods, check_records
from benchmark.planning.datasets import DatasetCache
from benchmark.planning.overrides import reject_unused_overrides
from benchmark.planning.request import RunOptions, with_dependencies
from benchmark.results.record import CorruptRun
from benchmark.results.store import Store
from benchmark.targets import (
    ALL,
    PretrainedTeachers,
    Target,
    planned_targets,
    reject_unused_options,
    wanted_targets,
)
from benchmark.training.job import remove_finished_checkpoints
from benchmark.training.settings import TrainSettings
from figures.specification import figure_names
from tables.specification import table_names

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    context: typer.Context,
    table: Annotated[
        str | None, typer.Option(help="Tables by name (see --list), the TOML file of one of your own, or all.")
    ] = None,
    figure: Annotated[
        str | None, typer.Option(help="Figures by name (see --list), the TOML file of one of your own, or all.")
    ] = None,
    scale: ScaleName = "demo",
    protocol: Annotated[
        str, typer.Option(help="The training recipe (docs/protocols.md). [that of the table at this scale]")
    ] = "",
    methods: Annotated[
        str | None, typer.Option(help="Only these rows: a list such as KD,LSSKD; any method of --list may be named.")
    ] = None,
    pairs: Annotated[str | None, typer.Option(help="Only these columns: a list such as 'WRN-40-2>WRN-16-2'.")] = None,
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
    executor: Annotated[
        ExecutorName, typer.Option(help="This machine's processes, this process alone, or a cluster (docs/slurm.md).")
    ] = "local",
    profile: Annotated[
        Path | None, typer.Option(help="What is asked of the cluster: a TOML file like slurm/profiles/example.toml.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Watch what is given to the cluster until it is done, or leave.")
    ] = True,
    processes_per_run: Annotated[
        int, typer.Option(min=1, help="Share each batch among so many GPUs, or CPU processes.")
    ] = 1,
    settings: Assignments = None,
    teacher_checkpoint: Annotated[
        list[str] | None, typer.Option(help="A teacher of your own: WRN-40-2=FILE (may be repeated).")
    ] = None,
    train_teachers: Annotated[
        bool, typer.Option("--train-teachers", help="Train ImageNet's teacher too, instead of fetching torchvision's.")
    ] = False,
    teacher_seeds: Annotated[
        Literal["shared", "paired"], typer.Option(help="One teacher for all seeds, or one for each.")
    ] = "shared",
    teacher_data: Annotated[
        Literal["all", "same"], typer.Option(help="Figure 5's teachers learn from all images, or from the student's.")
    ] = "all",
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
    """Regenerate tables and figures: plan their runs, train those that are missing, and render them."""
    console = Console()
    if catalogue:
        if others := [option for option in given_options(context) if option != "--list"]:
            raise UserError(f"--list starts nothing, so {others[0]} says nothing beside it; leave one of them out")
        _print_catalogue(console)
        return 0
    there = executor_named(executor, device, workers, processes_per_run, profile, wait)
    wish = RunOptions(
        scale=scale_named(scale).name,
        device=there.device,
        protocol=protocol,
        epochs=epochs,
        settings=tuple(settings or ()),
        methods=tuple(split_names(methods, "--methods")),
        pairs=tuple(split_names(pairs, "--pairs")),
        seeds=seeds,
        dataset=dataset,
        precision=precision,
        augmentation=augmentation_named(augment),
        teacher_seeds=teacher_seeds,
        teacher_data=teacher_data,
        processes=processes_per_run,
        validation=validation,
        bf16=there.bf16,
    )
    tables, figures = split_names(table, "--table"), split_names(figure, "--figure")
    wanted = wanted_targets(tables, figures, wish)
    reject_unused_options(wanted, wish, train_teachers)
    check_writable(runs, "--runs")
    check_writable(reports, "--reports")
    there.check_folders(runs, data_root)
    make_deterministic(wish.device, threads)
    library = DatasetCache(data_root, forgiving=ALL in (*tables, *figures), dry=dry_run)
    brought = PretrainedTeachers(tuple(teacher_checkpoint or ()), released=not train_teachers, measured=not dry_run)
    store = Store(runs)
    targets, teachers = planned_targets(wanted, wish, brought, library, store, console)
    parts = [part for target in targets for part in target.parts]
    reject_unused_overrides(
        wish.settings, (run.method for run in with_dependencies(run for part in parts for run in part.runs))
    )
    for part in parts:
        check_methods(part.runs, part.images)
        there.check_runs(part.runs)
    for line in check_records(store, with_dependencies(run for part in parts for run in part.runs), heal=not dry_run):
        console.print(Text(line, style="yellow"), soft_wrap=True)
    plans = there.plans_of(parts, store, retry_failed)
    order = ExecutionPlan(title_of([*tables, *figures], scale), parts, plans, retry_failed)
    if dry_run:
        there.print_plan(order, store, console)
        return library.report_missing(console)
    place = TrainSettings(
        runs=runs,
        dataset="",
        data_root=data_root,
        device=str(there.device),
        threads=threads,
        released=teachers.by_hash,
        checkpoint_seconds=checkpoint_seconds,
        keep=keep,
        command=command(),
    )
    try:
        report = trained_and_rendered(order, targets, there, place, reports, console)
    except Detached as leaving:
        return leaving.code
    return exit_code(report, console) or library.report_missing(console)


def trained_and_rendered(
    order: ExecutionPlan,
    targets: Sequence[Target],
    there: Executor,
    place: TrainSettings,
    reports: Path,
    console: Console,
) -> ExecutionSummary:
    """Train what is ordered and, unless the user stopped that, render the tables and figures from all their records.

    Raises:
        UserError: something that the user must mend; a record was damaged while this command ran.
        Left: the jobs are left to others.
    """
    store = Store(place.runs)
    report = there.train(order, place, store, console)
    if report.stopped:
        return report
    if not place.keep:
        for name in {part.images.name for part in order.parts}:
            remove_finished_checkpoints(store, name)
    lost = _lost(report, store)
    try:
        for target in targets:
            target.render(store, lost, reports, console)
    except CorruptRun as damage:
        # Since all was planned; or by something that left the file's time as it was when the file was whole.
        store.quarantine(damage.run)
        raise UserError(f"{damage.run.id} was damaged and is put aside; call the same command again") from damage
    return report


def title_of(names: Sequence[str], scale: str) -> str:
    """What is asked for in a few letters, fit for a folder: `II-paper`, `all-demo`."""
    asked = [Path(name).stem for name in names]
    return re.sub(r"[^A-Za-z0-9._-]", "+", "-".join([*dict.fromkeys(asked), scale]))[:80]


def augmentation_named(name: str) -> Augmentation:
    """What is added to the protocol's augmentation.

    Raises:
        UserError: there is none of that name.
    """
    kinds = get_args(Augmentation)
    if name not in kinds:
        raise unknown_name("augmentation", name, kinds)
    return cast(Augmentation, name)


def _lost(report: ExecutionSummary, store: Store) -> dict[str, str]:
    """Why runs without a record have none, by run id."""
    return {run.id: reason for job, reason in report.failures.items() for run in job.runs if store.record(run) is None}


def _print_catalogue(console: Console) -> None:
    console.print(to_terminal(), highlight=False)
    for kind, entries in (
        ("networks", network_names()),
        ("datasets", dataset_names()),
        ("tables", table_names()),
        ("figures", figure_names()),
        ("protocols", list(PROTOCOLS)),
        ("scales", list(SCALES)),
    ):
        # What does not fit the line goes on under the names, so that it is not taken for another kind.
        line = ScreenTable.grid(padding=(0, 1, 0, 0))
        line.add_row(Text(f"{kind}:", style="bold"), ", ".join(entries))
        console.print(line, highlight=False)


if __name__ == "__main__":
    run_app(app, "python -m benchmark.run")
