"""Markdown documents of the suite as part of the page: tables, formulas, and links that lead somewhere."""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markupsafe import Markup, escape

from benchmark.report.mathml import Unsupported, to_mathml

LEDGER = Path(__file__).parents[2] / "docs" / "ledger.md"
_DEMOTED = 2


def ledger() -> str | None:
    """The ledger's Markdown; None where the suite was installed without its documents."""
    return LEDGER.read_text(encoding="utf-8") if LEDGER.is_file() else None


def to_html(text: str, prefix: str) -> Markup:
    """CommonMark with tables and `$...$` formulas as HTML, two levels of heading down.

    Anchors begin with `prefix`; HTML in the text is shown, not used; links to other files, which would lead nowhere
    from a page that stands alone, are left as their words.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.inline.ruler.before("escape", "math", _math_rule)
    parser.add_render_rule("math", lambda _, tokens, place, *__: _formula(tokens[place].content, False))
    parser.add_render_rule("fence", _fence)
    parser.add_render_rule(
        "table_open", lambda *_: '<div class="scroll" tabindex="0" role="region" aria-label="table"><table>'
    )
    parser.add_render_rule("table_close", lambda *_: "</table></div>")
    tokens = parser.parse(text)
    _prepare(tokens, prefix)
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def _math_rule(state: StateInline, silent: bool) -> bool:
    """A formula between dollar signs, before anything inside it is taken for Markdown."""
    found = re.compile(r"\$(?![\s$])([^$\n]*(?:\n[^$\n]+)*?)(?<!\s)\$").match(state.src, state.pos)
    if not found or not found[1]:
        return False
    if not silent:
        state.push("math", "", 0).content = found[1]
    state.pos = found.end()
    return True


def _formula(tex: str, display: bool) -> str:
    try:
        return to_mathml(tex, display)
    except Unsupported:
        return f"<code>{escape(tex.strip())}</code>"


def _fence(_: Any, tokens: Sequence[Token], place: int, *__: Any) -> str:
    token = tokens[place]
    if token.info.strip() == "math":
        return f'<div class="formula scroll">{_formula(token.content, True)}</div>\n'
    return f"<pre><code>{escape(token.content)}</code></pre>\n"


def _prepare(tokens: Sequence[Token], prefix: str) -> None:
    """Headings get anchors and a lower level, header cells their scope, and dead links go."""
    used: MutableMapping[str, int] = {}
    for place, token in enumerate(tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + _DEMOTED)}"
        if token.type == "heading_open":
            token.attrSet("id", prefix + _anchor(tokens[place + 1].content, used))
        if token.type == "th_open":
            token.attrSet("scope", "col")
        if token.type in ("th_open", "td_open"):
            token.attrs.pop("style", None)
        if token.children:
            token.children = _with_living_links(token.children, prefix)


def _anchor(heading: str, used: MutableMapping[str, int]) -> str:
    """As a code host makes them."""
    name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    count = used.get(name, 0)
    used[name] = count + 1
    return f"{name}-{count}" if count else name


def _with_living_links(tokens: Sequence[Token], prefix: str) -> list[Token]:
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
