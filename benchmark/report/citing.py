"""Cite a cell, a claim or a table in BibTeX: the suite, its version and commit, and the records behind a number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from string import Template
from typing import Any

from benchmark.core.spec import Run
from benchmark.report.addresses import make_slug
from benchmark.report.runs import make_key
from benchmark.results.record import Record
from tables.escaping import escape_latex

ENTRY = Template("""\
@misc{kd-benchmark:$key,
  title        = {{$title}},
  author       = {{The kd-benchmark contributors}},
  year         = {$year},
  howpublished = {\\url{$address}},
  note         = {$suite. $records},
}
""")
"""What `page.js` fills in too, for what is pressed."""
NO_RECORDS = "No run of this suite is behind it."


def describe_maker(record: Record) -> str:
    """Describe what made a record: `version 0.2.0, commit 0123456789ab`."""
    made = record["provenance"]
    commit = str(made.get("commit") or "unknown")
    return f"version {made.get('version') or 'unknown'}, commit {commit[:12]}"


def collect_makers(pairs: Iterable[tuple[Run, Record]]) -> dict[str, str]:
    """Collect what made each record, by the key of its run on the page."""
    return {make_key(run.id): describe_maker(record) for run, record in pairs}


def list_for_page(makers: Mapping[str, str], suite: str, written: str) -> dict[str, Any]:
    """List what the page's script needs to cite: the entry, what it is filled with, and each record's maker once."""
    places = {maker: place for place, maker in enumerate(dict.fromkeys(makers.values()))}
    return {
        "entry": ENTRY.template,
        "suite": suite,
        "year": written[:4],
        "nothing": NO_RECORDS,
        "makers": list(places),
        "runs": {key: places[maker] for key, maker in makers.items()},
    }


def cite(address: str, title: str, keys: Iterable[str], makers: Mapping[str, str], suite: str, written: str) -> str:
    """Write the BibTeX entry of what an address leads to; keys: of the runs behind it; written: the page's date."""
    by_maker: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        by_maker[makers.get(key, "version unknown")].append(key)
    records = "; ".join(f"Records {', '.join(found)}: {maker}" for maker, found in by_maker.items())
    return ENTRY.substitute(
        key=make_slug(address),
        title=escape_latex(title),
        year=written[:4],
        address=f"index.html#{address}",
        suite=escape_latex(suite),
        records=escape_latex(f"{records}." if records else NO_RECORDS),
    )
