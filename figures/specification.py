"""What a figure shows: its panels, methods, caption and published numbers, read from a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from benchmark.core.errors import UserError
from benchmark.core.models import FrozenModel
from benchmark.core.protocols import SCALES, base_scale
from tables.schema import (
    Datasets,
    Name,
    Protocols,
    check_count,
    check_file_name,
    check_once,
    choose_for_scale,
    list_names,
    load_by_name,
)
from tables.specification import DEFAULT_PROTOCOL, Probing, Published, ScaledNetworks

FOLDER = Path(__file__).parent
EXAMPLE = "figures/figure_5.toml"

Kind = Literal["few-shot", "stages"]


def _share(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError("a share of the training images; allowed: above 0, at most 1")
    return value


Fractions = tuple[Annotated[float, Field(strict=True), AfterValidator(_share)], ...]


class PublishedMarks(Published):
    """Numbers of one method from elsewhere, one for each fraction of the figure (nan: none), in %.

    method: the method of the figure whose colour and shape they take; title: what they are called where they are not
    quite that method's.
    """

    method: Name
    title: Name | None = None

    @property
    def name(self) -> str:
        """The title, or else the method's name."""
        return self.title or self.method


class Panel(ScaledNetworks):
    """One pair of axes: a pair of networks on a dataset. At a scale without a dataset it is not drawn.

    published, probe: only in a figure of kind few-shot. With `probe` the
    students learn from all images of `dataset`, and their probes from shares of those of another one.
    """

    title: Name
    dataset: Datasets
    published: tuple[PublishedMarks, ...] = ()
    probe: Probing | None = None

    def dataset_for(self, scale: str) -> str | None:
        """Choose the name of the dataset, or the path of its file, at a scale; None where the panel is not drawn."""
        return choose_for_scale(self.dataset, scale)

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets of all scales."""
        return (self.dataset,) if isinstance(self.dataset, str) else tuple(self.dataset.values())


class Figure(FrozenModel):
    """A figure as its TOML file says; the format is told at the top of `figure_5.toml`.

    fractions: shares of the training images, ascending, of kind few-shot; optional_methods: drawn where there are runs
    of them, trained only when they are named; titles: of methods that are called otherwise in the figure; highlight:
    the method that is drawn to stand out; in_all: whether `--figure all` names it, and a report draws it without runs.
    """

    name: Annotated[str, AfterValidator(check_file_name)]
    caption: str
    kind: Kind
    protocol: Protocols = DEFAULT_PROTOCOL
    methods: tuple[Name, ...] = Field(min_length=1)
    optional_methods: tuple[Name, ...] = ()
    titles: dict[Name, Name] = Field(default={})
    highlight: Name | None = None
    fractions: Fractions = ()
    panels: tuple[Panel, ...] = Field(min_length=1)
    footnotes: tuple[str, ...] = ()
    in_all: bool = True

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        check_once("methods", self.all_methods)
        check_once("panels", [panel.title for panel in self.panels])
        for field, method in (*(("titles", name) for name in self.titles), ("highlight", self.highlight)):
            if method is not None and method not in self.all_methods:
                raise ValueError(f"{field}: {method!r} is no method of the figure; {self._allowed_methods}")
        if self.kind == "stages":
            if self.fractions or any(panel.published for panel in self.panels):
                raise ValueError("fractions and published: allowed in a figure of kind few-shot only")
            if any(panel.probe for panel in self.panels):
                raise ValueError("probe: allowed in a figure of kind few-shot only")
            return self
        if not self.fractions or list(self.fractions) != sorted(set(self.fractions)):
            raise ValueError("fractions: a figure of kind few-shot needs one or more; allowed: ascending, each once")
        for panel in self.panels:
            self._check_published(panel)
        return self

    def _check_published(self, panel: Panel) -> None:
        place = f"published numbers of panel {panel.title}"
        check_once(place, [marks.name for marks in panel.published])
        for marks in panel.published:
            if marks.method not in self.all_methods:
                raise ValueError(f"{place}: {marks.method!r} is no method of the figure; {self._allowed_methods}")
            for field, numbers in (("mean", marks.mean), ("std", marks.std)):
                check_count(f"{place}: {field} of {marks.name}", numbers, len(self.fractions), "fraction")

    @property
    def all_methods(self) -> tuple[str, ...]:
        """The methods, those that are trained only when named last."""
        return (*self.methods, *self.optional_methods)

    @property
    def _allowed_methods(self) -> str:
        return f"allowed: {', '.join(self.all_methods)}"

    def title(self, method: str) -> str:
        """Say what a method is called in the figure."""
        return self.titles.get(method, method)

    def protocol_for(self, scale: str) -> str:
        """Choose the protocol at a scale or one stretched from it, by name: `lsskd` where the file names none."""
        return choose_for_scale(self.protocol, base_scale(scale)) or DEFAULT_PROTOCOL

    def at(self, scale: str) -> Figure:
        """Reduce the figure to the panels that are drawn at a scale, with their networks there.

        Raises:
            UserError: no panel is drawn there.
        """
        panels = tuple(panel.at(scale) for panel in self.panels if panel.dataset_for(scale) is not None)
        if not panels:
            known = [name for name in SCALES if any(panel.dataset_for(name) for panel in self.panels)]
            raise UserError(
                f"figure {self.name} has no dataset for scale {scale!r}; allowed: {', '.join(known)}; "
                "choose one of these or pass --dataset"
            )
        return self.model_copy(update={"panels": panels})

    def on(self, dataset: str, scale: str) -> Figure:
        """Reduce the figure to one dataset at a scale: to its panels of it, or else all panels on it; no pair twice."""
        panels = [panel for panel in self.panels if dataset in panel.datasets] or self.panels
        by_pair = {panel.pair: panel for panel in reversed([panel.at(scale) for panel in panels])}
        return self.model_copy(update={"panels": tuple(reversed(by_pair.values()))})


def figure_names() -> list[str]:
    """List the figures that come with the suite."""
    return list_names(FOLDER, "figure")


def load_figure(name_or_path: str | Path) -> Figure:
    """Load a figure by name (`5` or `figure_5`), or from the TOML file at a path.

    Raises:
        UserError: there is none of that name, the file cannot be read, or a field is missing, unknown or refused.
    """
    return load_by_name(FOLDER, "figure", name_or_path, Figure, EXAMPLE)
