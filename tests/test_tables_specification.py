"""Table files: what Table II holds, and what is said about a file that is wrong."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmark.backbones import is_network
from benchmark.core.errors import UserError
from benchmark.core.protocols import SCALES
from benchmark.plugins.registry import method_names
from tables.specification import Column, Table, get_number, load_table, table_names

GOLDEN = Path(__file__).parent / "golden"

SMALL = """
name = "mine"
caption = "Two methods."
dataset = "cifar100"
[[columns]]
teacher = "ResNet56"
student = "ResNet20"
[[columns]]
teacher = "WRN-40-2"
student = "WRN-16-2"
[[rows]]
method = "KD"
printed = [70.91, nan]
[[rows]]
method = "Mine"
"""


def written(folder: Path, text: str = SMALL) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(folder: Path, old: str, new: str) -> str:
    assert old in SMALL
    with pytest.raises(UserError) as caught:
        load_table(written(folder, SMALL.replace(old, new)))
    message = str(caught.value)
    assert "\n" not in message
    assert "mine.toml" in message
    return message


@pytest.mark.parametrize("name", ["II", "III"])
def test_a_table_has_the_papers_printed_numbers(name: str) -> None:
    table = load_table(name)
    with (GOLDEN / f"table_{name}_printed.csv").open(encoding="utf-8") as lines:
        expected = {
            (row["method"], pair): float(number)
            for row in csv.DictReader(lines)
            for pair, number in row.items()
            if pair != "method" and number
        }
    printed = {
        (row.name, column.name): number
        for row in table.rows
        for position, column in enumerate(table.columns)
        if (number := get_number(row.printed, position)) is not None
    }
    assert printed == expected


def test_table_II_ends_with_the_papers_own_method_and_marks_what_the_paper_leaves_out() -> None:
    rows = load_table("II").rows
    assert rows[-1].method == "LSSKD"
    assert {row.method for row in rows if row.published} == {"HSSAKD", "HSSAKD*"}
    assert all(row.published is None or not row.printed for row in rows)


@pytest.mark.parametrize("name", ["II", "III"])
@pytest.mark.parametrize("scale", list(SCALES))
def test_every_row_and_every_network_of_a_table_is_in_the_suite(name: str, scale: str) -> None:
    table = load_table(name).at(scale)
    assert {row.method for row in table.rows} <= set(method_names())
    networks = {network for column in table.columns for network in (column.teacher, column.student) if network}
    assert all(map(is_network, networks))


def test_table_III_has_small_networks_at_scale_demo_only_and_keeps_its_columns() -> None:
    table = load_table("III")
    assert [column.student for column in table.columns] == ["PreActResNet18", "ResNet101", "MobileNetV2-TFKD"]
    assert table.at("paper") == table.at("quick") == table
    demo = table.at("demo")
    assert [column.name for column in demo.columns] == ["ResNet18", "ResNet101", "MobileNetV2"]
    assert [column.student for column in demo.columns] == [
        "PreActResNet18-x1/4",
        "ResNet10-x1/4",
        "MobileNetV2-s1-u1-x1/2",
    ]


def test_the_rows_of_table_III_that_are_ours_say_so_and_print_nothing() -> None:
    ours = [row for row in load_table("III").rows if row.augment != "standard"]
    assert [row.name for row in ours] == ["Baseline+COC", "LSSKD+COC"]
    for row in ours:
        assert not row.printed
        assert any(note.startswith("Our row") for note in row.footnotes)


def test_a_column_without_a_teacher_is_named_by_its_student_or_its_title(tmp_path: Path) -> None:
    columns = '[[columns]]\nstudent = "ResNet20"\n[[columns]]\nstudent = "ResNet56"\ntitle = "deep"\n'
    start, end = SMALL.index("[[columns]]"), SMALL.index("[[rows]]")
    table = load_table(written(tmp_path, SMALL[:start] + columns + SMALL[end:]))
    assert [column.name for column in table.columns] == ["ResNet20", "deep"]
    assert [column.heading for column in table.columns] == [("", "ResNet20"), ("", "deep")]
    assert Column(student="B", title="A>C").heading == ("A", ">C")


@pytest.mark.parametrize("scale", ["demo", "quick", "paper"])
def test_table_II_names_a_dataset_for_each_scale(scale: str) -> None:
    assert load_table("II").dataset_for(scale) == ("digits" if scale == "demo" else "cifar100")


def test_a_table_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    assert "II" in table_names()
    assert load_table("II") == load_table("table_II")
    table = load_table(written(tmp_path))
    assert table.name == "mine"
    assert [column.name for column in table.columns] == ["ResNet56>ResNet20", "WRN-40-2>WRN-16-2"]
    assert load_table(str(tmp_path / "mine.toml")).columns == table.columns


def test_a_table_of_ones_own_does_not_take_the_name_of_one_of_the_suite(tmp_path: Path) -> None:
    said = complaint(tmp_path, '"mine"', '"II"')
    assert "the name 'II' is taken by the suite's own table; choose another" in said
    for name in table_names():
        assert load_table(Path("tables") / f"table_{name}.toml").name == load_table(name).name == name


def test_nan_and_a_missing_list_are_no_numbers(tmp_path: Path) -> None:
    first, second = load_table(written(tmp_path)).rows
    assert [get_number(first.printed, position) for position in (0, 1)] == [70.91, None]
    assert get_number(second.printed, 0) is None


def test_a_dataset_file_is_found_beside_the_table_file(tmp_path: Path) -> None:
    text = SMALL.replace('dataset = "cifar100"', 'dataset = { demo = "digits", paper = "own/data.toml" }')
    table = load_table(written(tmp_path, text))
    assert table.dataset_for("demo") == "digits"
    assert table.dataset_for("paper") == str(tmp_path / "own" / "data.toml")
    with pytest.raises(UserError, match="no dataset for scale 'quick'; allowed: demo, paper"):
        table.dataset_for("quick")


def test_a_table_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_table("II").name = "III"


def test_an_unknown_table_names_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"unknown table 'XVI'.*allowed: .*II.*path"):
        load_table("XVI")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.toml cannot be read: No such file"):
        load_table(tmp_path / "absent.toml")


def test_broken_toml_is_reported_with_its_line(tmp_path: Path) -> None:
    assert "at line 3" in complaint(tmp_path, 'caption = "Two methods."', "caption = Two")


def test_bytes_that_are_not_utf8_are_reported(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(UserError, match="no valid TOML in UTF-8"):
        load_table(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ('caption = "Two methods."', "", ["'caption' is missing"]),
        ('name = "mine"', 'name = "../mine"', ["'name' = '../mine'", "allowed: letters"]),
        ('method = "KD"', 'methd = "KD"', ["unknown field 'rows[1].methd' (did you mean 'method'?)"]),
        (
            'method = "KD"',
            'method = "KD"\nprintd = [1, 2]',
            ["'rows[1].printd'", "did you mean 'printed'", "footnotes"],
        ),
        ('caption = "Two methods."', 'caption = ""\ncolumn = 1', ["'column'", "did you mean 'columns'"]),
        ("70.91, nan", "70.91", ["row KD: printed: 1 given", "allowed: 2"]),
        ("70.91, nan", "70.91, 170.0", ["'rows[1].printed[2]' = 170.0", "allowed: 0 to 100"]),
        ("70.91, nan", '70.91, "71"', ["'rows[1].printed[2]' = '71'", "valid number"]),
        ('method = "Mine"', 'method = "KD"', ["rows: 'KD' stands there twice"]),
        ('method = "Mine"', 'method = "KD"\ntitle = "Teacher"', ["rows: 'Teacher' is the name", "another title"]),
        ('"WRN-40-2"\nstudent = "WRN-16-2"', '"ResNet56"\nstudent = "ResNet20"', ["columns: 'ResNet56>ResNet20'"]),
        ('dataset = "cifar100"', 'dataset = { huge = "cifar100" }', ["unknown scale 'huge'", "demo, quick, paper"]),
        ('dataset = "cifar100"', "dataset = 7", ["'dataset' = 7", "a name or a path"]),
        (
            'method = "Mine"',
            'method = "Mine"\npublished = { mean = [1, 2] }',
            ["'rows[2].published.source' is missing"],
        ),
        (
            'method = "Mine"',
            'method = "Mine"\npublished = { source = "us", mean = [1] }',
            ["published numbers of row Mine: mean: 1 given"],
        ),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(tmp_path: Path, old: str, new: str, parts: list[str]) -> None:
    message = complaint(tmp_path, old, new)
    assert [part for part in parts if part not in message] == [], message


def test_a_table_without_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 item"):
        Table(name="x", caption="", dataset="digits", columns=(), rows=())
