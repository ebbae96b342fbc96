"""Verdicts on a claim: by the paper's own tables, by the literature, and by our runs (docs/audit.md)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from benchmark.audit.claims import Best, Claim
from benchmark.audit.expressions import Expression, Reference, parse
from benchmark.audit.sources import CLOSE, NoNumber, Numbers, Paper, Row
from benchmark.audit.values import ReasoningStep, Value, evaluate
from benchmark.core.errors import UserError
from benchmark.core.statistics import PairedDifference
from benchmark.core.text import format_minus, format_signed
from tables.literature import STUDENT
from tables.specification import TEACHER
from tables.tiers import Tier

Verdict = Literal[
    "holds",
    "does not hold",
    "contradicts itself",
    "as expected",
    "remarkable",
    "cannot be checked",
    "not decided",
    "not run yet",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
Words = tuple[Verdict, Verdict]
"""The verdicts for a source that supports a claim and for one that does not."""
LARGE = 1000
"""Numbers from here on are shown without decimals."""
MOST_STEPS = 3
"""The comparisons that are listed one by one; of more, the number is given."""


@dataclass(frozen=True)
class Part:
    """One of the numbers or comparisons behind an answer; `holds` where it is a comparison."""

    label: str
    text: str
    value: float | None = None
    difference: PairedDifference | None = None
    holds: bool | None = None


@dataclass(frozen=True)
class Answer:
    """The answer of one source to a claim.

    text: the number or the comparison in words, empty if there is none; reason: a remark on the verdict; value: the
    number; difference: the same over seeds, of our runs; setting: where these runs come from; origins: of the numbers,
    each with how many runs are behind it and which epoch it is of.
    """

    verdict: Verdict
    text: str = ""
    reason: str = ""
    value: float | None = None
    difference: PairedDifference | None = None
    parts: tuple[Part, ...] = ()
    setting: str = ""
    origins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Other:
    """Another reading of a claim, its result, and whether that is the number claimed."""

    says: str
    text: str
    agrees: bool


@dataclass(frozen=True)
class Finding:
    """A claim with all answers to it; `paper` is the verdict on the text, by its tables and the literature.

    The literature has two tiers: published, by a method's authors or as others quote them, and reproduced elsewhere.
    """

    claim: Claim
    printed: Answer
    published: Answer
    reproduced: Answer
    measured: Answer
    paper: Verdict
    others: tuple[Other, ...] = ()

    @property
    def answers(self) -> dict[Tier, Answer]:
        """The answers by the tier of their numbers."""
        return {
            "printed": self.printed,
            "published": self.published,
            "reproduced": self.reproduced,
            "measured": self.measured,
        }

    @property
    def runs(self) -> Verdict:
        """The verdict of our runs."""
        return self.measured.verdict


@dataclass(frozen=True)
class Count:
    """A number of claims, and how many differ: claims that say the same thing count as one."""

    number: int
    different: int


@dataclass(frozen=True)
class Audit:
    """All findings; settings: the settings with measured numbers, in words; generated_from: version and commit.

    caveat: a remark on every verdict of our runs, "" for none; paper: a short name of what is audited, for files;
    printed_origin: how many runs are behind its printed numbers, and which epoch they are of; court: the audits of
    other papers of the field.
    """

    title: str
    findings: tuple[Finding, ...]
    settings: tuple[str, ...]
    generated_from: str
    caveat: str = ""
    paper: str = ""
    printed_origin: str = ""
    court: tuple[Audit, ...] = ()

    @property
    def stated(self) -> tuple[Finding, ...]:
        """Findings on what the text or a table says."""
        return tuple(finding for finding in self.findings if not finding.claim.implied)

    @property
    def implied(self) -> tuple[Finding, ...]:
        """Findings on what no sentence says and the tables take for granted."""
        return tuple(finding for finding in self.findings if finding.claim.implied)


def count_matters(findings: Iterable[Finding]) -> Count:
    """Count claims, and the different matters among them."""
    matters = [finding.claim.matter or finding.claim.id for finding in findings]
    return Count(len(matters), len(set(matters)))


def count_verdicts(findings: Iterable[Finding], of: Literal["paper", "runs"]) -> dict[Verdict, Count]:
    """Count each verdict on the text, or of our runs; verdicts that do not occur are left out."""
    by_verdict: dict[Verdict, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_verdict[finding.paper if of == "paper" else finding.runs].append(finding)
    return {verdict: count_matters(by_verdict[verdict]) for verdict in VERDICTS if verdict in by_verdict}


PaperTier = Literal["printed", "published", "reproduced"]


def judge_on_paper(claim: Claim, paper: Paper, source: PaperTier) -> Answer:
    """Judge a claim by the paper's tables or by the literature.

    Raises:
        UserError: the claim's expression cannot be computed.
    """
    words = _words(claim, source)
    try:
        if claim.statements:
            return _statements(claim, words) if source == "printed" else Answer("cannot be checked")
        if claim.best and claim.best.table in paper.claims.figures and source != "printed":
            return Answer("cannot be checked")
        if claim.best:
            return _best(claim.best, paper, source, words)
        formula = claim.formulas.get(source)
        if formula is None:
            return Answer("cannot be checked", reason=claim.unchecked if source == "printed" else "")
        if source == "published" and not _is_known(formula, claim, paper):
            return Answer("cannot be checked", reason="none is known" if formula.references else "")
        answer = _computed(claim, formula, paper.sources[source], paper, words)
        return replace(answer, origins=tuple(_find_origins(formula, source, paper)))
    except NoNumber as reason:
        return Answer("cannot be checked", reason=str(reason))


def _find_origins(formula: Expression, source: PaperTier, paper: Paper) -> list[str]:
    """Where the numbers of a formula come from; those of another source that it names are not among them."""
    named = [found for found in formula.references if found.source is None and found.row not in paper.claims.own]
    if formula.compares_rows:
        for table in formula.table_arguments:
            rows = paper.rivals(table, paper.sources[source])
            named += [Reference(table, row, None) for row in rows if not row.startswith(STUDENT)]
    return paper.origins(source, named)


def _words(claim: Claim, source: PaperTier) -> Words:
    """The verdicts for a claim that a source supports and for one that it does not."""
    if claim.implied:
        return "as expected", "remarkable"
    return "holds", "contradicts itself" if source == "printed" else "does not hold"


def combine_verdicts(printed: Verdict, *elsewhere: Verdict) -> Verdict:
    """The verdict on the text: its own tables come first, and the literature may refute what they support.

    elsewhere: by published numbers and by those that were reproduced; one that refutes is enough.
    """
    if printed in ("contradicts itself", "remarkable"):
        return printed
    decided = [verdict for verdict in elsewhere if verdict != "cannot be checked"]
    refuting = [verdict for verdict in decided if verdict in ("does not hold", "remarkable")]
    return (refuting or decided or [printed])[0]


def judge_other_readings(claim: Claim, paper: Paper) -> tuple[Other, ...]:
    """Compute the other readings of a claim.

    Raises:
        UserError: an expression cannot be computed.
    """
    others = []
    for reading in claim.readings:
        try:
            value, steps = evaluate(parse(reading.expression), paper.sources[reading.source], paper)
        except NoNumber as reason:
            others.append(Other(reading.says, str(reason), False))
            continue
        if isinstance(value, float):
            right = claim.value is not None and agrees(value, claim)
            others.append(Other(reading.says, format_claimed_number(value, claim), right))
        else:
            others.append(Other(reading.says, _steps_text(steps), value is True))
    return tuple(others)


def agrees(value: float, claim: Claim) -> bool:
    """Whether a number is the one claimed, to the precision that was printed, or has the claimed relation to it."""
    assert claim.value is not None
    claimed, tolerance = float(claim.value), claim.tolerance + CLOSE
    return {
        "=": abs(value - claimed) <= tolerance,
        ">": value > claimed,
        ">=": value >= claimed - tolerance,
        "<": value < claimed,
        "<=": value <= claimed + tolerance,
    }[claim.relation]


def format_claimed_number(value: float, claim: Claim) -> str:
    """Format a number like the one claimed: with a sign if that has one or is a limit for a difference."""
    signed = claim.value is not None and (claim.value[0] in "+-" or claim.relation != "=")
    whole = abs(value) >= LARGE or (not signed and value == round(value))
    return format_minus(f"{value:{'+' if signed else ''},.{0 if whole else 2}f}")


def _statements(claim: Claim, words: Words) -> Answer:
    parts = tuple(Part(statement.where, statement.says) for statement in claim.statements)
    different = dict.fromkeys(statement.says for statement in claim.statements)
    text = f"{len(different)} different statements" if len(different) > 1 else "the same everywhere"
    return Answer(words[len(different) > 1], text, parts=parts)


def _is_known(formula: Expression, claim: Claim, paper: Paper) -> bool:
    """Whether the literature has anything that the formula names."""
    references = [reference for reference in formula.references if reference.source is None]
    named = bool(claim.literature) or formula.compares_rows
    return named or any(paper.published.known(reference) for reference in references)


def _computed(claim: Claim, formula: Expression, numbers: Numbers, paper: Paper, words: Words) -> Answer:
    value, steps = evaluate(formula, numbers, paper)
    right = is_right(claim, formula, value)
    verdict = words[not right]
    if not isinstance(value, float):
        parts = tuple(Part("", step.text, holds=step.holds) for step in steps)
        return Answer(verdict, _steps_text(steps, right), parts=parts)
    columns = compute_columns(formula, numbers, paper)
    parts = tuple(Part(column, format_claimed_number(number, claim), number) for column, number in columns.items())
    parts += tuple(Part("", step.text) for step in steps)
    counted = f" ({_steps_text(steps, True)})" if steps else ""
    return Answer(
        verdict, format_claimed_number(value, claim) + counted, _coverage(formula, columns, paper), value, parts=parts
    )


def is_right(claim: Claim, formula: Expression, value: Value) -> bool:
    """Whether a value supports a claim.

    Raises:
        UserError: it is neither a number where one is claimed nor a truth where none is.
    """
    if claim.value is not None and isinstance(value, float):
        return agrees(value, claim)
    if claim.value is None and isinstance(value, bool):
        return value
    wanted = (
        "a number; mean() makes one of a row" if claim.value is not None else "true or false; all() makes one of a row"
    )
    raise UserError(f"expression {formula.text!r} gives something else than {wanted}")


def compute_columns(formula: Expression, numbers: Numbers, paper: Paper) -> Row:
    """The numbers that a mean is taken over, by column; empty if the formula is no mean."""
    inner = formula.mean_of
    value = evaluate(inner, numbers, paper)[0] if inner else None
    return {column: float(number) for column, number in value.items()} if isinstance(value, dict) else {}


def _coverage(formula: Expression, columns: Row, paper: Paper) -> str:
    """The columns of a mean, in words, if the table has more; else empty."""
    tables = {reference.table for reference in formula.references} & paper.claims.loaded.keys()
    if not columns or len(tables) != 1:
        return ""
    all_columns = [column.name for column in paper.claims.loaded[tables.pop()].columns]
    return "" if len(columns) == len(all_columns) else f"over {', '.join(columns)} only"


def _steps_text(steps: Sequence[ReasoningStep], right: bool | None = None) -> str:
    """The comparisons that agree with the outcome, or all of them if none does."""
    telling = [step.text for step in steps if right is None or step.holds == right] or [step.text for step in steps]
    more = len(telling) - MOST_STEPS
    return "; ".join(telling[:MOST_STEPS]) + (f"; and {more} more" if more > 0 else "")


def find_competitors(best: Best, paper: Paper, source: PaperTier) -> list[str]:
    """The rows that a row should be above: those named, or else those of all other methods with numbers."""
    if best.than or best.table not in paper.claims.loaded:
        # Elsewhere the paper's own rows have the numbers that it printed, and say nothing new of each other.
        return [row for row in best.than if source == "printed" or row not in paper.claims.own]
    rows = [row for row in paper.claims.rows(best.table) if row not in (*paper.claims.own, best.row, TEACHER)]
    return [row for row in rows if paper.sources[source].row(Reference(best.table, row, None))]


def _best(best: Best, paper: Paper, source: PaperTier, words: Words) -> Answer:
    numbers = paper.sources[source]
    reference = Reference(best.table, best.row, None)
    own = {name: value for name, value in numbers.row(reference).items() if not best.columns or name in best.columns}
    if not own:
        raise NoNumber(numbers.missing(reference))
    rivals = {name: numbers.row(Reference(best.table, name, None)) for name in find_competitors(best, paper, source)}
    for name in rivals if best.than and source != "reproduced" else ():
        if not rivals[name]:
            raise NoNumber(numbers.missing(Reference(best.table, name, None)))
    parts, strongest_rows = [], []
    for column, number in own.items():
        against = {name: row[column] for name, row in rivals.items() if column in row}
        if against:
            strongest = max(against, key=lambda name: against[name])
            strongest_rows.append(strongest)
            margin = number - against[strongest]
            text = f"{format_signed(margin)} against {strongest}"
            parts.append(Part(column, text, margin, holds=margin > CLOSE))
    if not parts:
        raise NoNumber("there is nothing to compare with")
    first = sum(bool(part.holds) for part in parts)
    origins = paper.origins(source, [Reference(best.table, name, None) for name in dict.fromkeys(strongest_rows)])
    return Answer(
        words[first != len(parts)], describe_rank(first, len(parts)), parts=tuple(parts), origins=tuple(origins)
    )


def describe_rank(first: int, columns: int) -> str:
    """Describe in how many columns a row is above all others."""
    return f"above all in {first} of {columns} columns" if columns > 1 else ("above all" if first else "not above all")
