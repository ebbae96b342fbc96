"""Plans the panels of a figure as runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmark.backbones import check_network
from benchmark.core.errors import UserError, unknown_name
from benchmark.core.spec import Run
from benchmark.planning.request import RunFactory
from benchmark.planning.tables import needs_pair
from benchmark.plugins.registry import all_methods, method_class, method_names
from figures.specification import Figure, Panel

TeacherData = Literal["all", "same"]


@dataclass(frozen=True)
class Points:
    """The runs of a panel by method and fraction, one for each seed, of the methods that the suite has."""

    panel: Panel
    factory: RunFactory
    methods: tuple[str, ...]
    """All methods that could be drawn, in order."""
    runs: Mapping[tuple[str, float], tuple[Run, ...]]
    selected: frozenset[tuple[str, float]]
    """The points that the user asked for."""

    def requested_runs(self) -> list[Run]:
        """List the runs of the points that the user asked for."""
        return list(dict.fromkeys(run for point, runs in self.runs.items() if point in self.selected for run in runs))


def plan_panel(
    figure: Figure, panel: Panel, factory: RunFactory, seeds: Iterable[int], methods: Sequence[str] = ()
) -> Points:
    """Plan the runs of a panel. If no methods are named, those of the figure are selected.

    A point at fraction 1 is the run that a table has for the same pair; at a seed, all methods learn from the same
    images. Any method may be named; one that the figure does not have comes last.

    Raises:
        UserError: the suite does not have a network or method, or the figure cannot show a method.
    """
    seeds = tuple(seeds)
    check_methods_of(figure)
    for network in filter(None, (panel.teacher, panel.student)):
        check_network(network, f"network of figure {figure.name}")
    for method in methods:
        _check_method(figure, panel, method)
    shown = tuple(dict.fromkeys((*figure.all_methods, *methods)))
    fractions = figure.fractions or (factory.fraction,)
    factories = {fraction: dataclasses.replace(factory, fraction=fraction) for fraction in fractions}
    source = panel.probe.source_at(factory.scale.name) if panel.probe else None

    def run(method: str, fraction: float, seed: int) -> Run:
        if panel.probe is None or source is None:
            return factories[fraction].run(method, panel.student, panel.teacher, seed)
        student = factory.run(method, panel.student, panel.teacher, seed)
        return factory.probe(student, source, panel.probe.protocol, fraction)

    runs = {
        (method, fraction): tuple(run(method, fraction, seed) for seed in seeds)
        for method in shown
        if method in all_methods() and (panel.teacher or not needs_pair(method))
        for fraction in fractions
    }
    wanted = tuple(methods) or figure.methods
    chosen = frozenset(point for point in runs if point[0] in wanted)
    return Points(panel, factory, shown, runs, chosen)


def check_methods_of(figure: Figure) -> None:
    """Refuse a figure with methods that the suite does not have.

    Raises:
        UserError: there is such a method.
    """
    for method in figure.all_methods:
        if method not in all_methods():
            raise unknown_name(f"method of figure {figure.name}", method, method_names())


def _check_method(figure: Figure, panel: Panel, method: str) -> None:
    allowed = dict.fromkeys((*figure.all_methods, *method_names()))
    if figure.kind == "stages":
        allowed = {name: None for name in allowed if name in all_methods() and method_class(name).student_branches}
        if method in all_methods() and method not in allowed:
            raise UserError(
                f"{method} has no classifier after each stage, which figure {figure.name} is about; "
                f"allowed: {', '.join(allowed)}"
            )
    if method not in allowed or method not in all_methods():
        raise unknown_name("method", method, allowed)
    if panel.teacher is None and needs_pair(method):
        raise UserError(
            f"{method} needs a teacher, which panel {panel.title} of figure {figure.name} does not have; "
            "give the panel one, or leave the method out"
        )
