"""Renders an audit in Markdown, as CSV and as JSON, and says in short what it holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from benchmark.audit.claims import MOST_CLOSENESS
from benchmark.audit.verdicts import Answer, Audit, Count, Finding, Verdict, count_matters, count_verdicts
from benchmark.core.statistics import PairedDifference
from benchmark.core.text import counted
from tables.escaping import escape_markdown, format_csv, make_environment, plain
from tables.tiers import MEANINGS as TIERS
from tables.tiers import NAMES, Tier

TEMPLATES = Path(__file__).parent / "templates"
FEW = 6
"""At most so many numbers are shown in brackets behind their mean."""
MEANINGS: dict[str, str] = {
    "holds": (
        "tables bear it out, to half a unit of the last printed decimal; or our runs do: all of their 95% interval is "
        "on the side that is claimed, or around the number claimed, within half of it and at most "
        f"{MOST_CLOSENESS:g} point"
    ),
    "contradicts itself": "the paper's own tables, or two places of its text, say otherwise",
    "does not hold": "numbers published elsewhere, or the 95% interval of our runs, say otherwise",
    "as expected": "nobody says it, the tables take it for granted, and it is so",
    "remarkable": "nobody says it, the tables take it for granted, and it is not so: suspicious, and no contradiction",
    "not decided": "our runs are there, and their interval leaves both what is claimed and something else possible",
    "cannot be checked": "there is no number to compare with",
    "not run yet": "no run at the paper's scale, dataset and protocol; those of another are shown and decide nothing",
}
JUDGED: tuple[Verdict, ...] = ("holds", "does not hold", "not decided")
"""Verdicts that need runs."""
P_VALUES = (
    "p is two-sided, of a mean of zero, and uncorrected: of as many comparisons as stand here some come out small by "
    "chance. A rival behind “against” is the strongest of its column, chosen from the same runs, so its p is too small "
    "where it is ahead. Verdicts rest on intervals and, where one lead of many would refute, on p corrected for their "
    "number (docs/audit.md)."
)
OTHERWISE = "also"
MOST_ORIGINS = 2
"""At most so many sources are named in a line; `audit.md` names all of them."""
MEASURED_EPOCH = "last epoch"


def summarise_audit(audit: Audit) -> list[str]:
    """Count the verdicts in sentences, for statements and for implied things; the caveat on our runs comes last."""
    stated, implied = audit.stated, audit.implied
    lines = []
    if stated:
        about = _of_how_many(stated, "statement")
        lines.append(f"{about}. By the paper's own tables and the literature: {_counted(stated, 'paper')}.")
    if implied:
        about = _of_how_many(implied, "thing")
        lines.append(f"{about} that nobody states and the tables take for granted: {_counted(implied, 'paper')}.")
    runs = [_counted(stated, "runs")] if stated else []
    runs += [f"of what is taken for granted, {_counted(implied, 'runs')}"] if implied else []
    lines.append(f"Our runs: {'; '.join(runs)}.")
    return [*lines, audit.caveat] if audit.caveat else lines


def shorten_answer(answer: Answer) -> str:
    """An answer in a line: the number, the numbers that it is the mean of, and the remark."""
    values = [
        part.text.partition(" against ")[0].partition(", n=")[0] for part in answer.parts if part.value is not None
    ]
    # With their intervals they would fill a paragraph; the written reports have them.
    listed = f" ({', '.join(values)})" if 1 < len(values) <= FEW and not answer.setting else ""
    setting = f"{answer.setting}: " if answer.setting and answer.text else ""
    text = f"{setting}{answer.text}{listed}"
    if not text and not answer.reason:
        return "\N{EN DASH}" if answer.verdict == "cannot be checked" else answer.verdict
    return "; ".join(filter(None, (text, answer.reason)))


def describe_tiers(audit: Audit) -> str:
    """Say what the tiers of numbers are, and how many runs and which epoch stand behind printed and measured ones."""
    origins: dict[Tier, str] = {"printed": audit.printed_origin, "measured": f"n as shown, {MEASURED_EPOCH}"}
    words = (f"{NAMES[tier]}: {meaning}" for tier, meaning in TIERS.items())
    known = zip(TIERS, words, strict=True)
    listed = "; ".join(f"{text} ({origins[tier]})" if origins.get(tier) else text for tier, text in known)
    return f"Tiers of numbers: {listed}"


def describe_origins(answer: Answer) -> str:
    """Say where the numbers of an answer come from, in a line."""
    more = len(answer.origins) - MOST_ORIGINS
    return " | ".join(answer.origins[:MOST_ORIGINS]) + (f" | and {more} more" if more > 0 else "")


def to_markdown(audit: Audit, stem: str = "audit") -> str:
    """Render the audit in Markdown: an overview, and a section for each claim with the evidence for its verdicts.

    stem: what its file is called, for links to those of the court.
    """
    template = make_environment(TEMPLATES, escape_markdown).get_template("audit.md.j2")
    return template.render(
        audit=audit,
        stem=stem,
        tiers=describe_tiers(audit),
        measured=describe_measured(audit),
        meanings=MEANINGS,
        names=NAMES,
        p_values=P_VALUES,
        otherwise=OTHERWISE,
        summarise=summarise_audit,
        shorten=shorten_answer,
        detail=_detail,
        p_value=_p_value,
    )


def to_csv(audit: Audit) -> str:
    """Render the audit as CSV: a line for each claim, with full precision."""
    return format_csv([_describe_in_numbers(finding, audit.caveat) for finding in audit.findings])


def _describe_in_numbers(finding: Finding, caveat: str) -> dict[str, Any]:
    """The claim, its verdicts, and the numbers behind them."""

    def describe(tier: Tier) -> dict[str, Any]:
        answer = finding.answers[tier]
        return {tier: shorten_answer(answer), f"{tier}_value": answer.value, f"{tier}_verdict": answer.verdict}

    measured, difference = finding.measured, finding.measured.difference
    low, high = difference.interval if difference and difference.interval else (None, None)
    return {
        **_describe(finding),
        **describe("printed"),
        **describe("published"),
        "measured": measured.text,
        "measured_mean": difference.mean if difference else None,
        "measured_std": difference.std if difference else None,
        "measured_low": low,
        "measured_high": high,
        "n": difference.n if difference else None,
        "p_value": difference.p_value if difference else None,
        "setting": measured.setting,
        "measured_reason": measured.reason,
        "caveat_of_runs": caveat if finding.runs in JUDGED else "",
        "note": finding.claim.note,
        "source": finding.claim.source,
        **describe("reproduced"),
        "printed_origin": " | ".join(finding.printed.origins),
        "published_origin": " | ".join(finding.published.origins),
        "reproduced_origin": " | ".join(finding.reproduced.origins),
        "measured_epoch": MEASURED_EPOCH if difference else None,
    }


def to_json(audit: Audit) -> str:
    """Render everything in the audit as JSON."""
    content: dict[str, Any] = {
        "title": audit.title,
        "generated_from": audit.generated_from,
        "settings": list(audit.settings),
        "stated": _counts(audit.stated),
        "implied": _counts(audit.implied),
        "caveat_of_runs": audit.caveat,
        "p_values": P_VALUES,
        "tiers": describe_tiers(audit),
        "findings": [
            {
                **_describe(finding),
                **{tier: asdict(answer) for tier, answer in finding.answers.items()},
                "other_readings": [asdict(other) for other in finding.others],
                "note": finding.claim.note,
                "source": finding.claim.source,
            }
            for finding in audit.findings
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _describe(finding: Finding) -> dict[str, str | bool]:
    """The claim and its verdicts."""
    claim = finding.claim
    return {
        "id": claim.id,
        "where": claim.where,
        "text": claim.text,
        "says": claim.in_words,
        "implied": claim.implied,
        "matter": claim.matter,
        "verdict_on_text": finding.paper,
        "verdict_of_runs": finding.runs,
    }


def _counts(findings: Sequence[Finding]) -> dict[str, Any]:
    """Count the findings and their verdicts; in `different`, claims of one matter count as one."""
    return {
        **asdict(count_matters(findings)),
        "verdicts_on_text": {verdict: asdict(count) for verdict, count in count_verdicts(findings, "paper").items()},
        "verdicts_of_runs": {verdict: asdict(count) for verdict, count in count_verdicts(findings, "runs").items()},
    }


def _of_how_many(findings: Sequence[Finding], thing: str) -> str:
    count = count_matters(findings)
    return f"{counted(count.number, thing)}{_different(count)}"


def _counted(findings: Sequence[Finding], of: Literal["paper", "runs"]) -> str:
    counts = count_verdicts(findings, of)
    return ", ".join(
        f"{count.number} {_plural(verdict, count.number)}{_different(count)}" for verdict, count in counts.items()
    )


def _different(count: Count) -> str:
    return f" ({count.different} different)" if count.different < count.number else ""


def _plural(verdict: str, number: int) -> str:
    words = {
        "holds": "hold",
        "does not hold": "do not hold",
        "contradicts itself": "contradict themselves",
        "as expected": "are as expected",
        "remarkable": "are remarkable",
    }
    if number == 1:
        return f"is {verdict}" if verdict in ("as expected", "remarkable") else verdict
    return words.get(verdict, verdict)


def describe_measured(audit: Audit) -> str:
    """Say in which settings there are runs."""
    settings = "; ".join(plain(setting) for setting in audit.settings)
    return f"Measured: {settings}." if settings else "Measured: nothing yet."


def _detail(answer: Answer) -> str:
    return "; ".join(filter(None, (answer.setting, f"{answer.text}{_p_value(answer.difference)}", answer.reason)))


def _p_value(difference: PairedDifference | None) -> str:
    if difference is None or difference.p_value is None:
        return ""
    return f", p = {difference.p_value:.2g} uncorrected"
