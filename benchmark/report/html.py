"""Render the report as one HTML page that needs nothing else: no network, no other file, no script to be read."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from benchmark.audit import render as audit_words
from benchmark.audit.verdicts import Audit
from benchmark.report import citing, prose, ranking
from benchmark.report.answers import make_answers
from benchmark.report.cards import make_method_cards, make_network_cards
from benchmark.report.data import LEAD, TITLE, Report
from benchmark.report.decisions import DecidedClaim
from benchmark.report.faithfulness import FaithfulnessListing
from benchmark.report.figures import Drawing
from benchmark.report.ranking import list_rankings
from benchmark.report.runs import make_key
from tables.escaping import make_environment
from tables.result import Cell
from tables.view import BEST_EXPLANATION, BEST_TITLE

TEMPLATES = Path(__file__).parent / "templates"
SECTIONS = {
    "summary": "Summary",
    "decisions": "Decisions",
    "tables": "Tables",
    "figures": "Figures",
    "faithfulness": "How faithful are the students?",
    "differences": "Differences",
    "ranking": "Ranking",
    "metrics": "Metrics",
    "cost": "Cost",
    "methods": "Methods",
    "networks": "Networks",
    "edge": "Edge",
    "audit": "Audit",
    "runs": "Runs",
    "ledger": "Ledger",
    "provenance": "Provenance",
    "files": "Files",
}
"""What a page can show, by the name of the template, in this order."""


def to_html(
    report: Report,
    drawings: Sequence[Drawing],
    audit: Audit,
    decided: Sequence[DecidedClaim] = (),
    faithful: FaithfulnessListing | None = None,
) -> str:
    """Render the page, with what sweeps decided and how faithful students are, if there is any.

    Text from users is escaped, by Jinja in HTML and by `as_json` in JSON.
    """
    ledger = prose.read_ledger()
    optional = {"decisions": decided, "faithfulness": faithful, "files": None}
    return render_page(
        {name: words for name, words in SECTIONS.items() if optional.get(name, True)},
        report.curves,
        report.makers,
        heading=TITLE,
        subtitle=report.headline,
        lead=LEAD,
        report=report,
        answers=make_answers(report.tables, audit),
        rankings=list_rankings(report.tables, report.method),
        assumes=ranking.ASSUMES,
        fewest=(ranking.FEWEST_METHODS, ranking.FEWEST_PAIRS, ranking.FEWEST_SEEDS),
        method_cards=make_method_cards(report.tables, report.weights),
        network_cards=make_network_cards(report.tables, report.weights),
        tables=report.tables,
        drawings=drawings,
        decided=decided,
        faithful=faithful,
        audit=audit,
        audit_words=audit_words,
        ledger=prose.to_html(ledger, "ledger-") if ledger else None,
        generated_from=report.generated_from,
        written=report.written,
    )


def render_page(
    sections: Mapping[str, str],
    curves: Mapping[str, dict[str, Any]],
    makers: Mapping[str, str],
    *,
    generated_from: str,
    written: str,
    **values: Any,
) -> str:
    """Render a page of some sections, in which pressing a number draws the curves of its runs.

    sections: the names of their templates and what they are called; curves, makers: by the key of their run;
    generated_from, written: by which version, and when.
    """
    style, script = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("style.css", "page.js"))

    def list_drawn(cell: Cell) -> str:
        return " ".join(make_key(seed.run) for seed in cell.finished)

    return (
        make_environment(TEMPLATES)
        .get_template("page.html.j2")
        .render(
            sections=sections,
            best_title=BEST_TITLE,
            best_explanation=BEST_EXPLANATION,
            curves=as_json(curves),
            citing=as_json(citing.list_for_page(makers, generated_from, written)),
            generated_from=generated_from,
            written=written,
            drawn=list_drawn,
            style=style,
            script=script,
            style_hash=_hash(style),
            script_hash=_hash(script),
            **values,
        )
    )


def as_json(value: Any) -> Markup:
    """Write JSON so that no browser takes a part of it for the end of the script around it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _hash(text: str) -> str:
    """Hash an inline script or style as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
