"""What the report writes for programs: its JSON follows the schema beside it and says what the page says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from benchmark.plugins.registry import all_methods
from benchmark.report.api import FILES, FOLDER, write_api
from benchmark.report.data import Report, collect_report
from benchmark.report.figures import audit_report
from tests.report_records import failed, fill, request

PAIR = "WRN-40-2>WRN-16-2"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    root = tmp_path_factory.mktemp("runs")
    fill(root, methods=("Baseline", "KD", "LSSKD"), pairs=(PAIR,), epochs=2)
    failed(root, request().run("CC", "WRN-16-2", "WRN-40-2", 0))
    return collect_report(root)


@pytest.fixture(scope="module")
def content(report: Report, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("api")
    paths = write_api(report, audit_report(report, []), folder)
    assert len(paths) == 2 * len(FILES)
    read = {name: json.loads((folder / FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in FILES}
    return folder / FOLDER, read


@pytest.mark.parametrize("name", FILES)
def test_each_file_follows_the_schema_that_it_names(name: str, content: tuple[Path, dict[str, Any]]) -> None:
    folder, files = content
    schema = json.loads((folder / files[name]["$schema"]).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(files[name], schema)
    damaged = {**files[name], name: [{"address": 1}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(damaged, schema)


def test_a_cell_has_its_values_its_records_and_how_far_it_is_from_the_printed_number(
    report: Report, content: tuple[Path, dict[str, Any]]
) -> None:
    cells = {cell["address"]: cell for cell in content[1]["cells"]["cells"]}
    assert len(cells) == len(content[1]["cells"]["cells"])
    cell = cells["table-ii/lsskd/wrn-16-2"]
    assert cell["seeds"] == [0, 1, 2]
    assert cell["mean"] == pytest.approx(sum(cell["values"]) / 3)
    assert set(cell["runs"]) <= {record["id"] for record in report.records}
    (printed,) = (found for found in cell["references"] if found["tier"] == "printed")
    assert printed["mean"] == 76.89
    assert printed["difference"] == pytest.approx(cell["mean"] - 76.89, abs=0.005)
    assert all(run.rpartition("-")[2] in cell["citation"] for run in cell["runs"])
    assert cells["table-ii/cc/wrn-16-2"]["status"] == "failed"
    assert cells["table-ii/crd/wrn-16-2"]["mean"] is None


def test_claims_and_methods_are_complete_and_lead_to_cells(content: tuple[Path, dict[str, Any]]) -> None:
    _, files = content
    cells = {cell["address"] for cell in files["cells"]["cells"]}
    methods = {method["name"]: method for method in files["methods"]["methods"]}
    assert set(methods) == set(all_methods())
    assert len({method["address"] for method in methods.values()}) == len(methods)
    assert "table-ii/lsskd/wrn-16-2" in methods["LSSKD"]["cells"]
    assert all(set(method["cells"]) <= cells for method in methods.values())
    claims = {claim["address"]: claim for claim in files["claims"]["claims"]}
    assert claims["claim/ps-kd-average"]["verdict_on_text"] == "contradicts itself"
    assert {table["address"] for table in files["tables"]["tables"]} >= {"table-ii", "table-iii"}
