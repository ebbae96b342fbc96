"""Renders audits for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from benchmark.audit.render import (
    MEANINGS,
    OTHERWISE,
    describe_measured,
    describe_origins,
    describe_tiers,
    shorten_answer,
    summarise_audit,
)
from benchmark.audit.verdicts import Answer, Audit, Finding, Verdict, count_verdicts
from tables.escaping import plain

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


def to_terminal(audit: Audit, written: Sequence[Path] = ()) -> RenderableType:
    """Render the audit and those of its court for a terminal, each claim in a paragraph; written: files to name."""
    parts: list[RenderableType] = []
    used = set()
    for one in (audit, *audit.court):
        title = f"Audit of {one.title}." if one.title else "Audit."
        parts += [Text(plain(title), style="bold"), *(Text(line) for line in summarise_audit(one))]
        parts.append(Text(describe_measured(one), style="dim"))
        parts += [Padding(_paragraph(finding), (1, 0, 0, 0)) for finding in one.findings]
        parts.append(Text())
        used |= {*count_verdicts(one.findings, "paper"), *count_verdicts(one.findings, "runs")}
    parts.append(Text(f"{describe_tiers(audit)}.", style="dim"))
    for verdict, meaning in MEANINGS.items():
        if verdict in used:
            parts.append(Text.assemble((verdict, STYLES[verdict]), (f": {meaning}.", "dim")))
    if written:
        parts.append(Text(f"Written: {', '.join(str(path) for path in written)}", overflow="fold"))
    return Group(*parts)


def _styled(answer: Answer) -> Text:
    style = "dim" if answer.verdict in ("cannot be checked", "not run yet") else ""
    return Text(plain(shorten_answer(answer)), style=style)


def _with_origins(answer: Answer) -> Text:
    origins = describe_origins(answer)
    return Text.assemble(_styled(answer), (f"\n{plain(origins)}" if origins else "", "dim"))


def _paragraph(finding: Finding) -> Group:
    claim = finding.claim
    lines = Grid.grid(padding=(0, 2, 0, 0))
    lines.add_column(no_wrap=True, style="dim")
    lines.add_column(overflow="fold")
    lines.add_row("text", Text(plain(claim.text), style="italic"))
    lines.add_row("says", Text(plain(claim.in_words), style="cyan"))
    if claim.source:
        lines.add_row("source", Text(plain(claim.source), style="dim"))
    lines.add_row("printed", _styled(finding.printed))
    for other in finding.others:
        lines.add_row("", Text(plain(f"{OTHERWISE}, {other.says}: {other.text}"), style="dim"))
    lines.add_row("published", _with_origins(finding.published))
    if finding.reproduced.text:
        lines.add_row("reproduced", _with_origins(finding.reproduced))
    lines.add_row("measured", _styled(finding.measured))
    verdicts = Text.assemble(
        (claim.id, "bold"),
        "  ",
        (finding.paper, STYLES[finding.paper]),
        (" / runs: ", "dim"),
        (finding.runs, STYLES[finding.runs]),
        (f"  {plain(claim.where)}", "dim"),
    )
    return Group(verdicts, Padding(lines, (0, 0, 0, 2)))
