"""The gain over the own baseline beside every number, in every format and tier."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from pathlib import Path

import pytest

from benchmark.core.errors import UserError
from tables.render import Cell, TableResult, to_csv, to_latex, to_markdown
from tables.result import Price, Seed
from tables.specification import Published, Row, Table, load_table
from tests.test_tables_render import FIRST, SECOND, TABLE, cell, latex_row, markdown_row, result, terminal


def table_with_gains() -> Table:
    """Rows of all tiers, with another baseline for each."""
    published = Published(
        source="a page", mean=(76.0, 71.0), runs=3, epoch="best on test", lineage="crd", baseline=(73.0, 69.5)
    )
    again = Published(source="others", mean=(75.5, float("nan")), lineage="crd", baseline=(73.0, 69.5))
    rows = (
        Row(method="Baseline", printed=(73.57, 69.62)),
        Row(method="LSSKD", printed=(76.89, 72.67), published=published, reproduced=again),
        Row(method="VID", published=published),
    )
    return TABLE.model_copy(update={"rows": rows, "gains": True, "footnotes": ()})


def seeds(row: str, column: str, by_seed: dict[int, float]) -> Cell:
    price = Price(None, None, None, None, 1, None, None, None, None)
    runs = tuple(Seed(seed, "run", {"top1": value}, price, "fp32") for seed, value in by_seed.items())
    return cell(row, column, *by_seed.values(), finished=runs)


def result_with_gains() -> TableResult:
    cells = [
        seeds("Baseline", FIRST, {0: 70.0, 1: 71.0}),
        # Of seed 2 there is no Baseline, so it counts for the number and not for the gain.
        seeds("LSSKD", FIRST, {0: 73.0, 1: 73.0, 2: 90.0}),
        seeds("LSSKD", SECOND, {0: 60.0}),
    ]
    return result(table=table_with_gains(), cells={(one.row, one.column): one for one in cells}, teachers={})


def test_a_gain_is_over_the_own_baseline_in_every_tier() -> None:
    first, second = markdown_row(to_markdown(result_with_gains()), "LSSKD")[1:]
    assert first == ("**78.67 ± 9.81** (n=3) Δ+2.50 · *76.89* Δ+3.32 · *76.00*†¹ Δ+3.00 · *75.50*‡² Δ+2.50")
    assert second == "60.00 (n=1) · *72.67* Δ+3.05 · *71.00*†¹ Δ+1.50"
    assert "Δ" not in markdown_row(to_markdown(result_with_gains()), "Baseline")[1]
    silent = table_with_gains().model_copy(update={"gains": False})
    without = to_markdown(dataclasses.replace(result_with_gains(), table=silent))
    assert "Δ" not in without


def test_every_format_has_every_gain_and_says_what_it_is() -> None:
    shown = result_with_gains()
    first = latex_row(to_latex(shown), "LSSKD")[1]
    assert first.startswith(
        r"\shortstack[l]{76.89 {\tiny $\Delta$+3.32} \\ 76.00\textsuperscript{\dag}\textsuperscript{1}"
    )
    assert r"75.50\textsuperscript{\ddag}\textsuperscript{2} {\tiny $\Delta$+2.50}}" in first
    assert r"{\tiny $\Delta$+2.50}}" in latex_row(to_latex(shown), "LSSKD")[2]
    text = terminal(shown, 100)
    assert all(number in text for number in ("78.67±9.81 Δ+2.50", "76.89 Δ+3.32", "76.00†", "75.50‡"))
    assert "Δ: gain over the own baseline." in text
    assert "over printed, published† and reproduced elsewhere‡" in " ".join(text.split())
    for page in (to_markdown(shown), to_latex(shown)):
        assert "the gain over the own baseline, in percentage points" in page
        assert "n=3, best epoch on test" in page
        assert "n not stated, epoch not stated" in page
    (line,) = [
        line for line in csv.DictReader(io.StringIO(to_csv(shown))) if (line["row"], line["column"]) == ("LSSKD", FIRST)
    ]
    gains = {name: float(line[name]) for name in ("gain", "printed_gain", "published_gain", "reproduced_gain")}
    assert gains == pytest.approx({"gain": 2.5, "printed_gain": 3.32, "published_gain": 3.0, "reproduced_gain": 2.5})
    assert (line["epoch"], line["published_n"], line["published_epoch"]) == ("last", "3", "best on test")
    assert (line["reproduced"], line["reproduced_source"], line["published_lineage"]) == ("75.5", "others", "crd")


def test_a_table_takes_its_numbers_from_elsewhere_out_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "numbers.csv").write_text(
        "method,lineage,b,n,epoch,kind,source,note\n"
        "Student,crd,60.0,,,own,a page,\n"
        "KD,crd,62.0,3,last,own,a page,\n"
        "KD,crd,61.0,,,reproduction,others,\n",
        encoding="utf-8",
    )
    text = (
        'name = "mine"\ncaption = "c"\ndataset = "digits"\nliterature = "numbers.csv"\ngains = true\n'
        '[[columns]]\ntitle = "a"\nstudent = "ResNet20"\n[[columns]]\ntitle = "b"\nstudent = "ResNet20"\n'
        '[[rows]]\nmethod = "KD"\n[[rows]]\nmethod = "LS"\n'
    )
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    first, second = load_table(tmp_path / "mine.toml").rows
    assert first.published is not None
    assert first.reproduced is not None
    assert (first.published.mean[1], first.published.baseline[1], first.published.runs) == (62.0, 60.0, 3)
    assert math.isnan(first.published.mean[0])
    assert first.reproduced.mean[1] == 61.0
    assert second.from_elsewhere == {}
    (tmp_path / "mine.toml").write_text(text.replace('title = "b"', 'title = "c"'), encoding="utf-8")
    with pytest.raises(UserError, match=r"none of its columns is one of table mine; allowed: a, c$"):
        load_table(tmp_path / "mine.toml")
