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

from benchmark.backbones import network_names, network_patterns
from benchmark.catalogue import describe_method, list_methods
from benchmark.cli.app import format_command, list_given_options, run_app, split_names
from benchmark.cli.options import (
    A_DAY,
    MOST_PROCESSES,
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
    WithoutHost,
    Workers,
)
from benchmark.core.devices import make_deterministic
from benchmark.core.errors import UserError, unknown_name
from benchmark.core.protocols import PROTOCOLS, SCALES, get_scale
from benchmark.core.sequences import FIRST
from benchmark.core.spec import Augmentation, TeacherOutputs
from benchmark.core.text import counted
from benchmark.data import dataset_names
from benchmark.decisions.options import MOST_SEEDS, make_sweep, read_claims
from benchmark.decisions.render import print_decisions, write_decisions
from benchmark.decisions.rounds import DecisionSweep
from benchmark.execution.executor import ExecutionPlan, Executor
from benchmark.execution.progress import announce_if_slow, exit_code
from benchmark.execution.scheduler import ExecutionSummary
from benchmark.executors import ExecutorName, make_executor
from benchmark.io.files import check_writable
from benchmark.planning.atlas import check_readers
from benchmark.planning.checks import MANY_RUNS, check_methods, check_records, confirm_size
from benchmark.planning.overrides import reject_unused_overrides
from benchmark.planning.request import RunGroup, RunOptions, collect_dependencies
from benchmark.results.record import CorruptRun
from benchmark.results.store import Store
from benchmark.targets import (
    ALL,
    DatasetCache,
    FigureTarget,
    Target,
    count_runs,
    plan_targets,
    reject_unused_options,
    select_targets,
)
from benchmark.training.job import remove_finished_checkpoints
from benchmark.training.settings import TrainSettings
from figures.render import check_drawing
from figures.specification import figure_names
from tables.specification import table_names


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
    seeds: Annotated[int | None, typer.Option(min=1, max=1000, help="Runs a cell. [demo, quick: 1; paper: 3]")] = None,
    until_decided: Annotated[
        str | None,
        typer.Option(help="Train seeds until this claim is decided: 'LSSKD > SSKD' (docs/deciding.md)."),
    ] = None,
    max_seeds: Annotated[
        int | None, typer.Option(min=FIRST, max=100, help=f"With --until-decided: seeds at most. [{MOST_SEEDS}]")
    ] = None,
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
    executor_name: Annotated[
        ExecutorName,
        typer.Option("--executor", help="This machine's processes, this process alone, or a cluster (docs/slurm.md)."),
    ] = "local",
    profile: Annotated[
        Path | None, typer.Option(help="What is asked of the cluster: a TOML file like slurm/profiles/example.toml.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Watch what is given to the cluster until it is done, or leave.")
    ] = True,
    processes_per_run: Annotated[
        int, typer.Option(min=1, max=MOST_PROCESSES, help="Share each batch among so many GPUs, or CPU processes.")
    ] = 1,
    assignments: Assignments = None,
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
    teacher_outputs: Annotated[
        TeacherOutputs, typer.Option(help="Run teachers in every step, or read their logits (docs/atlas.md).")
    ] = "live",
    validation: Annotated[
        float,
        typer.Option(
            "--val-fraction",
            "--validation",
            min=0.0,
            max=0.9,
            help="Evaluate on this share of the training images, held out.",
        ),
    ] = 0.0,
    runs: Runs = Path("runs"),
    reports: Reports = Path("reports"),
    without_host: WithoutHost = False,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=1.0, max=A_DAY, help="How often a checkpoint is written.")
    ] = 60.0,
    keep: Annotated[
        bool, typer.Option("--keep-checkpoints", "--keep", help="Keep the checkpoints of finished runs.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Train failed runs again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run and its cost; start nothing.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="With --dry-run: list each job.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help=f"Plan more than {MANY_RUNS:,} runs without being asked.")] = False,
    all_cells: Annotated[
        bool, typer.Option("--all-cells", help="Print also the rows and columns that were not asked for.")
    ] = False,
    catalogue: Annotated[bool, typer.Option("--list", help="List methods, networks, datasets, tables.")] = False,
    listed: Annotated[
        str | None, typer.Argument(metavar="METHOD", show_default=False, help="With --list: tell all of this method.")
    ] = None,
) -> int:
    """Regenerate tables and figures: plan their runs, train those that are missing, and render them."""
    console = Console()
    if catalogue or listed is not None:
        _print_list(context, catalogue, listed, console)
        return 0
    executor = make_executor(executor_name, device, workers, processes_per_run, profile, wait)
    options = RunOptions(
        scale=get_scale(scale).name,
        device=executor.device,
        protocol=protocol,
        epochs=epochs,
        settings=tuple(assignments or ()),
        methods=tuple(split_names(methods, "--methods")),
        pairs=tuple(split_names(pairs, "--pairs")),
        seeds=seeds,
        dataset=dataset,
        precision=precision,
        augmentation=get_augmentation(augment),
        teacher_seeds=teacher_seeds,
        teacher_data=teacher_data,
        teacher_outputs=teacher_outputs,
        processes=processes_per_run,
        validation=validation,
        bf16=executor.bf16,
    )
    if verbose and not dry_run:
        raise UserError("--verbose only applies to --dry-run; pass both, or remove it")
    tables, figures = split_names(table, "--table"), split_names(figure, "--figure")
    entries = select_targets(tables, figures, options)
    claims, options = read_claims(until_decided, max_seeds, entries, options)
    reject_unused_options(entries, options, train_teachers)
    count = count_runs(entries, options)
    confirm_size(count, yes)
    check_writable(runs, "--runs")
    check_writable(reports, "--reports")
    executor.check_folders(runs, data_root)
    make_deterministic(options.device, threads)
    datasets = DatasetCache(data_root, skip_missing=ALL in (*tables, *figures), dry_run=dry_run)
    store = Store(runs)
    with announce_if_slow(f"planning {counted(count, 'run')} ..."):
        targets, teachers = plan_targets(
            entries, options, teacher_checkpoint or (), train_teachers, datasets, store, console
        )
        groups = [group for target in targets for group in target.groups]
        _check_plan(groups, options, executor, store, dry_run, console)
        sweep = make_sweep(claims, targets, options, retry_failed)
        # A sweep that decides a claim plans the jobs of one round at a time.
        jobs = {} if sweep else executor.plan_jobs(groups, store, retry_failed)
        plan = ExecutionPlan(make_title([*tables, *figures], scale), groups, jobs, retry_failed, verbose)
    if dry_run:
        if sweep:
            sweep.print_plan(executor, plan, store, console)
        else:
            executor.print_plan(plan, store, console)
        return datasets.report_missing(console)
    settings = TrainSettings(
        runs=runs,
        dataset="",
        data_root=data_root,
        device=str(executor.device),
        threads=threads,
        released=teachers.by_hash,
        checkpoint_seconds=checkpoint_seconds,
        keep=keep,
        command=format_command(),
        without_host=without_host,
    )
    summary = train_and_render(plan, targets, executor, settings, reports, console, all_cells, sweep)
    return exit_code(summary, console) or datasets.report_missing(console)


def _print_list(context: typer.Context, catalogue: bool, method: str | None, console: Console) -> None:
    """Print what `--list` asks for: everything in brief, or all of one method."""
    if not catalogue:
        raise UserError(f"unexpected argument {method!r}; only --list takes a name, such as --list LSSKD")
    if others := [option for option in list_given_options(context) if option not in ("--list", "listed")]:
        raise UserError(f"--list cannot be combined with {others[0]}; remove one of them")
    if method is None:
        _print_catalogue(console)
    else:
        console.print(describe_method(method))


def _check_plan(
    groups: Sequence[RunGroup], options: RunOptions, executor: Executor, store: Store, dry_run: bool, console: Console
) -> None:
    """Check what can be checked of a plan before anything is trained, and print which records are damaged.

    Raises:
        UserError: an option changes nothing, a method does not work on these networks, or the executor refuses a run.
    """
    everything = collect_dependencies(run for group in groups for run in group.runs)
    reject_unused_overrides(options.settings, (run.method for run in everything))
    if options.teacher_outputs == "atlas":
        check_readers(everything)
    for group in groups:
        check_methods(group.runs, group.images)
        executor.check_runs(group.runs)
    for line in check_records(store, everything, heal=not dry_run):
        console.print(Text(line, style="yellow"), soft_wrap=True)


def train_and_render(
    plan: ExecutionPlan,
    targets: Sequence[Target],
    executor: Executor,
    settings: TrainSettings,
    reports: Path,
    console: Console,
    all_cells: bool = False,
    sweep: DecisionSweep | None = None,
) -> ExecutionSummary:
    """Train the plan and, unless the user stops it, render the tables and figures from all their records.

    sweep: trains instead of the plan's jobs, until it is decided.

    Raises:
        UserError: the user must fix something first; a record became corrupt while this command ran.
        Detached: the jobs continue without this command.
    """
    if any(isinstance(target, FigureTarget) for target in targets):
        check_drawing()
    # Half of what the report imports is of no use to --help or --list.
    from benchmark.report.overview import write_overview

    store = Store(settings.runs)
    if sweep:
        summary = sweep.train(executor, plan.title, settings, store, console)
    else:
        summary = executor.train(plan, settings, store, console)
    if summary.stopped:
        return summary
    if not settings.keep:
        for name in {group.images.name for group in plan.groups}:
            remove_finished_checkpoints(store, name)
    # By run id.
    failures = {run.id: why for job, why in summary.failures.items() for run in job.runs if store.record(run) is None}
    try:
        decisions = sweep.judge(store) if sweep else []
        shown = sweep.limit(targets, decisions, store) if sweep else targets
        rendered = [target.render(store, failures, reports, console, all_cells) for target in shown]
        report = sweep.make_report(decisions, rendered[0][0].stem) if sweep else None
        if report:
            print_decisions(report, console)
            write_decisions(report, reports)
        runs = collect_dependencies(run for group in plan.groups for run in group.runs)
        page = write_overview(rendered, runs, store, reports, report)
    except CorruptRun as damage:
        # It was damaged after planning, or by something that kept the file's modification time.
        store.quarantine(damage.run)
        raise UserError(f"{damage.run.id} was damaged and is put aside; call the same command again") from damage
    console.print(Text(f"Open {page}", style="bold"), soft_wrap=True)
    return summary


def make_title(names: Sequence[str], scale: str) -> str:
    """Make a short title of the request that can name a folder: `II-paper`, `all-demo`."""
    asked = [Path(name).stem for name in names]
    return re.sub(r"[^A-Za-z0-9._-]", "+", "-".join([*dict.fromkeys(asked), scale]))[:80]


def get_augmentation(name: str) -> Augmentation:
    """Check the name of an augmentation that is added to the protocol's.

    Raises:
        UserError: the name is unknown.
    """
    kinds = get_args(Augmentation)
    if name not in kinds:
        raise unknown_name("augmentation", name, kinds)
    return cast(Augmentation, name)


def _print_catalogue(console: Console) -> None:
    console.print(list_methods(), highlight=False)
    # Long lists wrap under their first name, so that a wrapped line does not look like another kind.
    screen = ScreenTable.grid(padding=(0, 1, 0, 0))
    for kind, entries in (
        ("networks", network_names()),
        ("and any of", network_patterns()),
        ("datasets", dataset_names()),
        ("tables", table_names()),
        ("figures", figure_names()),
        ("protocols", list(PROTOCOLS)),
        ("scales", list(SCALES)),
    ):
        screen.add_row(Text(kind, style="bold"), ", ".join(entries))
    console.print()
    console.print(screen, highlight=False)


if __name__ == "__main__":
    run_app(main, "python -m benchmark.run")
