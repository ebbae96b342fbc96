"""What sweeps decided, as the report shows it: read from the files that they left beside the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmark.core.text import format_signed
from benchmark.decisions.render import PREFIX, DecisionReport, format_cut, format_interval
from benchmark.io.untrusted import UntrustedInputError, read_text_limited
from benchmark.report.table import (
    EMPTY,
    ReportCell,
    ReportColumn,
    ReportTable,
    format_difference,
    format_number,
    format_word,
    make_word_columns,
)

LARGEST = 2**20
"""Bytes of a file of decisions; one of a hundred columns has a twentieth of it."""
_HEADINGS = (
    *make_word_columns("column", "difference"),
    ReportColumn("mean", "percentage points, over the paired seeds"),
    ReportColumn("interval", "of the mean; holds after each seed at once, so that one may stop where it leaves 0 out"),
    ReportColumn("n", "paired seeds until it was decided, or all there are"),
    *make_word_columns("verdict"),
    ReportColumn("at once", "whether it is decided too where the error is shared among all columns", numeric=False),
    ReportColumn("seeds\nsaved", "of those that it could have had"),
    ReportColumn("variance\ncut", "by pairing: how much smaller the variance of the difference is"),
)


@dataclass(frozen=True)
class DecidedClaim:
    """What one sweep decided, with its table."""

    report: DecisionReport
    listing: ReportTable

    @classmethod
    def of(cls, report: DecisionReport) -> DecidedClaim:
        """Lay out what a sweep decided as a table."""
        lines = []
        for each in report.decisions:
            margin = f"margin {format_signed(each.margin)}" if each.margin else ""
            lines.append(
                (
                    format_word(each.column),
                    format_word(each.compared, margin),
                    format_difference(each.mean),
                    ReportCell(format_interval(each), each.interval[0]) if each.interval else EMPTY,
                    format_number(each.n, 0),
                    format_word(each.verdict),
                    format_word("decided" if each.at_once else "not decided"),
                    format_number(each.saved, 0),
                    EMPTY if each.variance_cut is None else ReportCell(format_cut(each), each.variance_cut),
                )
            )
        title = f"{report.claim}, at most {report.most} seeds, {report.setting}"
        notes = (f"{report.summary}.", *report.notes, f"Interval: {report.method}. Assumed: {report.assumption}.")
        return cls(report, ReportTable(title, _HEADINGS, tuple(lines), notes))


def read_decisions(folder: Path) -> tuple[list[DecidedClaim], list[str]]:
    """Read what sweeps left in a folder of reports; return it, and a line on each file that cannot be read."""
    decided, refused = [], []
    for path in sorted(folder.glob(f"{PREFIX}*.json")):
        try:
            decided.append(DecidedClaim.of(DecisionReport.model_validate_json(read_text_limited(path, LARGEST))))
        except (OSError, ValueError, UntrustedInputError) as error:
            refused.append(f"{path.name} is no file of decisions ({type(error).__name__}); remove it")
    return decided, refused
