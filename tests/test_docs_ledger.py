"""What the ledger, the page on protocols and the citation file say is so."""

from __future__ import annotations

import importlib.util
import re
from fractions import Fraction
from types import NoneType
from typing import Any, get_args

import benchmark
from benchmark.core.protocols import PROTOCOLS, SCALES
from benchmark.core.spec import Scale
from benchmark.plugins.registry import all_methods
from tests.documents import ROOT, table_after

LEDGER = (ROOT / "docs" / "ledger.md").read_text(encoding="utf-8")
PROTOCOLS_PAGE = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")


def test_the_ledger_has_one_row_for_each_open_choice() -> None:
    ids = [row[0] for row in table_after(LEDGER, "## Open choices")[1:]]
    assert ids == [f"R{number}" for number in range(1, 39)]


def named_options() -> list[tuple[str, str, list[str]]]:
    """Method, option and the values listed for it, for every option named in the ledger."""
    found = re.findall(r"`(\w[\w*-]*)\.([a-z_]+)`((?: = )?(?:(?:, )?`[a-z_0-9]+`)*)", LEDGER)
    return [(name, option, re.findall(r"`(\w+)`", values)) for name, option, values in found if name in all_methods()]


def allowed_values(annotation: Any) -> set[str]:
    """What a closed option may be; empty where it is open (a number)."""
    if annotation is bool:
        return {"true", "false"}
    return {str(value) for value in get_args(annotation) if not isinstance(value, type | NoneType)}


def test_the_ledger_names_options_that_exist_with_all_their_values_and_the_default_first() -> None:
    assert {"LSSKD", "CRD", "FitNet"} <= {method for method, _, _ in named_options()}
    for method, option, values in named_options():
        field = all_methods()[method].Options.model_fields[option]
        assert set(values) == allowed_values(field.annotation), f"{method}.{option}"
        if values:
            assert values[0] == str(field.default).lower(), f"{method}.{option}"


def test_the_ledger_names_every_option_of_lsskd() -> None:
    named = {option for method, option, _ in named_options() if method == "LSSKD"}
    assert named == set(all_methods()["LSSKD"].Options.model_fields)


def test_the_ledger_names_protocol_fields_that_exist() -> None:
    fields = re.findall(r"protocol fields? ((?:(?:, )?`\w+`)+)", LEDGER)
    names = re.findall(r"`(\w+)`", " ".join(fields))
    assert {"weight_decay", "nesterov", "mobile_learning_rate", "rotated_crop"} == set(names)
    assert set(names) <= set(type(PROTOCOLS["lsskd"]).model_fields)


def test_the_protocols_page_states_the_values_of_the_code() -> None:
    header, *rows = table_after(PROTOCOLS_PAGE, "## Values")
    assert header == ["field", *PROTOCOLS]
    stated = {row[0].strip("`"): dict(zip(PROTOCOLS, row[1:], strict=True)) for row in rows}
    covered = {"name", "schedule", "method_schedules", "method_options"}
    assert set(stated) == {"epochs", "milestones", *type(PROTOCOLS["lsskd"]).model_fields} - covered
    for name, protocol in PROTOCOLS.items():
        for field, cells in stated.items():
            value = getattr(protocol.schedule if field in ("epochs", "milestones") else protocol, field)
            if value is None:
                expected = "same" if field == "mobile_learning_rate" else "dataset's"
            elif field in ("mean", "std"):
                expected = ", ".join(f"{part:.4f}" for part in value)
            elif isinstance(value, tuple):
                expected = ", ".join(str(part) for part in value)
            else:
                expected = str(value).replace("True", "yes").replace("False", "no")
            assert cells[name] == expected, f"{field} of {name}"


def test_the_protocols_page_states_what_each_scale_makes_of_each_schedule() -> None:
    header, *rows = table_after(PROTOCOLS_PAGE, "The schedules at each scale, as epochs (milestones):")
    assert [cell.strip("`") for cell in header[1:]] == list(SCALES)
    schedules = {name: protocol.schedule for name, protocol in PROTOCOLS.items()}
    usual = PROTOCOLS["lsskd"].method_schedules
    for name, protocol in PROTOCOLS.items():
        for stage, schedule in protocol.method_schedules.items():
            schedules[stage if schedule == usual[stage] else f"{stage} ({name})"] = schedule
    assert {row[0] for row in rows} == set(schedules)
    for name, *cells in rows:
        for cell, scale in zip(cells, SCALES.values(), strict=True):
            schedule = schedules[name].scaled(scale.factor)
            assert cell == f"{schedule.epochs} ({', '.join(map(str, schedule.milestones))})", f"{name} at {scale.name}"


def test_the_protocols_page_states_the_values_of_each_scale() -> None:
    header, *rows = table_after(PROTOCOLS_PAGE, "## Scales")
    fields = [cell.strip("`") for cell in header[1:-1]]
    assert set(fields) == set(Scale.model_fields) - {"name"}
    assert [row[0].strip("`") for row in rows] == list(SCALES)
    for name, *cells, _ in rows:
        scale = SCALES[name.strip("`")]
        for field, cell in zip(fields, cells, strict=True):
            assert float(Fraction(cell)) == getattr(scale, field), f"{field} of {scale.name}"


def test_the_protocols_page_names_the_methods_that_the_protocol_crd_runs_without_kd() -> None:
    section = PROTOCOLS_PAGE.split("### crd", 1)[1].split("###", 1)[0]
    (names,) = re.findall(r"`kd_weight` is 0 for ([^.]+)\.", section)
    overrides = PROTOCOLS["crd"].method_options
    assert re.split(r", | and ", " ".join(names.split())) == list(overrides)
    assert all(options == {"kd_weight": 0.0} for options in overrides.values())


def test_the_citation_file_has_its_required_fields() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert "\t" not in text
    top = dict(re.findall(r"^([a-z-]+):[ ]?(.*)$", text, flags=re.MULTILINE))
    assert {"cff-version", "message", "title", "authors", "version", "references"} <= set(top)
    assert top["cff-version"] == "1.2.0"
    assert top["version"] == benchmark.__version__
    references = re.split(r"^  - type: ", text.split("\nreferences:\n", 1)[1], flags=re.MULTILINE)[1:]
    assert len(references) >= 12
    for reference in references:
        assert re.search(r'^    title: "[^"]+"$', reference, flags=re.MULTILINE), reference
        assert re.search(r"^    year: \d{4}$", reference, flags=re.MULTILINE), reference
        authors = reference.split("    authors:\n", 1)[1].rstrip("\n").splitlines()
        person = re.compile(r"      - \{given-names: [^,{}]+, family-names: [^,{}]+\}")
        assert authors, reference
        assert all(person.fullmatch(author) for author in authors), reference
    if importlib.util.find_spec("yaml"):
        parsed = importlib.import_module("yaml").safe_load(text)
        assert len(parsed["references"]) == len(references)
        assert all({"type", "title", "authors"} <= set(reference) for reference in parsed["references"])
