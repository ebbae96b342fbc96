"""Figure files: what Figures 5 and 6 hold, and what is said about a file that is wrong."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from benchmark.backbones import is_network
from benchmark.core.errors import UserError
from benchmark.core.protocols import SCALES
from benchmark.data import dataset_names
from benchmark.plugins.registry import all_methods, method_class, method_names
from figures.specification import Figure, Panel, figure_names, load_figure

LEDGER = (Path(__file__).parents[1] / "docs" / "ledger.md").read_text(encoding="utf-8")

SMALL = """
name = "mine"
caption = "Two methods."
kind = "few-shot"
methods = ["KD", "LSSKD"]
fractions = [0.5, 1.0]
[[panels]]
title = "Blocks"
student = "ResNet20"
teacher = "ResNet56"
dataset = "digits"
[[panels.published]]
method = "KD"
source = "somebody"
mean = [60.0, nan]
std = [0.5, nan]
"""
STAGES = """
name = "mine"
caption = "Two methods."
kind = "stages"
methods = ["HSSAKD", "LSSKD"]
[[panels]]
title = "Blocks"
student = "ResNet20"
teacher = "ResNet56"
dataset = { demo = "digits", paper = "blocks.toml" }
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(folder: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        load_figure(written(folder, text))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("figure file ")
    assert "mine.toml" in message
    return message


def test_the_suite_has_both_figures_that_show_results() -> None:
    assert figure_names() == ["5", "6", "transfer"]
    assert [load_figure(name).kind for name in figure_names()] == ["few-shot", "stages", "few-shot"]
    assert load_figure("figure_6") == load_figure("6")


@pytest.mark.parametrize("name", ["5", "6"])
@pytest.mark.parametrize("scale", list(SCALES))
def test_every_method_network_and_dataset_of_a_figure_is_in_the_suite(name: str, scale: str) -> None:
    figure = load_figure(name).at(scale)
    assert set(figure.methods) <= set(method_names())
    assert set(figure.optional_methods) <= set(all_methods())
    for panel in figure.panels:
        assert is_network(panel.student)
        assert is_network(panel.teacher)
        assert panel.dataset_for(scale) in dataset_names()


def test_figure_5_has_both_datasets_where_there_are_real_ones_and_the_digits_at_scale_demo() -> None:
    figure = load_figure("5")
    shown = {scale: [panel.dataset_for(scale) for panel in figure.at(scale).panels] for scale in SCALES}
    assert shown == {"demo": ["digits"], "quick": ["cifar100", "tiny-imagenet"], "paper": ["cifar100", "tiny-imagenet"]}
    assert figure.fractions == (0.25, 0.5, 0.75, 1.0)
    assert figure.methods == ("KD", "CRD", "SSKD", "HSSAKD", "LSSKD")
    assert {panel.pair for panel in figure.panels} == {"ResNet56>ResNet20"}


def test_figure_6_compares_branches_of_two_networks_with_small_ones_at_scale_demo() -> None:
    figure = load_figure("6")
    assert [panel.pair for panel in figure.at("paper").panels] == ["ResNet34>ResNet18", "ResNet32x4>ResNet32x4"]
    assert [panel.pair for panel in figure.at("demo").panels] == [
        "ResNet18-x1/4>ResNet10-x1/4",
        "ResNet14-x1/2>ResNet8-x1/2",
    ]
    assert figure.methods == ("HSSAKD", "LSSKD")
    assert figure.optional_methods == ("HSSAKD-teacher",)
    assert figure.title("HSSAKD-teacher") == "HSSAKD, hard labels"
    assert all(method_class(method).student_branches for method in figure.all_methods)


def test_a_figure_at_a_scale_is_the_same_when_it_is_asked_again() -> None:
    figure = load_figure("6").at("demo")
    assert figure.at("demo") == figure


def test_the_published_marks_are_those_of_the_ledger() -> None:
    _, _, section = LEDGER.partition("### Few-shot marks")
    rows = re.findall(r"^\| (\S+) \|(.*)\|$", section.partition("\n## ")[0], flags=re.MULTILINE)
    expected = {
        # The suite's name of the method where its authors have theirs.
        name.replace("HSAKD", "HSSAKD"): [
            tuple(map(float, entry.split("±"))) if entry.strip() else None for entry in line.split("|")
        ]
        for name, line in rows
        if "±" in line
    }
    panel, other = load_figure("5").panels
    found = {
        marks.name: [None if math.isnan(mean) else (mean, std) for mean, std in zip(marks.mean, marks.std, strict=True)]
        for marks in panel.published
    }
    assert len(found) == 4
    assert found == expected
    assert other.published == ()


def test_a_figure_is_found_by_path_and_its_dataset_file_beside_it(tmp_path: Path) -> None:
    figure = load_figure(written(tmp_path, STAGES))
    assert figure.name == "mine"
    assert figure.panels[0].dataset_for("paper") == str(tmp_path / "blocks.toml")
    assert figure.panels[0].dataset_for("quick") is None


def test_a_scale_at_which_no_panel_has_a_dataset_is_refused(tmp_path: Path) -> None:
    figure = load_figure(written(tmp_path, STAGES))
    with pytest.raises(UserError, match=r"^figure mine has no dataset for scale 'quick'; allowed: demo, paper;"):
        figure.at("quick")


def test_on_one_dataset_a_pair_is_shown_once() -> None:
    assert [panel.title for panel in load_figure("5").on("leaves", "paper").panels] == ["CIFAR-100"]
    assert [panel.title for panel in load_figure("5").on("tiny-imagenet", "demo").panels] == ["Tiny-ImageNet"]
    assert [panel.student for panel in load_figure("6").on("leaves", "demo").panels] == [
        "ResNet10-x1/4",
        "ResNet8-x1/2",
    ]


def test_an_unknown_figure_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"^unknown figure '7'.*; allowed: 5, 6, transfer, the path of a TOML file$"):
        load_figure("7")


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^figure file .*none\.toml cannot be read: No such file"):
        load_figure(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "old", "new", "expected"),
    [
        (SMALL, 'name = "mine"', "name = ", "no valid TOML"),
        (SMALL, 'name = "mine"', 'name = "../mine"', "it names files; allowed: letters"),
        (SMALL, 'kind = "few-shot"', "", "field 'kind' is missing; add it (figures/figure_5.toml shows the format)"),
        (SMALL, '"few-shot"', '"fewshot"', "field 'kind' = 'fewshot' is refused: input should be 'few-shot' or"),
        (SMALL, "methods =", "method =", "unknown field 'method' (did you mean 'methods'?); allowed: name, caption,"),
        (SMALL, "student =", "students =", "unknown field 'panels[1].students' (did you mean 'student'?)"),
        (SMALL, 'student = "ResNet20"', "", "field 'panels[1].student' is missing; add it"),
        (SMALL, "dataset = ", 'colour = "red"\ndataset = ', "unknown field 'panels[1].colour'"),
        (SMALL, "dataset = ", "at_scale = { demo = { student = 'A', studnt = 'B' } }\ndataset = ", "allowed: student"),
        (SMALL, "source = ", "run = 3\nsource = ", "unknown field 'panels[1].published[1].run' (did you mean 'runs'?)"),
        (
            SMALL,
            '"digits"',
            "7",
            "field 'panels[1].dataset' = 7 is refused: allowed: a name or a path, or one for some",
        ),
        (SMALL, '"digits"', '{ tiny = "digits" }', "unknown scale 'tiny'; allowed: demo, quick, paper"),
        (SMALL, '["KD", "LSSKD"]', '["KD", "KD"]', "methods: 'KD' stands there twice; allowed: once"),
        (SMALL, '["KD", "LSSKD"]', "[]", "field 'methods' = [] is refused"),
        (SMALL, '["KD", "LSSKD"]', '["LSSKD"]', "'KD' is no method of the figure; allowed: LSSKD"),
        (SMALL, "[0.5, 1.0]", "[1.0, 0.5]", "fractions: a figure of kind few-shot needs one or more; allowed: asc"),
        (SMALL, "[0.5, 1.0]", "[0.5, 1.5]", "field 'fractions[2]' = 1.5 is refused: a share of the training images"),
        (SMALL, "[0.5, 1.0]", "['half']", "field 'fractions[1]' = 'half' is refused"),
        (SMALL, "fractions = [0.5, 1.0]", "", "fractions: a figure of kind few-shot needs one or more"),
        (SMALL, "[60.0, nan]", "[60.0]", "mean of KD: 1 given; allowed: 2, one for each fraction, nan where there"),
        (SMALL, "[60.0, nan]", "[160.0, nan]", "field 'panels[1].published[1].mean[1]' = 160.0 is refused: allowed: 0"),
        (SMALL, 'methods = ["KD"', 'protocol = "no"\nmethods = ["KD"', "unknown protocol 'no'; allowed: lsskd, crd"),
        (
            SMALL,
            "fractions =",
            'highlight = "VID"\nfractions =',
            "highlight: 'VID' is no method of the figure; allowed",
        ),
        (SMALL, "fractions =", 'titles = { VID = "V" }\nfractions =', "titles: 'VID' is no method of the figure"),
        (
            STAGES,
            "methods =",
            "fractions = [1.0]\nmethods =",
            "fractions and published: allowed in a figure of kind few",
        ),
        (
            STAGES,
            "[[panels]]",
            '[[panels]]\nprobe = { dataset = "digits-5-9" }',
            "probe: allowed in a figure of kind few-shot only",
        ),
        (
            STAGES,
            'dataset = { demo = "digits", paper = "blocks.toml" }',
            "dataset = {}",
            "field 'panels[1].dataset' = {}",
        ),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(
    tmp_path: Path, text: str, old: str, new: str, expected: str
) -> None:
    assert old in text
    assert expected in complaint(tmp_path, text.replace(old, new, 1))


def test_two_panels_of_one_title_are_refused(tmp_path: Path) -> None:
    assert "panels: 'Blocks' stands there twice" in complaint(tmp_path, STAGES + STAGES[STAGES.index("[[panels]]") :])


def test_a_dataset_for_all_scales_is_there_at_each() -> None:
    panel = Panel(title="Mine", student="ResNet20", dataset="leaves")
    assert [panel.dataset_for(scale) for scale in SCALES] == ["leaves"] * 3
    assert panel.pair == "ResNet20"
    figure = Figure(name="mine", caption="", kind="stages", methods=("LSSKD",), panels=(panel,))
    assert figure.at("quick") == figure


def test_a_figure_of_ones_own_does_not_take_the_name_of_one_of_the_suite(tmp_path: Path) -> None:
    said = complaint(tmp_path, SMALL.replace('"mine"', '"5"'))
    assert "the name '5' is taken by the suite's own figure; choose another" in said
    assert load_figure(Path("figures") / "figure_5.toml").name == "5"
