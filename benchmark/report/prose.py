"""Renders Markdown documents of the suite as parts of the report: tables, formulas and the links that work there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin

LEDGER = Path(__file__).parents[2] / "docs" / "ledger.md"
DEMOTED_LEVELS = 2
"""How many levels a document's headings move down, because the page has headings of its own above them."""
_DELIMITER_SIZE = re.compile(r"\\(?:big|Big)[lr]?(?![A-Za-z])")
_FUNCTION_NAME = re.compile(r"\\(log|exp|max|min)\s+(?=[A-Za-z\\])")
_MATHML_ATTRIBUTES = {
    *("accent", "columnalign", "columnspacing", "display", "displaystyle", "fence", "form", "height", "linethickness"),
    *("lspace", "mathvariant", "maxsize", "minsize", "movablelimits", "rowspacing", "rspace", "stretchy", "width"),
}
_MATHML_TAG = re.compile(r"\{http://www\.w3\.org/1998/Math/MathML\}m[a-z]+")


def read_ledger() -> str | None:
    """Read the ledger's Markdown; None if the suite was installed without its documents."""
    return LEDGER.read_text(encoding="utf-8") if LEDGER.is_file() else None


def to_html(text: str, prefix: str) -> Markup:
    """Render CommonMark with tables and `$...$` formulas as HTML, with its headings two levels down.

    Anchors begin with `prefix`. HTML in the text is escaped. Links to other files are replaced by their text, because
    the page is a single file.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.use(dollarmath_plugin, allow_space=False, allow_labels=False, renderer=_render_formula)
    parser.use(anchors_plugin, max_level=6)
    parser.add_render_rule("fence", _render_fence)
    parser.add_render_rule("table_open", lambda _, tokens, index, *__: _open_table(prefix, tokens, index))
    parser.add_render_rule("table_close", lambda *_: "</table></div>")
    tokens = parser.parse(text)
    _adapt_to_page(tokens, prefix)
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def to_mathml(tex: str, display: bool = False) -> str:
    """Convert a formula to a `math` element; `display`: on a line of its own.

    Raises:
        ValueError: the formula cannot be converted.
    """
    try:
        # The converter does not convert a command after \big, and omits the space after the name of a function.
        simplified = _FUNCTION_NAME.sub(r"\\\1\\,", _DELIMITER_SIZE.sub("", tex))
        mathml = convert(simplified, display="block" if display else "inline")
        elements = list(ElementTree.fromstring(mathml).iter())
    except Exception as error:  # the converter raises many kinds, such as IndexError
        raise ValueError(f"cannot convert the formula {tex!r}: {error}") from error
    # The converter copies unknown commands, and HTML in a text, into its result.
    known = all(
        _MATHML_TAG.fullmatch(element.tag) and set(element.keys()) <= _MATHML_ATTRIBUTES for element in elements
    )
    if "\\" in mathml.replace("&#x0005C;", "\\") or not known:
        raise ValueError(f"cannot convert the formula {tex!r}: it contains an unknown command")
    return re.sub(r"<(m\w+)([^<>]*?) ?/>", r"<\1\2></\1>", mathml)


def _open_table(prefix: str, tokens: Sequence[Token], index: int) -> str:
    """Open a table in a box that scrolls, which has a name of its own on the page."""
    number = sum(token.type == "table_open" for token in tokens[: index + 1])
    label = escape(f"{prefix.rstrip('/-')}, table {number}")
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>'


def _render_formula(tex: str, settings: dict[str, Any]) -> str:
    try:
        return to_mathml(tex, settings["display_mode"])
    except ValueError:
        return f"<code>{escape(tex.strip())}</code>"


def _render_fence(_: Any, tokens: Sequence[Token], index: int, *__: Any) -> str:
    token = tokens[index]
    if token.info.strip() == "math":
        return f'<div class="formula scroll">{_render_formula(token.content, {"display_mode": True})}</div>\n'
    return f"<pre><code>{escape(token.content)}</code></pre>\n"


def _adapt_to_page(tokens: Sequence[Token], prefix: str) -> None:
    """Move headings down, prefix their anchors, give header cells a scope, and remove links to other files."""
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + DEMOTED_LEVELS)}"
        if token.type == "heading_open":
            token.attrSet("id", f"{prefix}{token.attrGet('id')}")
        if token.type == "th_open":
            token.attrSet("scope", "col")
        if token.type in ("th_open", "td_open"):
            token.attrs.pop("style", None)
        if token.children:
            token.children = _keep_live_links(token.children, prefix)


def _keep_live_links(tokens: Sequence[Token], prefix: str) -> list[Token]:
    kept: list[Token] = []
    open_links: list[bool] = []
    for token in tokens:
        if token.type == "link_open":
            target = str(token.attrGet("href"))
            if target.startswith("#"):
                token.attrSet("href", f"#{prefix}{target[1:]}")
            open_links.append(target.startswith(("#", "https://", "http://")))
            if not open_links[-1]:
                continue
        if token.type == "link_close" and not open_links.pop():
            continue
        if token.type == "image":
            continue
        kept.append(token)
    return kept
