"""Write what is measured into the README, from the records in `results/`: `python -m benchmark.report.readme`."""

from __future__ import annotations

from pathlib import Path

from benchmark.core.statistics import LEVEL, common_seeds, paired_difference, summarise
from benchmark.core.text import format_signed
from benchmark.io.files import replacing, write_text
from benchmark.report.coverage import write_limits
from benchmark.report.curves import PairCurves, collect_pair_curves, draw
from benchmark.report.data import collect_report
from benchmark.report.table import format_with_std
from figures.render import import_matplotlib
from tables.escaping import escape_markdown, format_pipe_table
from tables.result import Cell
from tables.specification import BASELINE, TEACHER

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
"""The records that come with the repository."""
README = ROOT / "README.md"
PICTURE = "docs/images/measured.svg"
BEGIN, END = "<!-- measured:start -->\n", "<!-- measured:end -->\n"
NOTHING = "Nothing yet on CIFAR-100.\n"


def main() -> None:
    """Write the README's block and its picture anew."""
    curves = collect_measured()
    if curves:
        with import_matplotlib():
            from figures.style import settings
        with settings("measured"), replacing(ROOT / PICTURE) as file:
            draw(curves).savefig(file.temporary, format="svg", metadata={"Date": None, "Creator": None})
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    write_text(README, before + BEGIN + make_block(curves) + END + rest.split(END)[1])


def collect_measured(results: Path = RESULTS) -> PairCurves | None:
    """Collect the curves of the pair that has the most, among the tables on real data; None where there is none."""
    if not results.is_dir():
        return None
    report = collect_report(results)
    records = {record["id"]: record for record in report.records}
    found = [curves for table in report.tables if (curves := collect_pair_curves(table.result, records))]
    return max(found, key=lambda curves: len(curves.curves), default=None)


def make_block(curves: PairCurves | None) -> str:
    """Write the README's part on what is measured: a table, a picture, and what can be concluded."""
    if curves is None:
        return NOTHING
    result, column = curves.result, curves.column
    rows: list[tuple[str, Cell]] = [(TEACHER, result.cell(TEACHER, column))] if curves.teacher else []
    rows += [(curve.name, result.cell(curve.name, column)) for curve in curves.curves]
    baseline = result.cell(BASELINE, column)
    lines = [["", "top-1, %", "seeds", f"minus Baseline [{LEVEL:.0%}]"]]
    for name, cell in rows:
        spread = format_with_std(summarise(cell.values))
        minus = "" if name in (TEACHER, BASELINE) else format_paired_difference(cell, baseline)
        lines.append([escape_markdown(name), spread, str(len(cell.values)), minus])
    table = format_pipe_table(lines, (1, 2, 3))
    picture = f"![Test accuracy over epochs of {column}, one line a method]({PICTURE})"
    if any(curve.seeds > 1 for curve in curves.curves):
        picture += "\n\nA line is the mean over seeds, a band the range from the lowest to the highest."
    parts = [f"Table {result.table.name}, {escape_markdown(column)}:", table]
    if len({curve.seeds for curve in curves.curves}) > 1:
        parts.append("A difference is the mean over the seeds that both have.")
    parts += [picture, *write_limits([result])]
    return "\n\n".join(parts) + "\n"


def format_paired_difference(cell: Cell, other: Cell) -> str:
    """Write the mean of `cell` minus `other` over the seeds of both, with its interval where the seeds give one."""
    if not common_seeds((cell.by_seed(), other.by_seed())):
        return ""
    difference = paired_difference(cell.by_seed(), other.by_seed())
    mean = format_signed(difference.mean)
    if difference.interval is None:
        return mean
    low, high = map(format_signed, difference.interval)
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    main()
