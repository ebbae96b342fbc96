"""Make the result of a figure from the records of its runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from benchmark.analysis.cells import FindRecord, LookUp, make_cell
from benchmark.analysis.notes import is_default_setting, list_notes, precision_note, variant_suffix
from benchmark.analysis.query import ExperimentSetting, RecordQuery
from benchmark.core.errors import UserError
from benchmark.core.protocols import base_scale, default_seed_count, get_protocol, select_scale
from benchmark.core.spec import Run
from benchmark.planning.figures import Points, TeacherData, plan_panel
from benchmark.planning.request import RunFactory
from benchmark.plugins.registry import all_methods, method_class
from benchmark.results.provenance import describe_environment
from figures.result import FigureResult, PanelResult, named
from figures.specification import Figure, Panel
from tables.result import Cell
from tables.specification import Column


def make_figure_result(
    figure: Figure,
    points: Mapping[str, Points],
    look_up: LookUp,
    find: FindRecord,
    remarks: Sequence[str] = (),
    lost: Mapping[str, str] | None = None,
) -> FigureResult:
    """Make the result of a planned figure.

    points: by the title of their panel; a panel without any is shown as not run yet. look_up, find and lost: as in
    `benchmark.analysis.tables.make_table_result`.

    Raises:
        UserError: no panel has any.
    """
    if not points:
        raise UserError(
            f"figure {figure.name}: no panel of it has images here; pass the folder that holds them with --data-root, "
            "or choose another scale"
        )
    factory = next(iter(points.values())).factory
    panels = tuple(
        _panel_result(figure, points[panel.title], look_up, find, lost or {})
        if panel.title in points
        else _empty_panel(figure, panel, factory.scale.name, _epochs(factory))
        for panel in figure.panels
    )
    precisions = {seed.precision for panel in panels for cell in panel.cells.values() for seed in cell.finished}
    asked = {method for some in points.values() for method, _ in some.selected}
    measured = {method for panel in panels for (method, _), cell in panel.cells.items() if cell.values}
    known = dict.fromkeys((*figure.all_methods, *(method for some in points.values() for method in some.methods)))
    return FigureResult(
        figure=figure,
        scale=factory.scale.name,
        panels=panels,
        methods=tuple(method for method in known if method in {*figure.methods, *asked, *measured}),
        generated_from=describe_environment(),
        remarks=(*remarks, *precision_note(precisions, factory.scale.name)),
        protocol=factory.protocol.name,
        teacher_data=factory.teacher_data,
        variant=variant_suffix(factory),
    )


def empty_result(figure: Figure, scale: str = "paper") -> FigureResult:
    """Make a figure without any run, with the published numbers where it has any.

    Raises:
        UserError: there is no such scale, or nothing is drawn at it.
    """
    figure, name = figure.at(base_scale(scale)), figure.protocol_for(scale)
    protocol = get_protocol(name)
    epochs = str(protocol.schedule.scaled(select_scale(scale, None, protocol).factor).epochs)
    panels = tuple(_empty_panel(figure, panel, scale, epochs) for panel in figure.panels)
    return FigureResult(figure, scale, panels, figure.methods, describe_environment(), protocol=name)


def collect_figure_runs(figure: Figure, query: RecordQuery, scale: str | None = None) -> list[FigureResult]:
    """Make the figure for every scale, protocol and dataset that there are records of its runs for.

    figure: as it was loaded; scale: only this one, and those stretched from it. Teachers that learnt from the same part
    of the images make a figure of their own. At scale `paper` there is always one, even without any run.
    """
    results: list[FigureResult] = []
    groups: dict[tuple[str, str], list[ExperimentSetting]] = defaultdict(list)
    for setting in query.settings():
        groups[setting.scale.content, setting.protocol.content].append(setting)
    for settings in groups.values():
        name = settings[0].scale.name
        if scale in (None, name, base_scale(name)):
            results += _of_settings(figure, query, settings)
    if figure.in_all and scale in (None, "paper") and any(panel.dataset_for("paper") for panel in figure.panels):
        empty = empty_result(figure)
        if all(result.stem != empty.stem for result in results):
            results.append(empty)
    return results


def _of_settings(figure: Figure, query: RecordQuery, settings: Sequence[ExperimentSetting]) -> Iterator[FigureResult]:
    """Make the figures of settings that agree in scale and protocol: on its own datasets, and on each other one."""
    scale = base_scale(settings[0].scale.name)
    datasets = dict.fromkeys(setting.dataset for setting in settings)
    usual = {panel.dataset_for(scale) for panel in figure.panels}
    if usual & datasets.keys():
        yield from _variants(figure.at(scale), query, settings, "")
    for dataset in datasets:
        if dataset not in usual:
            yield from _variants(figure.on(dataset, scale), query, settings, dataset)


def _variants(
    figure: Figure, query: RecordQuery, settings: Sequence[ExperimentSetting], dataset: str
) -> Iterator[FigureResult]:
    """Make the figure with teachers that learnt from all images, and with others, where it has runs of its own."""
    usual = not dataset and settings[0].protocol == get_protocol(figure.protocol_for(settings[0].scale.name))
    planned: set[Run] = set()
    choices: tuple[TeacherData, ...] = ("all", "same") if figure.kind == "few-shot" else ("all",)
    for teacher_data in choices:
        points = {
            panel.title: some
            for panel in figure.panels
            if (some := _fullest(figure, panel, query, settings, dataset, teacher_data))
        }
        runs = {run for some in points.values() for runs in some.runs.values() for run in runs if _is_own(run, usual)}
        # Without a record of a run that only this figure has, it would repeat the one before.
        if any(query.replicates(run) for run in runs - planned):
            remarks = _remarks_of(figure, list(points.values()), settings)
            cells = [runs for some in points.values() for runs in some.runs.values()]
            yield make_figure_result(figure, points, query.look_up(cells), query.find, remarks)
        planned |= runs
        usual = False


def _is_own(run: Run, usual: bool) -> bool:
    """Whether a run speaks for the figure: the runs of a table alone do not on another dataset or protocol."""
    return usual or run.fraction < 1 or method_class(run.method).student_branches


def _fullest(
    figure: Figure,
    panel: Panel,
    query: RecordQuery,
    settings: Sequence[ExperimentSetting],
    dataset: str,
    teacher_data: TeacherData,
) -> Points | None:
    """Choose the setting of the panel's dataset (or of the named one) that most of its points have records in.

    Several datasets may have one name and different images. None where there is no setting.
    """
    scale = settings[0].scale.name
    name = dataset or panel.dataset_for(base_scale(scale))
    seeds = range(default_seed_count(scale))
    probed = query.probed([panel.probe.source_at(scale)] if panel.probe else [])
    candidates = [
        plan_panel(figure, panel, setting.make_factory(teacher_data=teacher_data, probed=probed), seeds)
        for setting in settings
        if setting.dataset == name
    ]

    def recorded(points: Points) -> int:
        return sum(bool(query.replicates(runs[0])) for runs in points.runs.values())

    return max(candidates, key=recorded, default=None)


def _remarks_of(figure: Figure, points: Sequence[Points], settings: Sequence[ExperimentSetting]) -> list[str]:
    """List how the runs differ from the default."""
    remarks = list_notes(points[0].factory, figure.protocol_for(points[0].factory.scale.name))
    for name in dict.fromkeys(some.factory.dataset for some in points):
        if len({setting.fingerprint for setting in settings if setting.dataset == name}) > 1:
            remarks.append(f"There are runs on other images under the name {name}, which are not shown.")
    return remarks


def _panel_result(
    figure: Figure, points: Points, look_up: LookUp, find: FindRecord, lost: Mapping[str, str]
) -> PanelResult:
    panel, factory = points.panel, points.factory
    protocol = figure.protocol_for(factory.scale.name)
    cells: dict[tuple[str, float], Cell] = {}
    for method in points.methods:
        for fraction in figure.fractions or (factory.fraction,):
            title = panel.title if fraction == 1 else f"{panel.title}, {fraction:.0%} of the images"
            # The only cell of a stages figure stands for all images, whatever share was asked for.
            key = (method, fraction if figure.fractions else 1.0)
            if runs := points.runs.get((method, fraction)):
                column = Column(student=panel.student, teacher=panel.teacher, title=title)
                cells[key] = make_cell(method, column, look_up(runs), find, lost)
            else:
                cells[key] = Cell(method, title, (), "no teacher" if method in all_methods() else "not in the suite")
    return PanelResult(
        panel=panel,
        scale=factory.scale.name,
        dataset=factory.dataset,
        epochs=_epochs(factory),
        cells=cells,
        comparable=factory.scale.name == "paper" and is_default_setting(factory, protocol),
    )


def _empty_panel(figure: Figure, panel: Panel, scale: str, epochs: str) -> PanelResult:
    dataset = named(panel.dataset_for(base_scale(scale)) or panel.datasets[0])
    return PanelResult(panel, scale, dataset, epochs, {}, comparable=scale == "paper")


def _epochs(factory: RunFactory) -> str:
    return str(factory.protocol.schedule.scaled(factory.scale.factor).epochs)
