"""How like their teachers students predict, as the report shows it: read from the file beside the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmark.faithfulness.collecting import FaithfulnessReport, Summary, summarise_by_setting
from benchmark.faithfulness.render import CAPTION, STEM, describe_classes, describe_setting
from benchmark.io.untrusted import UntrustedInputError, read_text_limited
from benchmark.report.figures import Drawing
from benchmark.report.table import (
    ReportCell,
    ReportColumn,
    ReportTable,
    format_difference,
    format_number,
    format_word,
    make_word_columns,
)

LARGEST = 2**25
"""Bytes of the file; one of a thousand runs has a twentieth of it."""
_HEADINGS = (
    *make_word_columns("method"),
    ReportColumn("n", "seeds"),
    ReportColumn("top-1, %"),
    ReportColumn("agreement, %", "test images for which student and teacher predict the same class"),
    ReportColumn("over\nBaseline", "agreement less that of Baseline of the same seeds, in percentage points"),
    ReportColumn("KL, nats", "mean divergence of the student's probabilities from the teacher's"),
    ReportColumn("errors\nrepeated, %", "of the teacher's errors: the student predicts the same wrong class"),
    ReportColumn("errors\ncorrected, %", "of the teacher's errors: the student is right"),
    ReportColumn("classes that gained", "against Baseline of the same seeds, in percentage points", numeric=False),
    ReportColumn("classes that lost", "against Baseline of the same seeds, in percentage points", numeric=False),
)


@dataclass(frozen=True)
class FaithfulnessListing:
    """The comparisons as tables, one for each pair and setting, and their drawing where it is there whole."""

    listings: tuple[ReportTable, ...]
    drawing: Drawing | None


def read_faithfulness(folder: Path) -> tuple[FaithfulnessListing | None, list[str]]:
    """Read what `benchmark.faithfulness` left in a folder of reports, if anything, or say why it cannot be read."""
    path = folder / f"{STEM}.json"
    if not path.is_file():
        return None, []
    try:
        report = FaithfulnessReport.model_validate_json(read_text_limited(path, LARGEST))
    except (OSError, ValueError, UntrustedInputError) as error:
        return None, [f"{path.name} is no file of comparisons ({type(error).__name__}); remove it"]
    listings = []
    for setting, lines in summarise_by_setting(report.compared).items():
        points = 100 * lines[0].first.classes / lines[0].first.images
        one = f"One image of a class is about {points:.2g} points of its accuracy."
        listings.append(ReportTable(describe_setting(setting), _HEADINGS, tuple(map(_list, lines)), notes=(one,)))
    return FaithfulnessListing(tuple(listings), _find_drawing(report, folder)), []


def _find_drawing(report: FaithfulnessReport, folder: Path) -> Drawing | None:
    files = {ending: folder / f"{STEM}.{ending}" for ending in ("png", "pdf", "svg", "csv")}
    if not all(path.is_file() for path in files.values()):
        return None
    shown = ", ".join(dict.fromkeys(each.method for each in report.compared))
    reproduces = all(each.scale == "paper" for each in report.compared)
    return Drawing(STEM, "How faithful are the students?", CAPTION, f"{CAPTION} Shown: {shown}.", reproduces, files)


def _list(line: Summary) -> tuple[ReportCell, ...]:
    found, first = line.found, line.first
    return (
        format_word(first.method, "" if first.taught else "control"),
        format_number(line.seeds, 0),
        format_number(found.top1),
        format_number(found.agreement, 1),
        format_difference(line.above_baseline, 1),
        format_number(found.kl, 3),
        format_number(found.repeated, 1),
        format_number(found.corrected, 1),
        format_word(describe_classes(line.gained)),
        format_word(describe_classes(line.lost)),
    )
