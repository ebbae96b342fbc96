"""`python -m benchmark.report` from outside, and what it writes beside the page: Markdown, LaTeX, records."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from benchmark.audit.claims import find_papers
from benchmark.cli.app import make_app
from benchmark.core.errors import UserError
from benchmark.report import figures
from benchmark.report.__main__ import main
from benchmark.report.data import Report, collect_report
from benchmark.report.table import ReportCell, ReportColumn, ReportTable
from benchmark.report.text import format_table, to_latex, to_markdown
from benchmark.results.store import Store
from tables.render import write_reports
from tests.commands import arguments, run_command, run_here, small_dataset, small_table
from tests.merges import rewritten
from tests.report_records import fill, request
from tests.report_records import record_of as made_up

METHODS = ("Baseline", "KD", "LSSKD")
PAIR = "WRN-40-2>WRN-16-2"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A small table really trained, one more record damaged, and what the command said of it."""
    place = tmp_path_factory.mktemp("trained")
    small_dataset(place)
    table = small_table(place, ("Baseline", "LSSKD"))
    done = run_here(*arguments(table, place))
    assert done.returncode == 0, done.stderr
    damaged = place / "runs" / "blocks" / "KD_damaged" / "record.json"
    damaged.parent.mkdir()
    damaged.write_text("{}")
    reported = run_command(
        *("--runs", str(place / "runs"), "--reports", str(place / "out"), "--table", str(table)),
        module="benchmark.report",
    )
    return place, reported


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report, list[figures.Drawing]]:
    """A report of made-up records, with its tables and figures written."""
    place = tmp_path_factory.mktemp("filled")
    fill(place / "runs", methods=METHODS, pairs=(PAIR,), epochs=3)
    report = collect_report(place / "runs")
    for table in report.tables:
        write_reports(table.result, place / "reports", table.stem)
    return place / "reports", report, figures.draw_figures(report, place / "reports")


def test_the_command_writes_every_format(trained) -> None:  # type: ignore[no-untyped-def]
    place, reported = trained
    assert reported.returncode == 0, reported.stderr
    written = {str(path.relative_to(place / "out")) for path in (place / "out").rglob("*") if path.is_file()}
    assert {"index.html", "report.md", "tables.tex", "records.csv", "records.parquet"} <= written
    assert {"audit.md", "audit.csv", "audit.json", "figure_5_paper.svg", "figure_6_paper.png"} <= written
    assert {f"table_small_demo-2-epochs.{ending}" for ending in ("md", "tex", "csv")} <= written
    assert {"badges/ps-kd-average.svg", "api/cells.json", "api/cells.schema.json"} <= written
    assert not [name for name in written if name.endswith(".tmp")]
    assert f"Written: {len(written)} files" in reported.stdout


def test_the_command_says_in_short_what_there_is(trained) -> None:  # type: ignore[no-untyped-def]
    _, reported = trained
    assert "0 of 2 cells at paper scale." in reported.stdout
    assert "Table small, demo-2-epochs, blocks, lsskd: 2 of 2 cells done" in reported.stdout
    assert "These numbers show that 2 methods train" in reported.stdout


def test_a_damaged_record_is_named_and_costs_nothing_else(trained) -> None:  # type: ignore[no-untyped-def]
    place, reported = trained
    assert reported.stderr == ""
    (line,) = (line for line in reported.stdout.splitlines() if line.startswith("left out:"))
    assert "KD_damaged" in line
    assert "KD_damaged" in (place / "out" / "index.html").read_text(encoding="utf-8")
    assert "KD\\_damaged" in (place / "out" / "report.md").read_text(encoding="utf-8")


def test_what_was_trained_stands_in_the_page_and_in_the_records(trained) -> None:  # type: ignore[no-untyped-def]
    place, _ = trained
    page = (place / "out" / "index.html").read_text(encoding="utf-8")
    for frame in (pd.read_csv(place / "out" / "records.csv"), pd.read_parquet(place / "out" / "records.parquet")):
        (row,) = (row for _, row in frame.iterrows() if row["method"] == "LSSKD")
        record = record_of_readable(place, "LSSKD")
        assert row["top1"] == pytest.approx(record["final"]["top1"])
        assert json.loads(row["stages"]) == record["final"]["stages"]
        assert row["cost_parameters"] == record["cost"]["parameters"]
    assert f"{record['final']['top1']:.2f}" in page


def record_of_readable(place: Path, method: str) -> dict:  # type: ignore[type-arg]
    records, _ = Store(place / "runs").read_all()
    return next(record for record in records if record["run"]["method"] == method)


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--scale", "papr"], "did you mean 'paper'"), (["--table", "V"], "unknown table")],
)
def test_bad_input_writes_nothing(tmp_path: Path, more: list[str], message: str) -> None:
    (tmp_path / "runs").mkdir()
    folders = ["--runs", str(tmp_path / "runs"), "--reports", str(tmp_path / "reports")]
    with pytest.raises(UserError, match=message):
        make_app(main)([*folders, *more], standalone_mode=False)
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]


def test_a_folder_that_cannot_be_written_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    ended = run_here("--reports", "a-file/reports", module="benchmark.report", folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "is no folder; choose another folder with --reports" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_two_reports_of_the_same_name_keep_files_of_their_own(tmp_path: Path) -> None:
    for fingerprint in ("one", "two"):
        run = request().run("Baseline", "WRN-16-2", None, 0).replace(fingerprint=fingerprint)
        Store(tmp_path).begin(run)
        Store(tmp_path).finish(run, made_up(run, 2), {})
    stems = [table.stem for table in collect_report(tmp_path).tables if table.name == "Table II"]
    assert stems == ["table_II_paper", "table_II_paper_2"]


def test_a_dataset_of_an_odd_name_gives_files_of_plain_names(tmp_path: Path) -> None:
    run = request(dataset="x & {y}").run("Baseline", "WRN-16-2", None, 0)
    Store(tmp_path).begin(run)
    Store(tmp_path).finish(run, made_up(run, 2), {})
    (table,) = (table for table in collect_report(tmp_path).tables if table.name == "Table II")
    assert table.measured
    assert table.stem == "table_II_paper_x++++y+"


def test_a_crafted_record_leads_no_file_out_of_its_folder(tmp_path: Path) -> None:
    run = request().run("LSSKD", "ResNet20", None, 0)
    store = Store(tmp_path / "runs")
    store.finish(run, made_up(run, 2), {})
    rewritten(store.folder(run), lambda record: record["run"].update(dataset="odd/../../x"))
    report = collect_report(tmp_path / "runs")
    assert report.records == []
    assert "is of another dataset than its folder" in report.damaged[0]


def test_markdown_links_lead_to_what_is_written(filled) -> None:  # type: ignore[no-untyped-def]
    folder, report, drawings = filled
    text = to_markdown(report, drawings, figures.audit_report(report, drawings))
    assert not re.search(r"\n\n\n", text)
    targets = set(re.findall(r"\]\(([^)]+)\)", text))
    by_others = {"index.html", "records.csv", "records.parquet", "audit.md"}
    by_others |= {f"audit_{paper}.md" for paper in find_papers()}
    assert {target for target in targets - by_others if not (folder / target).is_file()} == set()
    assert "table_II_paper.tex" in targets
    assert sum(token.type == "table_open" for token in MarkdownIt("commonmark").enable("table").parse(text)) >= 3


def test_a_listing_in_markdown_keeps_its_cells_whatever_they_hold() -> None:
    listing = ReportTable(
        "x",
        (ReportColumn("a|b", numeric=False), ReportColumn("n")),
        ((ReportCell("c | d\n", None, "e"), ReportCell("2")),),
    )
    tokens = MarkdownIt("commonmark").enable("table").parse(format_table(listing))
    cells = [token.content for token in tokens if token.type == "inline"]
    assert [cell.replace("\\", "") for cell in cells] == ["a|b", "n", "c | d e", "2"]


def test_the_latex_document_compiles_with_its_tables_and_figures(filled) -> None:  # type: ignore[no-untyped-def]
    folder, report, drawings = filled
    text = to_latex(report, drawings, figures.audit_report(report, drawings))
    assert text.isascii()
    assert text.count(r"\input{table_") == len(report.tables)
    if shutil.which("pdflatex") is None:
        pytest.skip("there is no pdflatex here (on Debian: texlive-latex-recommended)")
    (folder / "tables.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "tables.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False)
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, output[-2000:]
    assert "Overfull" not in output, re.findall("Overfull.*", output)
