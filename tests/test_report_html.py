"""The page: whole, self-contained, readable without a script, and unharmed by what users name things."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.report import figures, prose
from benchmark.report.data import collect_report
from benchmark.report.figures import Drawing
from benchmark.report.html import as_json, to_html
from benchmark.report.prose import to_mathml
from benchmark.results.store import Store
from tests.report_records import failed, fill, record_of, request, write

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"
METHODS = ("Baseline", "KD", "LSSKD")
PAIR = "WRN-40-2>WRN-16-2"


class Page(HTMLParser):
    """What elements a page has; refuses one that is closed out of turn or never."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"{tag} is closed and was not open"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def page_of(root: Path, folder: Path, drawings: list[Drawing] | None = None) -> tuple[str, Page]:
    report = collect_report(root)
    drawings = figures.draw_figures(report, folder) if drawings is None else drawings
    text = to_html(report, drawings, figures.audit_report(report, drawings))
    return text, Page(text)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    place = tmp_path_factory.mktemp("page")
    fill(place / "runs", methods=METHODS, pairs=(PAIR,), epochs=3)
    failed(place / "runs", request().run("CC", "WRN-16-2", "WRN-40-2", 0))
    return page_of(place / "runs", place / "reports")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    place = tmp_path_factory.mktemp("empty")
    return page_of(place / "runs", place / "reports")


def test_the_page_needs_nothing_but_itself(filled: tuple[str, Page]) -> None:
    text, page = filled
    assert {tag for tag, _ in page.elements} & {"link", "iframe", "object", "embed", "base"} == set()
    assert [attributes for attributes in page.all("script") if "src" in attributes] == []
    assert page.all("img")
    assert all((image["src"] or "").startswith("data:image/svg+xml;base64,") for image in page.all("img"))
    assert "@import" not in text
    assert "url(" not in text
    # Whatever is in it, a browser loads nothing.
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_every_picture_has_a_description_and_every_heading_cell_a_scope(filled: tuple[str, Page]) -> None:
    _, page = filled
    assert all(image["alt"] for image in page.all("img"))
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    regions = [attributes for attributes in page.all("div") if "scroll" in (attributes.get("class") or "").split()]
    tables = [region for region in regions if region.get("role") == "region"]
    assert all(region.get("aria-label") and region.get("tabindex") == "0" for region in tables)
    assert len(tables) == len(page.all("table"))


def test_ids_are_unique_and_links_inside_the_page_lead_somewhere(filled: tuple[str, Page]) -> None:
    _, page = filled
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    inside = {href[1:] for link in page.all("a") if (href := link.get("href") or "").startswith("#")}
    assert inside <= set(ids), inside - set(ids)


def test_links_to_other_files_are_those_that_are_written(filled: tuple[str, Page]) -> None:
    targets = {link.get("href") or "" for link in filled[1].all("a")}
    files = {target for target in targets if not target.startswith(("#", "https://"))}
    assert {"table_II_paper.tex", "audit.md", "records.csv", "figure_5_paper.svg", "badges/ps-kd-average.svg"} <= files
    assert all(re.fullmatch(r"(badges/)?[\w.+-]+", name) for name in files)


def test_all_that_is_measured_is_in_the_page_without_a_script(filled: tuple[str, Page], tmp_path: Path) -> None:
    _, page = filled
    for words in (
        "cells at paper scale",
        "minus the other rows",
        "Price of each method",
        "All metrics of the last epoch",
    ):
        assert words in page.text
    assert "loss not finite at epoch 3" in page.text
    assert "What the paper states" in page.text
    assert "secret-host-name" not in page.text
    assert [tag for tag, _ in page.elements].count("math") > 50


def test_the_page_without_runs_shows_the_printed_numbers(empty: tuple[str, Page]) -> None:
    _, page = empty
    assert "Nothing was run yet" in page.text
    assert "76.89" in page.text
    assert "not run yet" in page.text
    assert "Nothing can be paired yet" in page.text
    assert "contradicts itself" in page.text
    assert "There are no records yet." in page.text


def test_names_of_users_are_shown_and_never_read(tmp_path: Path) -> None:
    run = request().run("Baseline", "WRN-16-2", None, 0)
    for changed in (run.replace(method=HOSTILE), run.replace(student=HOSTILE, seed=1)):
        Store(tmp_path).begin(changed)
        Store(tmp_path).finish(changed, record_of(run, 3), {})
    failed(tmp_path, run.replace(seed=2), HOSTILE)
    write(tmp_path, run, 3, provenance={**record_of(run, 3)["provenance"], "device_name": HOSTILE, "version": HOSTILE})
    text, page = page_of(tmp_path, tmp_path, [])
    assert len(page.all("script")) == 3
    assert page.all("img") == []
    assert HOSTILE in page.text
    assert not [attributes for _, attributes in page.elements if any(name.startswith("on") for name in attributes)]
    data = re.search(r'<script type="application/json" id="curves">(.*?)</script>', text, flags=re.DOTALL)
    assert data is not None
    names = [curve["n"] for curve in json.loads(data[1]).values()]
    assert any(HOSTILE in name for name in names)


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.text() | st.floats(allow_nan=False, allow_infinity=False), lambda inner: st.lists(inner)))
def test_json_in_the_page_is_read_back_and_ends_no_script(value: object) -> None:
    text = as_json({"value": value})
    assert json.loads(text) == {"value": value}
    assert not set(text) & set("<>&")


def test_the_page_stays_light(tmp_path: Path) -> None:
    runs = fill(tmp_path, methods=METHODS, pairs=(PAIR,), epochs=300)
    text = json.dumps(collect_report(tmp_path).curves, separators=(",", ":"))
    # Hundreds of runs of 300 epochs must fit into a few megabytes.
    assert len(text) / len(runs) < 8_000


def test_every_formula_of_the_ledger_is_set() -> None:
    ledger = prose.read_ledger()
    assert ledger is not None
    html = prose.to_html(ledger, "ledger-")
    Page(html)
    assert html.count("<math") == len(re.findall(r"\$[^$\n]+(?:\n[^$\n]+)?\$", ledger)) + ledger.count("```math")
    assert "$" not in html
    assert "\\" not in re.sub(r"<code>.*?</code>", "", html)
    assert html.count('<th scope="col"') == len(re.findall("<th", html)) - html.count("<thead")


@pytest.mark.parametrize(
    ("tex", "mathml"),
    [
        ("x", "<mi>x</mi>"),
        ("12.5", "<mn>12.5</mn>"),
        ("a_t^2", "<msubsup><mi>a</mi><mi>t</mi><mn>2</mn></msubsup>"),
        (r"\alpha", "<mi>&#x003B1;</mi>"),
        (r"\frac{1}{M}", "<mfrac><mrow><mn>1</mn></mrow><mrow><mi>M</mi></mrow></mfrac>"),
        ("a < b", "<mi>a</mi><mo>&#x0003C;</mo><mi>b</mi>"),
        (r"\big\Vert", "<mi>&#x02016;</mi>"),
    ],
)
def test_formulas_become_mathml(tex: str, mathml: str) -> None:
    start = '<math xmlns="http://www.w3.org/1998/Math/MathML" display="inline">'
    assert to_mathml(tex) == f"{start}<mrow>{mathml}</mrow></math>"


@pytest.mark.parametrize(
    "tex",
    [
        *(r"\unknown", "a_", "a_b_c", "&", r"\text{<b>}", r"\text{<mi onclick=1>x</mi>}"),
        *(r"\href{javascript:alert(1)}{x}", r"\text{<script>alert(1)</script>}"),
    ],
)
def test_what_is_no_known_formula_is_refused_and_shown_as_it_stands(tex: str) -> None:
    with pytest.raises(ValueError, match="cannot convert the formula"):
        to_mathml(tex)
    shown = Page(prose.to_html(f"Before ${tex}$ after.", "x-"))
    assert shown.text == f"Before {tex} after."


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=r"\frac{}_^ab1<&>$ ~", max_size=30))
def test_no_formula_breaks_the_page(tex: str) -> None:
    try:
        Page(to_mathml(tex))
    except ValueError:
        return


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_no_document_breaks_the_page(text: str) -> None:
    Page(prose.to_html(text, "x-"))


def test_links_of_a_document_that_would_lead_nowhere_are_left_as_words() -> None:
    html = prose.to_html("[a](other.md) [b](#here) [c](https://x.org) [d](javascript:alert(1))\n\n# Here\n", "x-")
    assert '<a href="#x-here">b</a>' in html
    assert '<a href="https://x.org">c</a>' in html
    assert html.count("<a ") == 2
    assert '<h3 id="x-here">' in html
