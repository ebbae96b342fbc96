"""Citations and badges of what a page shows."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from benchmark.audit.audit import make_audit
from benchmark.audit.claims import load_claims
from benchmark.report.badges import list_claims, write_badges
from benchmark.report.citing import cite, collect_makers, list_for_page
from tests.report_records import record_of, request


def test_a_citation_names_suite_version_commit_and_records() -> None:
    run = request().run("KD", "WRN-16-2", "WRN-40-2", 0)
    makers = collect_makers([(run, record_of(run, 1))])
    (key,) = makers
    entry = cite("table-ii/kd/wrn-16-2", "KD, 75.2 % & more", [key], makers, "kd-benchmark 0.2.0", "2026-05-01")
    assert entry.startswith("@misc{kd-benchmark:table-ii-kd-wrn-16-2,\n")
    assert "KD, 75.2 \\% \\& more" in entry
    assert "\\url{index.html#table-ii/kd/wrn-16-2}" in entry
    assert f"kd-benchmark 0.2.0. Records {key}: version 0.1.0, commit 0123456789ab." in entry
    assert entry.count("{") == entry.count("}")
    assert list_for_page(makers, "", "2026-05-01")["runs"] == {key: 0}


def test_every_claim_has_a_badge_that_says_its_verdict(tmp_path: Path) -> None:
    audit = make_audit(load_claims())
    paths = write_badges(audit, tmp_path)
    names = [name for name, _, _ in list_claims(audit)]
    assert [path.stem for path in paths] == names
    for path, (name, _, finding) in zip(paths, list_claims(audit), strict=True):
        text = "".join(ElementTree.parse(path).getroot().itertext())
        assert name in text
        assert finding.paper in text
