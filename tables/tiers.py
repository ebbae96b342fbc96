"""The four tiers of numbers, and the words and signs that every table, report and audit has for them."""

from __future__ import annotations

from typing import Literal

Tier = Literal["printed", "published", "reproduced", "measured"]
Epoch = Literal["last", "best on test"]

NAMES: dict[Tier, str] = {
    "printed": "printed",
    "published": "published",
    "reproduced": "reproduced elsewhere",
    "measured": "measured here",
}
MEANINGS: dict[Tier, str] = {
    "printed": "in the paper under audit",
    "published": "by the method's own authors, or as a later paper quotes them",
    "reproduced": "by others, with their own code or runs",
    "measured": "by this suite, after the last epoch",
}
SIGNS: dict[Tier, str] = {"printed": "", "published": "†", "reproduced": "‡", "measured": ""}
"""What stands behind a number of a table; a printed or measured one needs no sign, because its place tells."""
GAIN = "Δ"
"""Stands before a gain over the own baseline."""
GAIN_MEANING = (
    "the gain over the own baseline, in percentage points: of measured numbers over Baseline of the same runs, of "
    "printed ones over the paper's own Baseline row, of others over the student of their own lineage"
)


def describe_origin(runs: int | None, epoch: Epoch | None) -> str:
    """Say how many runs are behind a number and which epoch it is of: `n=3, best epoch on test`."""
    words = {"last": "last epoch", "best on test": "best epoch on test", None: "epoch not stated"}
    return f"{f'n={runs}' if runs else 'n not stated'}, {words[epoch]}"
