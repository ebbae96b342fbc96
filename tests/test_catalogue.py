"""What the suite says of its methods is what they are."""

from __future__ import annotations

import dataclasses
import functools
import io
import json

import pytest
from rich.console import Console

from benchmark.catalogue import PAGE, entries, golden_cases, list_methods, to_markdown
from benchmark.core.protocols import PROTOCOLS
from benchmark.planning import facts
from benchmark.planning.cost import training_multiply_adds
from benchmark.planning.facts import FACTS, IMAGE_SIZE, make_reference_run
from benchmark.plugins.registry import all_methods, method_class, method_names
from tests.commands import run_here

facts_of = functools.cache(facts.probe_method)


@pytest.mark.parametrize("name", all_methods())
def test_what_is_said_of_a_method_is_what_a_step_of_it_shows(name: str) -> None:
    stored = json.loads(FACTS.read_text(encoding="utf-8"))
    assert stored[name] == json.loads(json.dumps(dataclasses.asdict(facts_of(name))))


def test_the_page_of_methods_is_the_one_that_the_catalogue_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == to_markdown(entries())
    assert [entry.method.name for entry in entries() if entry.method.listed] == method_names()


def test_a_method_that_names_golden_cases_has_them() -> None:
    for name, method in all_methods().items():
        assert bool(golden_cases(method.golden)) == (method.golden is not None), name


def test_what_a_step_asks_for_is_noticed() -> None:
    assert facts_of("KD").needs == ("teacher (logits)",)
    assert facts_of("FitNet").needs == ("teacher (logits, maps)", "the student's maps")
    assert facts_of("CS-KD").needs == ("images of the same class",)
    assert facts_of("LS").multiply_adds == facts_of("Baseline").multiply_adds
    assert facts_of("LSSKD").extra_parameters > facts_of("LSSKD-1-branch").extra_parameters > 0


@pytest.mark.parametrize("name", [name for name, method in all_methods().items() if method.in_default_grid])
def test_the_cost_that_plans_reckon_with_is_the_one_counted_in_a_step(name: str) -> None:
    """Two counts that know nothing of each other: layers times passes, and the operations of a real step."""
    counted = json.loads(FACTS.read_text(encoding="utf-8"))[name]["multiply_adds"]
    run = make_reference_run(method_class(name), PROTOCOLS["lsskd"])
    # SemCKD's projections depend on the pair; its passes are a mean over Table II's.
    assert 0.9 * counted < training_multiply_adds(run, IMAGE_SIZE) < (1.4 if name == "SemCKD" else 1.02) * counted


def test_the_list_has_a_line_a_method_and_fits_into_a_narrow_terminal() -> None:
    lines = run_here("--list").stdout.splitlines()
    for name in method_names():
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert line.split()[-1] == next(entry.cost for entry in entries() if entry.method.name == name)
    assert len(lines) < len(method_names()) + 20
    screen = io.StringIO()
    Console(width=80, file=screen).print(list_methods())
    assert len(screen.getvalue().splitlines()) < len(method_names()) + 5


def test_one_method_is_described_with_all_of_its_options() -> None:
    said = " ".join(run_here("--list", "LSSKD").stdout.split())
    assert all(option in said for option in method_class("LSSKD").Options.model_fields)
    ended = run_here("--list", "LSKD")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: unknown method 'LSKD' (did you mean 'LSSKD'?); allowed: AB, ")
