"""What a command regenerates: tables and figures, each with its runs and how it is rendered; loads their images too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from benchmark.analysis.cells import look_up_exactly
from benchmark.analysis.figures import make_figure_result
from benchmark.analysis.notes import list_notes
from benchmark.analysis.tables import make_table_result
from benchmark.backbones.pretrained import torchvision_teacher
from benchmark.core.errors import UserError, unknown_name
from benchmark.core.protocols import get_protocol
from benchmark.core.spec import Run
from benchmark.data import Dataset, imagenet, load_dataset
from benchmark.data.stubs import describe_unread, find_stub
from benchmark.planning.atlas import check_views
from benchmark.planning.figures import Points, check_methods_of, plan_panel
from benchmark.planning.request import PROBE, RunFactory, RunGroup, RunOptions
from benchmark.planning.tables import Grid, plan_table, select_rows
from benchmark.planning.teachers import Teachers, load_teachers, parse_teacher_files
from benchmark.results.store import Store
from figures.render import write_figure
from figures.result import FigureResult
from figures.specification import Figure, figure_names, load_figure
from tables.render import to_terminal, write_reports
from tables.result import TableResult
from tables.specification import Table, load_table, table_names
from tables.terminal import describe_files

Failures = Mapping[str, str]
"""Why runs left no record, by run id."""
LoadDataset = Callable[[str, str], Dataset | None]
"""Loads the dataset of a source, for what the second argument names; None where it is missing and may be left out."""


class DatasetCache:
    """The datasets of a command, each loaded once.

    skip_missing: remember datasets that are not available instead of raising; dry_run: fetch nothing; the known shape
        of the suite's own datasets is enough to plan with and to estimate the cost.
    """

    def __init__(self, data_root: Path | None, skip_missing: bool, dry_run: bool) -> None:
        self.data_root, self.skip_missing, self.dry_run = data_root, skip_missing, dry_run
        self.missing: dict[str, str] = {}
        """Tables and panels whose dataset is missing, and why."""
        self.stubs: dict[str, str] = {}
        """A line on each dataset that is missing and was planned by its known shape."""
        self._loaded: dict[str, Dataset | UserError] = {}

    def load(self, source: str, what: str) -> Dataset | None:
        """Load a dataset by name or TOML file; None if it is missing and that is allowed.

        Raises:
            UserError: it is missing.
        """
        if source not in self._loaded:
            try:
                self._loaded[source] = self._load(source)
            except UserError as error:
                self._loaded[source] = error
        loaded = self._loaded[source]
        if isinstance(loaded, Dataset):
            return loaded
        if not self.skip_missing:
            raise loaded
        self.missing[what] = str(loaded)
        return None

    def _load(self, source: str) -> Dataset:
        if self.dry_run and (stub := find_stub(source, self.data_root)):
            self.stubs[source] = describe_unread(stub, self.data_root)
            return stub
        return load_dataset(source, self.data_root, download=not self.dry_run)

    def report_missing(self, console: Console) -> int:
        """Print which datasets are missing; returns the exit code."""
        for how in self.stubs.values():
            console.print(Text(how, style="yellow"), soft_wrap=True)
        for what, why in self.missing.items():
            console.print(Text(f"{what} left out: {why}", style="yellow"), soft_wrap=True)
        return 1 if self.missing else 0


@dataclass(frozen=True)
class TableTarget:
    """A table as a grid of runs."""

    grid: Grid
    factory: RunFactory
    groups: Sequence[RunGroup]
    """Its students, and then what probes them on each other dataset."""
    remarks: Sequence[str] = ()
    accuracy: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Of teachers that came from files, on this dataset's test images."""

    @classmethod
    def plan(
        cls,
        table: Table,
        options: RunOptions,
        source: str,
        images: Dataset,
        teachers: Teachers,
        probed: Mapping[str, Dataset] | None = None,
    ) -> TableTarget:
        """Plan the runs of a table; probed: by source, the datasets that its students are probed on.

        Raises:
            UserError: a method, a pair, an option or the protocol is refused.
        """
        probed = probed or {}
        protocol = table.protocol_for(options.scale)
        known = {place: (dataset.name, dataset.fingerprint) for place, dataset in probed.items()}
        factory = replace(options.make_factory(protocol, images, teachers.released), probed=known)
        grid = plan_table(table, factory, options.seed_numbers, options.methods, options.pairs)
        students, probes = split_probes(grid.requested_runs())
        groups = [RunGroup(f"Table {table.name} on {images.name}", source, images, students)]
        for place, dataset in probed.items():
            own = tuple(run for run in probes if run.dataset == dataset.name)
            groups.append(RunGroup(f"Table {table.name}, probes on {dataset.name}", place, dataset, own))
        return cls(grid, factory, groups, list_notes(factory, protocol), teachers.accuracy)

    def render(
        self, store: Store, failures: Failures, reports: Path, console: Console, all_cells: bool = False
    ) -> tuple[TableResult, list[Path]]:
        """Write the table's files from what the store holds, print it, and return both.

        It is printed also where the files cannot be written. all_cells: print also the cells that were not asked for.

        Raises:
            UserError: the folder cannot be written.
        """
        result = make_table_result(
            self.grid, self.factory, look_up_exactly(store.record), store.record, self.accuracy, self.remarks, failures
        )
        written: list[Path] = []
        try:
            written = write_reports(result, reports)
        finally:
            console.print(to_terminal(result, console.width, written, None if all_cells else self.grid.selected))
        return result, written


def split_probes(runs: Sequence[Run]) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """Split runs into students, those that are probed included, and probes: each is trained on a dataset of its own."""
    students = dict.fromkeys(run.start if run.method == PROBE and run.start else run for run in runs)
    return tuple(students), tuple(run for run in runs if run.method == PROBE)


@dataclass(frozen=True)
class FigureTarget:
    """A figure as the points of its panels."""

    figure: Figure
    points: Mapping[str, Points]
    groups: Sequence[RunGroup]
    remarks: Sequence[str] = ()

    @classmethod
    def plan(cls, figure: Figure, options: RunOptions, load: LoadDataset) -> FigureTarget:
        """Plan the runs of a figure's panels, as far as there is data for them.

        Raises:
            UserError: a method, an option, the protocol or a dataset is refused.
        """
        # Before any data is fetched.
        check_methods_of(figure)
        titles = [panel.title for panel in figure.panels]
        for pair in options.pairs:
            if pair not in titles:
                raise unknown_name(f"panel of figure {figure.name}", pair, titles)
        if options.dataset:
            images = load(options.dataset, f"figure {figure.name}")
            figure = figure.on(images.name, options.scale) if images else figure
        protocol = figure.protocol_for(options.scale)
        points: dict[str, Points] = {}
        groups: list[RunGroup] = []
        probe_groups: list[RunGroup] = []
        for panel in figure.panels:
            source = options.dataset or panel.dataset_for(options.scale)
            if source is None or (options.pairs and panel.title not in options.pairs):
                continue
            try:
                images = load(source, f"figure {figure.name}, panel {panel.title}")
            except UserError as error:
                drawn = [other.title for other in figure.panels if other.dataset_for(options.scale) and other != panel]
                if options.pairs or options.dataset or not drawn:
                    raise
                raise UserError(f"{error}; or leave this panel out: --pairs {drawn[0]}") from error
            if images is None:
                continue
            factory = options.make_factory(protocol, images)
            place = panel.probe.source_at(options.scale) if panel.probe else None
            probed = load(place, f"figure {figure.name}, probes of panel {panel.title}") if place else None
            if place and probed is None:
                continue
            if place and probed:
                factory = replace(factory, probed={place: (probed.name, probed.fingerprint)})
            points[panel.title] = plan_panel(figure, panel, factory, options.seed_numbers, options.methods)
            name = f"Figure {figure.name}, {panel.title}"
            students, probes = split_probes(points[panel.title].requested_runs())
            groups.append(RunGroup(f"{name}, on {images.name}", source, images, students))
            if place and probed:
                probe_groups.append(RunGroup(f"{name}, probes on {probed.name}", place, probed, probes))
        remarks = list_notes(next(iter(points.values())).factory, protocol) if points else ()
        return cls(figure, points, (*groups, *probe_groups), remarks)

    def render(
        self, store: Store, failures: Failures, reports: Path, console: Console, all_cells: bool = False
    ) -> tuple[FigureResult, list[Path]]:
        """Write the figure's files from what the store holds, say where they are, and return both.

        all_cells: as for tables; a figure always shows all of them.

        Raises:
            UserError: the folder cannot be written.
        """
        result = make_figure_result(
            self.figure, self.points, look_up_exactly(store.record), store.record, self.remarks, failures
        )
        written = write_figure(result, reports)
        console.print(Text(f"Figure {self.figure.name}: {describe_files(written)}", overflow="fold"))
        return result, written


Target = TableTarget | FigureTarget
ALL = "all"


def select_targets(tables: Sequence[str], figures: Sequence[str], options: RunOptions) -> list[Table | Figure]:
    """The tables and figures by the names that were given, as they are at the scale.

    Raises:
        UserError: none is named, a name is unknown, or an option that applies to a single table is given for several.
    """
    if list(tables) == [ALL]:
        tables = [name for name in table_names() if load_table(name).in_all]
    if list(figures) == [ALL]:
        figures = [name for name in figure_names() if load_figure(name).in_all]
    if not (tables or figures):
        raise UserError(
            f"which table or figure? pass --table with one of: {', '.join(table_names())}, {ALL}, or a TOML file; or "
            f"--figure with one of: {', '.join(figure_names())}, {ALL}, or a TOML file"
        )
    if len(tables) + len(figures) > 1:
        for option, value in (
            ("--methods", options.methods),
            ("--pairs", options.pairs),
            ("--dataset", options.dataset),
        ):
            if value:
                raise UserError(f"{option} only applies to a single table or figure; name one, or remove {option}")
    return [
        *(load_table(name).at(options.scale) for name in dict.fromkeys(tables)),
        *(load_figure(name).at(options.scale) for name in dict.fromkeys(figures)),
    ]


def reject_unused_options(wanted: Sequence[Table | Figure], options: RunOptions, train_teachers: bool) -> None:
    """Refuse options that would change nothing of what is wanted.

    Raises:
        UserError: there is such an option.
    """
    sources = [options.dataset or entry.dataset_for(options.scale) for entry in wanted if isinstance(entry, Table)]
    if train_teachers and imagenet.NAME not in sources:
        raise UserError(
            "--train-teachers only applies to ImageNet tables (elsewhere teachers are always trained); remove it"
        )
    if options.teacher_outputs == "atlas":
        # Before any data is fetched.
        for entry in wanted:
            _check_views(entry, options)
    few_shot = any(isinstance(entry, Figure) and entry.kind == "few-shot" for entry in wanted)
    if options.teacher_data != "all" and not few_shot:
        raise UserError(
            f"--teacher-data {options.teacher_data} only applies to few-shot figures, such as 5; name one with "
            "--figure, or remove it"
        )


def _check_views(entry: Table | Figure, options: RunOptions) -> None:
    """Refuse a table or figure whose images can have no atlas."""
    protocol = options.protocol or entry.protocol_for(options.scale)
    if isinstance(entry, Table):
        sources = [entry.dataset_for(options.scale)]
    else:
        chosen = [panel for panel in entry.panels if not options.pairs or panel.title in options.pairs]
        sources = [panel.dataset_for(options.scale) or "" for panel in chosen]
    for source in [options.dataset] if options.dataset else sources:
        check_views(source, get_protocol(protocol), options.augmentation)


def count_runs(wanted: Sequence[Table | Figure], options: RunOptions) -> int:
    """Count the runs of all cells and points, at most, without planning them."""
    seeds, count = len(options.seed_numbers), 0
    for entry in wanted:
        methods = len(options.methods)
        if isinstance(entry, Table):
            count += (len(entry.rows) + methods) * len(entry.columns) * seeds
        else:
            points = (len(entry.all_methods) + methods) * max(1, len(entry.fractions))
            count += len(entry.panels) * points * seeds
    return count


def plan_targets(
    wanted: Sequence[Table | Figure],
    options: RunOptions,
    teacher_files: Sequence[str],
    train_teachers: bool,
    datasets: DatasetCache,
    store: Store,
    console: Console,
) -> tuple[list[Target], Teachers]:
    """Read the data and plan the runs of all targets; also return the teachers that came from files.

    teacher_files: the user's own, as `NETWORK=FILE`; train_teachers: leave torchvision's alone.

    Raises:
        UserError: something in it is refused, or no data is there for any of them.
    """
    tables = [entry for entry in wanted if isinstance(entry, Table)]
    named = parse_teacher_files(teacher_files, [select_rows(entry, options.methods, options.pairs) for entry in tables])
    if named and len(wanted) > 1:
        raise UserError("--teacher-checkpoint only applies to a single table; name one, or remove it")
    targets: list[Target] = []
    all_teachers = Teachers()
    for entry in wanted:
        if isinstance(entry, Table):
            source = options.dataset or entry.dataset_for(options.scale)
            images = datasets.load(source, f"table {entry.name}")
            if images is None:
                continue
            files = named if train_teachers else find_released_files(entry, images, datasets, console) | named
            recipe = options.make_factory(entry.protocol_for(options.scale), images).protocol
            # A cluster's device may be none of this machine's.
            here = options.device if options.device.type == "cpu" or torch.cuda.is_available() else torch.device("cpu")
            teachers = load_teachers(files, images, recipe, here, console, measured=not datasets.dry_run)
            for name, figures in teachers.accuracy.items():
                store.save_teacher_metrics(images.name, teachers.released[name].teacher.sha256, figures)
            all_teachers = all_teachers.merge(teachers)
            probed = load_probed(entry, options, datasets)
            targets.append(TableTarget.plan(entry, options, source, images, teachers, probed))
        else:
            target = FigureTarget.plan(entry, options, datasets.load)
            targets += [target] if target.points else []
    if not targets:
        missing = "; ".join(dict.fromkeys(datasets.missing.values()))
        raise UserError(missing or f"nothing is drawn at scale {options.scale}; choose another --scale or --pairs")
    return targets, all_teachers


def load_probed(table: Table, options: RunOptions, datasets: DatasetCache) -> dict[str, Dataset]:
    """Load the datasets that the students of the wanted columns are probed on, by source.

    Raises:
        UserError: one is missing.
    """
    wanted = [column for column in table.columns if not options.pairs or column.name in options.pairs]
    sources = dict.fromkeys(column.probe.source_at(options.scale) for column in wanted if column.probe)
    loaded = {source: datasets.load(source, f"probes of table {table.name}") for source in sources if source}
    return {source: images for source, images in loaded.items() if images}


def find_released_files(table: Table, images: Dataset, datasets: DatasetCache, console: Console) -> dict[str, Path]:
    """Find or fetch the files of teachers that torchvision has released for a table's dataset."""
    if images.name != imagenet.NAME or images.num_classes != imagenet.NUM_CLASSES:
        return {}

    log = functools.partial(console.print, highlight=False, soft_wrap=True)
    networks = dict.fromkeys(column.teacher for column in table.columns if column.teacher)
    found = {name: torchvision_teacher(name, datasets.data_root, log, not datasets.dry_run) for name in networks}
    return {name: path for name, path in found.items() if path}
