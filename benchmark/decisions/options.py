"""From the options of a command to the claims and cells of a sweep that is to decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from benchmark.core.errors import UserError
from benchmark.decisions.cells import list_cells, list_subjects
from benchmark.decisions.claim import OPTION, Claim, parse_claims
from benchmark.decisions.rounds import DecisionSweep
from benchmark.planning.request import RunOptions
from benchmark.targets import Target
from figures.specification import Figure
from tables.specification import Table

MOST_SEEDS = 10
"""How many seeds a column can have if the user does not say it."""


def read_claims(
    text: str | None, most: int | None, entries: Sequence[Table | Figure], options: RunOptions
) -> tuple[list[Claim], RunOptions]:
    """The claims of `--until-decided`, and the options with the rows and seeds that they need; none if it is not given.

    Raises:
        UserError: the claim is refused, or it contradicts another option.
    """
    if text is None:
        if most is not None:
            raise UserError(
                f"--max-seeds only applies to {OPTION}; pass both, or choose the number of seeds with --seeds"
            )
        return [], options
    if options.seeds is not None:
        raise UserError(
            f"--seeds cannot be combined with {OPTION}, which goes on until it is decided; limit it with --max-seeds"
        )
    if len(entries) != 1:
        raise UserError(f"{OPTION} only applies to a single table or figure; name one")
    claims = parse_claims(text, list_subjects(entries[0], options.methods, options.pairs))
    rows = tuple(dict.fromkeys(row for claim in claims for row in claim.rows))
    if unused := [name for name in options.methods if name not in rows]:
        raise UserError(
            f"--methods names {unused[0]}, which {OPTION} {text!r} does not; only the claim's rows are trained: leave "
            "--methods out, or train other rows by a command of their own"
        )
    return claims, dataclasses.replace(options, methods=rows, seeds=most or MOST_SEEDS)


def make_sweep(
    claims: Sequence[Claim], targets: Sequence[Target], options: RunOptions, retry_failed: bool
) -> DecisionSweep | None:
    """The sweep of some claims on planned targets; None without claims.

    Raises:
        UserError: a claim names a column that was not asked for, or nothing is left to decide.
    """
    if not claims:
        return None
    cells = {each.name: each for target in targets for each in list_cells(target)}
    # A panel may have no data at a scale, or none on this machine.
    subjects = [(claim, cells[claim.table]) for claim in claims if claim.table in cells]
    return DecisionSweep(subjects, len(options.seed_numbers), retry_failed)
