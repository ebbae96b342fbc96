"""The language of claims, and the files that hold them."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmark.audit.claims import load_claims
from benchmark.audit.expressions import FUNCTIONS, Reference, parse
from benchmark.audit.sources import NoNumber, Numbers, Paper, Row
from benchmark.audit.values import Value, evaluate
from benchmark.core.errors import UserError

ROWS = {
    ("II", "KD"): {"a": 75.0, "b": 70.0, "c": 71.0},
    ("II", "LSSKD"): {"a": 76.0, "b": 73.0},
    ("II", "AT"): {"c": 60.0},
    ("III", "KD"): {"x": 10.0},
}


class Table:
    """Numbers by table and row."""

    def __init__(self, rows: dict[tuple[str, str], Row]) -> None:
        self.rows = rows

    def row(self, reference: Reference) -> Row:
        return self.rows.get((reference.table, reference.row), {})

    def missing(self, reference: Reference) -> str:
        return f"{reference.name} is missing"


class MadeUpPaper:
    """Published numbers are ten above, reproduced ones twenty; one table; one method."""

    sources: ClassVar[dict[str, Numbers]] = {
        name: Table({key: {column: value + more for column, value in row.items()} for key, row in ROWS.items()})
        for name, more in (("printed", 0.0), ("published", 10.0), ("reproduced", 20.0))
    }

    def networks(self, table: str) -> Sequence[str]:
        return ["ResNet18", "ResNet101", "WRN-40-2"]

    def copied(self, table: str) -> tuple[int, int]:
        return 3, 4

    def fact(self, name: str) -> float:
        return {"half": 0.5}[name]

    def rivals(self, table: str, numbers: Numbers) -> dict[str, Row]:
        rows = {name: numbers.row(Reference(table, name, None)) for name in ("KD", "AT")}
        return {name: row for name, row in rows.items() if row}

    def mean_gains(self, table: str, numbers: Numbers) -> list[tuple[str, float]]:
        return [("KD", 2.0), ("LSSKD", 1.5), ("AT", 1.5)]

    def of_method(self, name: str, method: str) -> float:
        return {"cost": 9.0, "extra_parameters": 7.0}[name]


PAPER = cast(Paper, MadeUpPaper())


def value(text: str) -> Value:
    return evaluate(parse(text), Table(ROWS), PAPER)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 * 3 - 8 / 4", 5.0),
        ("-(2 - 5)", 3.0),
        ('II["KD", "a"]', 75.0),
        ('II["KD"]', {"a": 75.0, "b": 70.0, "c": 71.0}),
        ('II["LSSKD"] - II["KD"]', {"a": 1.0, "b": 3.0}),
        ('mean(II["LSSKD"] - II["KD"])', 2.0),
        ('2 * II["LSSKD"] - 100', {"a": 52.0, "b": 46.0}),
        ('max(II["KD"])', 75.0),
        ('min(II["KD", "a"], II["LSSKD", "b"], 80)', 73.0),
        ('first(II["KD"]) - last(II["KD"])', 4.0),
        ("abs(3 - 5)", 2.0),
        ('all(II["LSSKD"] > II["KD"])', True),
        ('any(II["KD"] > 80)', False),
        ('II["KD"] >= 71', {"a": True, "b": False, "c": True}),
        ('II["KD", "a"] == 75 and not II["KD", "b"] != 70', True),
        ('II["KD", "a"] < 1 or 1 <= 1', True),
        ("0.1 + 0.2 == 0.3", True),
        ("0.1 + 0.2 > 0.3", False),
        ('"MSAKD" == "LSSKD"', False),
        ('"MSAKD" != "LSSKD"', True),
        ('published(II["KD", "a"]) - printed(II["KD", "a"])', 10.0),
        ('published(mean(II["LSSKD"])) - mean(II["LSSKD"])', 10.0),
        ('nearest_subset_mean(2.9, II["LSSKD"] - II["KD"])', 3.0),
        ('nearest_subset_mean(2.1, II["LSSKD"] - II["KD"])', 2.0),
        ('has_network(II, "WRN")', True),
        ('has_network(II, "ResNet18")', True),
        ('has_network(II, "ResNet1")', False),
        ("copied(II)", 3.0),
        ("best_rival(II)", {"a": 75.0, "b": 70.0, "c": 71.0}),
        ('count(II["LSSKD"] - best_rival(II) > 2)', 1.0),
        ('rank_of_gain(II, "KD")', 1.0),
        ('rank_of_gain(II, "AT")', 2.0),
        ('fact("half") * 2', 1.0),
        ('reproduced(II["KD", "a"])', 95.0),
        ('cost("LSSKD") + extra_parameters("LSSKD")', 16.0),
    ],
)
def test_the_language(text: str, expected: Value) -> None:
    assert value(text) == (pytest.approx(expected) if isinstance(expected, float) else expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=6), st.lists(st.floats(-100, 100), min_size=1, max_size=6))
def test_a_mean_of_a_difference_is_the_difference_of_means_over_the_common_columns(
    a: list[float], b: list[float]
) -> None:
    rows = {("T", name): dict(zip("uvwxyz", values, strict=False)) for name, values in (("A", a), ("B", b))}
    shared = min(len(a), len(b))
    found, _ = evaluate(parse('mean(T["A"] - T["B"])'), Table(rows), PAPER)
    assert found == pytest.approx((sum(a[:shared]) - sum(b[:shared])) / shared, abs=1e-9)


def test_comparisons_are_told_with_their_values() -> None:
    _, steps = evaluate(parse('all(II["LSSKD"] > II["KD"]) and II["KD", "a"] == 76'), Table(ROWS), PAPER)
    assert [(step.text, step.holds) for step in steps] == [
        ("Table II, LSSKD, a 76.00 > Table II, KD, a 75.00", True),
        ("Table II, LSSKD, b 73.00 > Table II, KD, b 70.00", True),
        ("Table II, KD, a 75.00 ≠ 76", False),
    ]
    _, steps = evaluate(parse('published(II["KD", "a"]) == printed(II["KD", "a"])'), Table(ROWS), PAPER)
    assert steps[0].text == "Table II, KD, a (published) 85.00 ≠ Table II, KD, a (printed) 75.00"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('II["VID"]', "Table II, VID is missing"),
        ('II["KD", "z"]', "Table II, KD, z is missing"),
        ('mean(II["LSSKD"] - II["AT"])', "no column in which both rows have a number"),
        ('II["KD"] - III["KD"]', "no column in which both rows have a number"),
    ],
)
def test_a_missing_number_is_told(text: str, message: str) -> None:
    with pytest.raises(NoNumber, match=message):
        value(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 +",
        "2 ** 1000",
        "1 // 2",
        "1 < 2 < 3",
        "II",
        "II[0]",
        'II["KD"][0]',
        'II["KD", "a", "b"]',
        'II["KD"].mean',
        'II["KD"].__class__',
        "().__class__",
        "__import__('os').system('true')",
        "open('x')",
        "mean.__globals__",
        "lambda: 1",
        "[x for x in II]",
        "{1: 2}",
        "f'{1}'",
        "b'1'",
        "1j",
        "1e999",
        "1" * 400,
        "mean()",
        "mean(1, 2)",
        "mean(x=1)",
        'max(*II["KD"])',
        'has_network("II", "ResNet")',
        "meen(1)",
        "1 if 1 else 2",
        "(x := 1)",
        "\x00",
        "1\n2",
        "(" * 300 + "1" + ")" * 300,
        "-" * 500 + "1",
        "1 + " * 40 + "1",
        "1 " * 3000,
    ],
)
def test_nothing_else_is_in_the_language(text: str) -> None:
    with pytest.raises(UserError, match="expression"):
        parse(text)


@settings(max_examples=60, deadline=None)
@given(st.text(string.printable, max_size=40) | st.text(max_size=20))
@example("1if 2 else 3")
@pytest.mark.filterwarnings("error")
def test_no_text_does_worse_than_be_refused(text: str) -> None:
    try:
        expression = parse(text)
    except UserError:
        return
    try:
        evaluate(expression, Table(ROWS), PAPER)
    except (UserError, NoNumber):
        return


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / (1 - 1)", "divides by zero"),
        ('mean(II["KD"] > 1)', "a number wanted, a row of truths given"),
        ('all(II["KD"])', "true or false wanted, a row given"),
        ('"a" < "b"', "a text with a text"),
        ('"a" + 1', "a text with a number"),
        ("not 1", "true or false wanted, a number given"),
        ("mean(1)", "mean of a number"),
        ("has_network(II, 1)", "has_network of a number"),
        ('(II["KD"] > 1) + 1', "a row of truths with a number"),
    ],
)
def test_values_that_do_not_go_together_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        value(text)


def test_references_are_all_that_is_named() -> None:
    expression = parse('mean(II["A"] - printed(III["B", "c"])) + max(II["A"], II["D"].parameters)')
    assert expression.references == (
        Reference("II", "A", None),
        Reference("III", "B", "c", "printed"),
        Reference("II", "D", None, None, "parameters"),
    )
    assert parse('has_network(II, "WRN") and copied(IV) == 0').table_arguments == ("II", "IV")
    inner = parse('mean(II["A"] - II["B"])').mean_of
    assert inner is not None
    assert inner.text == "II['A'] - II['B']"
    assert parse('mean(II["A"]) + 0').mean_of is None


GOOD = """
tables = ["II"]
own = ["LSSKD"]

[[claims]]
id = "one"
text = "a text"
where = "abstract"
value = "+1.50"
expression = 'mean(II["LSSKD"] - II["SSKD"])'
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_value_is_claimed_as_far_as_it_is_printed(tmp_path: Path) -> None:
    (claim,) = load_claims(written(tmp_path, GOOD)).claims
    assert claim.in_words == "+1.50"
    assert claim.tolerance == pytest.approx(0.005)
    for printed, tolerance in (("5.6", 0.05), ("400", 0.5), ("-1.250", 0.0005)):
        (claim,) = load_claims(written(tmp_path, GOOD.replace("+1.50", printed))).claims
        assert claim.tolerance == pytest.approx(tolerance)


def test_an_expression_goes_for_every_source_unless_another_is_given(tmp_path: Path) -> None:
    text = GOOD + 'runs = false\nliterature = \'II["SSKD", "WRN-40-2>WRN-16-2"]\'\n'
    (claim,) = load_claims(written(tmp_path, text)).claims
    assert claim.formulas.keys() == {"printed", "published"}
    assert claim.formulas["published"].text == 'II["SSKD", "WRN-40-2>WRN-16-2"]'
    (claim,) = load_claims(written(tmp_path, GOOD)).claims
    assert len(set(claim.formulas.values())) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('id = "one"', 'id = "One two"', "field 'claims[1].id' = 'One two' is refused: allowed: small letters"),
        ('text = "a text"', "", "claim one: field 'claims[1].text' is missing"),
        ("value =", "valeu =", "claim one: unknown field 'claims[1].valeu' (did you mean 'value'?)"),
        ('"+1.50"', '"+1,50"', 'allowed: a number as it was printed, in quotes, such as "+4.50"'),
        ('"+1.50"', "1.5", "claim one: field 'claims[1].value' = 1.5 is refused"),
        ("mean(", "meen(", "unknown function 'meen'"),
        ('II["SSKD"]', 'II["SSDK"]', "claim one: unknown row of table II 'SSDK'"),
        ('II["SSKD"]', 'IX["SSKD"]', "claim one: unknown table 'IX'"),
        ('II["SSKD"]', 'II["SSKD", "a"]', "claim one: unknown column of table II 'a'"),
        ('["II"]', '["IIX"]', "unknown table 'IIX'"),
        ('expression = \'mean(II["LSSKD"] - II["SSKD"])\'', "", "claim one: none given; allowed: exactly one of"),
        ("where =", 'unchecked = "x"\nwhere =', "claim one: expression and unchecked given"),
        ('value = "+1.50"', "", "claim one: says is missing; add it"),
        ("tables", "table", "unknown field 'table' (did you mean 'tables'?)"),
        ("[[claims]]", "[claims", "is no valid TOML in UTF-8"),
    ],
)
def test_a_file_with_a_mistake_is_refused_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(UserError) as caught:
        load_claims(written(tmp_path, GOOD.replace(old, new)))
    text = str(caught.value)
    assert message in text
    assert text.startswith(f"claims file {tmp_path / 'mine.toml'}")
    assert "\n" not in text


def test_claims_of_one_name_and_lonely_statements_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="claim one stands there twice"):
        load_claims(written(tmp_path, GOOD + GOOD[GOOD.index("[[claims]]") :]))
    alone = '[[claims]]\nid = "two"\ntext = "t"\nwhere = "w"\nstatements = [{ says = "a", where = "b" }]\n'
    with pytest.raises(UserError, match="one statement cannot contradict itself"):
        load_claims(written(tmp_path, GOOD + alone))


def test_numbers_go_with_the_columns_of_their_table(tmp_path: Path) -> None:
    numbers = '[[numbers]]\ntable = "II"\nrow = "New"\nkind = "published"\nsource = "s"\nvalues = [1.0, 2.0]\n'
    with pytest.raises(UserError, match="numbers of New in table II: 2 given; allowed: 6, one for each column"):
        load_claims(written(tmp_path, GOOD + numbers))
    with pytest.raises(UserError, match="numbers of New: unknown table 'XX'"):
        load_claims(written(tmp_path, GOOD + numbers.replace('"II"', '"XX"')))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file or directory; check the path"):
        load_claims(tmp_path / "none.toml")


def test_claims_may_be_about_tables_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(
        'name = "own"\ncaption = "c"\ndataset = "digits"\n[[columns]]\nstudent = "Net"\n'
        '[[rows]]\nmethod = "A"\nprinted = [50.0]\n[[rows]]\nmethod = "B"\nprinted = [48.5]\n'
    )
    text = GOOD.replace('"II"]', '"own.toml"]', 1).replace('II["LSSKD"] - II["SSKD"]', 'own["A"] - own["B"]')
    claims = load_claims(written(tmp_path, text))
    assert list(claims.loaded) == ["own"]


def test_only_known_claims_can_be_selected(tmp_path: Path) -> None:
    claims = load_claims(written(tmp_path, GOOD))
    assert [claim.id for claim in claims.selected(["one"]).claims] == ["one"]
    assert claims.selected([]) == claims
    with pytest.raises(UserError, match="unknown claim 'on'"):
        claims.selected(["on"])


def test_the_documents_name_every_function() -> None:
    page = (Path(__file__).parents[1] / "docs" / "audit.md").read_text(encoding="utf-8")
    missing = [name for name in FUNCTIONS if f"`{name}(" not in page]
    assert missing == []
