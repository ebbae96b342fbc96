"""The audit of the field: LSSKD against what was published, and what other papers say of themselves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmark.audit.audit import make_audit, make_court, write_audit
from benchmark.audit.claims import ClaimSet, find_papers, load_papers
from benchmark.audit.render import to_json, to_markdown
from benchmark.audit.verdicts import Verdict, combine_verdicts
from benchmark.core.errors import UserError
from tables.literature import Literature
from tests.audits import SHIPPED, ahead_by, audited, finding, measured, with_printed

ROOT = Path(__file__).parents[1]
PAPERS = load_papers()
PAIRS = [column.name for column in SHIPPED.loaded["challengers"].columns]


def without(claims: ClaimSet, *methods: str) -> ClaimSet:
    """The claims as if nobody had published anything of some methods on the six pairs."""
    table, literature = claims.loaded["challengers"], claims.literature["challengers"]
    rows = tuple(
        row.model_copy(update={"published": None, "reproduced": None}) if row.name in methods else row
        for row in table.rows
    )
    kept = tuple(entry for entry in literature.publications if entry.method not in methods)
    shorter = Literature(columns=literature.columns, publications=kept)
    return claims.model_copy(
        update={
            "loaded": claims.loaded | {"challengers": table.model_copy(update={"rows": rows})},
            "literature": claims.literature | {"challengers": shorter},
        }
    )


# LSSKD and the field.


def test_lsskd_is_above_the_best_published_number_of_one_pair() -> None:
    found = audited("best-published")
    margins = {part.label: part.text for part in found.published.parts}
    assert found.published.text == "above all in 1 of 6 columns"
    assert margins["WRN-40-2>WRN-40-1"] == "+0.23 against HSSAKD*"
    assert margins["ResNet32x4>ResNet8x4"].endswith("against EA-MLD+LS")
    assert found.paper == "does not hold"


def test_without_its_strongest_rivals_lsskd_would_be_first_and_without_one_it_is_not() -> None:
    claims = SHIPPED
    for pair in PAIRS:
        claims = ClaimSet.model_copy(claims, update={"loaded": with_printed("challengers", "LSSKD", pair, 90.0).loaded})
        if pair != PAIRS[-1]:
            assert audited("best-published", claims=claims).paper == "does not hold"
    high = SHIPPED.loaded["challengers"]
    rows = tuple(row.model_copy(update={"printed": (90.0,) * 6}) if row.name == "LSSKD" else row for row in high.rows)
    loaded = SHIPPED.loaded | {"challengers": high.model_copy(update={"rows": rows})}
    assert audited("best-published", claims=SHIPPED.model_copy(update={"loaded": loaded})).paper == "holds"


def test_gains_are_ranked_and_the_rank_is_computed() -> None:
    found = audited("largest-gain")
    ranking = [part.text for part in found.published.parts]
    assert ranking[:3] == ["1 HSSAKD* +6.07", "2 HSSAKD +4.95", "3 LSSKD +4.71"]
    assert ranking[-1] == "13 KD +2.10"
    assert (found.published.value, found.printed.value, found.paper) == (3.0, 1.0, "does not hold")
    assert "HSSAKD*: HSAKD README; n=3, best epoch on test" in found.published.origins
    assert audited("largest-gain", claims=without(SHIPPED, "HSSAKD*")).published.value == 2.0
    assert audited("largest-gain", claims=without(SHIPPED, "HSSAKD*", "HSSAKD")).paper == "holds"


@pytest.mark.parametrize(
    ("row", "pair", "number", "counted", "verdict"),
    [
        ("LSSKD", "WRN-40-2>ShuffleNetV1", 77.45, "1", "remarkable"),
        # 77.39 of SemCKD and 0.32 more.
        ("LSSKD", "WRN-40-2>ShuffleNetV1", 77.71, "0", "as expected"),
        ("AB", "ResNet56>ResNet20", 72.60, "2", "remarkable"),
    ],
)
def test_margins_below_the_inflation_are_counted(
    row: str, pair: str, number: float, counted: str, verdict: Verdict
) -> None:
    found = audited("margins-above-inflation", claims=with_printed("II", row, pair, number))
    assert found.printed.text.partition(" ")[0] == counted
    assert found.paper == verdict


def test_four_margins_are_below_the_largest_inflation_and_another_inflation_counts_otherwise() -> None:
    others = {other.says: other.text for other in audited("margins-above-inflation").others}
    assert others["below the largest that was seen (0.92)"] == "4"
    assert others["the smallest margin"] == "0.06"
    facts = tuple(
        fact.model_copy(update={"value": 0.05}) if fact.name == "best-on-test" else fact for fact in SHIPPED.facts
    )
    changed = SHIPPED.model_copy(update={"facts": facts})
    assert audited("margins-above-inflation", claims=changed).paper == "as expected"


def test_the_rerun_of_kd_on_imagenet_is_held_against_table_I() -> None:
    order, number = audited("kd-imagenet-order"), audited("kd-imagenet-number")
    assert (order.printed.verdict, order.published.verdict, order.reproduced.verdict) == (
        *("as expected", "as expected", "remarkable"),
    )
    assert (order.paper, number.paper) == ("remarkable", "remarkable")
    assert "71.37" in order.reproduced.text
    assert {other.says: other.text for other in number.others}["LSSKD over KD as it was rerun"] == "1.08"
    table = SHIPPED.loaded["I"]
    rows = []
    for row in table.rows:
        if row.name == "KD":
            assert row.reproduced is not None
            row = row.model_copy(update={"reproduced": row.reproduced.model_copy(update={"mean": (70.0, 89.0)})})
        rows.append(row)
    loaded = SHIPPED.loaded | {"I": table.model_copy(update={"rows": tuple(rows)})}
    changed = SHIPPED.model_copy(update={"loaded": loaded})
    assert audited("kd-imagenet-order", claims=changed).paper == "as expected", "SSKD was rerun at 70.09"
    assert audited("kd-imagenet-number", claims=changed).paper == "remarkable"
    assert audited("kd-imagenet-number", claims=with_printed("I", "KD", "top-1", 71.0)).paper == "as expected"


@pytest.mark.parametrize(
    ("verdicts", "combined"),
    [
        (("holds", "cannot be checked", "cannot be checked"), "holds"),
        (("holds", "holds", "does not hold"), "does not hold"),
        (("holds", "does not hold", "holds"), "does not hold"),
        (("cannot be checked", "cannot be checked", "holds"), "holds"),
        (("contradicts itself", "holds", "holds"), "contradicts itself"),
        (("as expected", "as expected", "remarkable"), "remarkable"),
    ],
)
def test_a_rerun_refutes_as_a_publication_does(verdicts: tuple[Verdict, ...], combined: Verdict) -> None:
    assert combine_verdicts(*verdicts) == combined


# Tiers.


def test_every_number_of_the_literature_is_shown_with_its_runs_and_epoch() -> None:
    audit = make_court(PAPERS, [measured(SHIPPED.loaded["II"], ahead_by(1.14))])
    assert audit.printed_origin == "n not stated, epoch not stated"
    text = to_markdown(audit)
    assert "from HSSAKD\\*: HSAKD README; n=3, best epoch on test" in text
    assert "reproduced elsewhere: by others, with their own code or runs" in text
    assert "measured here: by this suite, after the last epoch (n as shown, last epoch)" in text
    content = {entry["id"]: entry for entry in json.loads(to_json(audit))["findings"]}
    (origin,) = content["kd-imagenet-number"]["reproduced"]["origins"]
    assert origin == "KD: torchdistill's rerun; n not stated, epoch not stated"


# The court.


def test_the_verdicts_of_the_court() -> None:
    audit = make_court(PAPERS)
    verdicts = {found.claim.id: found.paper for other in audit.court for found in other.findings}
    assert verdicts == {
        **{"dist-imagenet-best": "does not hold", "dist-consistently": "does not hold"},
        **{"dkd-comparable": "holds", "dkd-mobilenet-column": "remarkable"},
        **{"hsakd-average": "cannot be checked", "hsakd-imagenet-gain": "holds"},
        **{"hsakd-imagenet-best": "does not hold", "hsakd-joint-teacher": "holds"},
        **{"lskd-improves": "holds", "lskd-favorable": "contradicts itself", "lskd-considerable-dkd": "holds"},
        **{"pskd-improves": "holds", "pskd-calibration": "contradicts itself", "pskd-ordinal-ranking": "holds"},
        **{"reviewkd-outperforms": "does not hold", "reviewkd-reproduced": "holds", "simkd-best": "does not hold"},
        **{"sskd-cross-average": "holds", "sskd-similar-best": "contradicts itself", "sskd-cross-best": "holds"},
        **{"wttm-above-ttm": "contradicts itself", "wttm-best": "contradicts itself", "ttm-above-kd": "holds"},
    }


@pytest.mark.parametrize(
    ("paper", "name", "cell", "number", "verdict"),
    [
        ("sskd", "sskd-cross-average", ("sskd_cross", "CRD", "VGG13>MobileNetV2"), 70.0, "contradicts itself"),
        ("sskd", "sskd-cross-best", ("sskd_cross", "AB", "WRN-40-2>ShuffleNetV1"), 77.5, "contradicts itself"),
        ("hsakd", "hsakd-imagenet-gain", ("hsakd_imagenet", "SSKD", "top-1"), 71.0, "contradicts itself"),
        ("hsakd", "hsakd-imagenet-best", ("hsakd_imagenet", "HSSAKD*", "top-1"), 73.0, "holds"),
        ("dkd", "dkd-mobilenet-column", ("dkd", "DKD", "ResNet32x4>MobileNetV2"), 70.0, "remarkable"),
        ("dist", "dist-imagenet-best", ("dist_imagenet", "DIST", "top-1"), 72.5, "holds"),
        ("simkd", "simkd-best", ("simkd", "SimKD", "ResNet32x4>ResNet8x4"), 78.5, "holds"),
        ("lskd", "lskd-improves", ("lskd", "MLKD+LS", "VGG13>VGG8"), 75.0, "contradicts itself"),
        ("lskd", "lskd-favorable", ("lskd", "KD+LS", "VGG13>VGG8"), 80.0, "holds"),
        ("wttm", "ttm-above-kd", ("wttm", "KD", "VGG13>VGG8"), 74.4, "contradicts itself"),
        ("pskd", "pskd-calibration", ("pskd_ece", "PS-KD", "ResNeXt29"), 4.0, "holds"),
    ],
)
def test_another_cell_is_another_verdict_in_the_court(
    paper: str, name: str, cell: tuple[str, str, str], number: float, verdict: Verdict
) -> None:
    table, row, column = cell
    claims = PAPERS[paper]
    old = claims.loaded[table]
    place = [entry.name for entry in old.columns].index(column)
    rows = []
    for entry in old.rows:
        if entry.name == row:
            entry = entry.model_copy(update={"printed": (*entry.printed[:place], number, *entry.printed[place + 1 :])})
        rows.append(entry)
    loaded = claims.loaded | {table: old.model_copy(update={"rows": tuple(rows)})}
    assert finding(make_audit(claims.model_copy(update={"loaded": loaded})), name).paper == verdict


def test_every_sentence_is_short_and_says_where_it_was_read() -> None:
    assert list(find_papers()) == [
        *("lsskd", "dist", "dkd", "hsakd", "lskd", "pskd", "reviewkd", "simkd", "sskd", "wttm"),
    ]
    ids = [claim.id for claims in PAPERS.values() for claim in claims.claims]
    assert len(ids) == len(set(ids))
    for paper, claims in list(PAPERS.items())[1:]:
        for claim in claims.claims:
            assert re.search(r"README|abstract", claim.source), (paper, claim.id)
            quotations = re.findall("“(.*?)”", claim.text)
            assert quotations or claim.implied, claim.id
            assert all(len(quotation.split()) <= 15 for quotation in quotations), claim.id


def test_claims_are_chosen_by_id_among_all_papers_and_every_paper_has_files_of_its_own(tmp_path: Path) -> None:
    chosen = load_papers(["pskd-calibration", "best-published"])
    assert {paper: [claim.id for claim in claims.claims] for paper, claims in chosen.items()} == {
        "lsskd": ["best-published"],
        "pskd": ["pskd-calibration"],
    }
    written = write_audit(make_court(chosen), tmp_path, "audit_part")
    assert {path.name for path in written} == {
        f"{stem}.{ending}" for stem in ("audit_part", "audit_part_pskd") for ending in ("md", "csv", "json")
    }
    assert "(audit_part_pskd.md)" in (tmp_path / "audit_part.md").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="unknown claim 'pskd-calibratio'; nearest: pskd-calibration"):
        load_papers(["pskd-calibratio"])


def test_the_page_on_the_audit_says_what_comes_out() -> None:
    page = " ".join((ROOT / "docs" / "audit.md").read_text(encoding="utf-8").split())
    audit = make_court(PAPERS)
    found = {entry.claim.id: entry for one in (audit, *audit.court) for entry in one.findings}
    first, second, own = (part.text.split() for part in found["largest-gain"].published.parts[:3])
    others = {other.says: other.text for other in found["margins-above-inflation"].others}
    reruns = {other.says: other.text for other in found["kd-imagenet-number"].others}
    said = [
        f"above it in {found['best-published'].published.text.split()[3]} of 6 pairs",
        f"third ({own[2]}), after {first[1]} ({first[2]}) and {second[1]} ({second[2]})",
        f"{found['margins-above-inflation'].printed.value:.0f} is below the mean of 0.32",
        f"{others['below the largest that was seen (0.92)']} are below the largest of 0.92",
        f"+{reruns['LSSKD over the printed KD']} on paper",
        f"and +{reruns['LSSKD over KD as it was rerun']} over the rerun",
        f"the six pairs that could be give +{found['hsakd-average'].others[0].text}",
        f"KD with it is {abs(found['lskd-favorable'].printed.value or 0):.2f} below DKD",
        f"WTTM above TTM: in {found['wttm-above-ttm'].printed.text.split(' ', 3)[3].removesuffix(' columns')}",
        f"WTTM first: in {found['wttm-best'].printed.text.split(' ', 3)[3].removesuffix(' columns')}",
    ]
    assert [sentence for sentence in said if sentence not in page] == []
