"""Tables as every format of the report shows them: headings, rows of formatted cells, and what each is sorted by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmark.core.statistics import Summary, summarise
from benchmark.core.text import format_minus, format_signed

NOTHING = "\N{EN DASH}"
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


@dataclass(frozen=True)
class ReportCell:
    """A cell of a table.

    key: what it is sorted by, None for an empty cell; below: smaller lines under it; run: the run whose
    curves it can show, by what names it on the page (`benchmark.report.runs.make_key`).
    """

    text: str
    key: float | str | None = None
    below: str = ""
    run: str = ""


EMPTY = ReportCell(NOTHING)


@dataclass(frozen=True)
class ReportColumn:
    """The heading of a column.

    title: in one line or several; hint: an explanation where one is needed; numeric: set flush right.
    """

    title: str
    hint: str = ""
    numeric: bool = True

    @property
    def lines(self) -> tuple[str, ...]:
        """The title where it is to be broken: at its line ends, or a pair of networks before the student."""
        teacher, arrow, student = self.title.partition(">")
        return (teacher, f">{student}") if arrow else tuple(self.title.splitlines())

    @property
    def name(self) -> str:
        """The title in one line."""
        return " ".join(self.title.splitlines())


def make_word_columns(*titles: str) -> tuple[ReportColumn, ...]:
    """Make the headings of columns of words that need no explanation."""
    return tuple(ReportColumn(title, numeric=False) for title in titles)


@dataclass(frozen=True)
class ReportTable:
    """A table. Its first column names the rows; `notes` stand under it."""

    title: str
    headings: tuple[ReportColumn, ...]
    rows: tuple[tuple[ReportCell, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def hints(self) -> tuple[ReportColumn, ...]:
        """The headings with an explanation."""
        return tuple(heading for heading in self.headings if heading.hint)


def format_word(text: str, below: str = "") -> ReportCell:
    """Format text, which is sorted alphabetically."""
    return ReportCell(text, text.casefold(), below) if text else EMPTY


def format_number(value: float | None, decimals: int = 2, unit: str = "") -> ReportCell:
    """Format a number with a fixed number of decimals; a dash for None."""
    return EMPTY if value is None else ReportCell(format_minus(f"{value:,.{decimals}f}") + unit, float(value))


def format_difference(value: float | None, decimals: int = 2) -> ReportCell:
    """Format a number with its sign; a dash for None."""
    return EMPTY if value is None else ReportCell(format_signed(value, decimals), value)


def format_spread(values: Sequence[float], decimals: int = 2) -> ReportCell:
    """Format the mean and standard deviation of a metric over seeds; a dash for no values."""
    if not values:
        return EMPTY
    summary = summarise(values)
    return ReportCell(format_with_std(summary, decimals), summary.mean)


def format_with_std(summary: Summary, decimals: int = 2) -> str:
    """Format a summary: `71.25 ± 0.31`, or the mean alone where there is no deviation."""
    mean = format_minus(f"{summary.mean:.{decimals}f}")
    return mean if summary.std is None else f"{mean} ± {summary.std:.{decimals}f}"


def format_power(value: float | None) -> ReportCell:
    """Format a large count as a number times a power of ten."""
    if value is None:
        return EMPTY
    if abs(value) < 1e5:
        return ReportCell(f"{value:,.0f}", float(value))
    exponent = math.floor(math.log10(abs(value)))
    mantissa = f"{value / 10**exponent:.2f}"
    if mantissa == "10.00":
        mantissa, exponent = "1.00", exponent + 1
    return ReportCell(f"{mantissa}\N{MULTIPLICATION SIGN}10{str(exponent).translate(_SUPERSCRIPTS)}", float(value))


def format_count(value: float | None) -> ReportCell:
    """Format a count of parameters, in thousands or millions where it is that large."""
    if value is None:
        return EMPTY
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return ReportCell(f"{value / size:.2f} {letter}", float(value))
    return ReportCell(f"{value:,.0f}", float(value))


def format_mebibytes(value: float | None) -> ReportCell:
    """Format bytes as MiB."""
    return EMPTY if value is None else ReportCell(f"{value / 2**20:,.0f} MiB", float(value))


def compute_mean(values: Sequence[float | None]) -> float | None:
    """Compute the mean; None where a value is unknown, or where there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
