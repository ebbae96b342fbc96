"""Every option of every method is refused outside its range, with the range, before anything is built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from benchmark.backbones import network_names
from benchmark.core.errors import UserError
from benchmark.core.protocols import PROTOCOLS
from benchmark.plugins.registry import all_methods, resolve_options

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


def test_the_users_option_comes_before_the_protocols_the_networks_and_the_methods() -> None:
    method = all_methods()["TF-KD-reg"]
    assert resolve_options(method, PROTOCOLS["lsskd"], "MobileNetV2-TFKD").model_dump()["alpha"] == 0.95
    assert resolve_options(method, PROTOCOLS["lsskd"], "ResNet101").model_dump()["alpha"] == 0.1
    chosen = resolve_options(method, PROTOCOLS["lsskd"], "MobileNetV2-TFKD", {"alpha": 0.5}).model_dump()
    assert chosen["alpha"] == 0.5
    smoothing = all_methods()["LS"]
    assert resolve_options(smoothing, PROTOCOLS["tfkd"]).model_dump()["smoothed"] == "others"
    assert resolve_options(smoothing, PROTOCOLS["tfkd"], None, {"smoothed": "all"}).model_dump()["smoothed"] == "all"
