"""Text of users in Typst: whatever it holds, it is set as it stands and starts nothing."""

from __future__ import annotations

from typing import Any

from tables.escaping import Markup, plain


def escape_typst(text: str) -> Markup:
    """One line of text as a string of Typst's code, which is never read as markup; the semicolon ends the code.

    (https://typst.app/docs/reference/foundations/str/: in a string only the backslash and the quotation mark are read.)
    """
    string = plain(text).replace("\\", "\\\\").replace('"', '\\"')
    return Markup(f'#"{string}";')


def typst_string(text: str) -> Markup:
    """The same where code is expected already, as in an argument."""
    return Markup(escape_typst(text)[1:-1])


def finalise(value: Any) -> str:
    """What stands in a template: markup as it is, anything else escaped."""
    return value if isinstance(value, Markup) else escape_typst(str(value))
