"""What a command regenerates: tables and figures, each with its images, its runs, and how it is rendered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch
from rich.console import Console
from rich.text import Text

from benchmark.command_line import parse_settings
from benchmark.data.dataset import Dataset
from benchmark.errors import UserError, unknown_name
from benchmark.grid import Grid, grid_of, results_of
from benchmark.plan import Request
from benchmark.points import Points, check_methods_of, figure_result, points_of
from benchmark.protocols import chosen_scale, protocol_named, usual_seeds
from benchmark.remarks import remarks_of
from benchmark.results import Store
from benchmark.spec import Augmentation, Run
from benchmark.teachers import Teachers
from figures.render import write_figure
from figures.specification import Figure
from tables.render import to_terminal, write_reports
from tables.specification import Table

Lost = Mapping[str, str]
"""Why runs left no record, by run id."""
Load = Callable[[str, str], Dataset | None]
"""Gives the dataset of a source for what needs it; None where there is none and that is forgiven."""


@dataclass(frozen=True)
class Wish:
    """What a command asks of all that it regenerates; an empty value leaves the choice to the table or figure."""

    scale: str
    device: torch.device
    protocol: str = ""
    epochs: int | None = None
    settings: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    seeds: int | None = None
    dataset: str = ""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    augmentation: Augmentation = "standard"
    teacher_seeds: Literal["shared", "paired"] = "shared"
    teacher_data: Literal["all", "same"] = "all"
    processes: int = 1
    validation: float = 0.0
    bf16: bool | None = None
    """Whether the device computes in bf16, where it is not one of this machine."""

    def request(self, protocol: str, images: Dataset, teachers: Teachers | None = None) -> Request:
        """How the cells of a target with this protocol become runs on these images.

        Raises:
            UserError: the protocol, an option or the number of epochs is refused.
        """
        recipe, options = parse_settings(list(self.settings), protocol_named(self.protocol or protocol))
        return Request(
            dataset=images.name,
            fingerprint=images.fingerprint,
            protocol=recipe,
            scale=chosen_scale(self.scale, self.epochs, recipe),
            device=self.device,
            precision=self.precision,
            validation=self.validation,
            options=options,
            augmentation=self.augmentation,
            teacher_seeds=self.teacher_seeds,
            teacher_data=self.teacher_data,
            processes=self.processes,
            released=teachers.released if teachers else {},
            bf16=self.bf16,
        )

    @property
    def seed_numbers(self) -> range:
        """The seeds of each cell."""
        return range(self.seeds or usual_seeds(self.scale))


@dataclass(frozen=True)
class Part:
    """Runs on one dataset: those of a table, or of a panel of a figure. source: as `load_dataset` takes it."""

    title: str
    source: str
    images: Dataset
    runs: tuple[Run, ...]


class Target(Protocol):
    """A table or a figure that was planned."""

    @property
    def parts(self) -> Sequence[Part]:
        """What is to be trained for it."""

    def render(self, store: Store, lost: Lost, reports: Path, console: Console) -> None:
        """Write its files from what the store holds, and print it.

        Raises:
            UserError: the folder cannot be written.
        """


@dataclass(frozen=True)
class TableTarget:
    """A table as a grid of runs."""

    grid: Grid
    request: Request
    part: Part
    remarks: tuple[str, ...] = ()
    accuracy: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Of teachers that came from files, on this dataset's test images."""

    @classmethod
    def planned(cls, table: Table, wish: Wish, source: str, images: Dataset, teachers: Teachers) -> TableTarget:
        """The table as it was wished for.

        Raises:
            UserError: a method, a pair, an option or the protocol is refused.
        """
        request = wish.request(table.protocol_for(wish.scale), images, teachers)
        grid = grid_of(table, request, wish.seed_numbers, wish.methods, wish.pairs)
        part = Part(f"Table {table.name} on {images.name}", source, images, tuple(grid.to_train()))
        return cls(grid, request, part, tuple(remarks_of(request, table.protocol_for(wish.scale))), teachers.accuracy)

    @property
    def parts(self) -> Sequence[Part]:
        return (self.part,)

    def render(self, store: Store, lost: Lost, reports: Path, console: Console) -> None:
        """Write the table's files and print it; it is printed also where they cannot be written."""
        result = results_of(self.grid, self.request, store.found, store.record, self.accuracy, self.remarks, lost)
        written: list[Path] = []
        try:
            written = write_reports(result, reports)
        finally:
            console.print(to_terminal(result, console.width, written))


@dataclass(frozen=True)
class FigureTarget:
    """A figure as the points of its panels."""

    figure: Figure
    points: Mapping[str, Points]
    parts: Sequence[Part]
    remarks: tuple[str, ...] = ()

    @classmethod
    def planned(cls, figure: Figure, wish: Wish, load: Load) -> FigureTarget:
        """The figure as it was wished for, as far as there is data for its panels.

        Raises:
            UserError: a method, an option, the protocol or a dataset is refused.
        """
        # Before any data is fetched.
        check_methods_of(figure)
        titles = [panel.title for panel in figure.panels]
        for pair in wish.pairs:
            if pair not in titles:
                raise unknown_name(f"panel of figure {figure.name}", pair, titles)
        if wish.dataset:
            images = load(wish.dataset, f"figure {figure.name}")
            figure = figure.on(images.name, wish.scale) if images else figure
        points: dict[str, Points] = {}
        parts: list[Part] = []
        for panel in figure.panels:
            source = wish.dataset or panel.dataset_for(wish.scale)
            if source is None or (wish.pairs and panel.title not in wish.pairs):
                continue
            try:
                images = load(source, f"figure {figure.name}, panel {panel.title}")
            except UserError as error:
                drawn = [other.title for other in figure.panels if other.dataset_for(wish.scale) and other != panel]
                if wish.pairs or wish.dataset or not drawn:
                    raise
                raise UserError(f"{error}; or leave this panel out: --pairs {drawn[0]}") from error
            if images is None:
                continue
            request = wish.request(figure.protocol, images)
            points[panel.title] = points_of(figure, panel, request, wish.seed_numbers, wish.methods)
            title = f"Figure {figure.name}, {panel.title}, on {images.name}"
            parts.append(Part(title, source, images, tuple(points[panel.title].to_train())))
        texts = remarks_of(next(iter(points.values())).request, figure.protocol) if points else []
        return cls(figure, points, tuple(parts), tuple(texts))

    def render(self, store: Store, lost: Lost, reports: Path, console: Console) -> None:
        """Write the figure's files and say where they are."""
        result = figure_result(self.figure, self.points, store.found, store.record, self.remarks, lost)
        written = ", ".join(str(path) for path in write_figure(result, reports))
        console.print(Text(f"Written: {written}", overflow="fold"))
