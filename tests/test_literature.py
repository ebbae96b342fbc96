"""Published numbers: what the suite's files hold, and what is said about a file that is wrong."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from benchmark.core.errors import UserError
from benchmark.plugins.registry import method_names
from tables.literature import Publication, load_literature
from tables.specification import load_table

TABLES = Path(__file__).parents[1] / "tables"
PUBLISHED = load_literature(TABLES / "published.csv")

HEAD = "method,lineage,a,b,n,epoch,kind,source,note"
SMALL = [HEAD, "Student,crd,70.0,60.0,,,own,a page,", "KD,crd,72.0,,3,last,own,a page,a remark"]


def written(folder: Path, lines: list[str]) -> Path:
    path = folder / "numbers.csv"
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def test_every_file_of_the_suite_can_be_read() -> None:
    files = sorted(TABLES.glob("published*.csv"))
    assert [path.stem for path in files] == ["published", "published_imagenet", "published_self"]
    for path in files:
        assert load_literature(path).publications


def test_the_columns_are_the_pairs_of_table_II() -> None:
    assert PUBLISHED.columns == tuple(column.name for column in load_table("II").columns)


def test_mean_gains_over_the_own_baseline_are_those_that_were_counted_by_hand() -> None:
    wanted = {
        **{"KD": 2.10, "CRD": 3.15, "TTM": 3.56, "WTTM": 3.63, "DIST": 3.77, "SSKD": 3.99, "DKD": 4.00},
        **{"ReviewKD": 4.09, "LSSKD": 4.71, "HSSAKD": 4.95, "HSSAKD*": 6.07},
    }
    found = {}
    for entry in PUBLISHED.publications:
        gains = PUBLISHED.gains(entry)
        if entry.is_method and len(gains) == 6:
            found[entry.method] = statistics.fmean(gains.values())
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=0.005)


def test_what_the_lsskd_paper_prints_is_what_table_II_prints() -> None:
    rows = {row.name: row for row in load_table("II").rows}
    printed = PUBLISHED.find("LSSKD", "printed")
    assert printed is not None
    assert tuple(printed.numbers.values()) == rows["LSSKD"].printed
    assert tuple(PUBLISHED.baseline(printed.lineage).values()) == rows["Baseline"].printed


def test_the_challengers_share_pairs_and_printed_numbers_with_table_II() -> None:
    second, challengers = load_table("II"), load_table("challengers")
    assert challengers.columns == second.columns, "else they share no runs"
    printed = {row.name: row.printed for row in challengers.rows if row.printed}
    assert list(printed) == ["Baseline", "KD", "CRD", "SSKD", "LSSKD"]
    assert printed == {row.name: row.printed for row in second.rows if row.name in printed}
    assert {row.name for row in challengers.rows} <= set(method_names())


def test_a_publication_has_a_tier_and_gains_over_its_own_lineage(tmp_path: Path) -> None:
    found = load_literature(written(tmp_path, [*SMALL, "KD,crd,71.0,61.5,,,reproduction,others,"]))
    own, again = found.find("KD", "published"), found.find("KD", "reproduced")
    assert own == Publication(
        method="KD",
        lineage="crd",
        n=3,
        epoch="last",
        kind="own",
        source="a page",
        note="a remark",
        numbers={"a": 72.0},
    )
    assert own is not None
    assert again is not None
    assert found.gains(own) == {"a": 2.0}
    assert found.gains(again) == {"a": 1.0, "b": 1.5}
    assert (again.n, again.epoch) == (None, None)
    assert found.find("KD", "printed") is None


@pytest.mark.parametrize(
    ("line", "new", "message"),
    [
        (0, HEAD.replace(",kind", ""), "column kind is missing; add it"),
        (0, HEAD.replace("a,b", "a,a"), "no name of a column twice"),
        (2, "KD,crd,72.0,,3", "line 3: allowed: 9 cells, as in the first line"),
        (2, "KD,crd,172.0,,3,last,own,a page,", "line 3: numbers.a = '172.0' is refused"),
        (2, "KD,crd,nan,,3,last,own,a page,", "line 3: numbers.a"),
        (2, "KD,crd,x,,3,last,own,a page,", "line 3: numbers.a = 'x'"),
        (2, "KD,crd,,,3,last,own,a page,", "line 3: numbers = {}"),
        (2, "KD,crd,72.0,,0,last,own,a page,", "line 3: n = '0'"),
        (2, "KD,crd,72.0,,3,first,own,a page,", "line 3: epoch = 'first'"),
        (2, "KD,crd,72.0,,3,last,mine,a page,", "line 3: kind = 'mine'"),
        (2, "KD,crd,72.0,,3,last,own,,", "line 3: source = ''"),
        (2, "Student,crd,72.0,,3,last,own,a page,", "Student crd stands there twice; allowed: once"),
        (2, "KD,sskd,72.0,,3,last,own,a page,", "lineage sskd has no line Student; add its baseline"),
        (1, "Student,crd,,60.0,,,own,a page,", "KD has a number for a, and Student of lineage crd has none; add it"),
    ],
)
def test_a_wrong_line_is_refused_in_one_line(tmp_path: Path, line: int, new: str, message: str) -> None:
    lines = list(SMALL)
    lines[line] = new
    with pytest.raises(UserError) as caught:
        load_literature(written(tmp_path, lines))
    said = str(caught.value)
    assert message in said
    assert "numbers.csv" in said
    assert "\n" not in said


def test_a_file_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv cannot be read: No such file or directory; check the path"):
        load_literature(tmp_path / "none.csv")
