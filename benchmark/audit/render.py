"""Renders an audit for the terminal, in Markdown, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from benchmark.audit.claims import MOST_CLOSENESS
from benchmark.audit.verdicts import Answer, Audit, Count, Finding, Verdict, count_matters, count_verdicts
from benchmark.core.statistics import PairedDifference
from tables.escaping import Markup, escape_markdown, plain

WIDE = 150
"""Columns of a terminal from which on claims are shown in one table."""
FEW = 6
"""At most so many numbers are shown in brackets behind their mean."""
STYLES: dict[Verdict, str] = {
    "holds": "green",
    "does not hold": "red",
    "contradicts itself": "bold red",
    "as expected": "green",
    "remarkable": "magenta",
    "not decided": "yellow",
    "cannot be checked": "dim",
    "not run yet": "dim",
}
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
_OTHERWISE = "also"
CSV_FIELDS = (
    *("id", "where", "text", "says", "implied", "matter", "verdict_on_text", "verdict_of_runs"),
    *("printed", "printed_value", "printed_verdict", "published", "published_value", "published_verdict"),
    *("measured", "measured_mean", "measured_std", "measured_low", "measured_high", "n", "p_value", "setting"),
    *("measured_reason", "caveat_of_runs", "note"),
)


def summarise_audit(audit: Audit) -> list[str]:
    """Count the verdicts in sentences, for statements and for implied things; the caveat on our runs comes last."""
    stated, implied = audit.stated, audit.implied
    lines = []
    if stated:
        about = _of_how_many(count_matters(stated), "statement", "statements")
        lines.append(f"{about}. By the paper's own tables and the literature: {_counted(stated, 'paper')}.")
    if implied:
        about = _of_how_many(count_matters(implied), "thing", "things")
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


def to_terminal(audit: Audit, width: int, written: Sequence[Path] = ()) -> RenderableType:
    """Render the audit for a terminal of this width: one table if it fits, else a paragraph for each claim."""
    title = f"Audit of {audit.title}." if audit.title else "Audit."
    parts: list[RenderableType] = [Text(plain(title), style="bold")]
    parts += [Text(line) for line in summarise_audit(audit)]
    parts.append(Text(_origin(audit), style="dim"))
    if width >= WIDE:
        parts.append(Padding(_grid(audit), (1, 0)))
    else:
        parts += [Padding(_paragraph(finding), (1, 0, 0, 0)) for finding in audit.findings]
        parts.append(Text())
    used = {*count_verdicts(audit.findings, "paper"), *count_verdicts(audit.findings, "runs")}
    for verdict, meaning in MEANINGS.items():
        if verdict in used:
            parts.append(Text.assemble((verdict, STYLES[verdict]), (f": {meaning}.", "dim")))
    if written:
        parts.append(Text(f"Written: {', '.join(str(path) for path in written)}", overflow="fold"))
    return Group(*parts)


def to_markdown(audit: Audit) -> str:
    """Render the audit in Markdown: an overview, and a section for each claim with the evidence for its verdicts."""
    lines = [f"# Audit of {escape_markdown(audit.title)}" if audit.title else "# Audit", ""]
    for line in summarise_audit(audit):
        lines += [escape_markdown(line), ""]
    lines += [_origin(audit), "", "| claim | the text says | its tables give | verdict on the text | our runs |"]
    lines.append("|---|---|---|---|---|")
    for finding in audit.findings:
        link = f"[{finding.claim.id}](#{finding.claim.id})"
        cells = [
            link,
            finding.claim.in_words,
            shorten_answer(finding.printed),
            f"**{finding.paper}**",
            _of_runs(finding),
        ]
        lines.append(f"| {' | '.join([cells[0], *map(_cell, cells[1:3]), cells[3], _cell(cells[4])])} |")
    lines += ["", *(f"- **{verdict}**: {meaning}" for verdict, meaning in MEANINGS.items()), "", P_VALUES]
    for finding in audit.findings:
        lines += ["", *_section(finding, audit.caveat)]
    return "\n".join([*lines, "", f"Rendered by {escape_markdown(audit.generated_from)}.", ""])


def to_csv(audit: Audit) -> str:
    """Render the audit as CSV: a line for each claim, with full precision."""
    written = io.StringIO()
    writer = csv.DictWriter(written, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for finding in audit.findings:
        claim, printed, published, measured = finding.claim, finding.printed, finding.published, finding.measured
        difference = measured.difference
        low, high = difference.interval if difference and difference.interval else (None, None)
        writer.writerow(
            {
                **{
                    name: plain(value) if isinstance(value, str) else value
                    for name, value in _describe(finding).items()
                },
                "printed": plain(shorten_answer(printed)),
                "printed_value": printed.value,
                "printed_verdict": printed.verdict,
                "published": plain(shorten_answer(published)),
                "published_value": published.value,
                "published_verdict": published.verdict,
                "measured": plain(measured.text),
                "measured_mean": difference.mean if difference else None,
                "measured_std": difference.std if difference else None,
                "measured_low": low,
                "measured_high": high,
                "n": difference.n if difference else None,
                "p_value": difference.p_value if difference else None,
                "setting": plain(measured.setting),
                "measured_reason": plain(measured.reason),
                "caveat_of_runs": plain(audit.caveat) if finding.runs in JUDGED else "",
                "note": plain(claim.note),
            }
        )
    return written.getvalue()


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
        "findings": [
            {
                **_describe(finding),
                "printed": asdict(finding.printed),
                "published": asdict(finding.published),
                "measured": asdict(finding.measured),
                "other_readings": [asdict(other) for other in finding.others],
                "note": finding.claim.note,
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


def _of_how_many(count: Count, one: str, several: str) -> str:
    return f"{count.number} {one if count.number == 1 else several}{_different(count)}"


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


def _origin(audit: Audit) -> str:
    settings = "; ".join(plain(setting) for setting in audit.settings)
    return f"Measured: {settings}." if settings else "Measured: nothing yet."


def _of_runs(finding: Finding) -> str:
    measured = finding.measured
    return measured.verdict if not measured.text else f"{measured.verdict}: {shorten_answer(measured)}"


def _grid(audit: Audit) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", show_lines=True, expand=True)
    longest = max(len(finding.claim.id) for finding in audit.findings)
    grid.add_column("claim", width=longest, overflow="fold")
    for heading, ratio in (
        ("the text says", 6),
        ("its own tables give", 8),
        ("published numbers give", 6),
        ("our runs give", 6),
    ):
        grid.add_column(heading, ratio=ratio, overflow="fold")
    grid.add_column("verdict: text / runs", min_width=18)
    for finding in audit.findings:
        claim = finding.claim
        grid.add_row(
            Text.assemble((claim.id, "bold"), (f"\n{plain(claim.where)}", "dim")),
            Text.assemble(plain(claim.text), (f"\n{plain(claim.in_words)}", "cyan")),
            Text("\n").join([_styled(finding.printed), *_others(finding)]),
            _styled(finding.published),
            _styled(finding.measured),
            Text.assemble((finding.paper, STYLES[finding.paper]), "\n", (finding.runs, STYLES[finding.runs])),
        )
    return grid


def _styled(answer: Answer) -> Text:
    return Text(
        plain(shorten_answer(answer)), style="dim" if answer.verdict in ("cannot be checked", "not run yet") else ""
    )


def _others(finding: Finding) -> list[Text]:
    return [Text(plain(f"{_OTHERWISE}, {other.says}: {other.text}"), style="dim") for other in finding.others]


def _paragraph(finding: Finding) -> Group:
    claim = finding.claim
    lines = Grid.grid(padding=(0, 2, 0, 0))
    lines.add_column(no_wrap=True, style="dim")
    lines.add_column(overflow="fold")
    lines.add_row("text", Text(plain(claim.text), style="italic"))
    lines.add_row("says", Text(plain(claim.in_words), style="cyan"))
    lines.add_row("its tables", _styled(finding.printed))
    for text in _others(finding):
        lines.add_row("", text)
    lines.add_row("published", _styled(finding.published))
    lines.add_row("our runs", _styled(finding.measured))
    verdicts = Text.assemble(
        (claim.id, "bold"),
        "  ",
        (finding.paper, STYLES[finding.paper]),
        (" / runs: ", "dim"),
        (finding.runs, STYLES[finding.runs]),
        (f"  {plain(claim.where)}", "dim"),
    )
    return Group(verdicts, Padding(lines, (0, 0, 0, 2)))


def _cell(text: str) -> Markup:
    return escape_markdown(text)


def _section(finding: Finding, caveat: str) -> Iterator[str]:
    claim = finding.claim
    yield f"## {claim.id}"
    yield ""
    yield f"> {escape_markdown(claim.text)}"
    yield ""
    verdicts = f"Verdict on the text: **{finding.paper}**; of our runs: **{finding.runs}**."
    yield f"{escape_markdown(claim.where)}. It says: {escape_markdown(claim.in_words)}. {verdicts}"
    yield ""
    for name, answer in (
        ("its own tables", finding.printed),
        ("published numbers", finding.published),
        ("our runs", finding.measured),
    ):
        yield from _answer(name, answer)
    if caveat and finding.runs == "does not hold":
        yield f"  - {escape_markdown(caveat)}"
    for other in finding.others:
        agrees = " (the number claimed)" if other.agrees else ""
        yield f"- {_OTHERWISE}, {escape_markdown(other.says)}: {escape_markdown(other.text)}{agrees}"
    if claim.note:
        yield f"- {escape_markdown(claim.note)}"
    if claim.formulas:
        texts = dict.fromkeys(formula.text for formula in claim.formulas.values())
        yield f"- computed: {'; '.join(f'`{text}`' for text in texts)}"


def _answer(name: str, answer: Answer) -> Iterator[str]:
    result = f"{answer.text}{_p_value(answer.difference)}"
    details = "; ".join(filter(None, (answer.setting, result, answer.reason)))
    yield f"- {name}: {answer.verdict}{'; ' if details else ''}{escape_markdown(details)}"
    for part in answer.parts:
        label = f"{escape_markdown(part.label)}: " if part.label else ""
        mark = "" if part.holds is None or part.label else ("yes, " if part.holds else "no, ")
        yield f"  - {label}{mark}{escape_markdown(part.text)}{_p_value(part.difference)}"


def _p_value(difference: PairedDifference | None) -> str:
    if difference is None or difference.p_value is None:
        return ""
    return f", p = {difference.p_value:.2g} uncorrected"
