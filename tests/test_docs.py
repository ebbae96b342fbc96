"""The documents say what is so: links resolve, and values and names are those of the code."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import pytest
import torch

import benchmark
from benchmark.backbones.network import Outputs
from benchmark.method import Method, Step
from benchmark.protocols import PROTOCOLS, SCALES
from benchmark.registry import all_methods

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")})
LEDGER = (ROOT / "docs" / "ledger.md").read_text(encoding="utf-8")
PROTOCOLS_PAGE = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")


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


def broken_links(document: Path, root: Path) -> list[str]:
    """The relative links of a document that lead nowhere, or out of the repository."""
    text = prose(document.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r"^\[[^\]]+\]: +(\S+)", text, flags=re.MULTILINE)
    broken = []
    for target in targets:
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        inside = file.exists() and file.is_relative_to(root)
        known = anchors(file.read_text(encoding="utf-8")) if inside and file.suffix == ".md" else set()
        if not inside or (anchor and anchor not in known):
            broken.append(target)
    return broken


def table_after(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, its header row first."""
    section = text.split(f"\n{heading}\n", 1)[1]
    rows = re.search(r"(^\|.*\|\n)+", section, flags=re.MULTILINE)
    assert rows, f"no table under {heading!r}"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows.group().splitlines()]
    return [cells[0], *cells[2:]]


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_document_names_an_absolute_path(document: Path) -> None:
    paths = re.findall(r"(?<![\w./:)\]}>~$-])/[A-Za-z_][\w.-]*|\b[A-Z]:\\\w*", document.read_text(encoding="utf-8"))
    assert paths == []


def test_the_ledger_has_one_row_for_each_open_choice() -> None:
    ids = [row[0] for row in table_after(LEDGER, "## Open choices")[1:]]
    assert ids == [f"R{number}" for number in range(1, 26)]


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
    header, *rows = table_after(PROTOCOLS_PAGE, "What that makes of the schedules, as epochs (milestones):")
    assert [cell.strip("`") for cell in header[1:]] == list(SCALES)
    schedules = {name: protocol.schedule for name, protocol in PROTOCOLS.items()}
    for protocol in PROTOCOLS.values():
        schedules |= protocol.method_schedules
    assert {row[0] for row in rows} == set(schedules)
    for name, *cells in rows:
        for cell, scale in zip(cells, SCALES.values(), strict=True):
            schedule = schedules[name].scaled(scale.factor)
            assert cell == f"{schedule.epochs} ({', '.join(map(str, schedule.milestones))})", f"{name} at {scale.name}"


def test_the_protocols_page_states_the_default_weights_of_every_method() -> None:
    _, *rows = table_after(PROTOCOLS_PAGE, "## Weights of the methods")
    assert {row[0] for row in rows} == {name for name, method in all_methods().items() if method.listed}
    for name, cell, *_ in rows:
        fields = all_methods()[name].Options.model_fields
        stated = dict(re.findall(r"`(\w+)` ([\d.]+)", cell))
        assert {option: float(value) for option, value in stated.items()} == {
            option: fields[option].default for option in stated
        }, name
        assert {option for option in fields if option.endswith("_weight")} <= set(stated), name


def test_the_protocols_page_names_the_methods_that_the_protocol_crd_runs_without_kd() -> None:
    section = PROTOCOLS_PAGE.split("### crd", 1)[1].split("###", 1)[0]
    (names,) = re.findall(r"`kd_weight` is 0 for ([^.]+)\.", section)
    overrides = PROTOCOLS["crd"].method_options
    assert re.split(r", | and ", " ".join(names.split())) == list(overrides)
    assert all(options == {"kd_weight": 0.0} for options in overrides.values())


def test_the_example_method_of_the_guide_computes_its_loss() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", guide, flags=re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(code, namespace)
    example = namespace["ConfidencePenalty"]
    method: Method = example(None, example.Options(penalty_weight=0.5))
    logits = torch.zeros(2, 4, requires_grad=True)
    outputs = Outputs(logits, torch.zeros(2, 3), torch.zeros(2, 3, 1, 1), ())

    def absent(_: str) -> Any:
        raise AssertionError("the example needs the student alone")

    labels = torch.tensor([0, 3])
    others: dict[str, Any] = {field.name: absent for field in dataclasses.fields(Step)}
    known: dict[str, Any] = {
        "labels": labels,
        "index": torch.arange(2),
        "epoch": 0,
        "epochs": 1,
        "student": lambda view: outputs,
    }
    step = Step(**{**others, **known})
    loss, terms = method.loss(step)
    assert terms.keys() == {"ce", "penalty"}
    # Equal logits: cross entropy is log 4, and so is the entropy, which counts half and negatively.
    torch.testing.assert_close(loss, 0.5 * torch.tensor(4.0).log())


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
