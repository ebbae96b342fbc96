"""Draw a badge for each claim of the audits: its name and the verdicts on it, as an SVG to show elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmark.audit.render import JUDGED
from benchmark.audit.verdicts import Audit, Finding
from benchmark.io.files import write_text
from tables.escaping import make_environment

TEMPLATES = Path(__file__).parent / "templates"
FOLDER = "badges"
COLOURS = {
    "holds": "#1f6b3a",
    "as expected": "#1f6b3a",
    "does not hold": "#a12a1e",
    "contradicts itself": "#a12a1e",
    "remarkable": "#7a4a00",
    "not decided": "#7a4a00",
}
"""The page's own for verdicts; others are grey."""
GREY = "#5b5a55"
LETTER, MARGIN = 6.6, 7
"""The width of a letter in pixels, which the SVG fits its text to, and the space before and behind it."""


def list_claims(audit: Audit) -> Iterator[tuple[str, Audit, Finding]]:
    """List every finding of an audit and its court, by what its address ends with behind `claim/`."""
    for one in (audit, *audit.court):
        for finding in one.findings:
            yield (finding.claim.id if one is audit else f"{one.paper}-{finding.claim.id}"), one, finding


def draw_badge(name: str, finding: Finding) -> str:
    """Draw the badge of a claim: its name, the verdict on the text and, where our runs decide, theirs."""
    parts = [(name, "#333"), (finding.paper, COLOURS.get(finding.paper, GREY))]
    if finding.runs in JUDGED:
        parts.append((f"our runs: {finding.runs}", COLOURS.get(finding.runs, GREY)))
    boxes, at = [], 0.0
    for text, colour in parts:
        width = round(len(text) * LETTER + 2 * MARGIN, 1)
        boxes.append({"x": round(at, 1), "width": width, "colour": colour, "text": text, "fits": width - 2 * MARGIN})
        at += width
    title = ": ".join(text for text, _ in parts[:2]) + "".join(f"; {text}" for text, _ in parts[2:])
    template = make_environment(TEMPLATES).get_template("badge.svg.j2")
    return template.render(boxes=boxes, width=round(at, 1), title=title, margin=MARGIN)


def write_badges(audit: Audit, folder: Path) -> list[Path]:
    """Write `badges/NAME.svg` for every claim and return the paths.

    Raises:
        UserError: the folder cannot be written.
    """
    paths = []
    for name, _, finding in list_claims(audit):
        paths.append(folder / FOLDER / f"{name}.svg")
        write_text(paths[-1], draw_badge(name, finding))
    return paths
