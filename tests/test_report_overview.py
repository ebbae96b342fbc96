"""The page of one command: it needs no other file, shows what was made, and leads to the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.core.errors import UserError
from benchmark.report.data import collect_report
from benchmark.report.overview import write_overview
from benchmark.results.store import Store
from figures.render import write_figure
from tables.render import write_reports
from tests import made_up_figures as made_up
from tests.report_records import fill
from tests.test_report_html import Page

PAIR = "WRN-40-2>WRN-16-2"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """The folder of reports, and the page in it."""
    place = tmp_path_factory.mktemp("overview")
    runs = fill(
        place / "runs", scale="demo", dataset="digits", seeds=1, methods=("KD", "LSSKD"), pairs=(PAIR,), epochs=3
    )
    (table,) = (table.result for table in collect_report(place / "runs", scale="demo", tables=("II",)).tables)
    figure = made_up.few_shot("demo", 1)
    folder = place / "reports"
    folder.mkdir()
    (folder / "table_I_demo.md").write_text("an older one")
    rendered = [(table, write_reports(table, folder)), (figure, write_figure(figure, folder))]
    path = write_overview(rendered, runs, Store(place / "runs"), folder)
    assert path == folder / "index.html"
    return folder, Page(path.read_text(encoding="utf-8"))


def test_the_page_needs_no_other_file_and_leads_only_to_files_that_are_there(made: tuple[Path, Page]) -> None:
    folder, page = made
    assert page.all("link") == []
    assert all(str(image["src"]).startswith("data:") for image in page.all("img"))
    links = {str(link["href"]) for link in page.all("a")}
    files = {link for link in links if not link.startswith("#")}
    assert files == {path.name for path in folder.iterdir()} - {"index.html"}
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {link[1:] for link in links if link.startswith("#")} <= ids


def test_the_page_shows_the_table_the_figure_and_what_their_numbers_are_worth(made: tuple[Path, Page]) -> None:
    _, page = made
    assert "Table II, demo, Figure 5, demo" in page.text
    assert page.text.count("are not comparable with the paper's") >= 2
    assert "LSSKD" in page.text
    assert "From before: table_I_demo.md" in page.text


def test_pressing_a_number_draws_the_curves_of_its_runs(made: tuple[Path, Page]) -> None:
    folder, page = made
    drawn = {str(cell["data-runs"]) for cell in page.all("td") if cell.get("data-runs")}
    assert len(drawn) == 3, "the teacher and two students"
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert all(f'"{key}":' in text for key in drawn)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("")
    with pytest.raises(UserError, match=r"^cannot write .*index\.html: "):
        write_overview([], [], Store(tmp_path / "runs"), tmp_path / "reports")
