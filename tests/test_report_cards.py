"""The cards of methods and networks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmark.plugins.registry import all_methods
from benchmark.report.cards import Card, make_method_cards, make_network_cards
from benchmark.report.data import Report, collect_report
from tests.report_records import fill


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    root = tmp_path_factory.mktemp("cards")
    runs = fill(root, methods=("Baseline", "KD"), pairs=("WRN-40-2>WRN-16-2",), epochs=2)
    for run in runs:
        if run.method == "KD" and run.seed == 0:
            (root / run.dataset / run.id / "student.safetensors").write_bytes(b"kept")
    return collect_report(root)


def by_name(cards: list[Card]) -> dict[str, Card]:
    assert len({card.address for card in cards}) == len(cards)
    return {card.name: card for card in cards}


def test_every_method_has_a_card_with_its_equation_its_cost_and_its_numbers(report: Report) -> None:
    cards = by_name(make_method_cards(report.tables, report.weights))
    assert set(cards) == set(all_methods())
    kd = cards["KD"]
    assert kd.facts.startswith("2.03\N{MULTIPLICATION SIGN}")
    assert "temperature" in kd.body
    # Of Table II, and of the challengers, which share the runs.
    assert kd.measured == 2
    assert {line.address for line in kd.lines if line.entry.summary} == {
        "table-ii/kd/wrn-16-2",
        "table-challengers/kd/wrn-16-2",
    }
    ((run, path),) = kd.weights
    assert re.fullmatch(rf"cifar100/{re.escape(run)}/student\.safetensors", path)
    assert 'href="#' not in kd.body, "links of the page of methods lead nowhere here"


def test_a_network_has_a_card_with_its_size_and_what_it_reaches_alone_and_as_a_teacher(report: Report) -> None:
    cards = by_name(make_network_cards(report.tables, report.weights))
    assert cards["WRN-16-2"].facts.startswith("703.28 k parameters for 100 classes, ")
    assert "table-ii/baseline/wrn-16-2" in {line.address for line in cards["WRN-16-2"].lines}
    assert "table-ii/teacher/wrn-16-2" in {line.address for line in cards["WRN-40-2"].lines}
    assert "esidual" in cards["ResNet20"].body


def test_there_are_cards_without_a_run(tmp_path: Path) -> None:
    cards = make_method_cards(collect_report(tmp_path, tables=("II",)).tables, {})
    assert not any(card.measured for card in cards)
    assert any(card.lines for card in cards), "printed numbers stand there"
