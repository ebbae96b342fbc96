"""A figure as runs, and the records of those runs as the figure's points."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmark.backbones import network_names
from benchmark.cells import FindRecord, cell_of
from benchmark.collection import Collection, Setting
from benchmark.errors import UserError, unknown_name
from benchmark.grid import LookUp, needs_pair
from benchmark.plan import Request
from benchmark.protocols import base_scale, chosen_scale, protocol_named, usual_seeds
from benchmark.provenance import made_by
from benchmark.registry import all_methods, method_class, method_names
from benchmark.remarks import is_usual, precision_remark, remarks_of, variant_of
from benchmark.spec import Run
from figures.result import FigureResult, PanelResult, named
from figures.specification import Figure, Panel
from tables.result import Cell
from tables.specification import Column

TeacherData = Literal["all", "same"]


@dataclass(frozen=True)
class Points:
    """The runs of a panel by method and fraction, one for each seed, as far as the suite can run them."""

    panel: Panel
    request: Request
    methods: tuple[str, ...]
    """All that could be shown, in order."""
    runs: Mapping[tuple[str, float], tuple[Run, ...]]
    chosen: frozenset[tuple[str, float]]
    """The points that were asked for."""

    def to_train(self) -> list[Run]:
        """The runs of the points that were asked for."""
        return list(dict.fromkeys(run for point, runs in self.runs.items() if point in self.chosen for run in runs))


def points_of(
    figure: Figure, panel: Panel, request: Request, seeds: Iterable[int], methods: Sequence[str] = ()
) -> Points:
    """The runs of a panel, and which of its points were asked for (all of the figure's methods if none are named).

    A point at fraction 1 is the very run that a table has for the same pair; all methods learn from the same part of
    the images at a seed. Any method may be named; one that the figure does not have comes last.

    Raises:
        UserError: a network or method that the suite does not have, or a method that the figure cannot show.
    """
    seeds = tuple(seeds)
    check_methods_of(figure)
    for network in filter(None, (panel.teacher, panel.student)):
        if network not in network_names():
            raise unknown_name(f"network of figure {figure.name}", network, network_names())
    for method in methods:
        _check_method(figure, panel, method)
    shown = tuple(dict.fromkeys((*figure.all_methods, *methods)))
    fractions = figure.fractions or (request.fraction,)
    requests = {fraction: dataclasses.replace(request, fraction=fraction) for fraction in fractions}
    runs = {
        (method, fraction): tuple(requests[fraction].run(method, panel.student, panel.teacher, seed) for seed in seeds)
        for method in shown
        if method in all_methods() and (panel.teacher or not needs_pair(method))
        for fraction in fractions
    }
    wanted = tuple(methods) or figure.methods
    chosen = frozenset(point for point in runs if point[0] in wanted)
    return Points(panel, request, shown, runs, chosen)


def check_methods_of(figure: Figure) -> None:
    """Refuse a figure of methods that the suite does not have.

    Raises:
        UserError: it has such a method.
    """
    for method in figure.all_methods:
        if method not in all_methods():
            raise unknown_name(f"method of figure {figure.name}", method, method_names())


def figure_result(
    figure: Figure,
    points: Mapping[str, Points],
    look_up: LookUp,
    find: FindRecord,
    remarks: Sequence[str] = (),
    lost: Mapping[str, str] | None = None,
) -> FigureResult:
    """What there is for a figure.

    points: by the title of their panel; a panel without any is shown as not run yet. look_up, find and lost: as in
    `benchmark.grid.results_of`.

    Raises:
        UserError: no panel has any.
    """
    if not points:
        raise UserError(
            f"figure {figure.name}: no panel of it has images here; pass the folder that holds them with --data-root, "
            "or choose another scale"
        )
    request = next(iter(points.values())).request
    panels = tuple(
        _panel_result(figure, points[panel.title], look_up, find, lost or {})
        if panel.title in points
        else _empty_panel(figure, panel, request.scale.name, _epochs(request))
        for panel in figure.panels
    )
    precisions = {seed.precision for panel in panels for cell in panel.cells.values() for seed in cell.finished}
    asked = {method for some in points.values() for method, _ in some.chosen}
    measured = {method for panel in panels for (method, _), cell in panel.cells.items() if cell.values}
    known = dict.fromkeys((*figure.all_methods, *(method for some in points.values() for method in some.methods)))
    return FigureResult(
        figure=figure,
        scale=request.scale.name,
        panels=panels,
        methods=tuple(method for method in known if method in {*figure.methods, *asked, *measured}),
        generated_from=made_by(),
        remarks=(*remarks, *precision_remark(precisions, request.scale.name)),
        protocol=request.protocol.name,
        teacher_data=request.teacher_data,
        variant=variant_of(request),
    )


def empty_result(figure: Figure, scale: str = "paper") -> FigureResult:
    """A figure of which nothing has been run, with the published numbers where it has any.

    Raises:
        UserError: there is no such scale, or nothing is drawn at it.
    """
    figure, protocol = figure.at(base_scale(scale)), protocol_named(figure.protocol)
    epochs = str(protocol.schedule.scaled(chosen_scale(scale, None, protocol).factor).epochs)
    panels = tuple(_empty_panel(figure, panel, scale, epochs) for panel in figure.panels)
    return FigureResult(figure, scale, panels, figure.methods, made_by(), protocol=figure.protocol)


def collected(figure: Figure, collection: Collection, scale: str | None = None) -> list[FigureResult]:
    """The figure for every scale, protocol and dataset that there are records of its runs for.

    figure: as it was loaded; scale: only this one, and those stretched from it. Teachers that learnt from the same part
    of the images make a figure of their own. At scale `paper` there always is one, if an empty one.
    """
    results: list[FigureResult] = []
    groups: dict[tuple[str, str], list[Setting]] = defaultdict(list)
    for setting in collection.settings():
        groups[setting.scale.content, setting.protocol.content].append(setting)
    for settings in groups.values():
        name = settings[0].scale.name
        if scale in (None, name, base_scale(name)):
            results += _of_settings(figure, collection, settings)
    if scale in (None, "paper") and any(panel.dataset_for("paper") for panel in figure.panels):
        empty = empty_result(figure)
        if all(result.stem != empty.stem for result in results):
            results.append(empty)
    return results


def _of_settings(figure: Figure, collection: Collection, settings: Sequence[Setting]) -> Iterator[FigureResult]:
    """The figures of settings that agree in scale and protocol: on its own datasets, and on each other one."""
    scale = base_scale(settings[0].scale.name)
    datasets = dict.fromkeys(setting.dataset for setting in settings)
    usual = {panel.dataset_for(scale) for panel in figure.panels}
    if usual & datasets.keys():
        yield from _variants(figure.at(scale), collection, settings, "")
    for dataset in datasets:
        if dataset not in usual:
            yield from _variants(figure.on(dataset, scale), collection, settings, dataset)


def _variants(
    figure: Figure, collection: Collection, settings: Sequence[Setting], dataset: str
) -> Iterator[FigureResult]:
    """The figure with teachers that learnt from all images, and with others, as far as there are runs of its own."""
    usual = not dataset and settings[0].protocol == protocol_named(figure.protocol)
    planned: set[Run] = set()
    choices: tuple[TeacherData, ...] = ("all", "same") if figure.kind == "few-shot" else ("all",)
    for teacher_data in choices:
        points = {
            panel.title: some
            for panel in figure.panels
            if (some := _fullest(figure, panel, collection, settings, dataset, teacher_data))
        }
        runs = {run for some in points.values() for runs in some.runs.values() for run in runs if _is_own(run, usual)}
        # Without a record of a run that only this figure has, it would be another's once more.
        if any(collection.like(run) for run in runs - planned):
            remarks = _remarks_of(figure, list(points.values()), settings)
            cells = [runs for some in points.values() for runs in some.runs.values()]
            yield figure_result(figure, points, collection.look_up(cells), collection.find, remarks)
        planned |= runs
        usual = False


def _is_own(run: Run, usual: bool) -> bool:
    """Whether a run tells of the figure: where data or protocol are not its own, a table's runs alone do not."""
    return usual or run.fraction < 1 or method_class(run.method).student_branches


def _fullest(
    figure: Figure,
    panel: Panel,
    collection: Collection,
    settings: Sequence[Setting],
    dataset: str,
    teacher_data: TeacherData,
) -> Points | None:
    """The panel's runs on its dataset (or on the one that is named) as far as there are settings for that.

    Of several contents under one name the one that most points have records of.
    """
    scale = settings[0].scale.name
    name = dataset or panel.dataset_for(base_scale(scale))
    seeds = range(usual_seeds(scale))
    candidates = [
        points_of(figure, panel, setting.request(teacher_data=teacher_data), seeds)
        for setting in settings
        if setting.dataset == name
    ]

    def recorded(points: Points) -> int:
        return sum(bool(collection.like(runs[0])) for runs in points.runs.values())

    return max(candidates, key=recorded, default=None)


def _remarks_of(figure: Figure, points: Sequence[Points], settings: Sequence[Setting]) -> list[str]:
    """What a reader must know of how the runs differ from the default."""
    remarks = remarks_of(points[0].request, figure.protocol)
    for name in dict.fromkeys(some.request.dataset for some in points):
        if len({setting.fingerprint for setting in settings if setting.dataset == name}) > 1:
            remarks.append(f"There are runs on other images under the name {name}, which are not shown.")
    return remarks


def _panel_result(
    figure: Figure, points: Points, look_up: LookUp, find: FindRecord, lost: Mapping[str, str]
) -> PanelResult:
    panel, request = points.panel, points.request
    cells: dict[tuple[str, float], Cell] = {}
    for method in points.methods:
        for fraction in figure.fractions or (request.fraction,):
            title = panel.title if fraction == 1 else f"{panel.title}, {fraction:.0%} of the images"
            # The place of a stages figure's only cell is that of all images, whatever the request's share.
            key = (method, fraction if figure.fractions else 1.0)
            if runs := points.runs.get((method, fraction)):
                column = Column(student=panel.student, teacher=panel.teacher, title=title)
                cells[key] = cell_of(method, column, look_up(runs), find, lost)
            else:
                cells[key] = Cell(method, title, (), "no teacher" if method in all_methods() else "not in the suite")
    return PanelResult(
        panel=panel,
        scale=request.scale.name,
        dataset=request.dataset,
        epochs=_epochs(request),
        cells=cells,
        comparable=request.scale.name == "paper" and is_usual(request, figure.protocol),
    )


def _empty_panel(figure: Figure, panel: Panel, scale: str, epochs: str) -> PanelResult:
    dataset = named(panel.dataset_for(base_scale(scale)) or panel.datasets[0])
    return PanelResult(panel, scale, dataset, epochs, {}, comparable=scale == "paper")


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


def _epochs(request: Request) -> str:
    return str(request.protocol.schedule.scaled(request.scale.factor).epochs)
