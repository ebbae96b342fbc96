"""Judges claims by our runs: an expression is computed at each seed, and the n results give an interval."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmark.audit.claims import Best, Claim
from benchmark.audit.expressions import Expression, Reference, format_title
from benchmark.audit.sources import Measured, NoNumber, Paper, Results, Row, select_by_seed, select_cells
from benchmark.audit.values import evaluate
from benchmark.audit.verdicts import (
    Answer,
    Part,
    Verdict,
    compute_columns,
    describe_rank,
    find_competitors,
    format_claimed_number,
    is_right,
)
from benchmark.core.protocols import SCALES, base_scale
from benchmark.core.statistics import (
    LEVEL,
    BySeed,
    PairedDifference,
    clustered_difference,
    common_seeds,
    paired_difference,
    paired_statistics,
    pooled_difference,
)
from benchmark.core.text import format_range, format_signed
from tables.result import NEVER, TableResult

Cells = dict[str, dict[int, float]]
"""Values by seed of the columns of a row."""
Pair = tuple[BySeed, BySeed]
"""Values by seed of a row and of its rival in one column."""

Ranked = tuple[int, Answer]
"""The answer of one setting, behind its rank; of several answers, the one of the highest rank is shown."""


def judge_on_runs(claim: Claim, paper: Paper, results: Sequence[TableResult]) -> Answer:
    """Judge a claim by our runs in the setting that can decide it, or else in the first that has any.

    results: of tables and of figures' panels, several for one `table.name` if it was measured in several settings.

    Raises:
        UserError: the claim's expression cannot be computed.
    """
    formula = claim.formulas.get("measured")
    if claim.best is None and (formula is None or not _asks_runs(formula, claim)):
        return Answer("cannot be checked", reason="" if claim.unchecked else "no run can tell")
    attempts = []
    for setting in group_by_setting(results):
        try:
            if claim.best:
                attempts.append(_best(claim.best, paper, setting))
            elif formula:
                attempts.append(_computed(claim, formula, paper, setting))
        except NoNumber:
            continue
    # The first of the highest rank: settings come in order of preference.
    return max(attempts, key=lambda attempt: attempt[0], default=(0, Answer("not run yet")))[1]


def group_by_setting(results: Sequence[TableResult]) -> list[Results]:
    """The results by table in each setting: first the best of each table, which reproduces the paper if any does."""
    by_table: dict[str, list[TableResult]] = defaultdict(list)
    for result in sorted(results, key=_preference):
        by_table[result.table.name].append(result)
    most = max(map(len, by_table.values()), default=0)
    return [{name: found[min(rank, len(found) - 1)] for name, found in by_table.items()} for rank in range(most)]


def _preference(result: TableResult) -> tuple[bool, int, int]:
    """The sort key of results: the paper's scale and protocol first, then by scale, then by the number of values."""
    base = base_scale(result.scale)
    scale = list(SCALES).index(base) if base in SCALES else -1
    return not result.reproduces, -scale, -sum(len(cell.values) for cell in result.cells.values())


def _asks_runs(formula: Expression, claim: Claim) -> bool:
    """Whether runs can decide: a number over cells, or a truth about costs, which are the same at every seed."""
    references = [reference for reference in formula.references if reference.source is None]
    if claim.value is None:
        return bool(references) and all(reference.quantity for reference in references)
    return bool(references)


def judge_interval(difference: PairedDifference, claim: Claim) -> tuple[Verdict, str]:
    """The verdict of an interval on a claimed number, and the reason.

    An interval that contains a number does not refute it; a wide interval refutes little. So only an interval that also
    stays near the number supports it (`Claim.closeness`).
    """
    assert claim.value is not None
    if difference.interval is None:
        return "not decided", difference.remark
    low, high = difference.interval
    claimed, tolerance = float(claim.value), claim.tolerance
    if claim.relation == "=":
        if claimed + tolerance < low or claimed - tolerance > high:
            side = "above" if difference.mean > claimed else "below"
            return "does not hold", f"the interval is {side} what is claimed"
        reach = f"{claim.closeness:.3g}"
        if claimed - claim.closeness <= low and high <= claimed + claim.closeness:
            return "holds", f"the interval holds what is claimed, and nothing further than {reach} from it"
        return (
            "not decided",
            f"compatible: the interval holds what is claimed, but reaches beyond {reach} from it",
        )
    upward = claim.relation in (">", ">=")
    limit = claimed + (0.0 if len(claim.relation) == 1 else -tolerance if upward else tolerance)
    right, wrong = (low > limit, high < limit) if upward else (high < limit, low > limit)
    if right or wrong:
        return ("holds" if right else "does not hold"), f"the interval is {'above' if low > limit else 'below'} it"
    return "not decided", "the interval holds values on both sides of it"


def _computed(claim: Claim, formula: Expression, paper: Paper, results: Results) -> Ranked:
    references = [reference for reference in formula.references if reference.source is None]
    cells = {reference: _cells(reference, paper, results) for reference in references}
    lacking = [
        f"{replace(reference, column=column).name}"
        for reference, row in cells.items()
        for column in row
        if not row[column]
    ]
    for reference, row in cells.items():
        if not row:
            return 0, Answer("cannot be checked", reason=f"{reference.name} cannot be run")
    kept = _measured_columns(cells)
    seeds = common_seeds(values for row in kept.values() for values in row.values())
    if not seeds or not all(kept.values()):
        raise NoNumber("no seed that all cells have" if all(kept.values()) else f"{lacking[0]}: not run yet")
    at_seed = [
        Measured({reference: {name: row[name][seed] for name in row} for reference, row in kept.items()})
        for seed in seeds
    ]
    values = [evaluate(formula, numbers, paper)[0] for numbers in at_seed]
    rights = [is_right(claim, formula, value) for value in values]
    verdict: Verdict
    difference: PairedDifference | None = None
    parts: tuple[Part, ...] = ()
    if claim.value is None:
        verdict = "holds" if all(rights) else "not decided" if any(rights) else "does not hold"
        text, reason = ("as claimed" if rights[0] else "not as claimed") + f", n={len(seeds)}", ""
    else:
        difference = paired_statistics(value for value in values if isinstance(value, float))
        text = format_difference(difference, claim)
        verdict, reason = judge_interval(difference, claim)
        parts = _parts(claim, formula, paper, [compute_columns(formula, numbers, paper) for numbers in at_seed])
    value = difference.mean if difference else None
    answer = Answer(verdict, text, reason, value, difference, parts)
    rows = list(dict.fromkeys((reference.table, reference.row) for reference in references))
    return _in_setting(answer, results, rows, lacking)


def _in_setting(
    answer: Answer,
    results: Results,
    rows: Sequence[tuple[str, str]],
    lacking: Sequence[str],
    refuted: bool = False,
) -> Ranked:
    """The answer, without a verdict if its setting or missing cells do not allow one; rows: its tables and rows."""
    by_name = {table: results[table] for table, _ in rows}
    tables = list(by_name.values())
    settings = [
        f"scale {table.scale}, {table.dataset}{describe_precision(table, [row for of, row in rows if of == name])}"
        for name, table in by_name.items()
    ]
    answer = replace(answer, setting="; ".join(dict.fromkeys(settings)))
    if not all(table.reproduces for table in tables):
        other = "scale" if any(table.scale != "paper" for table in tables) else "dataset or protocol"
        reason = f"no verdict from another {other} than the paper's"
        return 1 if lacking else 2, replace(answer, verdict="not run yet", reason=reason)
    if lacking and not refuted:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        return 3, replace(answer, verdict="not run yet", reason=f"missing: {lacking[0]}{more}")
    return 4, answer


def describe_precision(result: TableResult, rows: Sequence[str]) -> str:
    """`, precision bf16` if runs of these rows have it; empty if all are in fp32, the default of scale `paper`."""
    seeds = [seed for row in rows for cell in select_cells(result, row).values() for seed in cell.finished]
    precisions = sorted({seed.precision for seed in seeds})
    return f", precision {' and '.join(precisions)}" if set(precisions) - {"fp32"} else ""


def _cells(reference: Reference, paper: Paper, results: Results) -> Cells:
    """The values by seed of all columns of a reference; empty for columns not run yet.

    Raises:
        NoNumber: the setting does not have the table.
    """
    if reference.table not in results:
        raise NoNumber(f"{format_title(reference.table)}: not run yet")
    cells = select_cells(results[reference.table], reference.row)
    printed = paper.printed.row(replace(reference, quantity=None))
    wanted = (
        [reference.column]
        if reference.column is not None
        else [name for name in cells if name in printed or not printed]
    )
    return {
        column: select_by_seed(cells[column], reference.quantity) if column in cells else {}
        for column in wanted
        if column not in cells or cells[column].status not in NEVER
    }


def _measured_columns(cells: dict[Reference, Cells]) -> dict[Reference, Cells]:
    """The columns with runs; for rows of one table, those that all of them share."""
    measured = {
        reference: {column: values for column, values in row.items() if values} for reference, row in cells.items()
    }
    kept = {}
    for reference, row in measured.items():
        rows = [other for key, other in measured.items() if key.table == reference.table and key.column is None]
        shared = reference.column is not None
        kept[reference] = {
            name: values for name, values in row.items() if shared or all(name in other for other in rows)
        }
    return kept


def _parts(claim: Claim, formula: Expression, paper: Paper, by_seeds: list[Row]) -> tuple[Part, ...]:
    """Each column of a mean over seeds, and the mean over teachers if all columns have one."""
    columns = {name: paired_statistics(row[name] for row in by_seeds) for name in by_seeds[0]}
    parts = [Part(name, format_difference(found, claim), found.mean, found) for name, found in columns.items()]
    table = paper.claims.loaded.get(formula.references[0].table) if columns else None
    teachers = {column.name: column.teacher for column in table.columns if column.teacher} if table else {}
    if columns and columns.keys() <= teachers.keys():
        means = {name: found.mean for name, found in columns.items()}
        over = clustered_difference(means, teachers)
        text = format_difference(over, claim, "teachers")
        parts.append(Part("mean over teachers", text, over.mean, over))
    return tuple(parts)


def format_difference(difference: PairedDifference, claim: Claim | None, unit: str = "") -> str:
    """Format a difference with its interval and n."""
    texts = [
        format_claimed_number(value, claim) if claim else format_signed(value)
        for value in (difference.mean, *(difference.interval or ()))
    ]
    interval = f" [{texts[1]}, {texts[2]}]" if difference.interval else ""
    return f"{texts[0]}{interval}, n={difference.n}{f' {unit}' if unit else ''}"


def _best(best: Best, paper: Paper, results: Results) -> Ranked:
    """Judge whether a row is above all others: every interval supports it, or one comparison with a rival refutes it.

    A rival is compared in every column, and on the average over the columns of each metric: top-1 and top-5 of the same
    runs are two metrics. The most extreme of these comparisons is enough to refute, so each gets an equal part of
    1 - LEVEL (Bonferroni); to support, all of them are needed, which takes no correction.
    """
    own = _cells(Reference(best.table, best.row, None), paper, results)
    columns = [column for column in own if not best.columns or column in best.columns]
    required, optional = find_competitors(best, paper, "printed"), find_competitors(best, paper, "published")
    # A table leaves out optional rows, which run only when they are named.
    shown = {row.name for row in results[best.table].table.rows}
    metrics = {column.name: column.metric for column in results[best.table].table.columns}
    single: dict[tuple[str, str], PairedDifference] = {}
    pooled: list[PairedDifference] = []
    lacking: list[str] = []
    without: list[str] = []
    planned = 0
    compared: list[str] = []
    for rival in dict.fromkeys([*required, *optional]):
        cells = _cells(Reference(best.table, rival, None), paper, results)
        pairs = {column: (own[column], cells[column]) for column in columns if column in cells}
        is_there = bool(pairs) and all(cells[column] for column in pairs)
        if not pairs or (not is_there and not best.than and (rival not in required or rival not in shown)):
            without += [rival] if rival in required else []
            continue
        compared.append(rival)
        groups = _several_of_a_metric(pairs, metrics)
        planned += len(pairs) + len(groups)
        for column, pair in pairs.items():
            if common_seeds(pair):
                single[column, rival] = paired_difference(*pair)
            else:
                lacking.append(Reference(best.table, rival if own[column] else best.row, column).name)
        pooled += [pooled_difference(group) for group in groups if common_seeds(itertools.chain(*group))]
    if not single:
        raise NoNumber(f"{format_title(best.table)}: not run yet")
    refuted = any(_is_below(found, planned) for found in (*single.values(), *pooled))
    proven = all(found.interval and found.interval[0] > 0 for found in single.values())
    answer = _best_answer(single, columns, "does not hold" if refuted else "holds" if proven else "not decided")
    if without:
        answer = replace(answer, reason=f"{answer.reason}; without {', '.join(without)}, not run here")
    rows = [(best.table, name) for name in (best.row, *compared)]
    return _in_setting(answer, results, rows, list(dict.fromkeys(lacking)), refuted)


def _several_of_a_metric(pairs: Mapping[str, Pair], metrics: Mapping[str, str]) -> list[list[Pair]]:
    """The pairs of the columns of each metric that several columns show."""
    groups: dict[str, list[Pair]] = defaultdict(list)
    for column, pair in pairs.items():
        groups[metrics[column]].append(pair)
    return [group for group in groups.values() if len(group) > 1]


def _is_below(difference: PairedDifference, comparisons: int) -> bool:
    """Whether a difference is below zero beyond chance, as one of so many comparisons; one-sided."""
    return difference.p_value is not None and difference.mean < 0 and difference.p_value / 2 < (1 - LEVEL) / comparisons


def _best_answer(single: dict[tuple[str, str], PairedDifference], columns: Sequence[str], verdict: Verdict) -> Answer:
    parts = []
    for column in columns:
        against = {rival: found for (name, rival), found in single.items() if name == column}
        if against:
            strongest = min(against, key=lambda rival: against[rival].mean)
            found = against[strongest]
            text = f"{format_difference(found, None)} against {strongest}"
            parts.append(Part(column, text, found.mean, found, found.mean > 0))
    first = sum(bool(part.holds) for part in parts)
    n = f"n={format_range([found.n for found in single.values()])}"
    few = next((found.remark for found in single.values() if found.remark), "")
    reasons = {
        "holds": "every interval is above zero",
        "does not hold": "a rival is ahead beyond chance",
        "not decided": few or "intervals reach below zero",
    }
    return Answer(verdict, f"{describe_rank(first, len(parts))}, {n}", reasons[verdict], parts=tuple(parts))
