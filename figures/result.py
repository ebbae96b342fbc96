"""What was measured for a figure, as drawings and files need it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmark.core.protocols import base_scale
from benchmark.core.statistics import BySeed, Summary, summarise
from figures.specification import Figure, Panel, PublishedMarks
from tables.result import Cell, describe_comparison
from tables.specification import get_number

StageMetric = Literal["stages", "stages_joint"]
STAGE_METRICS: tuple[StageMetric, ...] = ("stages", "stages_joint")
KINDS: dict[StageMetric, str] = {
    "stages": "the class, on upright images (a branch's joint logits summed over the rotations)",
    "stages_joint": "class and rotation together, on the four rotated views",
}
"""What each of these metrics is the accuracy of."""
FINAL = "final"
"""The place of the backbone's own classifier, behind the last stage."""


@dataclass(frozen=True)
class Number:
    """One number of a figure, with all that stands behind it.

    metric: `top1`, `stages` or `stages_joint`; place: a fraction, the number of a stage or `final`; values: by seed, in
    %; published: what was published for it, mean and (where there is one) standard deviation in %.
    """

    panel: PanelResult
    method: str
    metric: str
    place: str
    cell: Cell
    values: BySeed
    published: tuple[tuple[PublishedMarks, float, float | None], ...] = ()

    @property
    def summary(self) -> Summary | None:
        """Mean and spread over seeds; None without any."""
        return summarise(self.values.values()) if self.values else None


@dataclass(frozen=True)
class PanelResult:
    """The cells of one panel, by method and fraction; a missing one counts as not run yet.

    dataset: its name; epochs: of the main schedule at this scale; comparable: whether the runs follow the figure's
    protocol in full.
    """

    panel: Panel
    scale: str
    dataset: str
    epochs: str
    cells: Mapping[tuple[str, float], Cell]
    comparable: bool

    def cell(self, method: str, fraction: float = 1.0) -> Cell:
        """Get the cell of a method at a fraction of the training images."""
        return self.cells.get((method, fraction)) or Cell(method, self.panel.title, (), "not run yet")

    def has_values(self) -> bool:
        """Whether anything of it was measured."""
        return any(cell.values for cell in self.cells.values())

    @property
    def on_its_dataset(self) -> bool:
        """Whether this is the dataset that the panel has at scale `paper`."""
        intended = self.panel.dataset_for("paper") or self.panel.datasets[-1]
        # A dataset file says its own name only when it is read, so a path cannot be compared with it.
        return intended.endswith(".toml") or intended == self.dataset

    @property
    def stands_in(self) -> bool:
        """Whether its dataset or networks differ from those that its title names."""
        return not self.on_its_dataset or base_scale(self.scale) in self.panel.at_scale

    @property
    def heading(self) -> str:
        """The heading: the title, or what the panel stands in for."""
        return f"In place of {self.panel.title}" if self.stands_in else self.panel.title

    @property
    def subject(self) -> str:
        """The networks and the dataset behind its numbers."""
        source = self.panel.probe and self.panel.probe.source_at(self.scale)
        # What is probed on comes first: a drawing has no room for the end of long names.
        probed = f"A probe on {named(source)} of " if source else ""
        return f"{probed}{self.panel.pair} on {self.dataset}"

    @property
    def reproduces(self) -> bool:
        """Whether its numbers may be set against the paper's: the whole protocol on the paper's dataset."""
        return self.comparable and self.scale == "paper" and not self.stands_in

    @property
    def published(self) -> tuple[PublishedMarks, ...]:
        """The published numbers, unless this is another dataset than theirs."""
        return self.panel.published if self.on_its_dataset else ()

    def stages(self, method: str, metric: StageMetric) -> tuple[BySeed, ...]:
        """List the accuracy in % of each auxiliary classifier by seed, from the first stage on; empty if there is none.

        stages: of the class, on upright images; stages_joint: of class and rotation, on the four rotated views.
        """
        by_seed = {seed.seed: seed.metrics[metric] for seed in self.cell(method).finished if seed.metrics.get(metric)}
        count = max((len(values) for values in by_seed.values()), default=0)
        return tuple(
            {seed: float(values[stage]) for seed, values in by_seed.items() if stage < len(values)}
            for stage in range(count)
        )

    def stage_count(self, methods: Sequence[str]) -> int:
        """Count the stages after which any of the methods has a classifier."""
        counts = [len(self.stages(method, metric)) for method in methods for metric in STAGE_METRICS]
        return max(counts, default=0)

    def numbered_stages(self, method: str, metric: StageMetric, count: int) -> dict[int, BySeed]:
        """Number the accuracies of the stages from 1 to `count`; fewer classifiers are those of the deepest stages."""
        values = self.stages(method, metric)
        return {count - len(values) + place + 1: by_seed for place, by_seed in enumerate(values)}


@dataclass(frozen=True)
class FigureResult:
    """A figure at one scale.

    methods: those that are shown, in order; generated_from: the version and commit that rendered it; remarks: what
    differs from the default; teacher_data: whether teachers learnt from all images or from the students' part;
    variant: what tells its files from those of another result of the same scale and datasets, "" for the usual one.
    """

    figure: Figure
    scale: str
    panels: tuple[PanelResult, ...]
    methods: tuple[str, ...]
    generated_from: str
    remarks: tuple[str, ...] = ()
    protocol: str = "lsskd"
    teacher_data: Literal["all", "same"] = "all"
    variant: str = ""

    @property
    def reproduces(self) -> bool:
        """Whether every number of it may be set against the paper's."""
        return all(panel.reproduces for panel in self.panels)

    @property
    def stem(self) -> str:
        """What its files are called, so that another scale, dataset or protocol overwrites nothing."""
        base = base_scale(self.scale)
        usual = {named(dataset) for panel in self.figure.panels if (dataset := panel.dataset_for(base)) is not None}
        parts = ["figure", self.figure.name, self.scale]
        parts += dict.fromkeys(panel.dataset for panel in self.panels if panel.dataset not in usual)
        if self.protocol != self.figure.protocol_for(base):
            parts.append(self.protocol)
        if self.teacher_data == "same":
            parts.append("teacher-on-same")
        if self.variant:
            parts.append(self.variant)
        # A record may say anything of its scale; a path must not be made of it.
        return re.sub(r"[^A-Za-z0-9._-]", "+", "_".join(parts))

    def has_values(self) -> bool:
        """Whether anything of it was measured."""
        return any(panel.has_values() for panel in self.panels)

    @property
    def fractions(self) -> tuple[float, ...]:
        """The fractions of its cells: those of the figure, or all of the images."""
        return self.figure.fractions or (1.0,)

    @property
    def cells(self) -> list[Cell]:
        """The cells of all methods that are shown."""
        places = [(method, fraction) for method in self.methods for fraction in self.fractions]
        return [panel.cell(*place) for panel in self.panels for place in places]

    @property
    def seeds(self) -> tuple[int, ...]:
        """How many seeds stand behind its numbers, ascending, each count once."""
        return tuple(sorted({len(cell.values) for cell in self.cells if cell.values}))

    @property
    def statement(self) -> str:
        """In one line: where the numbers come from, and whether they may be compared with the paper's."""
        datasets = list(dict.fromkeys(panel.dataset for panel in self.panels))
        on = f"{'dataset' if len(datasets) == 1 else 'datasets'} {' and '.join(datasets)}"
        if not self.has_values():
            return f"No runs yet at scale {self.scale}, on {on}."
        published = any(panel.panel.published for panel in self.panels)
        return describe_comparison(self.scale, on, self.panels[0].epochs, self.reproduces, published)

    @property
    def counts(self) -> str:
        """How many of its points (or series of stages) are done, and how many are not."""
        found = Counter(cell.status for cell in self.cells)
        what = "points" if self.figure.kind == "few-shot" else "series"
        parts = [f"{found.pop('done', 0)} of {len(self.cells)} {what} done"]
        return f"{', '.join([*parts, *(f'{count} {status}' for status, count in sorted(found.items()))])}."

    @property
    def notes(self) -> tuple[str, ...]:
        """The footnotes, what the teachers learnt from, what stands in for what, and failures."""
        texts = [*self.figure.footnotes]
        if self.figure.kind == "few-shot":
            data = "all the images" if self.teacher_data == "all" else "the same part of the images as their students"
            texts.append(f"Teachers, and what is trained on them, learn from {data}.")
        for panel in self.panels:
            if panel.stands_in:
                texts.append(f"{panel.subject} stands in for {panel.panel.title}.")
            if panel.panel.published and not panel.published:
                texts.append(
                    f"Numbers that were published for {panel.panel.title} are not drawn beside another dataset."
                )
        failures = dict.fromkeys(note for cell in self.cells for note in cell.notes)
        return (*texts, *failures)

    def numbers(self) -> Iterator[Number]:
        """List every number that the figure has or could have, in reading order."""
        for panel in self.panels:
            for method in self.methods:
                yield from self._shares(panel, method) if self.figure.fractions else self._stages(panel, method)

    def _shares(self, panel: PanelResult, method: str) -> Iterator[Number]:
        marks = [marks for marks in panel.published if marks.method == method]
        for position, fraction in enumerate(self.figure.fractions):
            cell = panel.cell(method, fraction)
            found = tuple(
                (one, mean, get_number(one.std, position))
                for one in marks
                if (mean := get_number(one.mean, position)) is not None
            )
            yield Number(panel, method, "top1", f"{fraction:g}", cell, select_by_seed(cell), found)

    def _stages(self, panel: PanelResult, method: str) -> Iterator[Number]:
        cell, count = panel.cell(method), panel.stage_count(self.methods)
        for metric in STAGE_METRICS:
            for stage, values in panel.numbered_stages(method, metric, count).items():
                yield Number(panel, method, metric, str(stage), cell, values)
            if metric == "stages":
                yield Number(panel, method, metric, FINAL, cell, select_by_seed(cell))


def select_by_seed(cell: Cell) -> BySeed:
    """Select the values of a cell by seed, or by position where the seeds are not known."""
    return cell.by_seed() or dict(enumerate(cell.values))


def named(dataset: str) -> str:
    """Name a dataset, or the file that describes one."""
    return Path(dataset).stem if dataset.endswith(".toml") else dataset
