"""The documents of the repository, for the tests of what they say."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")})
README = ROOT / "README.md"
OWN_FILES = ROOT / "docs" / "own-files.md"


def table_after(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, its header row first."""
    section = text.split(f"\n{heading}\n", 1)[1]
    rows = re.search(r"(^\|.*\|\n)+", section, flags=re.MULTILINE)
    assert rows, f"no table under {heading!r}"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows.group().splitlines()]
    return [cells[0], *cells[2:]]
