"""Text of users in Markdown and LaTeX: whatever it holds, it is shown as it is and breaks nothing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2


class Markup(str):
    """Text in the target format already, which is not escaped again."""

    __slots__ = ()


_BIDIRECTIONAL_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}

_GREEK = re.compile(
    "GREEK SMALL LETTER (ALPHA|BETA|GAMMA|DELTA|EPSILON|ZETA|ETA|THETA|IOTA|KAPPA|LAMDA|MU|NU|XI|PI|RHO|SIGMA|TAU"
    "|UPSILON|PHI|CHI|PSI|OMEGA)"
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': "''",
    # At the start of a row, a bracket or a star would be taken for an argument of the line break before it.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{MIDDLE DOT}": r"$\cdot$",
    "\N{MINUS SIGN}": "$-$",
    "→": r"$\to$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{LEFT SINGLE QUOTATION MARK}": "`",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": "``",
    "\N{RIGHT DOUBLE QUOTATION MARK}": "''",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
    "ß": r"\ss{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    **{special: f"\\{special}" for special in "&%$#_{}"},
}
_LATEX_ACCENTS = dict(
    zip("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327", "`'^~=u.\"rHvc", strict=True)
)


def plain(text: str) -> str:
    """One line without control characters, and without those that turn the direction of writing."""
    kept = "".join(
        character
        for character in text
        if character.isspace()
        or (
            unicodedata.category(character) not in ("Cc", "Cs")
            and unicodedata.bidirectional(character) not in _BIDIRECTIONAL_CONTROLS
        )
    )
    return " ".join(kept.split())


def escape_markdown(text: str) -> Markup:
    """Text that CommonMark with tables shows as it stands, also as a table's cell or at the start of a line."""
    escaped = re.sub(r"([\\`*_\[\]<|~$&])", r"\\\1", plain(text))
    escaped = re.sub(r"^([#>+=-])", r"\\\1", escaped)
    return Markup(re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", escaped))


def escape_latex(text: str) -> Markup:
    """ASCII that LaTeX sets as the text stands; a character that it has no common command for is named by its code."""
    line = unicodedata.normalize("NFC", plain(text))
    return Markup("".join(map(_latex_of, line, line[1:] + " ")))


def _latex_of(character: str, following: str) -> str:
    if character == "-" and following == "-":
        return "-{}"
    if character in _LATEX:
        return _LATEX[character]
    if character.isascii():
        return character
    if greek := _GREEK.fullmatch(unicodedata.name(character, "")):
        # Unicode spells this one letter without its b.
        return f"$\\{greek[1].lower().replace('lamda', 'lambda')}$"
    base, *accents = list(unicodedata.normalize("NFD", character))
    if base.isascii() and base.isalpha() and len(accents) == 1 and accents[0] in _LATEX_ACCENTS:
        return f"\\{_LATEX_ACCENTS[accents[0]]}{{{base}}}"
    return f"{{[}}U+{ord(character):04X}{{]}}"


def environment(escape: Callable[[str], Markup], **delimiters: str) -> jinja2.Environment:
    """The environment of this folder's templates, in which every value goes through `escape` unless it is `Markup`."""

    def escaped(value: Any) -> str:
        return value if isinstance(value, Markup) else escape(str(value))

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        # Jinja's own autoescaping knows HTML only.
        finalize=escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **delimiters,  # type: ignore[arg-type]
    )
