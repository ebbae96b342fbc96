"""Every option of every method is refused outside its range, with the range, before anything is built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmark.backbones import network_names
from benchmark.core.errors import UserError
from benchmark.core.protocols import PROTOCOLS
from benchmark.planning.request import describe_run
from benchmark.plugins.registry import all_methods, resolve_options
from benchmark.training.learner import build_method
from tests import engine
from tests.commands import run_here
from tests.new_methods import NewMethods, new_methods

__all__ = ["new_methods"]

BEYOND = {
    "minimum": lambda bound: bound - 1,
    "exclusiveMinimum": lambda bound: bound,
    "maximum": lambda bound: bound + 1,
    "exclusiveMaximum": lambda bound: bound,
}
SAID = {
    "minimum": "greater than or equal to",
    "exclusiveMinimum": "greater than",
    "maximum": "less than or equal to",
    "exclusiveMaximum": "less than",
}


def refused_values() -> Iterator[tuple[str, str, Any, str]]:
    """Method, option, a value outside its range, and what must be said of the range."""
    for name, method in all_methods().items():
        for option, whole in method.Options.model_json_schema().get("properties", {}).items():
            schemas = [schema for schema in whole.get("anyOf", [whole]) if schema.get("type") != "null"]
            for schema in schemas:
                for limit, beyond in BEYOND.items():
                    if limit in schema:
                        yield name, option, beyond(schema[limit]), f"{SAID[limit]} {schema[limit]:g}"
                if "enum" in schema:
                    yield name, option, "no such choice", f"'{schema['enum'][0]}'"


@pytest.mark.parametrize(("method", "option", "value", "said"), list(refused_values()))
def test_a_value_outside_its_range_is_refused_with_the_range(method: str, option: str, value: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_options(all_methods()[method], PROTOCOLS["lsskd"], None, {option: value})
    message = str(caught.value)
    assert message.startswith(f"{method}: {option} = {value!r} is refused: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("name", [name for name, method in all_methods().items() if method.Options.model_fields])
def test_every_number_among_the_options_has_a_range_and_every_option_says_what_it_is(name: str) -> None:
    method = all_methods()[name]
    for option, whole in method.Options.model_json_schema()["properties"].items():
        assert whole.get("description"), option
        numbers = [schema for schema in whole.get("anyOf", [whole]) if schema.get("type") in ("number", "integer")]
        assert all(BEYOND.keys() & schema.keys() for schema in numbers), option


@pytest.mark.parametrize("name", all_methods())
def test_an_unknown_option_is_refused_with_those_that_there_are(name: str) -> None:
    method = all_methods()[name]
    with pytest.raises(UserError, match=rf"^unknown option of {re.escape(name)} 'wieght'") as caught:
        resolve_options(method, PROTOCOLS["lsskd"], None, {"wieght": 1})
    assert all(option in str(caught.value) for option in method.Options.model_fields)


def test_defaults_for_a_network_are_options_of_the_method_and_networks_of_the_suite() -> None:
    for method in all_methods().values():
        for network, options in method.network_options.items():
            assert network in network_names()
            resolved = resolve_options(method, PROTOCOLS["lsskd"], network).model_dump()
            assert options.items() <= resolved.items()


def test_settings_for_a_pair_are_options_of_the_method_and_networks_of_the_suite() -> None:
    for method in all_methods().values():
        for (teacher, student), options in method.pair_options.items():
            assert {teacher, student} <= set(network_names())
            resolved = resolve_options(method, PROTOCOLS["lsskd"], student, teacher=teacher).model_dump()
            assert options.items() <= resolved.items()
            assert options.items() - method.Options().model_dump().items(), "the defaults say as much"


PAIRED = (
    "    needs_teacher = True",
    "    needs_teacher = True\n"
    "    network_options = {'ResNet8': {'share': 0.1}}\n"
    "    pair_options = {('ResNet20', 'ResNet8'): {'share': 0.2}}",
)


def test_a_pairs_settings_come_after_the_networks_and_before_the_protocols_and_the_users(
    new_methods: NewMethods,
) -> None:
    method = new_methods(PAIRED)
    protocol = PROTOCOLS["lsskd"].replace(method_options={"Follow": {"share": 0.3}})

    def share(*given: Any, teacher: str) -> float:
        return float(resolve_options(method, *given, teacher=teacher).model_dump()["share"])

    assert share(PROTOCOLS["lsskd"], "ResNet14", teacher="ResNet20") == 0.5
    assert share(PROTOCOLS["lsskd"], "ResNet8", teacher="ResNet14") == 0.1
    assert share(PROTOCOLS["lsskd"], "ResNet8", teacher="ResNet20") == 0.2
    assert share(protocol, "ResNet8", teacher="ResNet20") == 0.3
    assert share(protocol, "ResNet8", {"share": 0.4}, teacher="ResNet20") == 0.4


def test_a_run_holds_the_settings_of_its_pair_and_trains_with_them(new_methods: NewMethods) -> None:
    new_methods(PAIRED)
    run = engine.run_of("Follow")
    assert run.options == {"share": 0.2}
    assert run.id == engine.run_of("Follow", options={"Follow": {"share": 0.2}}).id
    assert describe_run(run) == "Follow (10% of the images)"
    assert build_method(run, 10, 8, torch.arange(10), fill=False).weights == {"ce": 1.0, "logits": 0.2}
    other = engine.run_of("Follow", options={"Follow": {"share": 0.5}})
    assert describe_run(other) == "Follow (10% of the images, share=0.5)"


def test_the_settings_of_pairs_are_listed_in_one_line(new_methods: NewMethods) -> None:
    new_methods(PAIRED)
    said = run_here("--list", "Follow", folder=new_methods.folder).stdout.splitlines()
    assert [line.strip(" •") for line in said if "ResNet20>" in line] == ["for pairs: share = 0.2 (ResNet20>ResNet8)"]


def test_the_users_option_comes_before_the_protocols_the_networks_and_the_methods() -> None:
    method = all_methods()["TF-KD-reg"]
    assert resolve_options(method, PROTOCOLS["lsskd"], "MobileNetV2-TFKD").model_dump()["alpha"] == 0.95
    assert resolve_options(method, PROTOCOLS["lsskd"], "ResNet101").model_dump()["alpha"] == 0.1
    chosen = resolve_options(method, PROTOCOLS["lsskd"], "MobileNetV2-TFKD", {"alpha": 0.5}).model_dump()
    assert chosen["alpha"] == 0.5
    smoothing = all_methods()["LS"]
    assert resolve_options(smoothing, PROTOCOLS["tfkd"]).model_dump()["smoothed"] == "others"
    assert resolve_options(smoothing, PROTOCOLS["tfkd"], None, {"smoothed": "all"}).model_dump()["smoothed"] == "all"
