"""Plan tables and figures, train what is missing, render them: `python -m benchmark.run --table II`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import typer
from rich.console import Console
from rich.table import Table as ScreenTable
from rich.text import Text

from benchmark.backbones import network_names
from benchmark.backbones.pretrained import torchvision_teacher
from benchmark.catalogue import to_terminal
from benchmark.command_line import command, names, processors, run_app
from benchmark.data import Dataset, dataset_names, imagenet, load_dataset
from benchmark.errors import UserError, unknown_name
from benchmark.executor import Report
from benchmark.files import check_writable
from benchmark.grid import selected
from benchmark.options import (
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
from benchmark.plan import Job, check_methods, jobs_for, training_multiply_adds
from benchmark.progress import duration, exit_code, train
from benchmark.protocols import PROTOCOLS, SCALES, scale_named
from benchmark.results import Store
from benchmark.spec import Augmentation, Run
from benchmark.targets import FigureTarget, Part, TableTarget, Target, Wish
from benchmark.teachers import Teachers, named_files, read_teachers
from benchmark.training.devices import make_deterministic, resolve_device
from benchmark.training.job import remove_finished_checkpoints
from benchmark.training.material import Settings
from benchmark.training.processes import check_sharing
from figures.specification import Figure, figure_names, load_figure
from tables.specification import Table, load_table, table_names

ALL = "all"

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    table: Annotated[
        str, typer.Option(help="Tables by name (see --list), the TOML file of one of your own, or all.")
    ] = "",
    figure: Annotated[str, typer.Option(help="Figures by name (see --list), or all.")] = "",
    scale: ScaleName = "demo",
    protocol: Annotated[
        str, typer.Option(help="The training recipe (docs/protocols.md). [that of the table at this scale]")
    ] = "",
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
        _print_catalogue(console)
        return 0
    wish = Wish(
        scale=scale_named(scale).name,
        device=resolve_device(device),
        protocol=protocol,
        epochs=epochs,
        settings=tuple(settings or ()),
        methods=tuple(names(methods)),
        pairs=tuple(names(pairs)),
        seeds=seeds,
        dataset=dataset,
        precision=precision,
        augmentation=augmentation_named(augment),
        teacher_seeds=teacher_seeds,
        teacher_data=teacher_data,
        processes=processes_per_run,
        validation=validation,
    )
    wanted = wanted_targets(table, figure, wish)
    check_writable(runs, "--runs")
    check_writable(reports, "--reports")
    make_deterministic(wish.device, threads)
    library = Library(data_root, download=not dry_run, forgiving=ALL in (table, figure))
    brought = Brought(tuple(teacher_checkpoint or ()), released=not train_teachers, measured=not dry_run)
    store = Store(runs)
    targets, teachers = planned_targets(wanted, wish, brought, library, store, console)
    parts = [part for target in targets for part in target.parts]
    for part in parts:
        check_methods(part.runs, part.images)
        for run in part.runs:
            check_sharing(run, device, workers or 1)
    processes = workers or (1 if wish.device.type == "cuda" or processes_per_run > 1 else processors())
    plans = plans_of(parts, store, processes, retry_failed)
    if dry_run:
        _print_plan(console, parts, plans, store, processes)
        return library.tell(console)
    place = Settings(
        runs=runs,
        dataset="",
        data_root=data_root,
        device=str(wish.device),
        threads=threads,
        released=teachers.by_hash,
        checkpoint_seconds=checkpoint_seconds,
        keep=keep,
        command=command(),
    )
    report = trained(plans, place, processes, store, retry_failed, console)
    if not report.stopped:
        if not keep:
            for name in {part.images.name for part in parts}:
                remove_finished_checkpoints(store, name)
        lost = _lost(report, store)
        for target in targets:
            target.render(store, lost, reports, console)
    return exit_code(report, console) or library.tell(console)


class Library:
    """The datasets of a command, each loaded once; a forgiving one remembers what is not there and goes on."""

    def __init__(self, data_root: Path | None, download: bool, forgiving: bool) -> None:
        self.data_root, self.download, self.forgiving = data_root, download, forgiving
        self.missing: dict[str, str] = {}
        """What cannot be made, and why."""
        self._loaded: dict[str, Dataset | UserError] = {}

    def get(self, source: str, what: str) -> Dataset | None:
        """The dataset by name or TOML file; None where it is not there and that is forgiven.

        Raises:
            UserError: it is not there.
        """
        if source not in self._loaded:
            try:
                self._loaded[source] = load_dataset(source, self.data_root, download=self.download)
            except UserError as error:
                self._loaded[source] = error
        found = self._loaded[source]
        if isinstance(found, Dataset):
            return found
        if not self.forgiving:
            raise found
        self.missing[what] = str(found)
        return None

    def tell(self, console: Console) -> int:
        """Print what could not be made for want of data; returns the exit code that this makes."""
        for what, why in self.missing.items():
            console.print(Text(f"{what} left out: {why}", style="yellow"), soft_wrap=True)
        return 1 if self.missing else 0


def wanted_targets(table: str, figure: str, wish: Wish) -> list[Table | Figure]:
    """The tables and figures by the names that were given, as they are at the scale.

    Raises:
        UserError: none is named, a name is unknown, or an option is given that speaks of one table only.
    """
    tables = table_names() if table == ALL else names(table)
    figures = figure_names() if figure == ALL else names(figure)
    if not (tables or figures):
        raise UserError(
            f"which table or figure? pass --table with one of: {', '.join(table_names())}, {ALL}, or a TOML file; or "
            f"--figure with one of: {', '.join(figure_names())}, {ALL}"
        )
    if len(tables) + len(figures) > 1:
        for option, value in (("--methods", wish.methods), ("--pairs", wish.pairs), ("--dataset", wish.dataset)):
            if value:
                raise UserError(f"{option} speaks of one table; name one table or figure, or leave {option} out")
    return [
        *(load_table(name).at(wish.scale) for name in dict.fromkeys(tables)),
        *(load_figure(name).at(wish.scale) for name in dict.fromkeys(figures)),
    ]


@dataclass(frozen=True)
class Brought:
    """Teachers that need not be trained: files of the user's; torchvision's; whether their accuracy is measured."""

    files: tuple[str, ...]
    released: bool
    measured: bool


def planned_targets(
    wanted: Sequence[Table | Figure], wish: Wish, brought: Brought, library: Library, store: Store, console: Console
) -> tuple[list[Target], Teachers]:
    """The targets with their data and runs, and the teachers that came from files.

    Raises:
        UserError: something in it is refused, or no data is there for any of them.
    """
    tables = [entry for entry in wanted if isinstance(entry, Table)]
    named = named_files(brought.files, [selected(entry, wish.methods, wish.pairs) for entry in tables])
    if named and len(wanted) > 1:
        raise UserError("--teacher-checkpoint speaks of one table; name one table")
    targets: list[Target] = []
    all_teachers = Teachers()
    for entry in wanted:
        if isinstance(entry, Table):
            source = wish.dataset or entry.dataset_for(wish.scale)
            images = library.get(source, f"table {entry.name}")
            if images is None:
                continue
            files = released_files(entry, images, library, console) | named if brought.released else named
            recipe = wish.request(entry.protocol_for(wish.scale), images).protocol
            teachers = read_teachers(files, images, recipe, wish.device, console, brought.measured)
            for name, figures in teachers.accuracy.items():
                store.keep_released_figures(images.name, teachers.released[name].teacher.sha256, figures)
            all_teachers = all_teachers.joined(teachers)
            targets.append(TableTarget.planned(entry, wish, source, images, teachers))
        else:
            drawn = FigureTarget.planned(entry, wish, library.get)
            targets += [drawn] if drawn.points else []
    if not targets:
        missing = "; ".join(dict.fromkeys(library.missing.values()))
        raise UserError(missing or f"nothing is drawn at scale {wish.scale}; choose another --scale or --pairs")
    return targets, all_teachers


def released_files(table: Table, images: Dataset, library: Library, console: Console) -> dict[str, Path]:
    """The files of teachers that torchvision has released for a table's dataset, as far as they can be had."""
    if images.name != imagenet.NAME or images.num_classes != imagenet.NUM_CLASSES:
        return {}

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    networks = dict.fromkeys(column.teacher for column in table.columns if column.teacher)
    found = {name: torchvision_teacher(name, library.data_root, say, library.download) for name in networks}
    return {name: path for name, path in found.items() if path}


def plans_of(parts: Sequence[Part], store: Store, workers: int, retry_failed: bool) -> dict[str, list[Job]]:
    """The jobs of all parts by dataset, what several ask for in one of them."""
    plans = {}
    for source in dict.fromkeys(part.source for part in parts):
        own = [part for part in parts if part.source == source]
        runs = list(dict.fromkeys(run for part in own for run in part.runs))
        images = own[0].images
        plans[source] = jobs_for(runs, store, workers, images.image_size, len(images.train.labels), retry_failed)
    return plans


def augmentation_named(name: str) -> Augmentation:
    """What is added to the protocol's augmentation.

    Raises:
        UserError: there is none of that name.
    """
    kinds = get_args(Augmentation)
    if name not in kinds:
        raise unknown_name("augmentation", name, kinds)
    return cast(Augmentation, name)


def _lost(report: Report, store: Store) -> dict[str, str]:
    """Why runs without a record have none, by run id."""
    return {run.id: reason for job, reason in report.failures.items() for run in job.runs if store.record(run) is None}


def trained(
    plans: Mapping[str, Sequence[Job]],
    place: Settings,
    processes: int,
    store: Store,
    retry_failed: bool,
    console: Console,
) -> Report:
    """Train the jobs of each dataset in turn, until all are done or the user stops."""
    reports: list[Report] = []
    for source, jobs in plans.items():
        for run in (run for job in jobs for run in job.runs if retry_failed):
            store.forget_failure(run)
        reports.append(train(jobs, replace(place, dataset=source), processes, console))
        if reports[-1].stopped:
            break
    return Report.joined(reports)


def _print_plan(
    console: Console, parts: Sequence[Part], plans: Mapping[str, Sequence[Job]], store: Store, workers: int
) -> None:
    for part in parts:
        finished = sum(store.is_finished(run) for run in part.runs)
        console.print(f"{part.title}: {len(part.runs)} runs asked for, {finished} done.", highlight=False)
    screen = ScreenTable("job", "runs", "epochs", "multiply-adds", "on one core, about", box=None, pad_edge=False)
    total, missing, everything = 0, 0, [job for jobs in plans.values() for job in jobs]
    for source, jobs in plans.items():
        images = next(part.images for part in parts if part.source == source)
        for job in jobs:
            madds = sum(_multiply_adds(run, images) for run in job.runs)
            epochs = max(run.schedule.epochs for run in job.runs)
            screen.add_row(job.name, str(len(job.runs)), str(epochs), f"{madds:.1e}", duration(job.seconds))
            total, missing = total + madds, missing + len(job.runs)
    if everything:
        console.print(screen)
    # No plan is faster than its longest job, however many processes there are.
    longest = max((job.seconds for job in everything), default=0.0)
    seconds = max(sum(job.seconds for job in everything) / workers, longest)
    console.print(
        f"To train: {missing} runs (teachers and their heads included) in {len(everything)} jobs, {total:.2e} "
        f"multiply-adds, roughly {duration(seconds)} with {workers} "
        f"CPU {'process' if workers == 1 else 'processes'} (a GPU is not reckoned with). Nothing was started.",
        highlight=False,
        soft_wrap=True,
    )


def _multiply_adds(run: Run, images: Dataset) -> int:
    shown = round(run.fraction * len(images.train.labels))
    return run.schedule.epochs * shown * training_multiply_adds(run, images.image_size)


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
        console.print(f"[bold]{kind}[/bold]: {', '.join(entries)}", highlight=False)


if __name__ == "__main__":
    run_app(app, "python -m benchmark.run")
