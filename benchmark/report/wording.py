"""Sentences that several formats of the report share."""

from __future__ import annotations

from benchmark.report.data import Report

LEAD = (
    "The tables and figures of the LSSKD paper (arXiv:2506.07055), regenerated from scratch: every measured number "
    "beside the printed one, with the number of seeds that stand behind it."
)
NOT_RUN = "Not run yet: these numbers are the printed and published ones."
LEGEND = (
    "In each cell the measured mean ± the standard deviation over the n runs (seeds) behind it, of the last epoch; "
    "below it, in italics, numbers that were not measured here: printed ones, published† ones (by the method's own "
    "authors, or as a later paper quotes them) and those reproduced elsewhere‡, with their runs and epoch in a "
    "footnote; in brackets how far the measured one is from a printed one, where the two may be compared. The best "
    "measured number of a column is bold, the second underlined. Δ, in tables that have it, is the gain over the own "
    "baseline."
)
DIFFERENCES = (
    "Differences are taken at each seed before anything is averaged, because runs of one seed share their batches and "
    "first weights."
)
COST = (
    "What a row costs to train, its teacher included. At inference the student is the same network for every method, "
    "because branches and heads are removed: what a method costs is paid in training."
)
AUDIT = (
    "Every quantitative claim of the paper's text, and what its tables take for granted, held against these tables, "
    "against what others published, and against our runs. Verdicts are computed."
)

COURT = (
    "Sentences that the authors of other methods print about their own results, each with the page that it was read "
    "on, held against their own tables, against what was published since, and against our runs, by the same rules."
)


def describe_records(report: Report) -> str:
    """Say how many records the report was made from."""
    parts = [f"{number:,} {status}" for status, number in sorted(report.counts.items(), reverse=True)]
    total = len(report.records)
    by_status = f": {', '.join(parts)}" if len(parts) > 1 else ""
    return f"Made from {total:,} {'record' if total == 1 else 'records'}{by_status}."
