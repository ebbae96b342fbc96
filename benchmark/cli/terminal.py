"""Output for terminals that cannot show every character: replacements instead of an error in the middle of a table."""

from __future__ import annotations

import codecs
import re
import sys
import unicodedata

REPLACEMENTS = {
    "\N{PLUS-MINUS SIGN}": "+-",
    "\N{MINUS SIGN}": "-",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{DIVISION SIGN}": "/",
    "\N{MIDDLE DOT}": "*",
    "\N{BULLET}": "*",
    "\N{LESS-THAN OR EQUAL TO}": "<=",
    "\N{GREATER-THAN OR EQUAL TO}": ">=",
    "\N{NOT EQUAL TO}": "!=",
    "\N{ALMOST EQUAL TO}": "~",
    "\N{RIGHTWARDS ARROW}": "->",
    "\N{LEFTWARDS ARROW}": "<-",
    "\N{DAGGER}": "+",
    "\N{DOUBLE DAGGER}": "++",
    "\N{CHECK MARK}": "v",
    "\N{DEGREE SIGN}": " deg",
    "\N{SECTION SIGN}": "section ",
    "\N{GREEK SMALL LETTER LAMDA}": "lambda",
    "\N{LATIN SMALL LETTER SHARP S}": "ss",
}
"""What is printed for characters that have no ASCII parts, and whose names do not tell it either."""
ERRORS = "benchmark-spell"
"""The name of `spell_characters` among Python's handlers of encoding errors."""


def spell_characters(error: UnicodeError) -> tuple[str, int]:
    """Spell what an encoding cannot write in ASCII: `ä` as `a`, `±` as `+-`, anything unknown as `?`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spell, error.object[error.start : error.end])), error.end


def _spell(character: str) -> str:
    if character in REPLACEMENTS:
        return REPLACEMENTS[character]
    name = unicodedata.name(character, "")
    if name.endswith(("DASH", "HYPHEN")):
        return "-"
    if "QUOTATION MARK" in name:
        return "'" if "SINGLE" in name else '"'
    if name.startswith("BOX DRAWINGS"):
        return "|" if "VERTICAL" in name else "-"
    # The frames of a spinner.
    if name.startswith("BRAILLE"):
        return "."
    if decomposed := unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode():
        return f"^{decomposed}" if name.startswith("SUPERSCRIPT") else decomposed
    letter = re.search(r"(SMALL|CAPITAL) LETTER (\w+)", name)
    if letter is None:
        return "?"
    return letter[2].lower() if letter[1] == "SMALL" else letter[2].capitalize()


def prepare_output() -> None:
    """Let the standard streams spell what their encoding cannot write."""
    codecs.register_error(ERRORS, spell_characters)
    for stream in (sys.stdout, sys.stderr):
        # Tests put other kinds of streams in their place.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors=ERRORS)
