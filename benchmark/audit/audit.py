"""Makes the audits of papers from claims and results, and writes their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmark.audit.claims import Claim, ClaimSet, naming
from benchmark.audit.expressions import Reference, format_title
from benchmark.audit.measured import describe_precision, group_by_setting, judge_on_runs
from benchmark.audit.render import to_csv, to_json, to_markdown
from benchmark.audit.sources import Paper
from benchmark.audit.verdicts import Audit, Finding, combine_verdicts, judge_on_paper, judge_other_readings
from benchmark.io.files import write_text
from benchmark.results.provenance import describe_environment
from tables.result import TableResult


def make_audit(claims: ClaimSet, results: Iterable[TableResult] = ()) -> Audit:
    """Judge every claim.

    results: of tables, and of figures' panels under the names that the claims give them, in any number of settings.

    Raises:
        UserError: an expression of a claim cannot be computed.
    """
    known = {*claims.loaded, *claims.figures}
    results = [
        result
        for result in results
        if result.table.name in known and any(cell.values for cell in result.cells.values())
    ]
    paper = Paper(claims)
    return Audit(
        title=claims.title,
        findings=tuple(_finding(claim, paper, results) for claim in claims.claims),
        settings=tuple(
            f"{format_title(result.table.name)} at scale {result.scale} on {result.dataset}"
            f"{describe_precision(result, [row.name for row in result.table.rows])}"
            for setting in group_by_setting(results)
            for result in setting.values()
        ),
        generated_from=describe_environment(),
        caveat=claims.caveat,
        printed_origin="; ".join(paper.origins("printed", [Reference(name, "", None) for name in claims.loaded])),
    )


def make_court(papers: Mapping[str, ClaimSet], results: Iterable[TableResult] = ()) -> Audit:
    """Judge the claims of several papers: the audit of the first one, which holds those of the others.

    papers: claims by the name of their paper; results: as for `make_audit`, of the tables of all of them.

    Raises:
        UserError: an expression of a claim cannot be computed.
    """
    results = list(results)
    first, *others = (dataclasses.replace(make_audit(claims, results), paper=paper) for paper, claims in papers.items())
    return dataclasses.replace(first, court=tuple(others))


def write_audit(audit: Audit, folder: Path, stem: str = "audit") -> list[Path]:
    """Write `audit.md`, `.csv` and `.json`, each whole or not at all, and return their paths; `stem`: another name.

    The audits of the court have the name of their paper behind the stem: `audit_dkd.md`.

    Raises:
        UserError: the folder cannot be written.
    """
    paths = [path for other in audit.court for path in write_audit(other, folder, f"{stem}_{other.paper}")]
    for ending, text in (("md", to_markdown(audit, stem)), ("csv", to_csv(audit)), ("json", to_json(audit))):
        paths.append(folder / f"{stem}.{ending}")
        write_text(paths[-1], text)
    return paths


def _finding(claim: Claim, paper: Paper, results: list[TableResult]) -> Finding:
    with naming(claim):
        printed = judge_on_paper(claim, paper, "printed")
        published = judge_on_paper(claim, paper, "published")
        reproduced = judge_on_paper(claim, paper, "reproduced")
        return Finding(
            claim=claim,
            printed=printed,
            published=published,
            reproduced=reproduced,
            measured=judge_on_runs(claim, paper, results),
            paper=combine_verdicts(printed.verdict, published.verdict, reproduced.verdict),
            others=judge_other_readings(claim, paper),
        )
