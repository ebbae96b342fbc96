"""The files of a figure: each is valid and says the same numbers, and no demo looks like a reproduction."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmark.analysis.figures import empty_result
from benchmark.core.errors import UserError
from benchmark.core.statistics import summarise
from figures.render import DPI, to_csv, to_markdown, write_figure
from figures.result import FigureResult
from figures.specification import PublishedMarks, load_figure
from tables.result import Cell, TableResult
from tables.specification import Column, Row, Table
from tests import made_up_figures as made_up

ENDINGS = ["png", "pdf", "svg", "csv", "md"]
FAILURE = "SSKD, CIFAR-100, 75% of the images, seed 0: failed at epoch 3, step 17: loss not finite"


def failed(method: str) -> Cell:
    return Cell(method, "column", (), "failed", notes=(FAILURE,), seeds=3)


def with_gaps() -> FigureResult:
    """Figure 5 with a failed point, one that is missing, and one of a single seed."""
    result = made_up.with_cell(made_up.few_shot(), 0, ("SSKD", 0.75), failed("SSKD"))
    result = made_up.with_cell(result, 0, ("KD", 0.25), None)
    whole = result.panels[1].cell("LSSKD", 0.5)
    part = dataclasses.replace(whole, values=whole.values[:1], finished=whole.finished[:1], status="partial")
    return made_up.with_cell(result, 1, ("LSSKD", 0.5), part)


RESULTS = {
    "few-shot": with_gaps(),
    "few-shot at scale demo": made_up.few_shot("demo", 1),
    "stages": made_up.with_cell(made_up.stages(), 0, ("LSSKD", 1.0), failed("LSSKD")),
    "stages at scale quick": made_up.stages("quick", 1, methods=("HSSAKD", "LSSKD", "HSSAKD-teacher")),
    "few-shot without runs": empty_result(load_figure("5")),
    "stages without runs": empty_result(load_figure("6")),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """The files of every result, by their endings."""
    return {
        name: {path.suffix[1:]: path for path in write_figure(result, tmp_path_factory.mktemp("figures"))}
        for name, result in RESULTS.items()
    }


def svg_text(path: Path) -> str:
    """All that is written in a drawing."""
    namespace = "{http://www.w3.org/2000/svg}"
    return "\n".join("".join(part.itertext()) for part in ElementTree.parse(path).iter(f"{namespace}text"))


@pytest.mark.parametrize("name", list(RESULTS))
def test_every_format_is_a_valid_file(written: dict[str, dict[str, Path]], name: str) -> None:
    files = written[name]
    assert list(files) == ENDINGS
    assert {path.stem for path in files.values()} == {RESULTS[name].stem}
    with Image.open(files["png"]) as picture:
        picture.load()
        width, height = picture.size
    assert width in (round(4.8 * DPI), 7 * DPI)
    assert height < 7 * DPI
    assert files["pdf"].read_bytes().startswith(b"%PDF")
    assert ElementTree.parse(files["svg"]).getroot().tag.endswith("}svg")
    assert len(list(csv.reader(files["csv"].open(encoding="utf-8")))) > 1
    assert not list(files["png"].parent.glob(".*")), "a temporary file was left"


@pytest.mark.parametrize("name", list(RESULTS))
def test_a_drawing_is_watermarked_unless_it_reproduces(written: dict[str, dict[str, Path]], name: str) -> None:
    drawn, result = written[name]["svg"].read_text(encoding="utf-8"), RESULTS[name]
    assert ('id="watermark-' in drawn) == (not result.reproduces) == (result.scale != "paper")
    for scale in ("demo", "quick"):
        assert (scale in svg_text(written[name]["svg"]).splitlines()) == (result.scale == scale)


def test_runs_of_scale_paper_that_follow_another_recipe_are_watermarked_too(tmp_path: Path) -> None:
    result = made_up.stages()
    panels = tuple(dataclasses.replace(panel, comparable=False) for panel in result.panels)
    paths = write_figure(dataclasses.replace(result, panels=panels), tmp_path)
    assert "no reproduction" in svg_text(paths[2]).splitlines()


@pytest.mark.parametrize("name", list(RESULTS))
def test_the_drawing_says_scale_dataset_and_seeds(written: dict[str, dict[str, Path]], name: str) -> None:
    text, result = " ".join(svg_text(written[name]["svg"]).split()), RESULTS[name]
    assert result.statement in text
    for panel in result.panels:
        assert panel.subject in text
    if result.has_values():
        assert "n=1" in text if 1 in result.seeds else "n=3 seeds" in text
        assert ("no error bars" in text) == (result.seeds == (1,))
    else:
        assert "no runs yet" in text
    assert "%" in text


def test_the_same_result_gives_the_same_bytes_and_leaves_no_trace(
    written: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    before = dict(mpl.rcParams)
    for path in write_figure(RESULTS["few-shot"], tmp_path):
        assert path.read_bytes() == written["few-shot"][path.suffix[1:]].read_bytes(), path.suffix
    assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_planning_and_tables_do_not_wait_for_the_drawing_libraries() -> None:
    code = (
        "import sys, benchmark.planning.figures, figures.render; print({'seaborn', 'matplotlib'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize("name", list(RESULTS))
def test_the_csv_holds_every_number_in_full(written: dict[str, dict[str, Path]], name: str) -> None:
    result = RESULTS[name]
    lines = list(csv.DictReader(written[name]["csv"].open(encoding="utf-8")))
    numbers = list(result.numbers())
    assert len(lines) == len(numbers)
    for line, number in zip(lines, numbers, strict=True):
        assert (line["panel"], line["dataset"]) == (number.panel.heading, number.panel.dataset)
        assert (line["method"], line["metric"]) == (result.figure.title(number.method), number.metric)
        values = dict(zip(map(int, line["seeds"].split()), map(float, line["values"].split()), strict=True))
        assert values == dict(number.values)
        assert int(line["n"]) == len(values)
        assert line["status"] == number.cell.status
        if values:
            summary = summarise(values.values())
            assert float(line["mean"]) == summary.mean
            assert line["std"] == ("" if summary.std is None else repr(summary.std))
        assert (line["published"] != "") == bool(number.published)


def test_the_csv_of_figure_5_has_the_published_numbers_beside_the_measured() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(made_up.few_shot()))))
    (line,) = (row for row in lines if (row["method"], row["place"], row["panel"]) == ("HSSAKD", "1", "CIFAR-100"))
    assert (line["published"], line["published_std"], line["published_as"]) == ("73.73", "0.1", "HSSAKD*")
    assert not any(row["published"] for row in lines if row["method"] == "LSSKD" or row["panel"] == "Tiny-ImageNet")


def test_published_numbers_stand_beside_no_other_dataset() -> None:
    demo = made_up.few_shot("demo", 1)
    assert not any(number.published for number in demo.numbers())
    assert "are not drawn beside another dataset" in to_markdown(demo)
    assert "KD, published" not in to_markdown(demo)
    assert "KD, published" in to_markdown(made_up.few_shot("quick", 1))


def test_two_published_numbers_of_one_method_and_share_are_both_kept() -> None:
    result = made_up.few_shot()
    panel = result.panels[0].panel
    more = PublishedMarks(source="others", method="KD", title="KD, long", mean=(66.0, math.nan, math.nan, math.nan))
    changed = dataclasses.replace(
        result.panels[0], panel=panel.model_copy(update={"published": (*panel.published, more)})
    )
    result = dataclasses.replace(result, panels=(changed, result.panels[1]))
    lines = [row for row in csv.DictReader(io.StringIO(to_csv(result))) if row["method"] == "KD" and row["published"]]
    assert [row["published"] for row in lines] == ["65.15", "66.0", "68.61", "70.34"]
    assert [row["n"] for row in lines] == ["3", "", "3", "3"]
    assert "| KD, long, published | *66.00* " in to_markdown(result)


def test_the_markdown_has_the_numbers_as_tables() -> None:
    text = to_markdown(with_gaps())
    kd = next(line for line in text.splitlines() if line.startswith("| KD "))
    cell = with_gaps().panels[0].cell("KD", 0.5)
    summary = summarise(cell.values)
    assert [part.strip() for part in kd.split("|")[2:4]] == [
        "not run yet",
        f"{summary.mean:.2f} ± {summary.std:.2f} (n=3)",
    ]
    assert "(n=1 of 3)" in text
    assert "| SSKD " in text
    assert "| failed " in text
    assert f"- {FAILURE}" in text
    assert "37 of 40 points done, 1 failed, 1 not run yet, 1 partial." in text
    assert "*73.73 ± 0.10*" in text


def test_the_markdown_of_stages_has_both_metrics() -> None:
    text = to_markdown(made_up.stages())
    assert text.count("| method | stage 1 ") == 4
    assert text.count("| final ") == 2
    assert "Accuracy, %, of class and rotation together" in text


def test_a_method_with_fewer_classifiers_has_those_of_the_deepest_stages() -> None:
    result = made_up.stages()
    shallow = made_up.cell_of("LSSKD", [{"top1": 70.0, "stages": [60.0, 65.0], "stages_joint": [50.0, 55.0]}])
    panel = made_up.with_cell(result, 0, ("LSSKD", 1.0), shallow).panels[0]
    assert panel.stage_count(result.methods) == 4
    assert panel.numbered_stages("LSSKD", "stages", 4) == {3: {0: 60.0}, 4: {0: 65.0}}


def test_a_record_without_joint_accuracies_shows_the_others(tmp_path: Path) -> None:
    old = made_up.cell_of("LSSKD", [{"top1": 70.0, "stages": [50.0, 55.0, 60.0, 65.0]}])
    result = made_up.with_cell(made_up.stages(), 0, ("LSSKD", 1.0), old)
    assert result.panels[0].stages("LSSKD", "stages_joint") == ()
    assert len(result.panels[0].stages("LSSKD", "stages")) == 4
    assert len(write_figure(result, tmp_path)) == len(ENDINGS)


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_the_statement_is_that_of_a_table_with_the_same_runs(scale: str) -> None:
    result = made_up.few_shot(scale, 1)
    result = dataclasses.replace(result, panels=result.panels[:1])
    panel = result.panels[0]
    table = Table(
        name="same",
        caption="",
        dataset={"demo": "digits", "paper": "cifar100"},
        columns=(Column(student="ResNet20", teacher="ResNet56"),),
        rows=(Row(method="KD", printed=(1.0,)),),
    )
    place = (scale, panel.epochs, panel.dataset)
    as_table = TableResult(table, *place, cells={}, teachers={}, generated_from="", comparable=scale == "paper")
    assert result.reproduces == as_table.reproduces
    assert result.statement == as_table.statement


def test_the_stem_tells_scales_datasets_protocols_and_teachers_apart() -> None:
    paper, demo = made_up.few_shot(), made_up.few_shot("demo", 1)
    assert (paper.stem, demo.stem) == ("figure_5_paper", "figure_5_demo")
    elsewhere = dataclasses.replace(
        demo, panels=tuple(dataclasses.replace(panel, dataset="leaves") for panel in demo.panels)
    )
    assert elsewhere.stem == "figure_5_demo_leaves"
    assert dataclasses.replace(paper, protocol="hsakd").stem == "figure_5_paper_hsakd"
    assert dataclasses.replace(paper, teacher_data="same").stem == "figure_5_paper_teacher-on-same"
    stretched = dataclasses.replace(demo, scale="demo-3-epochs")
    assert stretched.stem == "figure_5_demo-3-epochs"


ODD = "_a$x$^2 & <b> \\frac{1}{2} | `c` *d* #\u202e\n\x07%é"


def test_odd_names_are_shown_as_they_are_and_break_nothing(tmp_path: Path) -> None:
    methods = ("KD", "LSSKD", ODD, "_" * 60)
    result = made_up.few_shot("quick", 2, methods=methods)
    panels = tuple(
        dataclasses.replace(panel, panel=panel.panel.model_copy(update={"title": f"{ODD} {place}"}), dataset=ODD)
        for place, panel in enumerate(result.panels)
    )
    result = dataclasses.replace(result, panels=panels, remarks=(f"Remark {ODD}.",))
    png, pdf, svg, table, page = write_figure(dataclasses.replace(result, variant="x"), tmp_path / "named")
    shown = "_a$x$^2 & <b> \\frac{1}{2} | `c` *d* # %é"
    text = svg_text(svg)
    assert f"In place of {shown}"[:30] in text
    assert f" {shown}"[:20] in text, "a name that begins with an underscore is missing from the legend"
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert {row["method"] for row in rows} == {"KD", "LSSKD", shown, "_" * 60}
    markdown = page.read_text(encoding="utf-8")
    assert "<b>" not in markdown.replace("\\<b>", "")
    assert "\u202e" not in markdown + text
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {6}
    with Image.open(png) as picture:
        picture.load()
    assert pdf.read_bytes().startswith(b"%PDF")


@given(st.text(max_size=40))
def test_any_name_comes_back_from_the_csv(name: str) -> None:
    result = made_up.few_shot("demo", 1, methods=("KD", name))
    rows = list(csv.DictReader(io.StringIO(to_csv(result))))
    assert len(rows) == 8
    assert len({row["method"] for row in rows}) <= 2
    assert not any(character in row["method"] for row in rows for character in "\n\r\0")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("")
    with pytest.raises(UserError, match=r"^cannot write .*figure_6_demo\.png: "):
        write_figure(made_up.stages("demo", 1), place)


def test_an_empty_figure_shows_the_published_marks_and_says_that_there_are_no_runs(
    written: dict[str, dict[str, Path]],
) -> None:
    text = svg_text(written["few-shot without runs"]["svg"])
    assert text.count("no runs yet") == 2
    assert "HSSAKD*" in text
    assert "LSSKD" not in text, "the legend names what is not drawn"
    assert RESULTS["few-shot without runs"].stem == "figure_5_paper"
    assert "*68.50 ± 0.24*" in to_markdown(RESULTS["few-shot without runs"])
