"""The documents say what is so: links resolve, and commands, values and names are those of the code."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image

from benchmark.backbones import network_names
from benchmark.cli.app import make_app, split_names
from benchmark.core.protocols import PROTOCOLS, SCALES, SEEDS
from benchmark.core.rng import generator
from benchmark.data import load_dataset
from benchmark.data.custom import DatasetDescription, read_description
from benchmark.planning.figures import plan_panel
from benchmark.planning.overrides import parse_pair, parse_settings
from benchmark.planning.request import collect_dependencies
from benchmark.planning.tables import plan_table
from benchmark.planning.teachers import parse_file_assignments
from benchmark.plugins.registry import method_class, method_names, resolve_options
from benchmark.results.store import Store
from benchmark.targets import ALL
from benchmark.training.job import run_until_done
from benchmark.tune import parse_grid
from figures.specification import figure_names, load_figure
from tables.specification import Column, Row, Table, load_table, table_names
from tests import engine, plain_semckd
from tests.documents import (
    DOCUMENTS,
    OWN_FILES,
    QUICKSTART,
    README,
    ROOT,
    USAGE,
    blocks,
    commands,
    example_method,
    table_after,
)

COMMANDS = (
    *(
        f"benchmark.{name}"
        for name in ("run", "report", "audit", "export", "faithfulness", "tune", "speed", "catalogue", "decisions")
    ),
    *("benchmark.merge", "benchmark.report.crate"),
    "benchmark.probe",
    *(f"slurm.{name}" for name in ("status", "retry", "cancel")),
)

WITHOUT_OPTIONS = {"benchmark.report.readme"}

METHODS_OF_THE_SUITE = {row.method for row in load_table("II").at("demo").rows}


def prose(text: str) -> str:
    """Markdown without fenced blocks and inline code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    without_fences = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", without_fences, flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        names.add(f"{slug}-{count}" if count else slug)
    return names


def links(document: Path) -> list[str]:
    """The targets of a document's links and images, but for addresses of the web."""
    text = prose(document.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r"^\[[^\]]+\]: +(\S+)", text, flags=re.MULTILINE)
    return [target for target in targets if not re.match(r"[a-z][a-z0-9+.-]*:", target)]


def broken_links(document: Path, root: Path) -> list[str]:
    """The relative links of a document that lead nowhere, or out of the repository."""
    broken = []
    for target in links(document):
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        inside = file.exists() and file.is_relative_to(root)
        known = anchors(file.read_text(encoding="utf-8")) if inside and file.suffix == ".md" else set()
        if not inside or (anchor and anchor not in known):
            broken.append(target)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_and_anchor_resolves(document: Path) -> None:
    assert broken_links(document, ROOT) == []


def test_broken_links_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One two\n\n# One two\n\n```\n# not a heading\n```\n")
    document = tmp_path / "document.md"
    document.write_text(
        "# Here: it is\n[a](other.md#one-two-1) [b](#here-it-is) [c](https://x.org/gone) `[d](code.md)`\n"
        "[e](missing.md) [f](other.md#one-two-2) [g](#nowhere) [h](..) [i](other.md#not-a-heading)\n[j]: gone.md\n"
    )
    expected = ["missing.md", "other.md#one-two-2", "#nowhere", "..", "other.md#not-a-heading", "gone.md"]
    assert broken_links(document, tmp_path) == expected


def test_the_readme_is_short_and_has_a_place_for_what_was_measured() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert re.findall(r"<!-- measured:\w+ -->", text) == ["<!-- measured:start -->", "<!-- measured:end -->"]


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [README]
    while waiting:
        document = waiting.pop()
        if document.suffix == ".md" and document not in reached:
            reached.add(document)
            waiting += [(document.parent / link.partition("#")[0]).resolve() for link in links(document)]
    assert {path for path in DOCUMENTS if path.parent.name == "docs"} <= reached


def test_every_page_that_the_code_names_exists() -> None:
    packages = ("benchmark", "methods", "slurm", "tables", "figures")
    sources = [path for name in packages for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".toml", ".j2")]
    named = {name for path in sources for name in re.findall(r"docs/[\w-]+\.md", path.read_text(encoding="utf-8"))}
    assert "docs/ledger.md" in named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_document_names_an_absolute_path(document: Path) -> None:
    paths = re.findall(r"(?<![\w./:)\]}>~$-])/[A-Za-z_][\w.-]*|\b[A-Z]:\\\w*", document.read_text(encoding="utf-8"))
    assert paths == []


def options_of(parameter: Any) -> list[str]:
    """All names of an option, also of its contrary."""
    return [*parameter.opts, *parameter.secondary_opts]


def command_of(module: str) -> Any:
    """The command line of `python -m <module>`."""
    found = importlib.import_module(module)
    if not hasattr(found, "main"):
        found = importlib.import_module(f"{module}.__main__")
    return typer.main.get_command(make_app(found.main))


@pytest.fixture(name="example_method")
def installed_example(tmp_path: Path) -> Iterator[Any]:
    with example_method(tmp_path) as module:
        yield module


def test_every_command_in_the_documents_is_accepted_with_its_values(example_method: Any) -> None:
    seen = set()
    shown = {"mine.toml", "few.toml"}
    for document in DOCUMENTS:
        for module, arguments in commands(document):
            seen.add(module)
            if not arguments:
                continue
            given = command_of(module).make_context(module, arguments).params
            tables = given.get("table")
            asked = tables if isinstance(tables, list | tuple) else split_names(tables, "--table")
            assert set(asked) <= {*table_names(), ALL, *shown}, arguments
            assert set(split_names(given.get("figure"), "--figure")) <= {*figure_names(), ALL, *shown}, arguments
            assert given.get("scale", "demo") in {*SCALES, ""}, arguments
            assert set(split_names(given.get("methods"), "--methods")) <= set(method_names()), arguments
            for pair in split_names(given.get("pairs"), "--pairs"):
                assert parse_pair(pair) in {(column.teacher, column.student) for column in load_table("II").columns}
            parse_settings(given.get("settings") or [], PROTOCOLS["lsskd"])
            assert set(parse_file_assignments(given.get("teacher_checkpoint") or [], "")) <= set(network_names()), (
                arguments
            )
            for combination in parse_grid(given["grid"]) if module == "benchmark.tune" else []:
                resolve_options(method_class(given["method"]), PROTOCOLS["lsskd"], overrides=combination)
    assert seen - WITHOUT_OPTIONS == set(COMMANDS)


def test_every_option_and_every_make_target_in_the_documents_exists() -> None:
    known = {option for module in COMMANDS for part in command_of(module).params for option in options_of(part)}
    known |= set(plain_semckd.make_parser()._option_string_actions)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        ours = "\n".join(line for line in text.splitlines() if "/pip install" not in line)
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", ours)) <= {*known, "--help"}, document.name
        assert set(re.findall(r"^    make ([\w-]+)$|`make ([\w-]+)`", text, flags=re.MULTILINE)) <= {
            pair for target in targets for pair in ((target, ""), ("", target))
        }, document.name


def test_every_file_named_in_the_documents_exists() -> None:
    for document in DOCUMENTS:
        named = re.findall(
            r"`((?:benchmark|methods|slurm|tables|docs|tests)/[\w./-]*)`", document.read_text(encoding="utf-8")
        )
        missing = [path for path in named if path != "methods/logits.py" and not (ROOT / path).exists()]
        assert missing == [], document.name


def test_every_toml_example_of_own_files_is_read(tmp_path: Path) -> None:
    kinds = set()
    for number, text in enumerate(blocks(OWN_FILES, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(text)
        if "[[columns]]" in text:
            table = load_table(file)
            grid = plan_table(table, engine.request(), [0])
            assert set(grid.runs) == {(row.method, column.name) for row in table.rows for column in table.columns}
        elif "[[panels]]" in text:
            figure = load_figure(file)
            planned = [plan_panel(figure, panel, engine.request(), [0]) for panel in figure.panels]
            assert all(points.requested_runs() for points in planned)
        else:
            size = read_description(file).image_size
            for split, name in itertools.product(("train", "test"), ("ash", "oak")):
                folder = tmp_path / read_description(file).folder / split / name
                folder.mkdir(parents=True)
                noise = torch.randint(256, (size, size, 3), dtype=torch.uint8, generator=generator(split, name))
                Image.fromarray(noise.numpy()).save(folder / "1.png")
            dataset = load_dataset(str(file))
            assert dataset.classes == ("ash", "oak")
            assert dataset.train.images.shape == (2, size, size, 3)
        kinds |= set(re.findall(r"\[\[(columns|panels)\]\]|^(folder)", text, flags=re.MULTILINE))
    assert kinds >= {("columns", ""), ("", "folder")}


def test_the_page_on_own_files_names_every_field() -> None:
    page = OWN_FILES.read_text(encoding="utf-8")
    for heading, model in (
        ("## A table", Table),
        ("A column:", Column),
        ("A row:", Row),
        ("## A dataset", DatasetDescription),
    ):
        stated = [name for row in table_after(page, heading)[1:] for name in re.findall(r"`(\w+)`", row[0])]
        assert sorted(stated) == sorted(model.model_fields), heading


def test_the_documents_state_the_number_of_runs_and_epochs_of_each_scale() -> None:
    request = dataclasses.replace(engine.request(), protocol=PROTOCOLS["lsskd"], scale=SCALES["demo"])
    rows = [name for name in METHODS_OF_THE_SUITE if method_class(name).in_default_grid]
    grid = plan_table(load_table("II").at("demo"), request, range(SEEDS["demo"]), rows)
    runs, students = collect_dependencies(grid.requested_runs()), grid.requested_runs()
    first = [run for run in runs if run.method == "AB-init"]
    heads = [run for run in runs if not method_class(run.method).listed and run not in first]
    teachers = len(runs) - len(students) - len(heads) - len(first)
    stated = re.search(
        r"(\d+) runs \((\d+) students, (\d+) teachers, their (\d+) heads and (\d+) first stages of AB\) "
        r"of (\d+) epochs or fewer",
        " ".join(QUICKSTART.read_text(encoding="utf-8").split()),
    )
    assert stated
    counts = [len(runs), len(students), teachers, len(heads), len(first)]
    assert list(map(int, stated.groups())) == [*counts, max(run.schedule.epochs for run in runs)]
    scales = table_after(USAGE.read_text(encoding="utf-8"), "## Scales")[1:]
    for (name, dataset, epochs, seeds, *_), (known, scale) in zip(scales, SCALES.items(), strict=True):
        assert name.split()[0].strip("`") == known
        assert dataset.split(",")[0].lower().replace("-", "") == load_table("II").dataset_for(known)
        assert int(epochs) == PROTOCOLS["lsskd"].schedule.scaled(scale.factor).epochs
        assert int(seeds) == SEEDS[known]


def test_the_ratios_of_the_speeds_are_right() -> None:
    header, bare, *rows = table_after(USAGE.read_text(encoding="utf-8"), "## Speed")
    assert [header[1].split(",")[0], header[3].split(",")[0]] == ["bf16", "fp32"]
    for _, *cells in rows:
        for speed, ratio, base in ((cells[0], cells[1], bare[1]), (cells[2], cells[3], bare[3])):
            if speed:
                assert f"{float(speed) / float(base):.2f}" == ratio


def test_the_example_method_compares_centred_logits(example_method: Any) -> None:
    student = torch.randn(4, 3, dtype=torch.float64, generator=generator("student"))
    teacher = torch.randn(4, 3, dtype=torch.float64, generator=generator("teacher"))

    def centred(rows: torch.Tensor) -> list[float]:
        return [float(value) - math.fsum(row) / 3 for row in rows.tolist() for value in row]

    expected = sum((one - other) ** 2 for one, other in zip(centred(student), centred(teacher), strict=True)) / 12
    loss = example_method.logit_loss(student, teacher)
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))
    assert example_method.logit_loss(student, student + 3) < 1e-20


def test_the_example_method_trains_and_the_results_are_read_as_the_page_shows(
    example_method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = engine.settings(tmp_path / "runs")
    run = engine.run_of("Logits")
    engine.train_dependencies([run], place)
    assert run_until_done([run], place)
    record = Store(place.runs).record(run)
    assert record
    assert record["status"] == "finished"
    assert record["final"]["terms"].keys() == {"ce", "logits"}
    losses = [figures["terms"]["logits"] for figures in record["epochs"]]
    assert 0 < losses[-1] < losses[0]
    assert "Logits" in [row for row, _ in plan_table(load_table("II"), engine.request(), [0], ["Logits"]).selected]
    monkeypatch.chdir(tmp_path)
    (code,) = [block for block in blocks(USAGE, "python") if "load(" in block]
    exec(code, {"__name__": "example"})
    shown = rf"{run.student} +{run.teacher_network} +Logits .*standard +{record['final']['top1']:.6f} +1$"
    assert re.search(shown, capsys.readouterr().out, flags=re.MULTILINE)
