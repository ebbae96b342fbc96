"""The audit of the paper's text: verdicts are computed from cells, and every page says them."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from benchmark.audit.__main__ import main
from benchmark.audit.audit import make_audit
from benchmark.audit.claims import Claim, find_papers
from benchmark.audit.render import summarise_audit, to_csv, to_json, to_markdown
from benchmark.audit.sources import Paper
from benchmark.audit.terminal import to_terminal
from benchmark.audit.verdicts import Audit, Count, Verdict, agrees, count_matters, count_verdicts, judge_on_paper
from benchmark.core.errors import UserError
from benchmark.report.data import collect_report
from benchmark.report.html import to_html
from tables.specification import load_table
from tests.audits import SHIPPED, ahead_by, audited, finding, measured, with_printed
from tests.commands import run_command

ROOT = Path(__file__).parents[1]


# What the paper's own tables and the literature say.


def test_the_verdicts_on_the_shipped_claims() -> None:
    audit = make_audit(SHIPPED)
    verdicts = {found.claim.id: found.paper for found in audit.findings}
    expected: dict[Verdict, set[str]] = {
        "holds": {
            *("imagenet-best", "table-ii-named-rivals", "table-iii-best", "mobilenet-gain", "table-iv-best"),
            *("gain-resnet20", "gain-wrn-16-2", "gain-wrn-40-2", "gain-largest", "gain-resnet18"),
            "joint-labels",
        },
        "as expected": {"same-resnet20"},
        "remarkable": {
            *("larger-is-better", "same-wrn-16-2", "same-resnet18", "tf-kd-resnet101"),
            *("own-resnet18", "own-wrn-40-2", "own-resnet56", "own-resnet50", "own-wrn-16-2"),
            *("margins-above-inflation", "kd-imagenet-number", "kd-imagenet-order"),
        },
        "does not hold": {
            *("hssakd-average", "table-ii-best", "one-pipeline"),
            *("cs-kd-resnet101", "tf-kd-self-resnet18", "semckd-numbers", "sskd-numbers"),
            *("best-published", "largest-gain"),
        },
        "contradicts itself": {
            *("ps-kd-average", "ps-kd-average-again", "ps-kd-two-averages"),
            *("sskd-average", "sskd-average-again", "sskd-two-averages"),
            *("imagenet-hssakd", "imagenet-gain", "imagenet-two-gains", "imagenet-networks"),
            *("table-ii-networks", "table-iii-networks", "shufflenet-in-table-iii", "table-iv-networks"),
            *("gain-resnet56", "gain-resnet50"),
            *("name-of-the-method", "name-of-hssakd", "what-sskd-is", "hssakd-labels"),
        },
        "cannot be checked": {
            *("coc-boost", "softened-labels", "ps-kd-mobilenet", "few-shot-cifar100", "few-shot-tiny-imagenet"),
            *("stages-resnet18", "stages-resnet32x4", "deepest-stage", "inference-cost", "training-cost"),
            *("training-parameters", "beyond-images"),
        },
    }
    assert verdicts == {name: verdict for verdict, names in expected.items() for name in names}
    assert {found.runs for found in audit.findings} == {"not run yet", "cannot be checked"}


@pytest.mark.parametrize(
    ("name", "source", "text", "parts"),
    [
        ("ps-kd-average", "printed", "+3.24", [3.98, 1.67, 4.06]),
        ("sskd-average", "printed", "+1.35", [0.73, 2.51, 1.87, 0.44, 0.74, 1.79]),
        ("hssakd-average", "published", "−0.24", [-0.31, 1.35, 0.09, -0.99, -1.06, -0.5]),  # noqa: RUF001
        ("imagenet-hssakd", "printed", "+0.29", []),
        ("gain-resnet56", "printed", "+6.96", []),
        ("gain-resnet50", "printed", "+6.82", []),
        ("mobilenet-gain", "printed", "+5.57", []),
        ("table-ii-best", "printed", "above all in 6 of 6 columns", [0.73, 2.51, 0.84, 0.38, 0.06, 1.17]),
        ("table-ii-best", "published", "above all in 1 of 6 columns", [-1.78, 0.23, -1.06, -1.42, -2.66, -1.43]),
        ("imagenet-best", "printed", "above all in 2 of 2 columns", [0.15, 0.25]),
        ("imagenet-best", "published", "above all in 2 of 2 columns", [0.06, 0.15]),
        (
            "one-pipeline",
            "published",
            "97 (Table I 20 of 22 cells; Table II 66 of 72 cells; Table III 11 of 16 cells)",
            [],
        ),
    ],
)
def test_what_the_tables_and_the_literature_give(name: str, source: str, text: str, parts: list[float]) -> None:
    answer = getattr(audited(name), source)
    assert answer.text == text
    assert [part.value for part in answer.parts if part.value is not None] == pytest.approx(parts, abs=1e-6)


def test_other_readings_are_told_and_decide_nothing() -> None:
    others = {other.says: (other.text, other.agrees) for other in audited("hssakd-average").others}
    assert others["over HSSAKD*, with the jointly trained teacher"] == ("−1.35", False)  # noqa: RUF001
    (nearest,) = audited("sskd-average").others
    assert nearest.text == "+1.16"
    assert not nearest.agrees
    claims = with_printed("II", "SSKD", "WRN-40-2>WRN-16-2", 75.75)
    changed = audited("sskd-average", claims=claims)
    assert changed.others[0].agrees
    assert changed.paper == "contradicts itself"


@pytest.mark.parametrize(
    ("name", "cell", "number", "verdict"),
    [
        # 3.98 + 5.58 + 4.06 = 3 * 4.54; the literature has another number for PS-KD.
        ("ps-kd-average", ("III", "PS-KD", "ResNet101"), 76.66, "does not hold"),
        ("ps-kd-average-again", ("III", "LSSKD", "ResNet18"), 87.12, "does not hold"),
        ("sskd-average", ("II", "LSSKD", "WRN-40-2>WRN-40-1"), 77.11, "does not hold"),
        ("imagenet-hssakd", ("I", "HSSAKD", "top-1"), 72.13, "does not hold"),
        ("imagenet-gain", ("I", "LSSKD", "top-1"), 72.49, "holds"),
        ("imagenet-networks", ("I", "Baseline", "top-1"), 73.31, "contradicts itself"),
        ("imagenet-best", ("I", "MOKD", "top-5"), 91.16, "contradicts itself"),
        ("table-ii-best", ("II", "AB", "ResNet56>ResNet20"), 72.67, "contradicts itself"),
        ("table-ii-named-rivals", ("II", "FitNet", "ResNet32x4>ResNet8x4"), 76.28, "contradicts itself"),
        ("table-ii-named-rivals", ("II", "AB", "ResNet56>ResNet20"), 99.0, "holds"),
        ("one-pipeline", ("II", "KD", "ResNet56>ResNet20"), 70.92, "does not hold"),
        ("table-iii-best", ("III", "LSSKD", "MobileNetV2"), 70.9, "contradicts itself"),
        ("coc-boost", ("III", "LSSKD+COC", "ResNet18"), 85.74, "holds"),
        ("mobilenet-gain", ("III", "LSSKD", "MobileNetV2"), 73.92, "contradicts itself"),
        ("larger-is-better", ("III", "LSSKD", "ResNet101"), 83.17, "as expected"),
        ("table-iv-best", ("IV", "LSSKD", "ResNet50"), 75.8, "contradicts itself"),
        ("softened-labels", ("IV", "LSSKD-hard", "ResNet20"), 70.0, "holds"),
        ("softened-labels", ("IV", "LSSKD-hard", "ResNet20"), 80.0, "contradicts itself"),
        ("gain-resnet20", ("IV", "LSSKD", "ResNet20"), 72.66, "contradicts itself"),
        ("gain-resnet56", ("IV", "LSSKD", "ResNet56"), 75.79, "does not hold"),
        ("gain-wrn-40-2", ("IV", "Baseline", "WRN-40-2"), 76.0, "contradicts itself"),
        ("gain-largest", ("IV", "LSSKD", "ResNet20"), 79.0, "contradicts itself"),
        ("same-resnet20", ("II", "LSSKD", "ResNet56>ResNet20"), 72.68, "remarkable"),
        # A number of its own then, but not the published one.
        ("own-resnet50", ("II", "CRD", "WRN-40-2>WRN-16-2"), 75.82, "remarkable"),
        ("own-wrn-16-2", ("IV", "LSSKD", "WRN-16-2"), 83.17, "as expected"),
        ("cs-kd-resnet101", ("III", "CS-KD", "ResNet101"), 79.24, "holds"),
    ],
)
def test_another_printed_number_is_another_verdict(
    name: str, cell: tuple[str, str, str], number: float, verdict: Verdict
) -> None:
    assert audited(name, claims=with_printed(*cell, number)).paper == verdict


def test_the_verdict_does_not_hinge_on_the_rounding_of_cells() -> None:
    # Two cells of a difference are rounded by at most 0.01 together.
    for found in make_audit(SHIPPED).findings:
        claim, value = found.claim, found.printed.value
        if value is not None and claim.value is not None and claim.relation == "=":
            verdicts = {agrees(value + shift, claim) for shift in (-0.01, 0.0, 0.01)}
            assert found.printed.verdict == "holds" or verdicts == {False}, claim.id


def test_another_column_is_another_verdict() -> None:
    for name, table, network in (
        ("shufflenet-in-table-iii", "III", "ShuffleNetV2"),
        ("table-iv-networks", "IV", "ShuffleNetV1"),
    ):
        old = SHIPPED.loaded[table]
        column = old.columns[0].model_copy(update={"title": network, "student": network})
        new = old.model_copy(update={"columns": (*old.columns, column)})
        claims = SHIPPED.model_copy(update={"loaded": SHIPPED.loaded | {table: new}})
        nothing = {"printed": (), "published": None, "reproduced": None}
        rows = tuple(row.model_copy(update=nothing) for row in new.rows)
        claims.loaded[table] = new.model_copy(update={"rows": rows})
        claims = claims.model_copy(update={"numbers": ()})
        assert audited(name, claims=claims).paper == "holds"


def test_another_published_number_is_another_verdict() -> None:
    numbers = tuple(
        entry.model_copy(update={"values": (72.45, 91.0)}) if (entry.table, entry.row) == ("I", "HSSAKD*") else entry
        for entry in SHIPPED.numbers
    )
    table = SHIPPED.loaded["I"]
    rows = tuple(row.model_copy(update={"published": None}) for row in table.rows)
    loaded = SHIPPED.loaded | {"I": table.model_copy(update={"rows": rows})}
    changed = SHIPPED.model_copy(update={"numbers": numbers, "loaded": loaded})
    assert audited("imagenet-best").paper == "holds"
    assert audited("imagenet-best", claims=changed).paper == "does not hold"


def test_statements_that_agree_hold() -> None:
    claim = next(claim for claim in SHIPPED.claims if claim.id == "imagenet-two-gains")
    same = claim.model_copy(update={"statements": (claim.statements[0],) * 2})
    assert judge_on_paper(claim, Paper(SHIPPED), "printed").verdict == "contradicts itself"
    assert judge_on_paper(same, Paper(SHIPPED), "printed").verdict == "holds"


def test_an_expression_that_gives_something_else_than_is_claimed_is_refused() -> None:
    claim = next(claim for claim in SHIPPED.claims if claim.id == "ps-kd-average")
    for text, wanted in (('III["LSSKD"] - III["PS-KD"]', "a number; mean()"), ('III["LS"] > 1', "a number; mean()")):
        with pytest.raises(UserError, match=re.escape(f"gives something else than {wanted}")):
            judge_on_paper(claim.model_copy(update={"expression": text}), Paper(SHIPPED), "printed")


# What is shown.


def text_of(audit: Audit, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(to_terminal(audit))
    return console.export_text()


@pytest.mark.parametrize("width", [60, 80, 149, 150, 200])
def test_the_terminal_shows_every_claim_within_its_width(width: int) -> None:
    audit = make_audit(SHIPPED, [measured(load_table("II"), ahead_by(1.14))])
    text = text_of(audit, width)
    assert all(cell_len(line.rstrip()) <= width for line in text.splitlines())
    assert "52 statements (43 different)." in text
    for claim in SHIPPED.claims:
        assert claim.id in text
    assert "n=3" in text


def test_markdown_csv_and_json_say_the_same() -> None:
    audit = make_audit(SHIPPED, [measured(load_table("II"), ahead_by(1.14))])
    markdown, content = to_markdown(audit), json.loads(to_json(audit))
    lines = {line["id"]: line for line in csv.DictReader(io.StringIO(to_csv(audit)))}
    assert list(lines) == [claim.id for claim in SHIPPED.claims]
    by_id = {found["id"]: found for found in content["findings"]}
    for found in audit.findings:
        name = found.claim.id
        section = markdown.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]
        assert f"Verdict on the text: **{found.paper}**; of our runs: **{found.runs}**." in section
        assert f"](#{name})" in markdown
        assert (lines[name]["verdict_on_text"], lines[name]["verdict_of_runs"]) == (found.paper, found.runs)
        assert (by_id[name]["verdict_on_text"], by_id[name]["verdict_of_runs"]) == (found.paper, found.runs)
    average = finding(audit, "sskd-average").measured.difference
    assert average is not None
    assert average.interval is not None
    line = lines["sskd-average"]
    assert float(line["measured_mean"]) == average.mean
    assert (float(line["measured_low"]), float(line["measured_high"])) == average.interval
    assert (line["n"], float(line["p_value"])) == ("3", average.p_value)
    assert by_id["sskd-average"]["measured"]["difference"]["n"] == 3
    assert "p = " in markdown


def test_what_users_write_breaks_no_page() -> None:
    hostile = "a | b <script>alert(1)</script> [bold]x[/bold] \x1b[31m `c` *d* $e$\n# f"
    claim = Claim(id="one", text=hostile, where=hostile, unchecked=hostile, note=hostile)
    claims = SHIPPED.model_copy(update={"claims": (claim,), "title": hostile})
    audit = make_audit(claims)
    markdown = to_markdown(audit)
    assert "<script>" not in markdown.replace(r"\<script>", "")
    assert [line for line in markdown.splitlines() if line.startswith("# ")] == [markdown.splitlines()[0]]
    row = next(line for line in markdown.splitlines() if line.startswith("| [one]"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 6
    assert "\x1b" not in text_of(audit, 80) + markdown + to_csv(audit)
    assert "[bold]x[/bold]" in text_of(audit, 200)


def test_counts_and_settings_stand_on_top() -> None:
    audit = make_audit(SHIPPED, [measured(load_table("II"), ahead_by(1.14), scale="demo")])
    assert audit.settings == ("Table II at scale demo on digits",)
    for findings, number in ((audit.stated, 52), (audit.implied, 13), (audit.findings, len(SHIPPED.claims))):
        for of in ("paper", "runs"):
            assert sum(count.number for count in count_verdicts(findings, of).values()) == len(findings) == number
    assert "Measured: Table II at scale demo on digits." in text_of(audit, 200)
    assert "Measured: nothing yet." in text_of(make_audit(SHIPPED), 80)


def test_what_is_stated_is_counted_apart_from_what_is_implied_and_one_matter_once() -> None:
    audit = make_audit(SHIPPED)
    assert count_matters(audit.stated) == Count(52, 43)
    assert count_verdicts(audit.stated, "paper") == {
        "holds": Count(11, 10),
        "does not hold": Count(9, 7),
        "contradicts itself": Count(20, 14),
        "cannot be checked": Count(12, 12),
    }
    assert count_verdicts(audit.implied, "paper") == {"as expected": Count(1, 1), "remarkable": Count(12, 9)}
    content = json.loads(to_json(audit))
    assert content["stated"]["verdicts_on_text"]["contradicts itself"] == {"number": 20, "different": 14}
    assert content["implied"]["verdicts_on_text"]["remarkable"] == {"number": 12, "different": 9}
    assert summarise_audit(audit)[1].startswith("13 things (10 different) that nobody states")
    lines = {line["id"]: line for line in csv.DictReader(io.StringIO(to_csv(audit)))}
    for found in audit.findings:
        claim = found.claim
        assert claim.implied == claim.where.endswith("implied"), claim.id
        assert (lines[claim.id]["implied"], lines[claim.id]["matter"]) == (str(claim.implied), claim.matter)


def test_the_readme_and_the_page_on_the_audit_count_as_the_audit_does() -> None:
    stated, implied = (count_verdicts(of, "paper") for of in (make_audit(SHIPPED).stated, make_audit(SHIPPED).implied))
    words = {"holds": "hold", "contradicts itself": "contradict", "does not hold": "do not hold"}
    for name in ("README.md", "docs/audit.md"):
        text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        assert f"{count_matters(make_audit(SHIPPED).stated).number} statements" in text, name
        for verdict, count in stated.items():
            assert f"{count.number} {words.get(verdict, verdict)}" in text, (name, verdict)
        assert f"({stated['contradicts itself'].different} different)" in text, name
        assert f"{implied['remarkable'].number} are remarkable ({implied['remarkable'].different} different)" in text


def test_that_ours_is_a_reconstruction_stands_in_every_form(tmp_path: Path) -> None:
    audit = make_audit(SHIPPED, [measured(load_table("II"), ahead_by(3.0))])
    assert finding(audit, "sskd-average").runs == "does not hold"
    caveat = SHIPPED.caveat
    assert "reconstruction" in caveat
    assert caveat in " ".join(text_of(audit, 80).split())
    assert summarise_audit(audit)[-1] == caveat
    assert f"<p>{caveat}</p>" in to_html(collect_report(tmp_path), [], audit)
    assert json.loads(to_json(audit))["caveat_of_runs"] == caveat
    lines = {line["id"]: line for line in csv.DictReader(io.StringIO(to_csv(audit)))}
    markdown = to_markdown(audit)
    for found in audit.findings:
        section = markdown.split(f"\n## {found.claim.id}\n", 1)[1].split("\n## ", 1)[0]
        assert (caveat in section) == (found.runs == "does not hold")
        judged = found.runs in ("holds", "does not hold", "not decided")
        assert lines[found.claim.id]["caveat_of_runs"] == (caveat if judged else "")
    ledger = (ROOT / "docs" / "ledger.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (R\d+) \| ([^|]*)", ledger, flags=re.MULTILINE)
    # Behind those of LSSKD stand the choices of newer methods, the first of them SLA's.
    choices = [name for name, _ in rows[: next(place for place, row in enumerate(rows) if "SLA" in row[1])]]
    assert f"{len(choices)} choices are open ({choices[0]} to {choices[-1]} in docs/ledger.md)" in caveat
    assert summarise_audit(make_audit(SHIPPED.model_copy(update={"caveat": ""})))[-1].startswith("Our runs: ")


def test_p_values_are_said_to_be_uncorrected() -> None:
    audit = make_audit(SHIPPED, [measured(load_table("II"), ahead_by(1.14))])
    markdown = to_markdown(audit)
    numbers = re.findall(r"p = [\d.e-]+( uncorrected)?", markdown)
    assert numbers
    assert all(numbers)
    for text in (markdown, json.loads(to_json(audit))["p_values"]):
        assert "chosen from the same runs, so its p is too small where it is ahead" in text


# The shipped claims and the command.


def test_quotations_are_short_and_names_are_told() -> None:
    for claim in SHIPPED.claims:
        for quotation in re.findall("“(.*?)”", claim.text):
            assert len(quotation.split()) <= 15, claim.id
        assert claim.where, claim.id


def test_every_number_that_the_ledger_finds_claimed_is_audited() -> None:
    ledger = (ROOT / "docs" / "ledger.md").read_text(encoding="utf-8")
    table = ledger.split("## The text's claims against its own tables", 1)[1].split("\n## ", 1)[0]
    stated = [row.split("|")[1] for row in table.splitlines() if row.startswith("| ")][1:]
    numbers = {number for text in stated for number in re.findall(r"\d+\.\d+", text)}
    claimed = {claim.value.lstrip("+") for claim in SHIPPED.claims if claim.value}
    claimed |= {part.says.lstrip("+") for claim in SHIPPED.claims for part in claim.statements}
    assert {"4.54", "1.14", "1.63", "2.58"} <= numbers
    assert numbers <= claimed


def test_the_command_works_in_an_empty_folder(tmp_path: Path) -> None:
    done = run_command(module="benchmark.audit", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "52 statements (43 different)." in done.stdout
    stems = ["audit", *(f"audit_{paper}" for paper in list(find_papers())[1:])]
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == sorted(
        f"{stem}.{ending}" for stem in stems for ending in ("csv", "json", "md")
    )
    assert not (tmp_path / "runs").exists()


def test_the_command_takes_claims_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```toml\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    table = next(text for text in examples if "[[columns]]" in text)
    claims = next(text for text in examples if "[[claims]]" in text and "tables =" in text)
    (tmp_path / "mine.toml").write_text(table, encoding="utf-8")
    (tmp_path / "claims.toml").write_text(claims, encoding="utf-8")
    assert main(claims=tmp_path / "claims.toml", only=None, runs=tmp_path, reports=tmp_path / "reports") == 0
    shown = capsys.readouterr().out
    assert "contradicts itself" in shown
    assert "holds" in shown
    assert main(claims=tmp_path / "claims.toml", only="average", runs=tmp_path, reports=tmp_path / "reports") == 0
    assert "1 statement. By the paper's own tables" in capsys.readouterr().out
    with pytest.raises(UserError, match="is no folder; give the one that holds the records"):
        main(claims=tmp_path / "claims.toml", only=None, runs=tmp_path / "run", reports=tmp_path / "reports")


def test_a_folder_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder with --reports"):
        main(claims=tmp_path / "none.toml", only=None, runs=tmp_path, reports=tmp_path / "file" / "reports")
