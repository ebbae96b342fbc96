"""The report as one HTML page that needs nothing else: no network, no other file, and no script to be read."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from benchmark.audit.render import MEANINGS, shorten_answer, summarise_audit
from benchmark.audit.verdicts import Audit
from benchmark.report import prose, wording
from benchmark.report.data import TITLE, Report
from benchmark.report.figures import Drawing
from benchmark.report.runs import make_key
from tables.escaping import make_environment
from tables.view import BEST_EXPLANATION, BEST_TITLE

TEMPLATES = Path(__file__).parent / "templates"
SECTIONS = (
    ("summary", "Summary"),
    ("tables", "Tables"),
    ("figures", "Figures"),
    ("differences", "Differences"),
    ("figures-of-merit", "Metrics"),
    ("cost", "Cost"),
    ("edge", "Edge"),
    ("audit", "Audit"),
    ("runs", "Runs"),
    ("ledger", "Ledger"),
    ("provenance", "Provenance"),
)


def to_html(report: Report, drawings: Sequence[Drawing], audit: Audit) -> str:
    """The page. Whatever text comes from users is escaped, by Jinja in HTML and here in JSON."""
    style, script = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("style.css", "page.js"))
    ledger = prose.read_ledger()
    return (
        make_environment(TEMPLATES)
        .get_template("page.html.j2")
        .render(
            report=report,
            drawings=drawings,
            audit=audit,
            audit_summary=summarise_audit(audit),
            brief=shorten_answer,
            meanings=MEANINGS,
            title=TITLE,
            wording=wording,
            sections=SECTIONS,
            records=wording.describe_records(report),
            best_title=BEST_TITLE,
            best_explanation=BEST_EXPLANATION,
            ledger=prose.to_html(ledger, "ledger-") if ledger else None,
            curves=as_json(report.curves),
            drawn=lambda cell: " ".join(key for seed in cell.finished if (key := make_key(seed.run)) in report.curves),
            style=style,
            script=script,
            style_hash=_hash(style),
            script_hash=_hash(script),
        )
    )


def as_json(value: Any) -> Markup:
    """JSON that no browser takes for the end of the script that it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _hash(text: str) -> str:
    """What a content security policy names an inline script or style by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
