"""The page in a real browser: sorting, filters, curves, no sideways scrolling, and paper."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmark.report import figures
from benchmark.report.data import collect_report
from benchmark.report.html import to_html
from benchmark.results.store import Store
from tests.report_records import failed, fill, record_of, request

selenium = pytest.importorskip("selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
PHONE, DESKTOP = (360, 740), (1280, 900)
HOSTILE = "</script><script>document.title = 'read'</script>"
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM.exists() and DRIVER.exists()), reason="there is no browser here (on Debian: chromium-driver)"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with two tables, a failed run, and a run whose method has a hostile name."""
    place = tmp_path_factory.mktemp("browser")
    fill(
        place / "runs", methods=("Baseline", "KD", "LSSKD"), pairs=("WRN-40-2>WRN-16-2", "ResNet56>ResNet20"), epochs=9
    )
    failed(place / "runs", request().run("CC", "WRN-16-2", "WRN-40-2", 0))
    run = request().run("Baseline", "WRN-16-2", None, 0)
    hostile = run.replace(method=HOSTILE)
    Store(place / "runs").begin(hostile)
    Store(place / "runs").finish(hostile, record_of(run, 5), {})
    report = collect_report(place / "runs")
    drawings = figures.draw_figures(report, place)
    (place / "index.html").write_text(
        to_html(report, drawings, figures.audit_report(report, drawings)), encoding="utf-8"
    )
    return place / "index.html"


@pytest.fixture(scope="module")
def started() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield browser
    browser.quit()


@pytest.fixture
def browser(started: webdriver.Chrome, page: Path) -> webdriver.Chrome:
    """The page, freshly opened, at the width of a desktop."""
    resize(started, DESKTOP)
    started.get(page.as_uri())
    return started


def resize(browser: webdriver.Chrome, size: tuple[int, int]) -> None:
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def find(browser: webdriver.Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def column(browser: webdriver.Chrome, table: str, place: int) -> list[str]:
    """The first lines of a column's cells, without those that are filtered out."""
    script = """
        return [...document.querySelector(arguments[0]).tBodies[0].rows].filter((row) => !row.hidden)
            .map((row) => row.cells[arguments[1]].textContent.trim().split(/\\s/)[0]);
    """
    found: list[str] = browser.execute_script(script, table, place)
    return found


def press(element: WebElement) -> None:
    """As one does without a mouse."""
    element.send_keys(Keys.ENTER)


def test_nothing_is_reported_on_the_console_and_no_name_is_run(browser: webdriver.Chrome) -> None:
    assert browser.get_log("browser") == []
    assert "read" not in browser.title
    assert "cells at paper scale" in browser.title
    assert HOSTILE in find(browser, "#run-list").get_attribute("textContent")
    requested: list[Any] = browser.execute_script(
        "return performance.getEntriesByType('resource').map((one) => one.name)"
    )
    assert [name for name in requested if not name.startswith("data:")] == []


@pytest.mark.parametrize("size", [PHONE, DESKTOP, (1400, 900)])
def test_the_page_never_scrolls_sideways(browser: webdriver.Chrome, size: tuple[int, int]) -> None:
    resize(browser, size)
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true;")
    press(find(browser, "#run-list button.draw"))
    assert browser.execute_script("return document.documentElement.scrollWidth") == size[0]
    wide = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter((one) => !one.closest('.scroll, nav, .skip') &&"
        " one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML.slice(0, 80))"
    )
    assert wide == []


def test_a_wide_table_scrolls_in_its_own_box_under_a_first_column_that_stays(browser: webdriver.Chrome) -> None:
    resize(browser, PHONE)
    script = """
        const box = document.querySelector('#table-ii .scroll'), name = box.querySelector('tbody th');
        const before = name.getBoundingClientRect().left, value = box.querySelector('tbody td');
        const moving = value.getBoundingClientRect().left;
        box.scrollLeft = 200;
        return [box.scrollWidth > box.clientWidth, name.getBoundingClientRect().left - before,
                value.getBoundingClientRect().left - moving];
    """
    assert browser.execute_script(script) == [True, 0, -200]


def test_a_table_is_sorted_by_its_measured_numbers_with_the_teachers_on_top(browser: webdriver.Chrome) -> None:
    table = "#table-ii table.results"
    before = column(browser, table, 0)
    heading = find(browser, f"{table} thead th:nth-child(2)")
    button = find(browser, f"{table} thead th:nth-child(2) button")
    assert heading.get_attribute("aria-sort") == "none"
    press(button)
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(browser, table, 0)[0] == "Teacher"
    measured = [float(text) for text in column(browser, table, 1)[1:] if text[0].isdigit()]
    assert len(measured) == 3
    assert measured == sorted(measured, reverse=True)
    assert [text[0].isdigit() for text in column(browser, table, 1)[1:]].index(False) == 3  # what is not run comes last
    press(button)
    assert heading.get_attribute("aria-sort") == "ascending"
    measured = [float(text) for text in column(browser, table, 1)[1:4]]
    assert measured == sorted(measured)
    press(button)
    assert heading.get_attribute("aria-sort") == "none"
    assert column(browser, table, 0) == before


def test_words_are_sorted_as_words_and_one_column_at_a_time(browser: webdriver.Chrome) -> None:
    press(find(browser, "#run-list thead th:nth-child(9) button"))
    press(find(browser, "#run-list thead th:nth-child(1) button"))
    names = column(browser, "#run-list", 0)
    assert names == sorted(names, key=str.casefold)
    sorted_by = browser.execute_script(
        "return [...document.querySelectorAll('#run-list th[aria-sort]')].map((one) => one.ariaSort)"
    )
    assert [state for state in sorted_by if state != "none"] == ["ascending"]


def test_a_filter_keeps_the_rows_that_hold_every_word(browser: webdriver.Chrome) -> None:
    box = find(browser, "#runs .controls input")
    rows = len(column(browser, "#run-list", 0))
    box.send_keys("resnet56 RESNET20 finished")
    kept = column(browser, "#run-list", 0)
    assert kept == ["KD"] * 3
    assert find(browser, "#runs .controls span").text == f"3 of {rows} rows"
    box.clear()
    box.send_keys(Keys.SPACE)
    assert len(column(browser, "#run-list", 0)) == rows


def test_curves_appear_where_a_run_is_pressed_and_go_where_it_is_pressed_again(browser: webdriver.Chrome) -> None:
    panel = find(browser, "#curve-panel")
    first, second, *_ = browser.find_elements(By.CSS_SELECTOR, "#run-list button.draw")
    assert not panel.is_displayed()
    for button in (first, second):
        press(button)
        assert button.get_attribute("aria-pressed") == "true"
    assert panel.is_displayed()
    assert len(panel.find_elements(By.CSS_SELECTOR, "svg.chart")) == 2
    paths = panel.find_elements(By.CSS_SELECTOR, "svg.chart path")
    assert len(paths) == 4
    drawn = json.loads(find(browser, "#curves").get_attribute("textContent"))
    points = [path.get_attribute("d").count("L") + 1 for path in paths]
    assert set(points) <= {len(curve["l"]) for curve in drawn.values()}
    assert len(panel.find_elements(By.CSS_SELECTOR, ".legend li")) == 2
    press(first)
    assert len(panel.find_elements(By.CSS_SELECTOR, "svg.chart path")) == 2
    press(find(browser, ".panel-head button"))
    assert not panel.is_displayed()
    assert second.get_attribute("aria-pressed") == "false"


def test_a_measured_number_draws_the_curves_of_its_seeds(browser: webdriver.Chrome) -> None:
    press(find(browser, "#table-ii tbody tr:nth-child(2) td button.draw"))
    names = [entry.text for entry in browser.find_elements(By.CSS_SELECTOR, "#curve-panel .legend li")]
    assert names == [f"Baseline, WRN-16-2, paper, seed {seed}" for seed in range(3)]
    pressed = browser.find_elements(By.CSS_SELECTOR, "#run-list button[aria-pressed=true]")
    assert len(pressed) == 3
    find(browser, "body").send_keys(Keys.ESCAPE)
    assert not find(browser, "#curve-panel").is_displayed()


def test_the_address_and_the_citation_of_a_cell_are_copied_with_one_press(browser: webdriver.Chrome) -> None:
    # What the page would give to the clipboard, which a browser without a screen may not have.
    browser.execute_script(
        "window.copied = [];"
        "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (text) => copied.push(text)}})"
    )
    cell = browser.find_element(By.ID, "table-ii/lsskd/wrn-16-2")
    browser.execute_script("arguments[0].focus()", cell.find_element(By.CSS_SELECTOR, "button.draw"))
    for button in cell.find_elements(By.CSS_SELECTOR, ".tools button"):
        press(button)
    press(browser.find_element(By.ID, "claim/ps-kd-average").find_elements(By.CSS_SELECTOR, ".tools button")[1])
    link, entry, claim = browser.execute_script("return copied")
    assert link.endswith("index.html#table-ii/lsskd/wrn-16-2")
    assert entry.startswith("@misc{kd-benchmark:table-ii-lsskd-wrn-16-2,")
    assert "LSSKD, WRN-40-2$\\to$WRN-16-2: " in entry
    records = cell.get_attribute("data-runs").split()
    assert len(records) == 3
    assert f"Records {', '.join(records)}: version 0.1.0, commit 0123456789ab." in entry
    assert "Claim ps-kd-average: contradicts itself by tables" in claim
    assert "No run of this suite is behind it." in claim
    assert find(browser, "#said").text == "Citation copied"


def test_a_link_into_what_is_folded_opens_it(browser: webdriver.Chrome, page: Path) -> None:
    browser.get("about:blank")
    browser.get(page.as_uri() + "#table-iii")
    assert find(browser, "#table-iii table").is_displayed()


def test_the_page_prints_with_everything_opened(browser: webdriver.Chrome) -> None:
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") > 5
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.find_elements(By.CSS_SELECTOR, "details:not([open])") == []
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.find_elements(By.CSS_SELECTOR, "details:not([open])") != []


def test_text_and_ground_differ_enough_in_light_and_in_dark(browser: webdriver.Chrome) -> None:
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        colours = browser.execute_script(
            "const style = getComputedStyle(document.documentElement);"
            "return Object.fromEntries(['ground', 'raised', 'ink', 'quiet', 'accent', 'good', 'bad', 'warn',"
            " 'warn-ground'].map((name) => [name, style.getPropertyValue('--' + name).trim()]))"
        )
        for name in ("ink", "quiet", "accent", "good", "bad", "warn"):
            for ground in ("ground", "raised"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (scheme, name, ground)
        assert contrast(colours["warn"], colours["warn-ground"]) >= 4.5


def contrast(first: str, second: str) -> float:
    """The contrast of two colours such as `#1d1d1b` (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
