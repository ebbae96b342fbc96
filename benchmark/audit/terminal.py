"""Renders audits for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
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
from tables.tiers import NAMES

WIDE = 150
"""Columns of a terminal from which on claims are shown in one table."""
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


def to_terminal(audit: Audit, width: int, written: Sequence[Path] = ()) -> RenderableType:
    """Render the audit and those of its court for a terminal of this width.

    Claims are shown in one table if it fits, else each in a paragraph.
    """
    parts: list[RenderableType] = []
    used = set()
    for one in (audit, *audit.court):
        title = f"Audit of {one.title}." if one.title else "Audit."
        parts += [Text(plain(title), style="bold"), *(Text(line) for line in summarise_audit(one))]
        parts.append(Text(describe_measured(one), style="dim"))
        if width >= WIDE:
            parts.append(Padding(_grid(one), (1, 0)))
        else:
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


def _grid(audit: Audit) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", show_lines=True, expand=True)
    longest = max(len(finding.claim.id) for finding in audit.findings)
    grid.add_column("claim", width=longest, overflow="fold")
    for heading, ratio in (
        ("the text says", 6),
        ("printed", 7),
        ("published; reproduced elsewhere", 8),
        ("measured here", 5),
    ):
        grid.add_column(heading, ratio=ratio, overflow="fold")
    grid.add_column("verdict: text / runs", min_width=18)
    for finding in audit.findings:
        claim = finding.claim
        grid.add_row(
            Text.assemble((claim.id, "bold"), (f"\n{plain(claim.where)}", "dim")),
            Text.assemble(plain(claim.text), (f"\n{plain(claim.in_words)}", "cyan"), *_source(finding)),
            Text("\n").join([_styled(finding.printed), *_others(finding)]),
            Text("\n").join(_elsewhere(finding)),
            _styled(finding.measured),
            Text.assemble((finding.paper, STYLES[finding.paper]), "\n", (finding.runs, STYLES[finding.runs])),
        )
    return grid


def _styled(answer: Answer) -> Text:
    return Text(
        plain(shorten_answer(answer)), style="dim" if answer.verdict in ("cannot be checked", "not run yet") else ""
    )


def _source(finding: Finding) -> list[tuple[str, str]]:
    return [(f"\n{plain(finding.claim.source)}", "dim")] if finding.claim.source else []


def _with_origins(answer: Answer) -> Text:
    origins = describe_origins(answer)
    return Text.assemble(_styled(answer), (f"\n{plain(origins)}" if origins else "", "dim"))


def _elsewhere(finding: Finding) -> list[Text]:
    """The answers of the literature, that of reruns only where there is one."""
    lines = [_with_origins(finding.published)]
    if finding.reproduced.text:
        lines.append(Text.assemble(f"{NAMES['reproduced']}: ", _with_origins(finding.reproduced)))
    return lines


def _others(finding: Finding) -> list[Text]:
    return [Text(plain(f"{OTHERWISE}, {other.says}: {other.text}"), style="dim") for other in finding.others]


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
    for text in _others(finding):
        lines.add_row("", text)
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
