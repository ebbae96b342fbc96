"""Names of methods and networks. Methods are found by looking: every file in `methods/` may hold some."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

import methods
from benchmark.errors import invalid_value, unknown_name
from benchmark.method import Method, MethodOptions
from benchmark.spec import Protocol


@functools.cache
def all_methods() -> dict[str, type[Method]]:
    """Every method by name, helpers of other methods (`listed` False) included."""
    found: dict[str, type[Method]] = {}
    for module_info in pkgutil.iter_modules(methods.__path__, "methods."):
        module = importlib.import_module(module_info.name)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__:
                if value.name in found:
                    raise ValueError(f"{module.__name__}: the name {value.name!r} is taken")
                found[value.name] = value
    return dict(sorted(found.items()))


def method_names() -> list[str]:
    """The names a user may ask for as rows."""
    return [name for name, method in all_methods().items() if method.listed]


def method_class(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        UserError: there is none.
    """
    if name not in all_methods():
        raise unknown_name("method", name, method_names())
    return all_methods()[name]


def resolve_options(
    method: type[Method], protocol: Protocol, student: str | None = None, overrides: Mapping[str, Any] | None = None
) -> MethodOptions:
    """A method's options: its defaults, then those for the student's network, then the protocol's, then the user's.

    Raises:
        UserError: an option is unknown or its value is out of range.
    """
    chosen = {
        **method.network_options.get(student or "", {}),
        **protocol.method_options.get(method.name, {}),
        **(overrides or {}),
    }
    try:
        return method.Options(**chosen)
    except ValidationError as error:
        raise invalid_value(method.name, error, method.Options.model_fields) from None
