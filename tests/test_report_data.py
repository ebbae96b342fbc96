"""What a report collects: coverage, differences, prices, runs and curves, whatever state the records are in."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from benchmark.analysis.tables import empty_result
from benchmark.core.errors import UserError
from benchmark.report.coverage import make_coverage
from benchmark.report.data import Report, collect_report
from benchmark.report.metrics import list_differences
from benchmark.results.index import to_dataframe
from benchmark.results.store import Store
from tables.specification import load_table, table_names
from tests.report_records import column, failed, fill, record_of, request, write

METHODS = ("Baseline", "KD", "LSSKD")
PAIRS = ("WRN-40-2>WRN-16-2", "ResNet56>ResNet20")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """Records of three methods and two pairs at paper scale with three seeds, and the report of them."""
    root = tmp_path_factory.mktemp("filled") / "runs"
    fill(root, methods=METHODS, pairs=PAIRS, epochs=4)
    return root, collect_report(root)


def test_a_store_without_records_still_gives_every_table_with_its_printed_numbers(tmp_path: Path) -> None:
    report = collect_report(tmp_path / "none")
    assert [table.result.table.name for table in report.tables] == table_names()
    assert not any(table.measured for table in report.tables)
    second = report.tables[1].page
    assert any(found.mean == "76.89" for row in second.rows for entry in row.entries for found in entry.references)
    assert report.headline.startswith("0 of ")
    assert "Nothing was run yet" in report.sentences[0]
    assert (report.runs.rows, report.provenance.rows, report.curves, report.records) == ((), (), {}, [])


def test_rows_of_longer_schedules_are_not_run_yet_where_no_run_has_a_schedule_of_its_own() -> None:
    result = empty_result(load_table("II"))
    names = [row.name for row in result.table.rows]
    assert names[:3] == ["Baseline", "Baseline (long)", "Rotated (long)"]
    assert result.cell("Baseline (long)", PAIRS[0]).status == "not run yet"


def test_the_report_shows_what_the_records_hold(filled: tuple[Path, Report]) -> None:
    root, report = filled
    tops = {record["id"]: record["final"].get("top1") for record in Store(root).read_all()[0]}
    second = next(table for table in report.tables if table.name == "Table II")
    cell = second.result.cell("KD", PAIRS[0])
    assert cell.values == tuple(tops[run.run] for run in cell.finished)
    assert (len(cell.values), cell.status) == (3, "done")
    assert second.metrics is not None
    mean = sum(cell.values) / 3
    measured = [row for row in second.metrics.rows if (row[0].text, row[1].text) == ("KD", PAIRS[0])]
    assert measured[0][3].text.startswith(f"{mean:.2f} ± ")
    own = make_coverage(second.result, {row.name for row in load_table("II").rows}).done
    # Table challengers has the same six cells, and Table IV four.
    assert report.headline.startswith(f"{2 * own + 4} of ")


def test_runs_that_tables_share_are_counted_in_each_of_them(filled: tuple[Path, Report]) -> None:
    done = {covered.table: covered.done for covered in filled[1].covered}
    assert done.keys() == set(table_names())
    assert {"I": 0, "II": 6, "III": 0, "IV": 4, "challengers": 6}.items() <= done.items()


def test_another_scale_is_covered_apart_and_reproduces_nothing(tmp_path: Path) -> None:
    fill(tmp_path, scale="demo", dataset="digits", seeds=1, methods=METHODS, pairs=("WRN-40-2>ShuffleNetV1",), epochs=2)
    report = collect_report(tmp_path)
    scales = [(covered.scale, covered.done) for covered in report.covered if covered.table == "II"]
    assert scales == [("paper", 0), ("demo", 3)]
    assert report.headline.startswith("0 of ")
    assert any("confirms or refutes" in sentence for sentence in report.sentences)
    (limit,) = (sentence for sentence in report.sentences if sentence.startswith("Scale demo on digits: "))
    assert "They do not show which of them is better by the paper's protocol (240 epochs" in limit


def test_only_the_scale_that_is_asked_for_is_shown(tmp_path: Path) -> None:
    fill(tmp_path, scale="demo", dataset="digits", seeds=1, methods=METHODS, pairs=PAIRS[:1], epochs=2)
    assert not any(table.measured for table in collect_report(tmp_path, scale="quick").tables)
    assert any(table.measured for table in collect_report(tmp_path, scale="demo").tables)
    with pytest.raises(UserError, match="unknown scale"):
        collect_report(tmp_path, scale="dmo")


def test_a_damaged_record_is_named_and_the_rest_is_reported(tmp_path: Path) -> None:
    fill(tmp_path, methods=("Baseline", "KD"), pairs=PAIRS[:1], seeds=2, epochs=2)
    path = next(tmp_path.glob("*/KD_*/record.json"))
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")
    report = collect_report(tmp_path)
    assert len(report.damaged) == 1
    assert str(path.relative_to(tmp_path)) in report.damaged[0]
    assert "is damaged (it is no JSON)" in report.damaged[0]
    assert path.exists()
    assert len(report.records) == len(list(tmp_path.glob("*/*/record.json"))) - 1


def test_records_without_weights_are_reported_as_with_them(tmp_path: Path) -> None:
    whole, published = tmp_path / "runs", tmp_path / "results"
    for seed in range(3):
        run = request().run("LSSKD", "WRN-16-2", None, seed)
        Store(whole).begin(run)
        Store(whole).finish(run, record_of(run, 2), {"student": {"weight": torch.zeros(2)}})
    shutil.copytree(whole, published, ignore=shutil.ignore_patterns("*.safetensors"))
    assert len(list(whole.rglob("*.safetensors"))) == 3
    left, right = collect_report(whole), collect_report(published)
    assert (left.covered, left.runs, left.curves, left.damaged) == (right.covered, right.runs, right.curves, ())
    # As text, because a cell without a number holds nan, which is no equal of itself.
    assert repr(left.tables) == repr(right.tables)


def test_a_method_that_no_table_has_gets_a_row_where_it_was_run_and_its_differences(tmp_path: Path) -> None:
    before = collect_report(tmp_path).headline
    for seed_number in range(3):
        for method in ("KD", "LSSKD-no-kl"):
            write(tmp_path, request().run(method, "WRN-16-2", "WRN-40-2", seed_number), 2)
    report = collect_report(tmp_path, method="LSSKD-no-kl")
    tables = {part.result.table.name: part for part in report.tables}
    assert [row.name for row in tables["II"].result.table.rows][-1] == "LSSKD-no-kl"
    assert tables["II"].result.cell("LSSKD-no-kl", "WRN-40-2>WRN-16-2").status == "done"
    assert tables["II"].result.cell("LSSKD-no-kl", "ResNet56>ResNet20").status == "not run yet"
    assert "LSSKD-no-kl" not in [row.name for row in tables["III"].result.table.rows]
    minus = list_differences(tables["II"].result, "LSSKD-no-kl")
    assert minus is not None
    assert [row[0].text for row in minus.rows] == ["KD"]
    # A row that the table does not ask for covers none of its cells; KD's cell is one of two tables.
    assert report.headline == before.replace("0 of", "2 of")


def test_a_method_that_is_nowhere_is_no_row_to_compare_with(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^unknown row of the tables or method 'LSSDK' \(did you mean 'LSSKD'\?\)"):
        collect_report(tmp_path, method="LSSDK")


def test_a_failed_run_is_listed_with_its_reason(tmp_path: Path) -> None:
    failed(tmp_path, request().run("KD", "WRN-16-2", "WRN-40-2", 0), "loss not finite")
    report = collect_report(tmp_path)
    assert column(report.runs, "status")["KD"].text == "failed"
    assert column(report.runs, "status")["KD"].below == "loss not finite"
    assert [covered.failed for covered in report.covered if covered.table == "II"] == [1]
    assert report.curves == {}


def test_a_run_that_was_pieced_together_is_listed_with_its_pieces(tmp_path: Path) -> None:
    here = {"epoch": 1, "step": 0, "device": "cpu", "device_name": "A", "threads": 1, "torch": "2", "cuda": None}
    for method, there in (
        ("KD", {"epoch": 9, "step": 3}),
        ("CRD", {"device": "cuda", "device_name": "B"}),
        ("AT", None),
    ):
        run = request().run(method, "WRN-16-2", "WRN-40-2", 0)
        record = record_of(run, 2)
        record["provenance"]["pieces"] = [here] if there is None else [here, here | there]
        Store(tmp_path).begin(run)
        Store(tmp_path).finish(run, record, {})
    status = column(collect_report(tmp_path).runs, "status")
    assert {name: (cell.text, cell.below) for name, cell in status.items()} == {
        "KD": ("finished", "in 2 pieces"),
        "CRD": ("finished, pieces on different device, device name", "in 2 pieces"),
        "AT": ("finished", ""),
    }


def test_what_was_changed_of_a_run_stands_in_its_line(tmp_path: Path) -> None:
    changed = request(options={"LSSKD": {"alpha": 0.3}})
    write(tmp_path, changed.run("LSSKD", "WRN-16-2", None, 0), 2)
    slower = dataclasses.replace(request(), protocol=request().protocol.replace(weight_decay=1e-4))
    write(tmp_path, slower.run("Baseline", "WRN-16-2", None, 0), 2)
    runs = collect_report(tmp_path).runs
    assert "LSSKD (alpha=0.3)" in column(runs, "run")
    assert column(runs, "protocol")["Baseline"].below == "weight_decay = 0.0001"


def test_a_method_that_is_no_longer_there_is_still_listed(tmp_path: Path) -> None:
    run = request().run("Baseline", "WRN-16-2", None, 0)
    record = record_of(run, 2)
    gone = run.replace(method="Gone")
    Store(tmp_path).begin(gone)
    Store(tmp_path).finish(gone, record, {})
    assert "Gone" in column(collect_report(tmp_path).runs, "run")


def test_hosts_and_commands_are_not_reported(filled: tuple[Path, Report]) -> None:
    text = repr([filled[1].provenance, filled[1].runs])
    assert "A processor" in text
    assert "secret-host-name" not in text
    assert "python -m" not in text


def test_records_are_reported_without_hosts_unless_they_are_asked_for(filled: tuple[Path, Report]) -> None:
    root, report = filled
    assert "secret-host-name" not in to_dataframe(report.records).to_csv()
    assert "secret-host-name" in to_dataframe(collect_report(root, without_host=False).records).to_csv()


def test_curves_of_many_epochs_are_thinned_and_keep_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.report.runs.MOST_POINTS", 4)
    run = request().run("Baseline", "WRN-16-2", None, 0)
    write(tmp_path, run, 11)
    (curve,) = collect_report(tmp_path, tables=("II",)).curves.values()
    # Epochs 2, 5, 8 and 11.
    assert curve["e"] == [2, 3]
    assert curve["a"] == [round(epoch["top1"], 2) for epoch in record_of(run, 11)["epochs"][1::3]]


def test_curves_hold_no_more_than_a_drawing_shows(tmp_path: Path) -> None:
    run = request().run("Baseline", "WRN-16-2", None, 0)
    epochs = [
        {"epoch": 1, "loss": 1.23456789, "top1": 12.3456},
        {"epoch": 2, "loss": float("nan"), "top1": 50.0},
    ]
    write(tmp_path, run, 2, epochs=epochs)
    (curve,) = collect_report(tmp_path).curves.values()
    assert (curve["l"], curve["a"]) == ([1.235, None], [12.35, 50.0])
    json.dumps(curve, allow_nan=False)


def test_every_record_is_a_row_with_its_lists_as_json(filled: tuple[Path, Report]) -> None:
    frame = to_dataframe(filled[1].records)
    assert len(frame) == len(filled[1].records)
    row = frame[frame["method"] == "LSSKD"].iloc[0]
    assert len(json.loads(row["stages"])) == 3
    assert row["cost_training_multiply_adds"] > 0
    assert to_dataframe([]).empty


def exported(top1: float) -> dict[str, object]:
    """What `benchmark.export` leaves of a run without weights."""
    latency = {batch: {"median_ms": float(batch) / 4, "p10_ms": 0.2, "p90_ms": 0.9} for batch in ("1", "64")}
    kind = {"top1": top1, "top5": 90.0, "latency": latency, "bytes": 2**20}
    return {
        **{"format": 1, "weights": None, "parameters": 703284, "multiply_adds": 101_000_000, "loss": {"top1": 0.5}},
        **{"logits": {"difference": 1e-6}, "fp32": kind, "int8": kind, "threads": 1, "onnxruntime": "1.30"},
        "processor": "A processor",
    }


def test_an_exported_run_has_a_line_and_its_latency_stands_with_its_cost(tmp_path: Path) -> None:
    folder = write(tmp_path, request().run("Baseline", "WRN-16-2", None, 0), 2)
    (folder / "edge.json").write_text(json.dumps(exported(71.25)))
    report = collect_report(tmp_path)
    assert report.exported is not None
    assert column(report.exported, "fp32, ms, batch 64")["Baseline"].text == "16"
    assert column(report.exported, "int8 top-1, %")["Baseline"].text == "71.25"
    per_cell = next(table.costs for table in report.tables if table.name == "Table II")
    assert per_cell is not None
    assert column(per_cell, "int8, ms")["Baseline"].text == "0.250"


@pytest.mark.parametrize("content", ["{", '{"format": 1, "weights": null, "fp32": {}}'])
def test_a_damaged_file_of_an_export_is_named_and_costs_nothing_else(tmp_path: Path, content: str) -> None:
    folder = write(tmp_path, request().run("Baseline", "WRN-16-2", None, 0), 2)
    (folder / "edge.json").write_text(content)
    report = collect_report(tmp_path)
    assert report.exported is None
    assert len(report.records) == 1
    assert "edge.json cannot be read" in report.damaged[0]
    per_cell = next(table.costs for table in report.tables if table.name == "Table II")
    assert per_cell is not None
    assert "fp32, ms" not in [heading.name for heading in per_cell.headings]
