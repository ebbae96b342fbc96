"""Figure results with made-up numbers, for tests of drawings and their tables: nothing in them was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from figures.result import FigureResult, PanelResult
from figures.specification import Figure, load_figure
from tables.result import Cell, Price, Seed

FREE = Price(None, None, None, None, 1, None, None, None, None)
ORDER = ("KD", "CRD", "SSKD", "HSSAKD", "LSSKD")


def cell_of(method: str, figures: Sequence[Mapping[str, Any]], **changes: Any) -> Cell:
    """A finished cell with the last figures of each seed."""
    seeds = tuple(Seed(number, f"{method}-{number}", one, FREE, "fp32") for number, one in enumerate(figures))
    values = tuple(float(one["top1"]) for one in figures)
    cell = Cell(method, "column", values, "done", seeds=len(values), finished=seeds)
    return dataclasses.replace(cell, **changes)


def few_shot(scale: str = "paper", seeds: int = 3, **changes: Any) -> FigureResult:
    """Figure 5 with every point measured."""
    return _result(load_figure("5"), scale, seeds, **changes)


def stages(scale: str = "paper", seeds: int = 3, **changes: Any) -> FigureResult:
    """Figure 6 with every point measured."""
    return _result(load_figure("6"), scale, seeds, **changes)


def _result(whole: Figure, scale: str, seeds: int, methods: Sequence[str] = (), **changes: Any) -> FigureResult:
    figure = whole.at(scale)
    stream = np.random.default_rng(0)
    panels = []
    for number, panel in enumerate(figure.panels):
        cells = {}
        for method in methods or figure.methods:
            for fraction in figure.fractions or (1.0,):
                rank = ORDER.index(method) if method in ORDER else 2
                base = 62 - 18 * number + 11 * fraction**0.5 + 0.9 * rank
                cells[method, fraction] = cell_of(method, [_figures(base, stream, 4 - number) for _ in range(seeds)])
        dataset = panel.dataset_for(scale) or ""
        epochs = "240" if scale == "paper" else "6"
        panels.append(PanelResult(panel, scale, dataset, epochs, cells, comparable=scale == "paper"))
    result = FigureResult(
        figure, scale, tuple(panels), tuple(methods or figure.methods), "kd-benchmark 0.1.0, commit 0123456789ab"
    )
    return dataclasses.replace(result, **changes)


def _figures(top1: float, stream: np.random.Generator, count: int) -> dict[str, Any]:
    noise = stream.normal(0, 0.35, 1 + 2 * count)
    upright = [top1 - 4.0 * (count - stage) + noise[1 + stage] for stage in range(count)]
    joint = [value - 9 + noise[1 + count + stage] for stage, value in enumerate(upright)]
    return {"top1": top1 + noise[0], "top5": 90.0, "stages": upright, "stages_joint": joint}


def with_cell(result: FigureResult, panel: int, key: tuple[str, float], cell: Cell | None) -> FigureResult:
    """The result with another cell, or without one."""
    changed = result.panels[panel]
    cells = {place: one for place, one in changed.cells.items() if place != key} | ({key: cell} if cell else {})
    panels = list(result.panels)
    panels[panel] = dataclasses.replace(changed, cells=cells)
    return dataclasses.replace(result, panels=tuple(panels))
