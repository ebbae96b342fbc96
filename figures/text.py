"""Write a figure as Markdown, for whoever cannot see the drawing, and as CSV, for whoever draws it anew."""

from __future__ import annotations

from urllib.parse import quote

from figures.result import KINDS, STAGE_METRICS, FigureResult, Number, PanelResult
from figures.specification import PublishedMarks
from tables.escaping import escape_markdown, format_csv, format_pipe_table
from tables.specification import get_number

DASH = "\N{EN DASH}"


def to_csv(result: FigureResult) -> str:
    """Write a line for each number, with full precision.

    metric: top1, stages or stages_joint; place: the share of the training images, or the number of the stage (`final`:
    the backbone's classifier); seeds and values: as many as n, in the same order. Where more than one number was
    published for the same, each after the first has a line of its own, without what was measured.
    """
    lines: list[dict[str, object]] = []
    for number in result.numbers():
        panel = number.panel
        place = {
            "figure": result.figure.name,
            "panel": panel.heading,
            "method": result.figure.title(number.method),
            "metric": number.metric,
            "place": number.place,
            "scale": result.scale,
            "dataset": panel.dataset,
            "teacher": panel.panel.teacher or "",
            "student": panel.panel.student,
        }
        measured, published = _measured(number), [_published(*one) for one in number.published] or [_published()]
        lines.append(place | measured | published[0])
        lines += [place | dict.fromkeys(measured) | more for more in published[1:]]
    return format_csv(lines)


def to_markdown(result: FigureResult) -> str:
    """Write the caption, the numbers of every panel as tables, and the notes."""
    figure = result.figure
    picture = f"![Figure {figure.name}; its numbers stand in the tables below]({quote(result.stem)}.png)"
    parts = [
        f"# Figure {figure.name}",
        escape_markdown(figure.caption),
        f"**{escape_markdown(result.statement)}**",
        picture,
    ]
    parts += [escape_markdown(remark) for remark in result.remarks]
    for panel in result.panels:
        parts += [f"## {escape_markdown(panel.heading)}", f"{escape_markdown(panel.subject)}."]
        parts += _share_tables(result, panel) if figure.fractions else _stage_tables(result, panel)
    explained = (
        "Each measured number: the mean \N{PLUS-MINUS SIGN} the standard deviation over the n runs (seeds), in %."
    )
    parts += [f"{explained} {result.counts}"]
    parts += ["\n".join(f"- {escape_markdown(note)}" for note in result.notes)]
    parts += [escape_markdown(f"Rendered by {result.generated_from}.")]
    return "\n\n".join(parts) + "\n"


def _share_tables(result: FigureResult, panel: PanelResult) -> list[str]:
    figure = result.figure
    lines = [["method", *(f"{100 * fraction:g} %" for fraction in figure.fractions)]]
    numbers = [number for number in result.numbers() if number.panel is panel]
    for method in result.methods:
        own = [_words(number) for number in numbers if number.method == method]
        lines.append([escape_markdown(figure.title(method)), *own])
    for marks in panel.published:
        entries = []
        for place in range(len(figure.fractions)):
            mean, std = get_number(marks.mean, place), get_number(marks.std, place)
            spread = "" if std is None else f" \N{PLUS-MINUS SIGN} {std:.2f}"
            entries.append(DASH if mean is None else f"*{mean:.2f}{spread}*")
        lines.append([f"{escape_markdown(marks.name)}, published", *entries])
    sources = dict.fromkeys(
        f"{marks.source}, {marks.runs} runs" if marks.runs else marks.source for marks in panel.published
    )
    published = [f"Published: {escape_markdown('; '.join(sources))}."] if sources else []
    return ["Top-1 accuracy, %, by the share of the training images:", format_pipe_table(lines), *published]


def _stage_tables(result: FigureResult, panel: PanelResult) -> list[str]:
    parts = []
    for metric in STAGE_METRICS:
        numbers = [number for number in result.numbers() if number.panel is panel and number.metric == metric]
        places = list(dict.fromkeys(number.place for number in numbers))
        if not places:
            continue
        lines = [["method", *(f"stage {place}" if place.isdigit() else place for place in places)]]
        for method in result.methods:
            found = {number.place: _words(number) for number in numbers if number.method == method}
            lines.append([escape_markdown(result.figure.title(method)), *(found.get(place, DASH) for place in places)])
        parts += [f"Accuracy, %, of {KINDS[metric]}:", format_pipe_table(lines)]
    return parts


def _words(number: Number) -> str:
    summary = number.summary
    if summary is None:
        return number.cell.status
    spread = "" if summary.std is None else f" \N{PLUS-MINUS SIGN} {summary.std:.2f}"
    partial = f" of {number.cell.seeds}" if number.cell.status == "partial" and number.cell.seeds else ""
    return f"{summary.mean:.2f}{spread} (n={summary.n}{partial})"


def _measured(number: Number) -> dict[str, object]:
    summary = number.summary
    return {
        "n": len(number.values),
        "mean": summary.mean if summary else None,
        "std": summary.std if summary else None,
        "seeds": " ".join(map(str, number.values)),
        "values": " ".join(map(str, number.values.values())),
        "status": number.cell.status,
        "notes": "; ".join(number.cell.notes),
    }


def _published(
    marks: PublishedMarks | None = None, mean: float | None = None, std: float | None = None
) -> dict[str, object]:
    return {
        "published": mean,
        "published_std": std,
        "published_as": marks.name if marks else None,
        "published_source": marks.source if marks else None,
    }
