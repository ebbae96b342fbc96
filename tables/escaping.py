"""Escape text of users in Markdown and LaTeX: whatever it holds, it is shown as it is and breaks nothing."""

from __future__ import annotations

import csv
import functools
import io
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

if TYPE_CHECKING:
    import jinja2


class Markup(str):
    """Text in the target format already, which is not escaped again."""

    __slots__ = ()


_LATEX_DELIMITERS = {
    "block_start_string": "(*",
    "block_end_string": "*)",
    "variable_start_string": "((",
    "variable_end_string": "))",
    "comment_start_string": "(#",
    "comment_end_string": "#)",
}
"""Of templates in LaTeX, which uses Jinja's own."""
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
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "Δ": r"$\Delta$",
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
    """Reduce text to one line without control characters and without those that turn the direction of writing."""
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
    """Escape text so that CommonMark with tables shows it as it stands, also in a cell or at the start of a line."""
    escaped = re.sub(r"([\\`*_\[\]<|~$&])", r"\\\1", plain(text))
    escaped = re.sub(r"^([#>+=-])", r"\\\1", escaped)
    return Markup(re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", escaped))


def escape_latex(text: str) -> Markup:
    """Turn text into ASCII that LaTeX sets as it stands; a character without a common command becomes its code.

    Only commands that every LaTeX has without a package are used. (pylatexenc also writes those of other font
    encodings, such as `\\CYRZH` and `\\guillemotleft`, which a document that loads booktabs alone does not have.)
    """
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


def format_pipe_table(lines: Sequence[Sequence[str]], numeric: Collection[int] = ()) -> Markup:
    """Lay out lines of Markdown cells, the head first, as a table that also reads well as plain text.

    numeric: the positions of the columns that are set flush right.
    """
    columns = range(len(lines[0]))
    widths = [max(3, *(cell_len(line[column]) for line in lines)) for column in columns]
    rule = ["-" * (widths[column] - 1) + ":" if column in numeric else "-" * widths[column] for column in columns]
    padded = (
        " | ".join(text + " " * (width - cell_len(text)) for text, width in zip(line, widths, strict=True))
        for line in (lines[0], rule, *lines[1:])
    )
    return Markup("\n".join(f"| {line} |" for line in padded))


def format_csv(lines: Sequence[Mapping[str, object]]) -> str:
    """Write lines of the same named values as CSV; texts are made plain."""
    written = io.StringIO()
    writer = csv.DictWriter(written, lines[0], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: plain(value) if isinstance(value, str) else value for name, value in line.items()})
    return written.getvalue()


@functools.cache
def make_environment(templates: Path, escape: Callable[[str], Markup] | None = None) -> jinja2.Environment:
    """Make the Jinja environment of a folder of templates, in which every value is escaped unless it is markup.

    escape: the target format, `escape_markdown` or `escape_latex`; Jinja's own escaping of HTML if None.
    """
    # Commands that write no file start sooner without it.
    import jinja2

    options: dict[str, Any] = dict(_LATEX_DELIMITERS) if escape is escape_latex else {}
    if escape is not None:
        # Jinja's own autoescaping knows HTML only.
        options["finalize"] = lambda value: value if isinstance(value, Markup) else escape(str(value))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=escape is None,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=escape is not None,
        **options,
    )
    environment.filters["markup"] = Markup
    return environment
